"""What is required of our models, and what a run says to it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from experiments.complexity.figures import Results
from experiments.complexity.measure import STATE_TOKENS, Regime
from experiments.complexity.subjects import ALL_FEATURES
from hfa.metrics.plot import short

TRANSFORMER_PEER = "llama"
_MIB = 1 << 20


@dataclass(frozen=True)
class Requirement:
    """What is required of a model, and what this run says to it; `value` is None where it says nothing."""

    text: str
    value: float | None
    limit: float
    at_least: bool
    detail: str = ""

    @property
    def holds(self) -> bool | None:
        if self.value is None:
            return None
        return self.value >= self.limit if self.at_least else self.value <= self.limit


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What is required of a model.

    Args:
        slope: of time over length, the upper end of its interval at most.
        state_mib: of 100,000 tokens, at most.
        over_linear: least speed over the fastest linear peer's, by regime and length.
        over_llama: least speed over Llama's; both in training without head and loss, which are the same for all.
    """

    slope: float
    state_mib: float
    over_linear: Mapping[tuple[Regime, int], float]
    over_llama: Mapping[tuple[Regime, int], float] = field(default_factory=dict)


LIMITS = {
    "hfa": Limits(
        slope=1.05,
        state_mib=256,
        over_linear={("prefill", 4096): 1.0, ("prefill", 16384): 1.0, ("prefill", 65536): 1.0},
        over_llama={
            ("prefill", 16384): 1.5, ("prefill", 65536): 6.0,
            ("train", 1024): 1.0, ("train", 4096): 1.5, ("train", 16384): 2.5,
        },
    ),
    "simplemind": Limits(
        slope=1.03,
        state_mib=4,
        over_linear={("prefill", 4096): 1.1, ("prefill", 16384): 1.3, ("train", 4096): 1.1, ("train", 16384): 1.5},
    ),
}  # fmt: skip
_CALLED = {"prefill": "prefill", "train": "training without head and loss"}
_DECODE, _DECODE_GROWTH = 0.6, 1.1  # time over the fastest linear peer's, and at 100,000 tokens over 1K, at most


def requirements(results: Results, model: str = "hfa") -> Iterator[Requirement]:
    """What is required of one of our models: slopes, speed beside peers, and the size of its state."""
    limits = LIMITS[model]
    for name in (model, f"{model}-tiny"):
        if name in results.models:
            yield _slope_requirement(results, name, "prefill", limits.slope)
    yield _slope_requirement(results, model, "train", limits.slope)
    state = results.models.get(model, {}).get(f"state_bytes_{STATE_TOKENS}")
    mib = None if state is None else state / _MIB
    yield Requirement(f"state of {STATE_TOKENS:,} tokens, MiB", mib, limits.state_mib, False)
    for name in (model, model + ALL_FEATURES):
        what = "" if name == model else ", all features"
        for (regime, length), least in limits.over_linear.items() if name in results.models else ():
            if name == model or regime == "prefill":
                ratio = results.over_fastest_linear(name, regime, length, body_only=regime == "train")
                text = f"{_CALLED[regime]} {short(length)}{what}, over the fastest linear peer"
                yield Requirement(text, *_value(ratio, least, True))
    for (regime, length), least in limits.over_llama.items():
        over = results.over(model, TRANSFORMER_PEER, regime, length, body_only=regime == "train")
        yield Requirement(f"{_CALLED[regime]} {short(length)}, over Llama", over, least, True)
    for length in results.lengths("decode"):
        ratio = results.over_fastest_linear(model, "decode", length)
        text = f"decode at {short(length)}, time over the fastest linear peer's"
        yield Requirement(text, *_value(ratio, _DECODE, False))
    near, far = results.median(model, "decode", 1024), results.median(model, "decode", _far(results))
    grown = None if near is None or far is None else far / near
    yield Requirement("decode at 100,000 tokens over 1K, time", grown, _DECODE_GROWTH, False)


def _far(results: Results) -> int:
    """The context of decoding that is compared with a short one; 100K is as good as 100,000."""
    return min((length for length in results.lengths("decode") if length >= 100_000), default=100_000)


def _slope_requirement(results: Results, model: str, regime: Regime, most: float) -> Requirement:
    slope = results.slope(model, regime)
    high = slope.interval[1] if slope and slope.interval else None
    return Requirement(f"{regime}: slope of {model}, upper end", high, most, False, str(slope or ""))


def _value(ratio: tuple[float, str] | None, limit: float, at_least: bool) -> tuple[float | None, float, bool, str]:
    return (None, limit, at_least, "") if ratio is None else (ratio[0], limit, at_least, ratio[1])
