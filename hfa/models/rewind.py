"""Marks of a stream, and the way back to them.

A mark keeps what cannot be had again, the recurrent states and convolution tails of a moment, and of the exact memory
only its length: the pages stay in the latest state, which every mark shares.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from hfa.models.index import Tries
from hfa.models.memory import Memory
from hfa.models.state import State

Mark = Any  # like a State, with lengths in the place of memories and nothing in the place of tries


def mark(state: State) -> Mark:
    """What it takes to come back to this moment, from any later state of the same stream."""
    if isinstance(state, Memory):
        return state.length.clone()
    if isinstance(state, Tries):
        return None
    if isinstance(state, Tensor):
        return state.clone()
    return _like(state, [mark(part) for part in state])


def rewind(state: State, to: Mark) -> State:
    """The state as it was at a mark; `state` itself goes on as it is.

    Args:
        state: of the stream that was marked, at the mark or later.
        to: from :func:`mark`.
    """
    if isinstance(state, Memory):
        return state.cut(to)
    if isinstance(state, Tries):
        return state  # what entered after the mark goes when the first token is appended
    if isinstance(state, Tensor):
        return to.clone()
    return _like(state, [rewind(part, marked) for part, marked in zip(state, to, strict=True)])


def _like(state: State, parts: list[Any]) -> State:
    return type(state)(*parts) if hasattr(state, "_fields") else tuple(parts)
