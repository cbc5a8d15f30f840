"""What the OpenAI-compatible paths take and give, in that API's own words."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from hfa.inference import MAX_SEED
from hfa.inference.request import MAX_LOGPROBS
from hfa.serving.schemas import Sent

_CHOICES = 8  # answers to one prompt, and prompts in one request
_Text = Annotated[str, Field(min_length=1, max_length=256)]
_Tokens = Annotated[list[int], Field(min_length=1, fail_fast=True)]
_MANY = Field(min_length=1, max_length=_CHOICES, fail_fast=True)
_TURNS, _PARTS = 4096, 256  # of a conversation, and of a turn, at most


class _Body(Sent):
    """What both kinds of request have. A field that is not served is refused by name, not passed over."""

    model: str = Field(max_length=64, description="One of /v1/models, or `auto` to let the miner pick.")
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2, description="Left out: 1.")
    top_p: float | None = Field(None, gt=0, le=1)
    n: int | None = Field(None, ge=1, le=_CHOICES)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stop: _Text | Annotated[list[_Text], Field(max_length=16, fail_fast=True)] | None = None
    seed: int | None = Field(None, ge=0, le=MAX_SEED)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    user: str | None = Field(None, description="Not looked at: who asks is who signed.")
    top_k: int = Field(0, ge=0, le=2**31 - 1, description="Beyond OpenAI's: the k likeliest; 0 for all.")
    min_p: float = Field(0.0, ge=0, le=1, description="Beyond OpenAI's.")
    repetition_penalty: float = Field(1.0, ge=0.01, le=100, description="Beyond OpenAI's.")
    deadline_s: float | None = Field(None, gt=0, allow_inf_nan=False, description="Beyond OpenAI's.")

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or ())


class StreamOptions(Sent):
    include_usage: bool = False


class CompletionBody(_Body):
    """POST /v1/completions."""

    prompt: str | _Tokens | Annotated[list[str], _MANY] | Annotated[list[_Tokens], _MANY]
    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """Each a text or tokens."""
        prompt: Any = self.prompt
        return [prompt] if isinstance(prompt, str) or isinstance(prompt[0], int) else prompt

    @property
    def num_choices(self) -> int:
        return len(self.prompts) * (self.n or 1)


class TextPart(Sent):
    type: Literal["text"]
    text: str


class Message(Sent):
    """One turn of a conversation; an answer as the official client gives it back has fields of null."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Field(max_length=_PARTS, fail_fast=True)]
    name: str | None = None
    refusal: None = None
    annotations: None = None
    audio: None = None
    function_call: None = None
    tool_calls: None = None

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class ChatBody(_Body):
    """POST /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1, max_length=_TURNS, fail_fast=True)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)

    @property
    def num_choices(self) -> int:
        return self.n or 1
