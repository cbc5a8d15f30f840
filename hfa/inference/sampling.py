"""From logits to the next token. Every request has a generator of its own, so its tokens depend on nothing else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hfa.errors import RequestError

MAX_SEED = 2**63 - 1
NOTHING = -1  # no token
_COLDEST = 1e-30  # a temperature far below it would be 0 in float32


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen; the defaults switch everything off but greed.

    Args:
        seed: of this request's own generator.
        temperature: divides the logits; 0 takes the likeliest token.
        top_k: keep the k likeliest; 0 keeps all.
        top_p: keep the likeliest until their mass reaches p; 1 keeps all.
        min_p: keep those at least this fraction of the likeliest; 0 keeps all.
        repetition_penalty: divides the positive logits of tokens in the prompt or the answer, and multiplies the
            negative ones; 1 leaves them.
        presence_penalty: subtracted from the logits of tokens in the answer; 0 leaves them.
        frequency_penalty: subtracted from them as often as they stand there; 0 leaves them.

    Raises:
        RequestError: 422 for a value out of range.

    Source: repetition penalty from CTRL, arXiv 1909.05858, section 4.1; min-p from arXiv 2407.01082.
    """

    seed: int = 0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0

    def __post_init__(self) -> None:
        _within("seed", self.seed, 0 <= self.seed <= MAX_SEED, f"from 0 to {MAX_SEED}")
        _within("temperature", self.temperature, 0 <= self.temperature < math.inf, "0 or more")
        _within("top_k", self.top_k, self.top_k >= 0, "0 (all) or more")
        _within("top_p", self.top_p, 0 < self.top_p <= 1, "above 0 and up to 1")
        _within("min_p", self.min_p, 0 <= self.min_p <= 1, "from 0 to 1")
        repeats = self.repetition_penalty
        _within("repetition_penalty", repeats, 0.01 <= repeats < math.inf, "0.01 or more")
        for name in ("presence_penalty", "frequency_penalty"):
            _within(name, getattr(self, name), -2 <= getattr(self, name) <= 2, "from -2 to 2")

    def generator(self) -> torch.Generator:
        """A fresh generator on the CPU, where sampling happens whatever the model runs on."""
        return torch.Generator().manual_seed(self.seed)

    @property
    def penalises(self) -> bool:
        return (self.repetition_penalty, self.presence_penalty, self.frequency_penalty) != (1.0, 0.0, 0.0)


def sample(
    logits: Tensor,
    sampling: Sampling,
    generator: torch.Generator,
    prompt: Sequence[int] | Tensor = (),
    answer: Sequence[int] = (),
    best: int | None = None,
) -> int:
    """One token from logits [V], on the CPU.

    Args:
        prompt, answer: the tokens so far, which the penalties look at; of the prompt each once is enough.
        best: what `likeliest` says of these logits, by whoever asked it for a whole batch.

    Raises:
        ValueError: logits that are no distribution (NaN, +inf, or all -inf): the model has failed.
    """
    best = likeliest(logits[None])[0] if best is None else best
    if best == NOTHING:
        raise ValueError("the logits are not finite")
    if sampling.temperature == 0 and not sampling.penalises:
        return best
    logits = logits.detach().to("cpu", torch.float32)
    if sampling.penalises:
        logits = penalised(logits, sampling, prompt, answer)
    if sampling.temperature == 0:
        return int(logits.numpy().argmax())
    return int(torch.multinomial(probabilities(logits, sampling), 1, generator=generator))


def likeliest(logits: Tensor) -> list[int]:
    """The likeliest token of each row, logits [B, V]; `NOTHING` where they are no distribution."""
    values = logits.detach().float().cpu().numpy()
    best = values.argmax(-1).tolist()  # NaN is greater than all; torch's own takes four times as long
    return [token if math.isfinite(values.item(row, token)) else NOTHING for row, token in enumerate(best)]


def penalised(logits: Tensor, sampling: Sampling, prompt: Sequence[int] | Tensor, answer: Sequence[int]) -> Tensor:
    """The logits [V] with what was said before made less likely."""
    logits = logits.clone()
    said = torch.tensor([*answer], dtype=torch.long)
    if sampling.repetition_penalty != 1:
        seen = torch.cat([torch.as_tensor(prompt, dtype=torch.long), said]).unique()
        kept = logits[seen]
        factor = sampling.repetition_penalty
        logits[seen] = torch.where(kept > 0, kept / factor, kept * factor)
    tokens, counts = said.unique(return_counts=True)
    logits[tokens] -= sampling.presence_penalty + sampling.frequency_penalty * counts
    return logits


def probabilities(logits: Tensor, sampling: Sampling) -> Tensor:
    """The distribution over the tokens that temperature, top-k, top-p and min-p leave, [V] to [V]."""
    probs = torch.softmax((logits - logits.max()) / max(sampling.temperature, _COLDEST), dim=-1)
    if not sampling.top_k and sampling.top_p == 1 and not sampling.min_p:
        return probs
    order = _likeliest(probs, min(sampling.top_k or len(probs), len(probs)))
    ranked = probs[order]
    keep = ranked >= sampling.min_p * ranked[0]
    if sampling.top_p < 1:
        mass_before = ranked.cumsum(0) - ranked
        keep &= mass_before < sampling.top_p * ranked.sum()
        keep[0] = True  # however small top_p is
    kept = torch.zeros_like(probs).scatter(0, order, ranked * keep)
    return kept / kept.sum()


def log_probabilities(logits: Tensor, token: int, count: int) -> tuple[float, tuple[tuple[int, float], ...]]:
    """The log-probability of a token, and the `count` likeliest tokens with theirs; logits [V]."""
    logprobs = torch.log_softmax(logits.detach().to("cpu", torch.float32), -1)
    best = logprobs.topk(min(count, len(logprobs)))
    top = tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))
    return float(logprobs[token]), top


def _likeliest(probs: Tensor, count: int) -> Tensor:
    """The ids of the `count` likeliest tokens, likeliest first; of equals, the lowest ids."""
    if count == len(probs):
        return probs.argsort(descending=True, stable=True)
    candidates = (probs >= probs.topk(count).values[-1]).nonzero()[:, 0]  # sorting all is the dear part
    return candidates[probs[candidates].argsort(descending=True, stable=True)[:count]]


def _within(name: str, got: float, holds: bool, expected: str) -> None:
    if not holds:
        raise RequestError(422, f"{name}: got {got}, expected {expected}.")
