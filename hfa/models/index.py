"""The index of an anchor layer: codes that are learnt, and the tries over them."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hfa.nn.norm import rms_norm
from hfa.ops.index import CHUNK, TOGETHER, log_agreement

GROUPS = 16  # codes of a token
_SHARES = (TOGETHER, 4, 8)  # of them describe the last token, the one before it, and what attention compares
CODES = 64  # values of a code

_WEIGHT = 0.01  # of the loss: nothing to Adam, as only the index learns from it, but to the norm that is clipped
_SAMPLED = 2048  # queries whose attention is looked at for the loss, of which
_LEARNT = 256  # those that look back most sharply are learnt from
_KEYS = 4096  # tokens that they are told from
_LOGITS = 1 << 21
_NEAR = 8  # tokens that no index is needed for
_SAMPLE = 1024  # tokens whose codes are compared with each other
_FLOOR = 1e-4  # of the probability that two codes agree


class Tries(NamedTuple):
    """The tries of each row, in flat arrays: see :mod:`hfa.ops.index.trie`. Zeros are an empty index."""

    tables: Tensor  # int32 [B, number, CODES]
    chunks: Tensor  # int32 [B, number, CHUNK]
    counts: Tensor  # int64 [B, 4], tokens inserted first

    @classmethod
    def empty(cls, batch_size: int, device: torch.device) -> Tries:
        def zeros(*shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
            return torch.zeros(batch_size, *shape, dtype=dtype, device=device)

        return cls(zeros(0, CODES), zeros(0, CHUNK), zeros(4, dtype=torch.long))

    def copied(self, room: tuple[int, int], limit: Tensor) -> Tries:
        """A copy with room for that many tables and chunks, and no token from `limit` [B] on."""
        tables, chunks = room
        copy = Tries(_padded(self.tables, tables), _padded(self.chunks, chunks), self.counts.clone())
        beyond = self.counts[:, 0] > limit
        if beyond.any():  # a fork from before what was inserted: the tries are built anew from the codes
            for x in copy:
                x[beyond] = 0
        return copy


class Index(nn.Module):
    """Codes of queries and keys, so that a query shares many with the tokens that it should read.

    All are of what attention compares, and so follow whatever it learns. Half of the codes quantise its queries and
    keys, which describe a context. A quarter is of the query's last token alone, as it is projected before the
    convolution, and of the token before a key's own: by these a single token is found among all contexts. A quarter is
    of the one before that, by which a context is found among thousands that end alike. What is learnt is where codes
    part; `loss` draws the codes of a query to those of the tokens that attention gives weight to.

    Args:
        width: of a key, of all key-value heads together.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.codebooks = nn.ParameterList(torch.randn(width, groups * CODES) * width**-0.5 for groups in _SHARES)
        self.log_sharpness = nn.Parameter(torch.tensor([math.log(4.0)]))  # vectors of one: FSDP shards no scalars
        self.log_temperature = nn.Parameter(torch.tensor([math.log(0.4)]))
        self.register_load_state_dict_pre_hook(_widen_scalars)

    def scores(self, features: Tensor) -> Tensor:
        """The score of every code, [..., GROUPS, CODES]; only how they lie to each other within a group counts.

        Args:
            features: of the last token, of the one before it, and of the context, [..., 3 * width].
        """
        parts = features.split(self.width, -1)
        scores = torch.cat([part @ book for part, book in zip(parts, self.codebooks, strict=True)], -1)
        by_group: Tensor = scores.unflatten(-1, (GROUPS, CODES))
        return by_group

    @torch.no_grad()
    def codes(self, features: Tensor) -> Tensor:
        """The best codes, uint8 [..., GROUPS]."""
        return self.scores(features).argmax(-1).to(torch.uint8)

    def loss(self, query: Tensor, key: Tensor, attention_query: Tensor, attention_key: Tensor) -> Tensor:
        """How far codes are from finding what attention reads; its gradient reaches the codes alone.

        A sample of queries is told from many keys, those of other rows too, by how likely their codes agree; the
        target is their attention, and a query counts as much as it gives to one token: while attention is diffuse, it
        would teach that all keys are alike. Two more terms keep the codes apart: every value of a code should be used,
        and two codes should not say the same.

        Args:
            query, key: features, [B, T, 3 * width], without gradients.
            attention_query: [B, T, H, K], logit scale included; attention_key: [B, T, G, K].
        """
        length = query.shape[1]
        rows, columns, weights, kept = _sample(attention_query.detach(), attention_key.detach())
        described = self._probabilities(key.flatten(0, 1)[kept])  # [M, GROUPS, CODES]
        asked = self._probabilities(query[rows, columns])  # [S, GROUPS, CODES]
        agreement = log_agreement(asked, described, floor=_FLOOR)
        own = kept // length == rows[:, None]
        future = own & (kept % length > columns[:, None])
        temperature = self.log_temperature.exp()
        among_all = (agreement * temperature).masked_fill(future, -torch.inf).logsumexp(-1)
        with_read = (agreement * weights).sum(-1)
        contrast = (among_all * weights.sum(-1) - with_read * temperature).mean()
        match = -with_read.mean()
        return _WEIGHT * (contrast + match + 3.0 * _imbalance(described) + 0.3 * _redundancy(described))

    def _probabilities(self, features: Tensor) -> Tensor:
        sharpness = self.log_sharpness.exp().expand(CODES)
        scores = self.scores(features).to(sharpness.dtype)  # under autocast they are of half of it
        return rms_norm(scores, sharpness).softmax(-1)


def _widen_scalars(module: nn.Module, weights: dict[str, Any], prefix: str, *_: Any) -> None:
    """Older artifacts have these as scalars. Their runs are not resumed: their optimizers have them so, too."""
    for name in ("log_sharpness", "log_temperature"):
        if (weight := weights.get(prefix + name)) is not None and weight.ndim == 0:
            weights[prefix + name] = weight[None]


@torch.no_grad()
def _sample(query: Tensor, key: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries that look back sharply, and keys to tell apart.

    Returns:
        row and column of the queries [S]; their attention [S, M] to the keys [M], numbers in the flattened batch,
        which sums to how sharp it is.
    """
    batch, length, heads, _ = query.shape
    count = max(1, min(_SAMPLED, _LOGITS // (heads * length), batch * length) // batch)
    columns = torch.randint(length, (batch, count), device=query.device)
    asked = query[torch.arange(batch, device=query.device)[:, None], columns]  # [B, S', H, K]
    grouped = asked.unflatten(2, (key.shape[2], -1))
    logits = torch.einsum("bsghk,btgk->bsght", grouped, key).flatten(2, 3)
    where = torch.arange(length, device=query.device)
    attention = logits.masked_fill(where > columns[..., None, None], -torch.inf).softmax(-1).mean(2)
    back = attention.masked_fill(where > columns[..., None] - _NEAR, 0.0)
    sharpness, best = back.amax(-1).flatten().topk(min(_LEARNT, batch * count))
    rows, attention = best // count, attention.flatten(0, 1)[best]
    if batch * length <= _KEYS:
        kept = torch.arange(batch * length, device=query.device)
    else:
        read = attention.topk(min(4, length)).indices + rows[:, None] * length
        kept = torch.cat([read.flatten(), torch.randperm(batch * length, device=query.device)[:_KEYS]]).unique()
    own = kept // length == rows[:, None]
    weights = attention.gather(1, kept % length * torch.ones_like(rows)[:, None]) * own
    weights = weights / weights.sum(-1, keepdim=True) * sharpness[:, None]
    return rows, columns.flatten()[best], weights, kept


def _imbalance(codes: Tensor) -> Tensor:
    """How much of the entropy of a uniform code is missing, mean over the groups."""
    mean = codes.mean(0)
    return ((mean * (mean + 1e-9).log()).sum(-1) + math.log(codes.shape[-1])).mean()


def _redundancy(codes: Tensor) -> Tensor:
    """Log of how much oftener two tokens share two codes than they would by chance, over random pairs of groups."""
    few = len(codes) <= _SAMPLE  # a slice that takes all is what Inductor cannot compile
    sample = codes if few else codes[torch.randperm(len(codes), device=codes.device)[:_SAMPLE]]
    order = torch.randperm(codes.shape[1], device=codes.device)
    one, other = sample[:, order[0::2]], sample[:, order[1::2]]
    count = len(sample)
    joint = torch.einsum("ngi,ngj->gij", one, other).square().sum((1, 2))
    itself = (one.square().sum(-1) * other.square().sum(-1)).sum(0)
    return ((joint - itself) / max(1, count * (count - 1)) * codes.shape[-1] ** 2).clamp(min=0.1).log().mean()


def _padded(x: Tensor, count: int) -> Tensor:
    """A copy with room for `count` entries in dimension 1, at least what it has."""
    return F.pad(x, (0, 0, 0, count - x.shape[1])) if count > x.shape[1] else x.clone()
