"""The validator: asks with its signature, checks the answers itself, measures the time itself, and weighs."""

from __future__ import annotations

import asyncio
import math
import statistics
import time
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from experiments.subnet.challenge import Challenge, is_right
from hfa.errors import HFAError
from hfa.network.base import Signer
from hfa.network.client import AsyncHFAClient

_TIMEOUT_S = 60.0


class Outcome(NamedTuple):
    """One challenge put to one miner."""

    miner: str
    length: int
    depth: float
    right: bool
    seconds: float
    said: str  # or why nothing was said


async def ask(signer: Signer, miner: str, url: str, hotkey: str, challenge: Challenge) -> Outcome:
    """Put `challenge` to a miner; whatever goes wrong is an outcome too."""
    began = time.monotonic()
    try:
        async with AsyncHFAClient(signer, url=url, receiver=hotkey, timeout_s=_TIMEOUT_S) as client:
            asked = client.generate(challenge.context + challenge.prompt, max_tokens=len(challenge.answer))
            said = (await asyncio.wait_for(asked, _TIMEOUT_S)).text
    except (HFAError, TimeoutError) as error:
        seconds = time.monotonic() - began
        return Outcome(miner, challenge.length, challenge.depth, False, seconds, f"[{error or type(error).__name__}]")
    seconds = time.monotonic() - began
    return Outcome(miner, challenge.length, challenge.depth, is_right(challenge, said), seconds, said)


def scores(outcomes: Iterable[Outcome], miners: Iterable[str]) -> dict[str, float]:
    """A miner's mean over lengths, longer ones counting more: how often it was right, times how quick it was then.

    Quick is relative: the median right answer of all miners to a length counts 1, twice its time counts a half.
    """
    outcomes = list(outcomes)
    lengths = sorted({one.length for one in outcomes})
    weight = {length: math.log2(length) for length in lengths}
    total = dict.fromkeys(miners, 0.0)
    for length in lengths:
        here = [one for one in outcomes if one.length == length]
        right = [one.seconds for one in here if one.right]
        usual_s = statistics.median(right) if right else 1.0
        for miner in total:
            own = [one for one in here if one.miner == miner]
            quick = [min(1.0, usual_s / max(one.seconds, 1e-9)) if one.right else 0.0 for one in own]
            total[miner] += weight[length] * (sum(quick) / len(quick) if quick else 0.0)
    return {miner: value / sum(weight.values()) for miner, value in total.items()}


def weights(scored: Mapping[str, float], sharpness: float) -> dict[str, float]:
    """What would be set on the chain: scores to the power of `sharpness`, normalised, so that guessing does not pay."""
    powers = {miner: score**sharpness for miner, score in scored.items()}
    total = sum(powers.values())
    return {miner: power / total if total else 0.0 for miner, power in powers.items()}
