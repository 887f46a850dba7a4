"""A server on this machine that writes whatever bytes a test wants, as fast or slowly as it wants."""

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread

Speak = Callable[[socket.socket], None]
"""What is said to one request that was read whole."""


def response(body: bytes, *, status: str = "200 OK", headers: str = "Content-Type: application/json") -> bytes:
    """A response as it stands on the wire."""
    return f"HTTP/1.1 {status}\r\n{headers}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def whole(said: bytes) -> Speak:
    """Say it at once."""
    return lambda connection: connection.sendall(said)


def dripping(said: bytes, *, seconds: float) -> Speak:
    """Say it byte by byte, with so long a pause behind each."""

    def drip(connection: socket.socket) -> None:
        for at in range(len(said)):
            connection.sendall(said[at : at + 1])
            time.sleep(seconds)

    return drip


def read_request(connection: socket.socket) -> bytes:
    """The whole request that a client sends; empty where it says no more."""
    got = b""
    while b"\r\n\r\n" not in got:
        more = connection.recv(1 << 16)
        if not more:
            return b""
        got += more
    head, _, body = got.partition(b"\r\n\r\n")
    lengths = [line.split(b":")[1] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    while lengths and len(body) < int(lengths[0]):
        body += connection.recv(1 << 16)
    return head + b"\r\n\r\n" + body


@contextmanager
def speaking(speak: Speak, *, reads: bool = True) -> Iterator[tuple[str, list[bytes]]]:
    """The server's base address and the requests it got; without `reads` it takes no byte of them."""
    requests: list[bytes] = []
    over = Event()

    def serve(connection: socket.socket) -> None:
        with connection:
            try:
                while not over.is_set():
                    if not reads:
                        over.wait()
                        return
                    request = read_request(connection)
                    if not request:
                        return
                    requests.append(request)
                    speak(connection)
            except OSError:
                return  # The client hung up, as it may.

    def accept() -> None:
        while not over.is_set():
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            Thread(target=serve, args=(connection,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/v1", requests
        over.set()
        listening.shutdown(socket.SHUT_RDWR)
