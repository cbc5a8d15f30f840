"""Products of large matrices in float32, by the faster of the two libraries that torch brings."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from llvmlite.binding import get_host_cpu_name
from torch import Tensor

_LEAST = 1 << 22  # multiplications: for fewer the call costs more than it saves


@cache
def by_onednn() -> bool:
    """Whether this is an AMD processor with AVX-512: there MKL, which torch multiplies by, was the slower one.

    ``python -m experiments.complexity.products`` shows both on this machine.
    """
    wide = torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability() == "AVX512"
    return wide and get_host_cpu_name().startswith("znver")


def takes(x: Tensor, weight: Tensor) -> bool:
    """Whether `Times` is for x [..., D] and W [N, D], and faster than torch's own."""
    if not _pays(x, weight) or torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
        return False
    return all(y.is_cpu and y.dtype == torch.float32 for y in (x, weight))


def times(x: Tensor, weight: Tensor, out: Tensor | None = None) -> Tensor:
    """``x W^T`` for x [M, D] and W [N, D] in float32 on the CPU, either of them transposed or not; without gradients.

    Args:
        out: [M, N], to write it to.
    """
    if not _pays(x, weight):
        return torch.mm(x, weight.t(), out=out)
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
    return y if out is None else out.copy_(y)


def add_times(total: Tensor, x: Tensor, weight: Tensor) -> None:
    """Add `times` to `total` [M, N]."""
    if _pays(x, weight):
        total += times(x, weight)
    else:
        total.addmm_(x, weight.t())


class Times(torch.autograd.Function):
    """`times` with its gradients, which are products of the same kind, and have theirs."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor) -> Tensor:
        return times(x, weight)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        of_x, of_weight = ctx.needs_input_grad
        dx = Times.apply(grad, weight.t()) if of_x else None
        return dx, Times.apply(grad.t(), x.t()) if of_weight else None


def _pays(x: Tensor, weight: Tensor) -> bool:
    return x.numel() * len(weight) >= _LEAST and by_onednn()
