"""What a memory did with the evidence of a question: was it kept, and was it read when asked for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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

    gold: Tensor  # int64 [B, T], where it stands
    stored: Tensor  # bool [B, T], every memory holds it
    selected: Tensor  # bool [B, T], a layer and head read it when it was asked for

    @classmethod
    def nothing(cls, gold: Tensor) -> Kept:
        """To be filled in.

        Args:
            gold: position of each label's evidence, int64 [B, T].
        """
        gold = gold.cpu()
        return cls(gold, torch.zeros_like(gold, dtype=torch.bool), torch.zeros_like(gold, dtype=torch.bool))

    def add_stored(self, lengths: Sequence[Tensor], piece: slice) -> None:
        """Note which evidence is still there for the labels of a piece.

        Args:
            lengths: tokens that each memory holds after the piece, int64 [B] each; where it is fewer than were
                fed, some were lost, and no evidence counts.
            piece: of the positions.
        """
        if lengths:
            whole = torch.stack([length.cpu() == piece.stop for length in lengths]).all(0)  # [B]
            self.stored[:, piece] = whole[:, None] & (self.gold[:, piece] != NOWHERE)

    def add_selected(self, reads: Iterable[Read]) -> None:
        """Note which evidence was read, window or retrieved, when its label was to be predicted."""
        for read in reads:
            length = read.chosen.shape[2]
            for row, start in enumerate(read.start.tolist()):
                columns = start + (self.gold[row, start : start + length] != NOWHERE).nonzero()[:, 0]
                wanted, here = self.gold[row, columns], columns - start
                near = wanted >= read.near_from[row].cpu()[here]
                retrieved = read.chosen[row].cpu()[:, here] == wanted[None, :, None]  # [G, n, R]
                self.selected[row, columns] |= near | retrieved.any(-1).any(0)
