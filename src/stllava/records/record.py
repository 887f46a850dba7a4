"""What all records have in common."""

import hashlib
import json

from pydantic import BaseModel, ConfigDict, JsonValue

from stllava.records.html import table_of

FORMAT = 2
"""The form in which runs and stages are written; what has another one is refused (`store.read_formatted`)."""


def content_id(*parts: JsonValue) -> str:
    """Sixteen hexadecimal digits of the SHA-256 of the parts' canonical JSON."""
    text = json.dumps(parts, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Record(BaseModel):
    """Base of all records: immutable, unknown fields refused."""

    # A figure that is no number stays one on disk: as null it could not be read back, and what was made would be lost.
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, ser_json_inf_nan="strings")

    def _repr_html_(self) -> str:
        """How a notebook shows it: a row for each field that holds something."""
        return table_of(self)


class Keyed(Record):
    """A record with an id of its own."""

    id: str
    """What makes it this record, hashed with `content_id`."""
