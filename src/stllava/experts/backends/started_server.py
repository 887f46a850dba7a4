"""An expert whose servers are started for it on this machine, asked, and ended again (`judge.chat.serve`)."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import JsonValue

from stllava.config import ChatOptions
from stllava.experts.backends.chat_server import ChatServer
from stllava.model.checkpoint import require_model
from stllava.remote.rate_limiter import RateLimiter
from stllava.remote.server_pool import ServerPool


class StartedServer(ChatServer):
    """The servers of a model's weights: their ports are known once they are started, and images never leave the loopback."""

    @staticmethod
    def prepared(options: ChatOptions) -> ChatOptions:
        """The options with name and place of what is served; raises StllavaError where that is no model."""
        require_model(options.weights)
        named = options.model or Path(options.weights).name
        return options.model_copy(update={"url": "http://127.0.0.1/v1", "model": named, "send_images": False})

    @property
    def name(self) -> str:
        """Model and what serves it."""
        return f"{self.options.model} at {self.options.serve}"

    @property
    def where(self) -> str:
        """What is served by what."""
        return f"the {self.options.serve} server of {self.options.weights}"

    @property
    def identity(self) -> dict[str, JsonValue]:
        """Everything that shapes a reply, the weights among it."""
        from stllava.model.load import fingerprint

        return super().identity | {"weights": fingerprint(self.options.weights)}

    @contextmanager
    def connect_all(self, limiter: RateLimiter) -> Iterator[ServerPool]:
        """The servers, started; they end behind it."""
        from stllava.generation.serving import ModelServers

        with ModelServers(self.options, self.options.weights, audit=self.folder, limiter=limiter) as servers:
            assert servers.pool is not None
            yield servers.pool
