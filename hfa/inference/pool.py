"""Where the engine keeps states: the exact memory in pages that streams share, the rest row by row."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hfa.errors import ConfigError
from hfa.inference.pages import PagePool, pages_of
from hfa.inference.row import Row, Stash
from hfa.models import LanguageModel
from hfa.models.index import CODES, Tries
from hfa.models.memory import Memory
from hfa.models.pages import PagedMemory
from hfa.models.state import State, num_bytes, state_to

_PAGE_SIZE = 64  # tokens of a page, for a model without anchor blocks of a power of two
_LEAVES = frozenset((Memory, Tries, Tensor))  # what the parts of a state are
_LONG = 1 << 16  # tokens over which the growth of a state is measured


class StatePool:
    """The states of all rows of one model, within a budget.

    A state has three kinds of parts: tensors of constant size, exact memories, which stand in pages here, and tries,
    which each row has for itself. One page holds the same tokens of all layers, so that a row has one list of pages.

    Args:
        model: whose states they are.
        device: where they are.
        budget_bytes: for all of it; pages take what rows leave.
        max_rows: rows at once.
    """

    def __init__(self, model: LanguageModel, device: torch.device, budget_bytes: int, max_rows: int) -> None:
        self.device = device
        self.vocab_size, self.max_seq_len = model.config.vocab_size, model.config.max_seq_len
        self.like = model.init_state(1)
        self.row_bytes = model.state_bytes(0)
        token_bytes = (model.state_bytes(2 * _LONG) - model.state_bytes(_LONG)) / _LONG
        block_size = getattr(model.config, "block_size", _PAGE_SIZE)
        self.page_size = (block_size if block_size & (block_size - 1) == 0 else _PAGE_SIZE) if token_bytes else 0
        self.page_bytes = int(token_bytes * self.page_size)
        left = budget_bytes - max_rows * self.row_bytes
        if left < self.page_bytes:
            least = max_rows * self.row_bytes + self.page_bytes
            raise ConfigError(
                "state_budget_mib",
                budget_bytes >> 20,
                f"at least {-(-least >> 20)} for {max_rows} concurrent requests to this model",
                "or fewer of them with max_concurrent",
            )
        self.pages = PagePool(left // self.page_bytes if self.page_bytes else 0)
        self._stores = [self._store(memory) for memory in _find(self.like, Memory)]
        self._tensors, self._tries = _paths(self.like, Tensor), _paths(self.like, Tries)  # where they are in a state
        self._rows: weakref.WeakSet[Row] = weakref.WeakSet()

    def state_bytes(self, seq_len: int) -> int:
        """Bytes that the state of one row takes at `seq_len` tokens, in whole pages."""
        return self.row_bytes + pages_of(seq_len, self.page_size) * self.page_bytes

    def rows(self, rows: Sequence[Row], recurrent: Sequence[Tensor]) -> State:
        """The state of some rows, as the model takes it.

        Args:
            rows: in the order of the batch.
            recurrent: their tensors of constant size, each [B, ...].
        """
        length = torch.tensor([row.length for row in rows], device=self.device)
        widest = max(1, *(len(row.pages) for row in rows))
        pages = [row.pages + [0] * (widest - len(row.pages)) for row in rows]
        table = torch.as_tensor(np.array(pages), device=self.device)  # torch is slow to read lists
        constants, stores, numbers = iter(recurrent), iter(self._stores), iter(range(len(self._stores)))

        def part(kind: type, _: Any) -> Any:
            if kind is Tensor:
                return next(constants)
            if kind is Memory:
                return PagedMemory(next(stores), table, length)
            number = next(numbers)
            return tuple(row.tries[number] for row in rows)

        return _rebuild(self.like, part)

    def recurrent(self, state: State) -> list[Tensor]:
        """The tensors of constant size in a state that the model handed back."""
        return [_at(state, path) for path in self._tensors]

    def take_tries(self, state: State, rows: Sequence[Row]) -> None:
        """Keep the tries of a state that the model handed back."""
        found = [_at(state, path) for path in self._tries]  # of each layer, those of all rows
        for number, row in enumerate(rows):
            row.tries = [layer[number] for layer in found]

    def begin(self, row: Row) -> None:
        """Give a row the state before the first token."""
        row.length = 0
        self.adopt(row, [x.clone() for x in _find(self.like, Tensor)])

    def adopt(self, row: Row, recurrent: Sequence[Tensor], tries: Sequence[Tries] | None = None) -> None:
        """Make tensors of another row a row's own; without tries, they are built anew from the codes."""
        self._rows.add(row)
        row.recurrent = list(recurrent)
        like = _find(self.like, Tries) if tries is None else tries
        row.tries = [Tries(*(x.clone() for x in part)) for part in like]

    def fork(self, row: Row) -> Row:
        """Another row in the state of `row`, which shares its full pages; a free page is there for the last one."""
        full = row.length // self.page_size if self.page_size else 0
        other = Row(pages=row.pages[:full], length=row.length)
        assert row.recurrent is not None
        self.adopt(other, row.recurrent, row.tries)  # what may fail comes before any page is taken
        last = self.copy(row.pages[full : full + 1]) if self.page_size and row.length % self.page_size else None
        self.pages.hold(other.pages)
        if last is not None:
            other.pages += self.pages.take(1)
            self.paste(other.pages[-1:], last)
        return other

    def own_bytes(self, row: Row) -> int:
        """What a row has for itself, beside its pages."""
        return sum(x.nbytes for x in row.recurrent or ()) + sum(x.nbytes for tries in row.tries for x in tries)

    def is_finite(self, recurrent: Sequence[Tensor], pages: Sequence[int]) -> bool:
        """Whether a state has no NaN and no infinity in its tensors of constant size and in some full pages."""
        stored = [part for store in self.copy(pages) for part in store] if pages else []
        return all(bool(x.isfinite().all()) for x in (*recurrent, *stored))

    def release(self) -> None:
        """Let go of the memory of all pages, in which nothing will run any more."""
        self._stores = []

    def copy(self, pages: Sequence[int]) -> list[list[Tensor]]:
        """What stands in some pages, of each memory for each of its pools."""
        return [[pool[list(pages)] for pool in store] for store in self._stores]

    def paste(self, pages: Sequence[int], contents: Sequence[Sequence[Tensor]]) -> None:
        """Write what `copy` returned."""
        for store, parts in zip(self._stores, contents, strict=True):
            for pool, part in zip(store, parts, strict=True):
                pool[list(pages)] = part.to(pool.device)

    def check(self, recurrent: Sequence[Tensor], contents: Sequence[Sequence[Tensor]], count: int, length: int) -> None:
        """Make sure of a checkpoint from outside, as `checked` does of a whole state.

        Args:
            recurrent: the tensors of constant size after `length` tokens.
            contents: `count` pages of each memory, as `copy` returns them.

        Raises:
            ValueError: the first thing that is not as it should be; a layer may carry something else by now.
        """
        like = _find(self.like, Tensor)
        if len(recurrent) != len(like) or [len(parts) for parts in contents] != [len(store) for store in self._stores]:
            raise ValueError("there are more or fewer tensors than this model carries")
        for got, wanted in zip(recurrent, like, strict=True):
            _check(got, tuple(wanted.shape), wanted.dtype, length)
        for parts, store in zip(contents, self._stores, strict=True):
            for got, pool in zip(parts, store, strict=True):
                _check(got, (count, *pool.shape[1:]), pool.dtype, length)

    def stash(self, row: Row, *, portable: bool = False) -> Stash:
        """A copy of a row's state outside the pages, on the CPU: what the model itself would carry.

        Args:
            row: not part of a batch.
            portable: leave out the tries, which follow from the rest.
        """
        constants, stores = iter(row.recurrent or ()), iter(self._stores)
        tries = iter(row.tries)

        def part(kind: type, like: Any) -> Any:
            if kind is Tensor:
                return next(constants).clone()
            if kind is Memory:
                return self._gather(next(stores), row)
            return like if portable else next(tries)

        state = state_to(_rebuild(self.like, part), "cpu")
        return Stash(state, row.length, num_bytes(state))

    def checked(self, state: State, length: int) -> State:
        """A state from outside, with what kernels will rely on made sure of; its tries are built anew.

        Raises:
            ValueError: the first thing that is not as it should be.
        """
        kinds: list[tuple[type, Any]] = []
        _visit(self.like, state, lambda kind, inner: kinds.append((kind, inner)))
        given = iter(kinds)

        def part(kind: type, like: Any) -> Any:
            value = next(given)[1]
            if kind is Tries:
                return like
            tensors = zip(like.pages, value.pages, strict=True) if kind is Memory else [(like, value)]
            for wanted, got in tensors:
                shape = (1, length, *wanted.shape[2:]) if kind is Memory else tuple(wanted.shape)
                _check(got, shape, wanted.dtype, length)
            return value

        return _rebuild(self.like, part)

    def restore(self, row: Row, stash: Stash) -> None:
        """Write a stashed state into a row, which has the pages for it."""
        self._rows.add(row)
        row.length, row.recurrent, row.tries = stash.length, [], []
        stores = iter(self._stores)
        constants, tries = row.recurrent, row.tries

        def part(kind: type, inner: Any) -> None:
            if kind is Tensor:
                constants.append(inner.to(self.device))
            elif kind is Tries:
                tries.append(Tries(*(x.to(self.device) for x in inner)))
            else:
                table = torch.tensor([row.pages], dtype=torch.long, device=self.device)
                empty = PagedMemory(next(stores), table, torch.zeros(1, dtype=torch.long, device=self.device))
                if stash.length:
                    empty.append(*(page[:, : stash.length].to(self.device) for page in inner.pages))

        _visit(self.like, stash.state, part)

    def move_to_cpu(self) -> None:
        """Everything, from a device that has run out of memory."""
        self._stores = [tuple(pool.to("cpu") for pool in store) for store in self._stores]
        self.like = state_to(self.like, "cpu")
        self.device = torch.device("cpu")
        for row in self._rows:
            row.recurrent = row.recurrent and [x.to("cpu") for x in row.recurrent]
            row.tries = [Tries(*(x.to("cpu") for x in tries)) for tries in row.tries]

    def _store(self, memory: Memory) -> tuple[Tensor, ...]:
        number, size = self.pages.num_pages, self.page_size
        return tuple(
            torch.empty(number, size, *page.shape[2:], dtype=page.dtype, device=self.device) for page in memory.pages
        )

    def _gather(self, store: tuple[Tensor, ...], row: Row) -> Memory:
        length = torch.tensor([row.length], device=self.device)
        if not row.length:
            return Memory.empty(1, *(pool[0, 0] for pool in store))
        pages = PagedMemory(store, torch.tensor([row.pages], device=self.device), length).read()
        return Memory(pages, length, length.clone())


def _check(got: Tensor, shape: tuple[int, ...], dtype: torch.dtype, length: int) -> None:
    """Raises ValueError for a tensor from outside that kernels cannot rely on."""
    grown = tuple(size or length for size in shape)  # a peer's cache grows from nothing
    if tuple(got.shape) not in (shape, grown) or got.dtype != dtype:
        raise ValueError(f"a tensor is {tuple(got.shape)} of {got.dtype}, expected {shape} of {dtype}")
    if got.is_floating_point() and not bool(got.isfinite().all()):
        raise ValueError("a tensor holds a number that is not finite")
    if got.dtype == torch.uint8 and got.numel() and int(got.max()) >= CODES:
        raise ValueError(f"a code is {int(got.max())}, expected less than {CODES}")


def _visit(like: State, state: State, part: Callable[[type, Any], Any]) -> None:
    """Call `part` with the kind and the value of every part of `state`, which is built like `like`."""
    if (kind := type(like)) in _LEAVES:
        part(kind, state)
        return
    for inner, value in zip(like, state, strict=True):
        _visit(inner, value, part)


def _rebuild(like: State, part: Callable[[type, Any], Any]) -> State:
    """A state built like `like` of what `part` returns for each of its parts."""
    if (kind := type(like)) in _LEAVES:
        return part(kind, like)
    parts = [_rebuild(inner, part) for inner in like]
    return type(like)(*parts) if hasattr(like, "_fields") else tuple(parts)


def _paths(like: State, wanted: type) -> list[tuple[int, ...]]:
    """Where the parts of a kind are."""
    if (kind := type(like)) in _LEAVES:
        return [()] if kind is wanted else []
    return [(place, *path) for place, inner in enumerate(like) for path in _paths(inner, wanted)]


def _at(state: State, path: tuple[int, ...]) -> Any:
    for place in path:
        state = state[place]
    return state


def _find(like: State, wanted: type) -> list[Any]:
    return [_at(like, path) for path in _paths(like, wanted)]
