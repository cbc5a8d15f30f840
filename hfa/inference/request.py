"""What is asked of the engine, in token ids, and what it answers: events."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from hfa.errors import RequestError
from hfa.inference.sampling import Sampling

FinishReason = Literal["stop", "length", "cancelled", "deadline", "displaced", "error", "shutdown"]
MAX_LOGPROBS = 20


@dataclass(frozen=True, kw_only=True)
class GenerationRequest:
    """One continuation of one prompt.

    Args:
        tokens: the prompt, at least one id.
        max_tokens: how many ids to generate at most.
        sampling: how the next id is chosen, seed included.
        stop_tokens: ids that end the answer; they are not part of it.
        until: makes a function that is told every id of the answer in turn, and says whether that is the last; None
            for no such thing.
        deadline_s: seconds from submission after which the answer ends as it is; None for no limit.
        priority: greater goes first, and may take the place of what is less.
        caller: whose request it is; callers of equal priority get equal shares.
        cache_salt: only requests of the same salt share checkpoints of prompts.
        logprobs: how many of the likeliest tokens to report beside each token and its log-probability; None for
            none of it.

    Raises:
        RequestError: 422 for a value that cannot work.
    """

    tokens: tuple[int, ...]
    max_tokens: int
    sampling: Sampling
    stop_tokens: frozenset[int] = frozenset()
    until: Callable[[], Callable[[int], bool]] | None = None
    deadline_s: float | None = None
    priority: int = 0
    caller: str = ""
    cache_salt: str = ""
    logprobs: int | None = None

    def __post_init__(self) -> None:
        if not self.tokens:
            raise RequestError(422, "The prompt has no tokens; send at least one.")
        if self.max_tokens < 1:
            raise RequestError(422, f"max_tokens: got {self.max_tokens}, expected at least 1.")
        if self.deadline_s is not None and not (math.isfinite(self.deadline_s) and self.deadline_s > 0):
            raise RequestError(422, f"deadline_s: got {self.deadline_s}, expected a positive number of seconds.")
        if self.logprobs is not None and not 0 <= self.logprobs <= MAX_LOGPROBS:
            raise RequestError(422, f"logprobs: got {self.logprobs}, expected 0 to {MAX_LOGPROBS}.")

    @property
    def seq_len(self) -> int:
        """Tokens in the state at the end, prompt and answer together."""
        return len(self.tokens) + self.max_tokens


class Timing(NamedTuple):
    """Where the time of one request went, in seconds."""

    queue_s: float  # from submission until the first of its prompt was read
    prefill_s: float  # from then until the first token
    decode_s: float  # from then until the last


class Logprobs(NamedTuple):
    """How likely the model found a token, before temperature and penalties, in nats."""

    logprob: float
    top: tuple[tuple[int, float], ...]  # the likeliest tokens, likeliest first


class TokenEvent(NamedTuple):
    """One generated token."""

    number: int  # 0 for the first
    token: int
    logprobs: Logprobs | None = None


class FinishEvent(NamedTuple):
    """The end of every stream, exactly once."""

    reason: FinishReason
    prompt_tokens: int  # that were read
    completion_tokens: int
    timing: Timing
    cached_tokens: int = 0  # of the prompt, that were not read because a checkpoint had them
    miss: str = ""  # why no checkpoint, or no longer one, was used
    preemptions: int = 0  # how often it was set aside for others
    error: str = ""  # what the model raised; for logs and statistics, not for callers
    imported: bool = False  # it went on from a state that may stem from outside, which may be to blame for an error


Event = TokenEvent | FinishEvent
