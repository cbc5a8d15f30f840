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
        """Positions retrieved for each of them, by all heads together, int64 [B, 1, T, R]; -1 where there are fewer."""

    @property
    def near_from(self) -> Tensor:
        """First position of the window that is read anyway, int64 [B, T]; it ends with the token itself."""


class Held(Protocol):
    """One layer's memory of all tokens so far; `hfa.models.memory` is one."""

    @property
    def pages(self) -> tuple[Tensor, ...]:
        """What it keeps of each token, by position: keys and values, say, each [B, capacity, ...]."""

    @property
    def length(self) -> Tensor:
        """Tokens it has, int64 [B]."""


class Kept(NamedTuple):
    """What became of the evidence of each label; False where there is none."""

    gold: Tensor  # int64 [B, T], where it stands
    stored: Tensor  # bool [B, T], every memory holds it as it was written
    selected: Tensor  # bool [B, T], a layer and head read it when it was asked for

    @classmethod
    def nothing(cls, gold: Tensor) -> Kept:
        """To be filled in.

        Args:
            gold: position of each label's evidence, int64 [B, T].
        """
        gold = gold.cpu()
        return cls(gold, torch.zeros_like(gold, dtype=torch.bool), torch.zeros_like(gold, dtype=torch.bool))

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


class Witness:
    """What the memories wrote of the evidence when it was fed, to compare with what they hold when it is asked for.

    Args:
        gold: position of each label's evidence, int64 [B, T].
    """

    def __init__(self, gold: Tensor) -> None:
        self._rows, self._columns = (gold.cpu() != NOWHERE).nonzero(as_tuple=True)
        self._evidence = gold.cpu()[self._rows, self._columns]
        self._written: list[list[Tensor]] = []  # of each memory, of each of its pages: [labels, ...]

    def note(self, memories: Sequence[Held], piece: slice) -> None:
        """Copy what stands of the evidence that was fed with a piece.

        Args:
            memories: after the piece; always as many.
            piece: of the positions.
        """
        if not self._written:
            count = len(self._rows)
            self._written = [[page.new_empty(count, *page.shape[2:]) for page in held.pages] for held in memories]
        fed = ((self._evidence >= piece.start) & (self._evidence < piece.stop)).nonzero()[:, 0]
        for held, copies in zip(memories, self._written, strict=True):
            there = fed[self._evidence[fed] < held.length.cpu()[self._rows[fed]]]  # a memory may leave tokens out
            for page, copy in zip(held.pages, copies, strict=True):
                copy[there] = page[self._rows[there], self._evidence[there]]

    def check(self, kept: Kept, memories: Sequence[Held], piece: slice) -> None:
        """Note which evidence is still as it was written, in every memory, for the labels of a piece.

        Args:
            kept: takes it.
            memories: after the piece.
            piece: of the positions.
        """
        asked = ((self._columns >= piece.start) & (self._columns < piece.stop)).nonzero()[:, 0]
        rows, evidence = self._rows[asked], self._evidence[asked]
        same = torch.full((len(asked),), bool(memories))
        for held, copies in zip(memories, self._written, strict=True):
            same &= evidence < held.length.cpu()[rows]
            for page, copy in zip(held.pages, copies, strict=True):
                there = evidence.clamp(max=page.shape[1] - 1)  # beyond it is lost already
                same &= (page[rows, there] == copy[asked]).flatten(1).all(1).cpu()
        kept.stored[rows, self._columns[asked]] = same
