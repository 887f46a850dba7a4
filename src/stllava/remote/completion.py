"""The reply of an OpenAI-compatible chat endpoint, as far as anything here reads it."""

from pydantic import BaseModel


class ChatMessage(BaseModel):
    """What was said."""

    content: str | None = None
    refusal: str | None = None


class ChatChoice(BaseModel):
    """One completion."""

    message: ChatMessage
    finish_reason: str | None = None


class ChatUsage(BaseModel):
    """What it took, in tokens."""

    prompt_tokens: int = 0
    completion_tokens: int = 0


class ChatCompletion(BaseModel):
    """The whole reply; fields that are not named here are ignored."""

    choices: list[ChatChoice]
    usage: ChatUsage | None = None
