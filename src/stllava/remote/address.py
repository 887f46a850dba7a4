"""Where requests may go: to this machine, or to the address in the options when they say `send_images`.

The API key comes from the environment and never shows: not in a repr, a record, a log or an error.
"""

import ipaddress
import os
from dataclasses import dataclass, field

import httpx2

from stllava.config import ServerOptions
from stllava.errors import StllavaError

HIDDEN = "[key]"


@dataclass(frozen=True)
class Address:
    """A server that may be spoken to."""

    base: httpx2.URL
    """Its base address, such as https://host/v1."""
    key: str = field(repr=False)
    """Its API key, or an empty string."""

    @property
    def host(self) -> str:
        """Host and port."""
        return f"{self.base.host}:{self.base.port or self.base.scheme}"

    @property
    def headers(self) -> dict[str, str]:
        """What every request carries."""
        return {"Authorization": f"Bearer {self.key}"} if self.key else {}

    def at(self, path: str) -> httpx2.URL:
        """The address of `path` below the base."""
        raw, _, query = self.base.raw_path.partition(b"?")
        joined = raw.rstrip(b"/") + path.encode() + (b"?" + query if query else b"")
        return self.base.copy_with(raw_path=joined)

    def hide(self, text: str) -> str:
        """The text without the key, should a server repeat it."""
        return text.replace(self.key, HIDDEN) if self.key else text


def reach(options: ServerOptions, *, purpose: str) -> Address:
    """The server of the options; refused when it is elsewhere and the options do not allow images to go there."""
    try:
        base = httpx2.URL(options.url)
    except httpx2.InvalidURL as error:
        raise _bad_address(options.url, str(error)) from None
    if base.scheme not in ("http", "https") or not base.host:
        raise _bad_address(options.url, "it names no http server")
    if base.userinfo:
        raise _bad_address(f"{base.scheme}://…@{base.host}", "it holds a name or password; keys come from the environment")
    if not options.send_images and not is_here(base.host):
        raise StllavaError(
            f"images would leave this machine for {base.host} ({purpose}), but send_images is false",
            expected="your word that images may be sent there",
            remedy="Set send_images to true if they may, or use a server on this machine.",
        )
    return Address(base, _key(options.key_variable))


def is_here(host: str) -> bool:
    """Whether a host is this machine by its name alone: localhost or a loopback address."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _key(variable: str) -> str:
    key = os.environ.get(variable, "").strip() if variable else ""
    if variable and not key:
        raise StllavaError(
            f"the environment variable {variable} is not set",
            expected="the server's API key in it",
            remedy=f"Run `export {variable}=…`, or leave key_variable empty for a server without a key.",
        )
    return key


def _bad_address(url: str, problem: str) -> StllavaError:
    return StllavaError(
        f"{url!r} is not a server's address: {problem}",
        expected="something like http://localhost:8000/v1",
        remedy="Mend url.",
    )
