"""From logits to the next token. Every request has a generator of its own, so its tokens depend on nothing else."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from hfa.errors import RequestError

MAX_SEED = 2**63 - 1


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen; the defaults switch everything off but greed.

    Args:
        seed: of this request's own generator.
        temperature: divides the logits; 0 takes the likeliest token.
        top_k: keep the k likeliest; 0 keeps all.
        top_p: keep the likeliest until their mass reaches p; 1 keeps all.
        min_p: keep those at least this fraction of the likeliest; 0 keeps all.

    Raises:
        RequestError: 422 for a value out of range.
    """

    seed: int = 0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    def __post_init__(self) -> None:
        _within("seed", self.seed, 0 <= self.seed <= MAX_SEED, f"from 0 to {MAX_SEED}")
        _within("temperature", self.temperature, 0 <= self.temperature < math.inf, "0 or more")
        _within("top_k", self.top_k, self.top_k >= 0, "0 (all) or more")
        _within("top_p", self.top_p, 0 < self.top_p <= 1, "above 0 and up to 1")
        _within("min_p", self.min_p, 0 <= self.min_p <= 1, "from 0 to 1")

    def generator(self) -> torch.Generator:
        """A fresh generator on the CPU, where sampling happens whatever the model runs on."""
        return torch.Generator().manual_seed(self.seed)


def sample(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """One token from logits [V].

    Raises:
        ValueError: logits that are no distribution (NaN, +inf, or all -inf): the model has failed.
    """
    logits = logits.detach().to("cpu", torch.float32)
    if not math.isfinite(logits.max().item()):
        raise ValueError("the logits are not finite")
    if sampling.temperature == 0:
        return int(logits.argmax())
    return int(torch.multinomial(probabilities(logits, sampling), 1, generator=generator))


def probabilities(logits: Tensor, sampling: Sampling) -> Tensor:
    """The distribution over the tokens that temperature, top-k, top-p and min-p leave, [V] to [V]."""
    probs = torch.softmax((logits - logits.max()) / sampling.temperature, dim=-1)
    if not sampling.top_k and sampling.top_p == 1 and not sampling.min_p:
        return probs
    order = _likeliest(probs, min(sampling.top_k or len(probs), len(probs)))
    ranked = probs[order]
    keep = ranked >= sampling.min_p * ranked[0]
    if sampling.top_p < 1:
        mass_before = ranked.cumsum(0) - ranked
        keep &= mass_before < sampling.top_p * ranked.sum()
    kept = torch.zeros_like(probs).scatter(0, order, ranked * keep)
    return kept / kept.sum()


def _likeliest(probs: Tensor, count: int) -> Tensor:
    """The ids of the `count` likeliest tokens, likeliest first; of equals, the lowest ids."""
    if count == len(probs):
        return probs.argsort(descending=True, stable=True)
    candidates = (probs >= probs.topk(count).values[-1]).nonzero()[:, 0]  # sorting all is the dear part
    return candidates[probs[candidates].argsort(descending=True, stable=True)[:count]]


def _within(name: str, got: float, holds: bool, expected: str) -> None:
    if not holds:
        raise RequestError(422, f"{name}: got {got}, expected {expected}.")
