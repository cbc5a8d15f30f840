"""Counts what a piece of torch code does, without a clock: multiplications and bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count


class Tally(TorchDispatchMode):
    """Adds up, over every torch operator that runs inside, in the forward and the backward pass alike.

    A custom operator (a CPU kernel of ours, say) is one operator here: what it returns is counted, what it does inside
    is not.

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


def _packed_product(x: Tensor, matrix: Tensor, *_: object, **__: object) -> int:
    return 2 * x.numel() * matrix.shape[0]


_FLOPS: dict[Any, Callable[..., int]] = {
    **flop_registry,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,  # torch counts the CUDA ones only
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
    torch.ops.mkldnn._linear_pointwise: _packed_product,
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
