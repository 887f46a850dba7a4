"""Where requests may go: to this machine, or to the address in the options when they say `send_images`.

Keys come from the environment and never show: not in a repr, a record, a log or an error.
"""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

import httpx2

from stllava.config import ServerOptions
from stllava.errors import StllavaError
from stllava.remote.transport import is_loopback, refuse_elsewhere

HIDDEN = "[key]"
SHORTEST_HIDDEN = 6
"""Characters of a key; shorter ones are no secrets, and stand in many words."""
KEY_PARAMETERS = frozenset({"key", "api_key", "api-key", "apikey", "token", "access_token", "sig", "subscription-key"})
"""Parameters of addresses by which some servers take a key."""
_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_OURS = frozenset({"content-type", "content-length", "content-encoding", "transfer-encoding", "host", "connection"})
"""Headers that the client writes itself."""


@dataclass(frozen=True)
class Address:
    """A server that may be spoken to."""

    base: httpx2.URL
    """Its base address, such as https://host/v1."""
    headers: dict[str, str] = field(repr=False)
    """What every request carries; keys among them."""
    here: bool
    """Whether it is trusted because it is this machine: nothing may be sent to another one."""
    secrets: "re.Pattern[str] | None" = field(repr=False)
    """The keys in whatever form a server may repeat them."""

    @property
    def host(self) -> str:
        """Host and port."""
        return f"{self.base.host}:{self.base.port or self.base.scheme}"

    def at(self, path: str) -> httpx2.URL:
        """The address of `path` below the base."""
        raw, _, query = self.base.raw_path.partition(b"?")
        joined = raw.rstrip(b"/") + path.encode() + (b"?" + query if query else b"")
        return self.base.copy_with(raw_path=joined)

    def redact(self, text: str) -> str:
        """The text without the keys, should a server repeat them."""
        return self.secrets.sub(HIDDEN, text) if self.secrets is not None else text


def base_of(options: ServerOptions) -> httpx2.URL:
    """The one base address in the options; one that is none, or that holds a key or a password, is refused."""
    if len(options.urls) != 1:
        raise _bad_address(", ".join(options.urls), "it is not one address")
    [url] = options.urls
    try:
        base = httpx2.URL(url)
    except httpx2.InvalidURL as error:
        raise _bad_address(url, str(error)) from None
    if base.scheme not in ("http", "https") or not base.host:
        raise _bad_address(url, "it names no http server")
    if base.userinfo:
        raise _bad_address(f"{base.scheme}://…@{base.host}", "it holds a name or password; keys come from the environment")
    if named := sorted(KEY_PARAMETERS & {name.lower() for name in base.params}):
        raise _bad_address(f"{base.scheme}://{base.host}…?{named[0]}=…", "it holds a key; keys come from the environment")
    if base.path.rstrip("/").endswith("/chat/completions"):
        raise _bad_address(url, "it names one path below the base address")
    return base


def reach(options: ServerOptions, *, purpose: str) -> Address:
    """The server of the options; refused when it is elsewhere and the options do not allow images to go there."""
    base = base_of(options)
    here = not options.send_images
    if here and not is_here(base.host):
        raise StllavaError(
            f"images would leave this machine for {base.host} ({purpose}), but send_images is false",
            expected="permission to send images there",
            remedy="Set send_images to true if they may, or use a server on this machine.",
        )
    if here:
        refuse_elsewhere(base.host)
    key = _secret(options.key_variable, option="key_variable") if options.key_variable else ""
    others = {name: _secret(variable, option="header_variables") for name, variable in options.header_variables.items()}
    for name in others:
        _check_name(name)
    headers = ({"Authorization": f"Bearer {key}"} if key else {}) | others
    return Address(base, headers, here, secrets_pattern([key, *others.values()]))


def is_here(host: str) -> bool:
    """Whether a host claims to be this machine: localhost or a loopback address."""
    return is_loopback(host) or host.lower() == "localhost"


def secrets_pattern(secrets: Iterable[str]) -> "re.Pattern[str] | None":
    r"""Finds secrets as they are, as JSON writes them (`\/`, `\u002f`), as addresses do (`%2F`) and as HTML does (`&#47;`)."""
    kept = sorted({secret for secret in secrets if len(secret) >= SHORTEST_HIDDEN}, key=lambda secret: (-len(secret), secret))
    return re.compile("|".join("".join(map(_written, secret)) for secret in kept)) if kept else None


def _written(one: str) -> str:
    """A pattern of the ways to write a character; JSON within JSON has several backslashes."""
    code = ord(one)
    ways = [re.escape(one), f"u(?i:{code:04x})", f"%(?i:{code:02x})", f"&#0*{code};", f"&#[xX]0*(?i:{code:x});"]
    return rf"\\{{0,8}}(?:{'|'.join(ways)})"


def _secret(variable: str, *, option: str) -> str:
    """What a variable of the environment holds, which can stand in a header."""
    secret = os.environ.get(variable, "").strip()
    if not secret:
        raise StllavaError(
            f"the environment variable {variable} is not set",
            expected="the server's API key in it",
            remedy=f"Run `export {variable}=…`, or leave {option} empty for a server without a key.",
        )
    if not (secret.isascii() and secret.isprintable()):
        raise StllavaError(
            f"the environment variable {variable} holds characters that no key has",
            expected="plain ASCII letters, digits and marks on one line",
            remedy="Copy the key again: line breaks, dashes and quotes are often changed by copying.",
        )
    return secret


def _check_name(name: str) -> None:
    if _NAME.fullmatch(name) is None or name.lower() in _OURS:
        raise StllavaError(
            f"header_variables names {name!r}",
            expected="the name of a header, such as api-key, that is not written by the client itself",
            remedy="Correct or remove it.",
        )


def _bad_address(url: str, problem: str) -> StllavaError:
    return StllavaError(
        f"{url!r} is not a server's address: {problem}",
        expected="something like http://localhost:8000/v1",
        remedy="Correct url: give the base address, to which /chat/completions is added.",
    )
