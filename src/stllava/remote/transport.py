"""Connections with an end in time, however slowly a server speaks, and to this machine alone where it must be this one.

httpx bounds the wait for every single byte; a server that sends one now and then would hold a request for ever. Here each
read and write of a request gets what is left of its time, headers and encryption included.
"""

import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from ipaddress import ip_address
from ssl import SSLContext

import httpcore2
import httpx2

from stllava.errors import StllavaError

HttpTransport = httpx2.BaseTransport
"""What a client sends through: the network (`Transport`), or what stands for it in a test."""
WRITTEN_AT_ONCE = 1 << 16
_END: ContextVar[float] = ContextVar("end", default=float("inf"))
"""When the request of this thread must be over, by the monotonic clock."""
_ERRORS: dict[type[Exception], type[httpx2.TransportError]] = {
    httpcore2.ConnectTimeout: httpx2.ConnectTimeout,
    httpcore2.ReadTimeout: httpx2.ReadTimeout,
    httpcore2.WriteTimeout: httpx2.WriteTimeout,
    httpcore2.PoolTimeout: httpx2.PoolTimeout,
    httpcore2.ConnectError: httpx2.ConnectError,
    httpcore2.ReadError: httpx2.ReadError,
    httpcore2.WriteError: httpx2.WriteError,
    httpcore2.UnsupportedProtocol: httpx2.UnsupportedProtocol,
    httpcore2.LocalProtocolError: httpx2.LocalProtocolError,
    httpcore2.RemoteProtocolError: httpx2.RemoteProtocolError,
}


@contextmanager
def ending_at(end: float) -> Iterator[None]:
    """Give whatever this thread sends and receives until `end`, by the monotonic clock."""
    token = _END.set(end)
    try:
        yield
    finally:
        _END.reset(token)


class Transport(HttpTransport):
    """The network, for a client that `ending_at` tells when a request must be over."""

    def __init__(self, limits: httpx2.Limits, *, here: bool) -> None:
        """Hold at most so many connections; with `here`, none to another machine."""
        self._pool = httpcore2.ConnectionPool(
            ssl_context=httpx2.create_ssl_context(trust_env=False),
            max_connections=limits.max_connections,
            max_keepalive_connections=limits.max_keepalive_connections,
            keepalive_expiry=limits.keepalive_expiry,
            network_backend=_Network(here=here),
        )

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request and give what has come of its response so far: status and headers."""
        address = httpcore2.URL(
            scheme=request.url.raw_scheme, host=request.url.raw_host, port=request.url.port, target=request.url.raw_path
        )
        asked = httpcore2.Request(
            request.method, address, headers=request.headers.raw, content=request.read(), extensions=request.extensions
        )
        with _as_errors_of_httpx():
            got = self._pool.handle_request(asked)
        return httpx2.Response(got.status, headers=got.headers, stream=_Body(got), extensions=got.extensions)

    def close(self) -> None:
        """End every connection."""
        self._pool.close()


class _Body(httpx2.SyncByteStream):
    """The body of a response, piece by piece."""

    def __init__(self, response: httpcore2.Response) -> None:
        self._response = response

    def __iter__(self) -> Iterator[bytes]:
        with _as_errors_of_httpx():
            yield from self._response.iter_stream()

    def close(self) -> None:
        self._response.close()


class _Stream(httpcore2.NetworkStream):
    """A connection whose every step ends when the request must be over."""

    def __init__(self, stream: httpcore2.NetworkStream) -> None:
        self._stream = stream

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, _left(timeout, httpcore2.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        for at in range(0, len(buffer), WRITTEN_AT_ONCE):
            self._stream.write(buffer[at : at + WRITTEN_AT_ONCE], _left(timeout, httpcore2.WriteTimeout))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.NetworkStream:
        left = _left(timeout, httpcore2.ConnectTimeout)
        return _Stream(self._stream.start_tls(ssl_context, server_hostname, left))

    def get_extra_info(self, info: str) -> object:
        return self._stream.get_extra_info(info)


class _Network(httpcore2.NetworkBackend):
    """Opens connections; with `here`, only such as end on this machine."""

    def __init__(self, *, here: bool) -> None:
        self._sockets, self._here = httpcore2.SyncBackend(), here

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.NetworkStream:
        left = _left(timeout, httpcore2.ConnectTimeout)
        if self._here:
            refuse_elsewhere(host)
        stream = self._sockets.connect_tcp(host, port, left, local_address, socket_options)
        if self._here:
            try:
                peer = stream.get_extra_info("server_addr")[0]
            except OSError as error:  # the other end is gone already
                stream.close()
                raise httpcore2.ConnectError(str(error)) from error
            if not is_loopback(peer):
                stream.close()
                raise elsewhere(host, peer)
        return _Stream(stream)


def is_loopback(address: str) -> bool:
    """Whether an IP address, of whatever form, is this machine's own loopback; False for anything else."""
    try:
        return ip_address(address.strip("[]").partition("%")[0]).is_loopback
    except ValueError:
        return False


def refuse_elsewhere(host: str) -> None:
    """Refuse a name of this machine that the system takes for another one's; what does not resolve cannot be reached."""
    try:
        found = [str(entry[4][0]) for entry in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)]
    except OSError:
        return
    for address in found:
        if not is_loopback(address):
            raise elsewhere(host, address)


def elsewhere(host: str, address: str) -> StllavaError:
    """The error of a name that ought to be this machine and is not."""
    return StllavaError(
        f"{host} is {address} here, which is not this machine, and send_images is false",
        expected=f"{host} to be a loopback address, such as 127.0.0.1",
        remedy="Write http://127.0.0.1 in url, correct /etc/hosts, or set send_images to true if images may go there.",
    )


def _left(timeout: float | None, error: type[Exception]) -> float | None:
    """Seconds that one step may take."""
    end = _END.get()
    if end == float("inf"):
        return timeout
    left = end - time.monotonic()
    if left <= 0:
        raise error("the time for the whole request is over")
    return left if timeout is None else min(timeout, left)


@contextmanager
def _as_errors_of_httpx() -> Iterator[None]:
    """Errors of the connection as those that httpx's callers know."""
    try:
        yield
    except tuple(_ERRORS) as error:
        raise _ERRORS[type(error)](str(error)) from error
