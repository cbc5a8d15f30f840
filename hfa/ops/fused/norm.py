"""Root-mean-square normalisation, and what may follow it: a gate."""

from __future__ import annotations

import math
from typing import Any

import torch
from numba import njit
from torch import Tensor

from hfa.ops.simd import WIDTH, load, sigmoid, splat, store, total, tracked

EPS = 1e-6
_BLOCK = 256  # rows under one partial sum of the weight's gradient, so that long sums stay exact


def rms_norm(x: Tensor, weight: Tensor, eps: float, gate: Tensor | None = None) -> Tensor:
    """``x / sqrt(mean(x^2) + eps) * weight``, times ``silu(gate)`` if there is one, in float32 on the CPU.

    Args:
        x: [..., W], W in whole vectors.
        weight: [W].
        gate: of as many elements as x.
    """
    operator = norm_operator if tracked(x, weight, gate) else _forward
    return operator(x.contiguous(), weight.contiguous(), eps, None if gate is None else gate.contiguous())


def _forward(x: Tensor, weight: Tensor, eps: float, gate: Tensor | None) -> Tensor:
    y, width = torch.empty_like(x), x.shape[-1]
    gates = 0 if gate is None else gate.data_ptr()
    normalise(x.data_ptr(), weight.data_ptr(), gates, y.data_ptr(), x.numel() // width, width, eps)
    return y


@torch.library.custom_op("hfa::rms_norm", mutates_args=())
def norm_operator(x: Tensor, weight: Tensor, eps: float, gate: Tensor | None) -> Tensor:
    """:func:`rms_norm` for contiguous tensors."""
    return _forward(x, weight, eps, gate)


@norm_operator.register_fake
def _(x: Tensor, weight: Tensor, eps: float, gate: Tensor | None) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("hfa::rms_norm_backward", mutates_args=())
def _gradient(
    grad: Tensor, x: Tensor, weight: Tensor, eps: float, gate: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and gate (empty without a gate)."""
    grad, width = grad.contiguous(), x.shape[-1]
    rows = x.numel() // width
    dx, d_weight = torch.empty_like(x), x.new_zeros(-(-rows // _BLOCK), width)
    d_gate = x.new_empty(0) if gate is None else torch.empty_like(gate)
    gates = (0, 0) if gate is None else (gate.data_ptr(), d_gate.data_ptr())
    tensors = (grad, x, weight, dx, d_weight)
    _unnorm(*(t.data_ptr() for t in tensors), *gates, rows, width, eps)
    return dx, d_weight.sum(0), d_gate


@_gradient.register_fake
def _(grad: Tensor, x: Tensor, weight: Tensor, eps: float, gate: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(weight), x.new_empty(0) if gate is None else torch.empty_like(gate)


@njit(cache=True, nogil=True, error_model="numpy")
def normalise(x: int, weight: int, gate: int, y: int, rows: int, width: int, eps: float) -> None:
    """:func:`rms_norm` of addresses; no gate is 0."""
    for row in range(rows):
        start, squares = row * width, splat(0.0)
        for c in range(0, width, WIDTH):
            squares = squares + load(x, start + c) * load(x, start + c)
        scale = splat(1.0 / math.sqrt(total(squares) / width + eps))
        for c in range(0, width, WIDTH):
            value = load(x, start + c) * scale * load(weight, c)
            if gate:
                value = value * load(gate, start + c) * sigmoid(load(gate, start + c))
            store(y, start + c, value)


@njit(cache=True, nogil=True, error_model="numpy")
def _unnorm(
    grad: int, x: int, weight: int, dx: int, d_weight: int, gate: int, d_gate: int, rows: int, width: int, eps: float
) -> None:
    for row in range(rows):
        start, block = row * width, row // _BLOCK * width
        squares = splat(0.0)
        for c in range(0, width, WIDTH):
            squares = squares + load(x, start + c) * load(x, start + c)
        root = 1.0 / math.sqrt(total(squares) / width + eps)
        scale, product = splat(root), splat(0.0)
        for c in range(0, width, WIDTH):
            pull, value = load(grad, start + c), load(x, start + c) * scale
            if gate:
                level = load(gate, start + c)
                open_ = sigmoid(level)
                silu = level * open_
                store(d_gate, start + c, pull * value * load(weight, c) * (open_ + silu - silu * open_))
                pull = pull * silu
            store(d_weight, block + c, load(d_weight, block + c) + pull * value)
            pull = pull * load(weight, c)
            product = product + pull * value
            store(dx, start + c, pull)
        mean = splat(total(product) / width)
        for c in range(0, width, WIDTH):
            store(dx, start + c, scale * (load(dx, start + c) - load(x, start + c) * scale * mean))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, ctx.eps, gate = inputs
    ctx.save_for_backward(x, weight, gate)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, gate = ctx.saved_tensors
    dx, d_weight, d_gate = _gradient(grad, x, weight, ctx.eps, gate)
    return dx, d_weight, None, None if gate is None else d_gate


norm_operator.register_autograd(_backward, setup_context=_setup)
