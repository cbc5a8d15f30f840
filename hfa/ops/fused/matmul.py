"""Products of large matrices in float32, by the fastest of the libraries that are at hand."""

from __future__ import annotations

from functools import cache
from typing import Any, Literal

import numpy as np
import torch
from llvmlite.binding import get_host_cpu_name
from threadpoolctl import LibController, ThreadpoolController
from torch import Tensor

Library = Literal["torch", "oneDNN", "OpenBLAS"]

_LEAST = 1 << 22  # multiplications: for fewer the call costs more than it saves


def library() -> Library:
    """What multiplies fastest here, on as many threads as torch has now.

    That is torch's own library, but not on AMD's processors, where it is MKL: there oneDNN, which torch brings as well,
    is ahead with AVX-512, and without it the OpenBLAS that NumPy brings, on one thread. On more, OpenBLAS's own wait by
    spinning, and take the processor from torch's.
    ``python -m experiments.complexity.products`` shows all of them on this machine.
    """
    fastest = _of_processor()
    return "torch" if fastest == "OpenBLAS" and torch.get_num_threads() > 1 else fastest


@cache
def _of_processor() -> Library:
    if not get_host_cpu_name().startswith("znver"):
        return "torch"
    if torch.backends.cpu.get_cpu_capability() == "AVX512":
        return "oneDNN" if torch.backends.mkldnn.is_available() else "torch"
    return "OpenBLAS" if openblas() else "torch"


@cache
def openblas() -> list[LibController]:
    """The OpenBLAS that NumPy multiplies by; nothing where that is another library."""
    built: dict[str, Any] = np.show_config(mode="dicts")  # type: ignore[assignment]
    if "openblas" not in built.get("Build Dependencies", {}).get("blas", {}).get("name", ""):
        return []
    found: list[LibController] = ThreadpoolController().select(internal_api="openblas").lib_controllers
    return found


def takes(x: Tensor, weight: Tensor) -> bool:
    """Whether `Times` is for x [..., D] and W [N, D], and faster than torch's own."""
    if torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):  # first: the compiler cannot follow the rest
        return False
    return all(y.is_cpu and y.dtype == torch.float32 for y in (x, weight)) and _pays(x, weight)


def times(x: Tensor, weight: Tensor, out: Tensor | None = None) -> Tensor:
    """``x W^T`` for x [M, D] and W [N, D] in float32 on the CPU, either of them transposed or not; without gradients.

    Args:
        out: [M, N], to write it to.
    """
    if not _pays(x, weight):
        return torch.mm(x, weight.t(), out=out)
    if library() == "oneDNN":
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
        return y if out is None else out.copy_(y)
    out = x.new_empty(len(x), len(weight)) if out is None else out
    torch.ops.hfa.times(x, weight, out)
    return out


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


def times_by_openblas(x: Tensor, weight: Tensor, out: Tensor) -> None:
    """Write ``x W^T`` to `out`, on one thread; all of OpenBLAS in this process has one from then on."""
    for blas in openblas():
        if blas.num_threads != 1:
            blas.set_num_threads(1)
    # Not by `numpy()`: it keeps a storage from ever being resized, as FSDP does to free its parameters.
    left, right, into = (np.from_dlpack(y.detach()) for y in (x, weight, out))
    with np.errstate(all="ignore"):
        np.matmul(left, right.T, out=into)


# An operator, so that what counts operators sees it; `custom_op` takes as long to call as a small product.
torch.library.define("hfa::times", "(Tensor x, Tensor weight, Tensor(a!) out) -> ()")
torch.library.impl("hfa::times", "cpu", times_by_openblas)


def _pays(x: Tensor, weight: Tensor) -> bool:
    return x.numel() * len(weight) >= _LEAST and library() != "torch"
