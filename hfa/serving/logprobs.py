"""How likely the model found its tokens, for those who asked to be told."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pydantic import BaseModel, Field

from hfa.inference import TokenEvent

Decode = Callable[[Sequence[int]], bytes]


class Likelihood(BaseModel):
    """One token that was, or could have been, next."""

    token: str
    bytes: list[int] = Field(description="Of its text; a token may end within a character.")
    logprob: float = Field(description="In nats, before temperature and penalties.")


class TokenLogprob(Likelihood):
    """One token of an answer; the same shape as in OpenAI's chat."""

    top_logprobs: list[Likelihood] = Field(description="The likeliest instead of it, itself included.")


def likelihoods(events: Sequence[TokenEvent], decode: Decode) -> list[TokenLogprob]:
    """What was asked to be told about tokens.

    Args:
        events: of a request with `logprobs`.
        decode: token ids to bytes.
    """

    def one(token: int, logprob: float) -> Likelihood:
        data = decode([token])
        return Likelihood(token=data.decode("utf-8", "replace"), bytes=list(data), logprob=logprob)

    return [
        TokenLogprob(**one(event.token, told.logprob).model_dump(), top_logprobs=[one(*pair) for pair in told.top])
        for event in events
        if (told := event.logprobs) is not None
    ]
