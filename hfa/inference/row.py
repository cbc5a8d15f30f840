"""The state of one stream inside the engine, and outside of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from hfa.models.index import Tries
from hfa.models.state import State


@dataclass(eq=False)
class Row:
    """One stream's state: what the pages hold of it, and what is its own.

    Args:
        pages: numbers of the pages of its exact memory, in order.
        length: tokens in its state.
        recurrent: the tensors of constant size, each [1, ...]; None before the first token, and while the row is
            part of the batch that decodes.
        tries: the index of each layer that has one, each of one row.
    """

    pages: list[int] = field(default_factory=list)
    length: int = 0
    recurrent: list[Tensor] | None = None
    tries: list[Tries] = field(default_factory=list)


class Stash(NamedTuple):
    """A state outside the pages: a value that the model itself could go on from."""

    state: State
    length: int
    num_bytes: int
