"""The audit file: who got which image when. Written before an image is sent, so that none leaves unrecorded."""

from datetime import UTC, datetime
from pathlib import Path

from stllava.records import Record
from stllava.store import AUDIT, Log


class Sending(Record):
    """One image in one request, about to be sent."""

    time: str
    """ISO 8601, UTC."""
    image: str
    """Path relative to the image root."""
    host: str
    """Host and port that it goes to."""
    bytes: int
    """Size of the encoded pixels."""


class Audit:
    """Appends to `audit.jsonl` of a folder; never writes anything else than lines at its end."""

    def __init__(self, folder: Path) -> None:
        self._log = Log(folder / AUDIT)

    def note(self, image: str, *, host: str, size: int) -> None:
        """Record that an image of `size` bytes goes to `host` now."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        self._log.append(Sending(time=now, image=image, host=host, bytes=size))

    def close(self) -> None:
        """End it."""
        self._log.close()
