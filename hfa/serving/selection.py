"""Which model answers a request: a pure function of what is known about each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from hfa.config import Config, Fraction, PositiveFloat, PositiveInt, config
from hfa.errors import RequestError


@config
class SelectionConfig(Config):
    """When a model is avoided for its track record.

    Args:
        window: latest requests of a model that count.
        min_requests: with fewer of them, a model is not judged.
        min_success_rate: below it, a model is avoided.
        max_s_per_token: at the 95th percentile; above it, a model is avoided.
        probe_after_s: a model that is avoided gets one request this long after its last one.
    """

    window: PositiveInt
    min_requests: PositiveInt
    min_success_rate: Fraction
    max_s_per_token: PositiveFloat
    probe_after_s: PositiveFloat


class Track(NamedTuple):
    """How a model did lately."""

    requests: int = 0  # judged: succeeded or failed, in the window
    success_rate: float = 1.0
    s_per_token: float = 0.0  # at the 95th percentile of those that succeeded
    idle_s: float = float("inf")  # since it was last given a request


class Candidate(NamedTuple):
    """One loaded model, as one request finds it."""

    name: str
    seq_len: int  # tokens of this request in the model's own tokenizer, prompt and answer together
    max_seq_len: int
    state_bytes: int  # this request needs
    budget_bytes: int
    room: int  # requests it would still take
    track: Track = Track()


class Choice(NamedTuple):
    name: str
    reason: str


def choose(candidates: Sequence[Candidate], policy: SelectionConfig, *, default: str, wish: str | None) -> Choice:
    """Pick the model that answers: one that can, as wished, with a good record, the default first.

    Where all queues are full, the best is picked all the same: its engine may let the caller in before another.

    Args:
        candidates: the loaded models.
        policy: what a good record is.
        default: taken unless something speaks against it.
        wish: the caller's, which only impossibility overrules.

    Raises:
        RequestError: 503 when no model is loaded, 404 for a wish that is not served, 413 for a request that is too
            long for all.
    """
    if not candidates:
        raise RequestError(503, "No model is loaded, so there is nothing to answer with; try later or another miner.")
    if wish is not None:
        names = [candidate.name for candidate in candidates]
        candidates = [candidate for candidate in candidates if candidate.name == wish]
        if not candidates:
            raise RequestError(404, f"model: got {wish!r}, and this miner serves {', '.join(names)}.")
    fitting = [candidate for candidate in candidates if not _too_long(candidate)]
    if not fitting:
        roomiest = max(candidates, key=lambda candidate: candidate.max_seq_len - candidate.seq_len)
        raise RequestError(413, f"Too long for every model asked: {_too_long(roomiest)}.")
    free = [candidate for candidate in fitting if candidate.room > 0]
    best = min(free or fitting, key=lambda candidate: _rank(candidate, policy, default))
    return Choice(best.name, _reason(best, candidates, policy, default, wish))


def doubt(track: Track, policy: SelectionConfig) -> str:
    """Why a model should be avoided, or nothing; nothing too when it is time to try it again."""
    if track.requests < policy.min_requests or track.idle_s >= policy.probe_after_s:
        return ""
    if track.success_rate < policy.min_success_rate:
        return f"failed {1 - track.success_rate:.0%} of its last {track.requests} requests"
    if track.s_per_token > policy.max_s_per_token:
        return f"took {track.s_per_token:.3g} s a token at the 95th percentile lately"
    return ""


def _too_long(candidate: Candidate) -> str:
    """Why the request does not fit, with both numbers; nothing when it does."""
    if candidate.seq_len > candidate.max_seq_len:
        asked = f"the request is {candidate.seq_len} tokens with its answer"
        return f"{asked}, and {candidate.name} takes {candidate.max_seq_len}"
    if candidate.state_bytes > candidate.budget_bytes:
        needs = f"{candidate.seq_len} tokens need {candidate.state_bytes} bytes of memory"
        return f"{needs}, and {candidate.name} has {candidate.budget_bytes}"
    return ""


def _rank(candidate: Candidate, policy: SelectionConfig, default: str) -> tuple[bool, bool, float, float, str]:
    avoided = bool(doubt(candidate.track, policy))
    return (
        avoided,
        candidate.name != default,
        -candidate.track.success_rate,
        candidate.track.s_per_token,
        candidate.name,
    )


def _reason(
    chosen: Candidate, candidates: Sequence[Candidate], policy: SelectionConfig, default: str, wish: str | None
) -> str:
    if wish is not None:
        return "asked for"
    if chosen.name == default:
        own = doubt(chosen.track, policy)
        return f"the default, although it {own}: no other is better placed" if own else "the default"
    passed_over = next((candidate for candidate in candidates if candidate.name == default), None)
    if passed_over is None:
        return f"{default} is not loaded"
    if too_long := _too_long(passed_over):
        return too_long
    if not passed_over.room:
        return f"{default} has no place in its queue"
    return f"{default} {doubt(passed_over.track, policy)}"
