"""Where the page listens: this machine, or, if that is said and guarded by a password, an address that others reach.

Binds first and speaks afterwards, so that the address that is shown is the one that works.
"""

import ipaddress
import os
import socket
from collections.abc import Callable, Sequence
from contextlib import closing

from starlette.types import ASGIApp

from stllava.errors import StllavaError
from stllava.review.security import Door
from stllava.text import show

PASSWORD_LENGTH = 12
TLS = (
    "What is sent to and from other machines is not encrypted here: put a proxy with TLS in front of this address, or reach it "
    "through an SSH tunnel."
)


def password_of(address: str, variable: str, *, names: Sequence[str] = ()) -> str | None:
    """The password that an address asks for; None on this machine. An address beyond it without a good one is refused.

    So is one that means all of this machine's addresses, where none of the `names` says what browsers call it.
    """
    try:
        parsed = ipaddress.ip_address(address)
        is_here = parsed.is_loopback
    except ValueError:
        raise StllavaError(
            f"{address!r} as an address", expected="an IP address, such as 127.0.0.1", remedy="Change --address."
        ) from None
    if is_here:
        return None
    password = os.environ.get(variable, "") if variable else ""
    if len(password) < PASSWORD_LENGTH:
        found = f"the environment variable {variable} is {'empty' if not password else 'short'}" if variable else "no password"
        raise StllavaError(
            f"{address} can be reached by other machines, and {found}",
            expected=f"a password of at least {PASSWORD_LENGTH} characters in an environment variable",
            remedy="Set one and name it (--password-variable), or leave --address out.",
        )
    if parsed.is_unspecified and not names:
        raise StllavaError(
            f"{address} stands for every address of this machine, and no name says what others call it",
            expected="the name and port in the address line of their browsers, which every request must show",
            remedy="Name it, such as ward7.example:8765 (--names).",
        )
    return password


def serve(
    make: Callable[[Door], ASGIApp],
    *,
    invited: Sequence[str],
    address: str = "127.0.0.1",
    port: int = 8765,
    names: Sequence[str] = (),
    password: str | None = None,
) -> None:
    """Listen until Ctrl-C, and show everybody who is invited the address by which to come in, which is good once.

    Args:
        make: Builds the application behind a door.
        invited: Who may come in.
        address: Where to listen.
        port: On which port; 0 takes a free one.
        names: By what else this machine is called there, such as ward7.example:8765.
        password: What is asked beside the address; None on this machine.
    """
    import uvicorn

    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with closing(socket.socket(family, socket.SOCK_STREAM)) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((address, port))
        except (OSError, OverflowError) as error:
            said = error.strerror if isinstance(error, OSError) else "ports go to 65535"
            raise StllavaError(
                f"port {port} of {address} cannot be taken: {said}",
                expected="a free port of this machine",
                remedy="Name another one (--port; 0 takes a free one).",
            ) from None
        listening.listen(128)  # Whoever opens the address before the server runs waits for it.
        number = listening.getsockname()[1]
        host = f"[{address}]:{number}" if ":" in address else f"{address}:{number}"
        hosts = {host, *(name.lower() for name in names), *([f"localhost:{number}"] if password is None else ())}
        door = Door(hosts=frozenset(hosts), cookie=f"stllava-{number}", password=password)
        app = make(door)
        width = max(map(len, invited))
        for name in invited:
            show(f"{name:<{width}}  http://{names[0] if names else host}{door.invite(name)}")
        show(*([TLS] if password is not None else []), "Each address opens once. Ctrl-C ends.")
        settings = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            server_header=False,
            ws="none",
            lifespan="off",
            timeout_graceful_shutdown=2,
        )
        uvicorn.Server(settings).run(sockets=[listening])
