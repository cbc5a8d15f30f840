"""Counts what a piece of torch code does, without a clock: multiplications and bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from hfa.ops.anchor.read import window_pairs


class Tally(TorchDispatchMode):
    """Adds up, over every torch operator that runs inside, in the forward and the backward pass alike.

    A custom operator (a CPU kernel of ours, say) is one operator here: what it returns is counted, what it does inside
    is not, but for the matrix products and the attention of ours that training has as one.

        with Tally() as tally:
            model(tokens)
        print(tally.allocated_bytes, tally.flops)
    """

    def __init__(self) -> None:
        super().__init__()
        self.allocated_bytes = 0  # of results in fresh memory: a view and an in-place result are none
        self.flops = 0  # of matrix products, convolutions and attention: two a multiplication
        self.operators = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        count = _FLOPS.get(func._overloadpacket)
        if count is None and func is not torch.ops.prim.device.default:
            with self:  # an operator made of others is counted as those: in inference mode it comes here whole
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        result = func(*args, **kwargs)
        given = {_storage(x) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        made = {_storage(x): x.untyped_storage().nbytes() for x in tree_leaves(result) if isinstance(x, Tensor)}
        self.allocated_bytes += sum(size for storage, size in made.items() if storage not in given)
        if count is not None:
            self.flops += count(*args, **kwargs, out_val=result)
        self.operators += 1
        return result


def _attention(q: Tensor, k: Tensor, v: Tensor, *_: object, **__: object) -> int:
    return int(sdpa_flop_count(q.shape, k.shape, v.shape))


def _attention_backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: object, **__: object) -> int:
    return int(sdpa_backward_flop_count(grad.shape, q.shape, k.shape, v.shape))


def _product(x: Tensor, weight: Tensor, *_: object, **__: object) -> int:
    return 2 * x.numel() * weight.shape[0]


def _swiglu(x: Tensor, gate_up: Tensor, down: Tensor, **_: object) -> int:
    return 2 * (x.numel() * len(gate_up) + len(x) * down.numel())


def _swiglu_backward(grad: Tensor, x: Tensor, gate_up: Tensor, down: Tensor, kept: Tensor, **_: object) -> int:
    return 2 * _swiglu(x, gate_up, down)


def _window_shapes(q: Tensor, start: Tensor, window: int, block_size: int) -> tuple[tuple[int, ...], ...]:
    """Of an attention that multiplies as many pairs of queries and keys."""
    _, heads, length, width = q.shape
    pairs = sum(window_pairs(first, length, window, block_size) for first in start.tolist())
    return (1, heads, pairs, width), (1, heads, 1, width), (1, heads, 1, width)


def _anchor_read(
    q: Tensor, k: Tensor, v: Tensor, chosen: Tensor, start: Tensor, window: int, block_size: int, **_: object
) -> int:
    return int(sdpa_flop_count(*_window_shapes(q, start, window, block_size)))


def _anchor_read_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, chosen: Tensor, start: Tensor, out: Tensor, lse: Tensor,
    window: int, block_size: int, **_: object,
) -> int:  # fmt: skip
    shapes = _window_shapes(q, start, window, block_size)
    return int(sdpa_backward_flop_count(shapes[0], *shapes))


_FLOPS: dict[Any, Callable[..., int]] = {
    **flop_registry,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,  # torch counts the CUDA ones only
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
    torch.ops.mkldnn._linear_pointwise: _product,
    torch.ops.hfa.times: _product,
    torch.ops.hfa.swiglu_mlp: _swiglu,
    torch.ops.hfa.swiglu_mlp_backward: _swiglu_backward,
    torch.ops.hfa.anchor_read: _anchor_read,
    torch.ops.hfa.anchor_read_backward: _anchor_read_backward,
}


def _storage(x: Tensor) -> int:
    return 0 if x.is_meta or x.is_mkldnn else x.untyped_storage().data_ptr()


def per_token(call: Callable[[Tensor], object], length: int, vocab_size: int, seed: int = 0) -> tuple[float, float]:
    """Bytes allocated and floating-point operations for each of `length` random tokens [1, length]."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, vocab_size, (1, length), generator=generator)
    with Tally() as counted:
        call(tokens)
    return counted.allocated_bytes / length, counted.flops / length
