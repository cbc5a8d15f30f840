"""HFA with a part of its anchors replaced by what it was chosen over: measured, and not served."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from hfa.config import config
from hfa.models.anchor import Anchor
from hfa.models.base import Mixer
from hfa.models.flow import Flow
from hfa.models.hfa import HFAConfig
from hfa.models.index import Tries
from hfa.models.memory import Memory

_PRODUCTS = 1 << 24  # of queries and candidates' keys, held at once


@config
class AblatedConfig(HFAConfig):
    """See :class:`AblatedAnchor`; as HFA has them: true, codes, joint."""

    name: ClassVar[str] = "ablated"
    served: ClassVar[bool] = False

    match_init: bool
    selection: Literal["codes", "summaries"]
    softmax: Literal["joint", "mixture"]

    def mixer(self, layer: int) -> Mixer:
        return AblatedAnchor(self) if self.kinds[layer] == "anchor" else Flow(self)


class AblatedAnchor(Anchor):
    """An anchor layer that starts, selects or reads in another way.

    - Without `match_init`, queries, keys and the output start apart from each other.
    - With `summaries`, a query goes to the blocks whose mean key is most like it, as many as hold `num_ranked` tokens,
      instead of down the tries; of their tokens it reads the best, as ever.
    - With a `mixture`, each block is read by a softmax of its own, and so is the window; what they say is mixed by a
      softmax over ``query . mean key`` of each. The cost of that is quadratic here.
    """

    decodes = False

    def __init__(self, settings: AblatedConfig) -> None:
        self._matches = settings.match_init
        self.by_summaries, self.mixes = settings.selection == "summaries", settings.softmax == "mixture"
        super().__init__(settings)

    def match_init(self) -> None:
        if self._matches:
            super().match_init()

    @torch.no_grad()
    def _retrieve(
        self, asked: Tensor, ranking: Tensor, memory: Memory, start: Tensor, tries: Tries
    ) -> tuple[Tensor, Tensor]:
        if not self.by_summaries:
            return super()._retrieve(asked, ranking, memory, start, tries)
        size, wanted = self.search.block_size, self.search.num_retrieved
        keys = memory.read()[0].flatten(2)  # [B, N, W]
        near_from, pieces = self._near_from(start, ranking.shape[1]), []
        blocks = keys[:, : keys.shape[1] // size * size].unflatten(1, (-1, size)).mean(2)  # [B, N / size, W]
        rows = torch.arange(len(keys), device=keys.device)[:, None, None]
        count = min(blocks.shape[1], -(-self.search.num_ranked // size))
        step = max(1, _PRODUCTS // max(1, len(keys) * count * size * keys.shape[2]))
        for query, limit in zip(ranking.split(step, 1), near_from.split(step, 1), strict=True):
            inside = torch.arange(blocks.shape[1], device=keys.device) >= limit[..., None] // size
            best = (query @ blocks.transpose(1, 2)).masked_fill(inside, -torch.inf).topk(count)
            tokens = (best.indices[..., None] * size + torch.arange(size, device=keys.device)).flatten(2)
            logits = torch.einsum("btw,btcw->btc", query, keys[rows, tokens])
            logits = logits.masked_fill((best.values == -torch.inf).repeat_interleave(size, 2), -torch.inf)
            ranked = logits.topk(min(wanted, logits.shape[2]))
            chosen = tokens.gather(2, ranked.indices).masked_fill(ranked.values == -torch.inf, -1)
            pieces.append(torch.nn.functional.pad(chosen, (0, wanted - chosen.shape[2]), value=-1))
        return torch.cat(pieces, 1).int(), (near_from // size + count * size).int()

    def _read_all(self, q: Tensor, k: Tensor, v: Tensor, start: Tensor | None) -> Tensor:
        if not self.mixes:
            return super()._read_all(q, k, v, start)
        start = torch.zeros(len(q), dtype=torch.long, device=q.device) if start is None else start
        return self._mixture(q, k, v, start, None)

    def _read(self, q: Tensor, memory: Memory, chosen: Tensor, start: Tensor) -> Tensor:
        if not self.mixes:
            return super()._read(q, memory, chosen, start)
        keys, values, _ = memory.read()
        return self._mixture(q, keys, values, start, chosen)

    def _mixture(self, q: Tensor, k: Tensor, v: Tensor, start: Tensor, chosen: Tensor | None) -> Tensor:
        """The window and the blocks of those `chosen` [B, T, R], each read by itself, and mixed; None for all."""
        size, groups = self.search.block_size, k.shape[2]
        spare = -k.shape[1] % size
        k, v = (torch.nn.functional.pad(x, (0, 0, 0, 0, 0, spare)) for x in (k, v))
        position = start[:, None] + torch.arange(q.shape[2], device=q.device)
        first, where = self._near_from(start, q.shape[2])[..., None], torch.arange(k.shape[1], device=q.device)
        near, far = (where >= first) & (where <= position[..., None]), where < first  # [B, T, N]
        if chosen is not None:
            read = torch.zeros(*far.shape[:2], far.shape[2] + 1, dtype=torch.bool, device=q.device)
            far = far & read.scatter_(2, chosen.long() % read.shape[2], True)[..., :-1]  # -1 is one past the end
        near, far = near[:, None, None], far[:, None, None]
        query = q.unflatten(1, (groups, -1))
        logits = torch.einsum("bghtk,bngk->bghtn", query, k)
        parts = (logits.masked_fill(~far, -torch.inf)).unflatten(-1, (-1, size)), logits.masked_fill(~near, -torch.inf)
        by_block = logits.unflatten(-1, (-1, size)).mean(-1).masked_fill(parts[0].amax(-1) == -torch.inf, -torch.inf)
        by_window = (logits.masked_fill(~near, 0.0).sum(-1) / near.sum(-1))[..., None]
        mixed = torch.cat([by_block, by_window], -1).softmax(-1)
        inside = torch.where(by_block[..., None] == -torch.inf, 0.0, parts[0]).softmax(-1) * mixed[..., :-1, None]
        weights = inside.flatten(-2) + parts[1].softmax(-1) * mixed[..., -1:]
        return torch.einsum("bghtn,bngv->bghtv", weights, v).flatten(1, 2)
