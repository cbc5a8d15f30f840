"""Caches of `transformers` as values: their tensors apart from the objects that hold them."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

_COUNTERS = ("cumulative_length", "seqlen_offset")  # attributes that count the tokens of a cache


class Slot:
    """Where a tensor was."""


def pack(cache: Any) -> tuple[tuple[Tensor, ...], list[Tensor]]:
    """The tensors of a cache with a row for each row of the batch, and all that it holds, each once.

    Args:
        cache: any object; tuples, lists, dictionaries and attributes are looked through, in their order.
    """
    every = list(_tensors(cache, set()))
    return tuple(x for x in every if x.dim() > 1), every


class Shell:
    """The structure of a cache, to be filled with tensors.

    Args:
        one: a cache after one token of one row.
        two: likewise after two.
    """

    def __init__(self, one: Any, two: Any) -> None:
        short, every = pack(one)
        self._like = [x.clone() for x in short]
        self._grows = [_growing(a, b) for a, b in zip(short, pack(two)[0], strict=True)]
        self._slots = [Slot() for _ in short]
        memo: dict[int, Any] = {id(x): slot for x, slot in zip(short, self._slots, strict=True)}
        memo |= {id(x): x.clone() for x in every if x.dim() <= 1}
        self._object = copy.deepcopy(one, memo)

    @property
    def growth_bytes(self) -> int:
        """Bytes that each token adds to a row."""
        pairs = zip(self._like, self._grows, strict=True)
        return sum(x.numel() // x.shape[dim] * x.element_size() for x, dim in pairs if dim is not None)

    def empty(self, batch_size: int) -> tuple[Tensor, ...]:
        """The tensors before the first token."""
        made = []
        for x, dim in zip(self._like, self._grows, strict=True):
            shape = [batch_size, *x.shape[1:]]
            if dim is not None:
                shape[dim] = 0
            made.append(x.new_zeros(shape))
        return tuple(made)

    def unpack(self, tensors: Sequence[Tensor], length: int) -> Any:
        """A cache that holds `tensors`, or copies of those that the package may write into.

        Args:
            tensors: from :func:`pack`, or of the same structure.
            length: tokens they stand for.
        """
        filled = zip(self._slots, tensors, self._grows, strict=True)
        memo: dict[int, Any] = {id(slot): x if dim is not None else x.clone() for slot, x, dim in filled}
        cache = copy.deepcopy(self._object, memo)
        for node in _objects(cache, set()):
            for name in _COUNTERS:
                if name in vars(node):
                    old = vars(node)[name]
                    setattr(node, name, torch.full_like(old, length) if isinstance(old, Tensor) else length)
        return cache


def _growing(one: Tensor, two: Tensor) -> int | None:
    """The dimension that grows with the tokens."""
    return next((dim for dim in range(1, one.dim()) if one.shape[dim] != two.shape[dim]), None)


def _inside(node: Any) -> Iterator[Any]:
    if isinstance(node, dict):
        yield from node.values()
    elif isinstance(node, list | tuple):
        yield from node
    elif hasattr(node, "__dict__") and not isinstance(node, type | torch.nn.Module | Tensor):
        yield from vars(node).values()


def _tensors(node: Any, seen: set[int]) -> Iterator[Tensor]:
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, Tensor):
        yield node
    for inner in _inside(node):
        yield from _tensors(inner, seen)


def _objects(node: Any, seen: set[int]) -> Iterator[Any]:
    if id(node) in seen:
        return
    seen.add(id(node))
    if hasattr(node, "__dict__") and not isinstance(node, type | torch.nn.Module | Tensor):
        yield node
    for inner in _inside(node):
        yield from _objects(inner, seen)
