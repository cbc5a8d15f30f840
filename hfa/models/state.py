"""States as values: nested NamedTuples of batch-first tensors, and what can be done with any of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

State = Any  # a Tensor, or a tuple of States (a NamedTuple, usually)


def map_tensors(function: Callable[..., Tensor], *states: State) -> State:
    """The state whose every tensor is `function` of the tensors at that place in `states`."""
    first = states[0]
    if isinstance(first, Tensor):
        return function(*states)
    parts = [map_tensors(function, *inner) for inner in zip(*states, strict=True)]
    return type(first)(*parts) if hasattr(first, "_fields") else tuple(parts)


def select_rows(state: State, rows: Sequence[int] | Tensor) -> State:
    """The state of some rows of the batch, in the order given; shares no memory with `state`."""

    def select(x: Tensor) -> Tensor:
        return x.index_select(0, torch.as_tensor(rows, dtype=torch.long, device=x.device))

    return map_tensors(select, state)


def stack_rows(states: Sequence[State]) -> State:
    """One state for the rows of all `states`; memories of different capacity are padded to the largest."""

    def stack(*tensors: Tensor) -> Tensor:
        if tensors[0].dim() > 1:
            largest = max(x.shape[1] for x in tensors)
            spare = (0, 0) * (tensors[0].dim() - 2)
            tensors = tuple(F.pad(x, (*spare, 0, largest - x.shape[1])) for x in tensors)
        return torch.cat(tensors)

    return map_tensors(stack, *states)


def state_to(state: State, device: torch.device | str) -> State:
    """The state on another device."""
    return map_tensors(lambda x: x.to(device), state)


def flatten(state: State) -> dict[str, Tensor]:
    """The tensors of a state by dotted path, as safetensors stores them."""
    return dict(_walk(state, ""))


def unflatten(like: State, tensors: dict[str, Tensor]) -> State:
    """The state with the structure of `like` (from `init_state`, say) and the tensors of :func:`flatten`."""
    paths = iter(flatten(like))
    return map_tensors(lambda _: tensors[next(paths)].clone(), like)


def num_rows(state: State) -> int:
    """How many rows a state is of."""
    if isinstance(state, Tensor):
        return len(state)
    length = getattr(state, "length", None)  # of a memory, which may stand in pages that all rows share
    return len(length) if isinstance(length, Tensor) else num_rows(state[0])


def num_bytes(state: State) -> int:
    """Bytes held by the tensors of a state."""
    return sum(x.numel() * x.element_size() for x in flatten(state).values())


def _walk(state: State, path: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(state, Tensor):
        yield path, state.contiguous()
        return
    names = getattr(state, "_fields", None) or [str(i) for i in range(len(state))]
    for name, inner in zip(names, state, strict=True):
        yield from _walk(inner, f"{path}.{name}" if path else name)
