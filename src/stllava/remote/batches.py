"""What an OpenAI-compatible server says of files and batches, as far as anything here reads it."""

from typing import Annotated

from pydantic import BaseModel, Field, JsonValue

Id = Annotated[str, Field(pattern=r"^[A-Za-z0-9_./:-]{1,200}$")]
"""A server's id of a file or a batch, which can stand in an address."""


class UploadedFile(BaseModel):
    """A file on the server."""

    id: Id


class RemoteBatch(BaseModel):
    """A batch on the server."""

    id: Id
    status: str
    output_file_id: Id | None = None
    error_file_id: Id | None = None
    metadata: dict[str, JsonValue] | None = None
    errors: JsonValue = None


class BatchPage(BaseModel):
    """A part of the list of batches."""

    data: list[RemoteBatch]
    has_more: bool = False


class BatchResponse(BaseModel):
    """What came of one request of a batch."""

    status_code: int
    body: JsonValue


class BatchLine(BaseModel):
    """A line of a batch's output."""

    custom_id: str
    response: BatchResponse | None = None
    error: JsonValue = None
