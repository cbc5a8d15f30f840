"""What a memory did with the evidence of a question: was it kept, and was it read when asked for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from hfa.types import NOWHERE


class Read(Protocol):
    """What one layer read for T tokens; `hfa.models.audit` hands these out."""

    @property
    def start(self) -> Tensor:
        """Position of the first of them in its row, int64 [B]."""

    @property
    def chosen(self) -> Tensor:
        """Positions each memory head retrieved for each of them, int64 [B, G, T, R]; -1 where there are fewer."""

    @property
    def near_from(self) -> Tensor:
        """First position of the window that is read anyway, int64 [B, T]; it ends with the token itself."""


class Kept(NamedTuple):
    """What became of the evidence of each label; False where there is none."""

    stored: Tensor  # bool [B, T], every memory holds it
    selected: Tensor  # bool [B, T], a layer and head read it when it was asked for

    @classmethod
    def nothing(cls, shape: tuple[int, ...] | torch.Size) -> Kept:
        """To be filled in."""
        return cls(torch.zeros(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.bool))

    def add_stored(self, lengths: Iterable[Tensor], gold: Tensor, first: int, stop: int) -> None:
        """Note which evidence of the labels at `first` to `stop` is still there.

        Args:
            lengths: tokens that each memory holds after position ``stop - 1``, int64 [B] each; one that holds
                fewer than were fed has lost some, and none of its evidence counts.
            gold: int64 [B, T].
            first: position of the piece's first token.
            stop: position after its last.
        """
        whole = torch.stack([length.cpu() == stop for length in lengths]).all(0)  # [B]
        piece = gold[:, first:stop].cpu()
        self.stored[:, first:stop] = whole[:, None] & (piece != NOWHERE) & (piece < stop)

    def add_selected(self, reads: Iterable[Read], gold: Tensor) -> None:
        """Note which evidence was read, window or retrieved, when its label was to be predicted."""
        gold = gold.cpu()
        for read in reads:
            length = read.chosen.shape[2]
            for row, start in enumerate(read.start.tolist()):
                columns = start + (gold[row, start : start + length] != NOWHERE).nonzero()[:, 0]
                wanted, here = gold[row, columns], columns - start
                near = wanted >= read.near_from[row].cpu()[here]
                retrieved = read.chosen[row].cpu()[:, here] == wanted[None, :, None]  # [G, n, R]
                self.selected[row, columns] |= near | retrieved.any(-1).any(0)
