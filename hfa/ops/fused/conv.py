"""The causal depthwise convolution, and what may follow it: SiLU, and heads of unit norm."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from hfa.ops.fused.norm import EPS
from hfa.ops.simd import WIDTH, load, sigmoid, splat, store, total, tracked

_BLOCK = 256  # tokens under one partial sum of the weight's gradient, so that long sums stay exact

Array = np.ndarray[Any, Any]


def causal_conv(x: Tensor, tail: Tensor, weight: Tensor, *, silu: bool, unit_heads: int, head_dim: int) -> Tensor:
    """``y_t = sum_j weight_j * x_{t-j}``, then SiLU if wanted, then unit norm for the first `unit_heads` heads.

    In float32 on the CPU.

    Args:
        x: [B, T, C].
        tail: [B, J - 1, C], what came before x.
        weight: [J, C].
        head_dim: channels of a head, in whole vectors; divides C.
    """
    operator = conv_operator if tracked(x, tail, weight) else _forward
    return operator(x.contiguous(), tail.contiguous(), weight.contiguous(), silu, unit_heads, head_dim)


def _forward(x: Tensor, tail: Tensor, weight: Tensor, silu: bool, unit_heads: int, head_dim: int) -> Tensor:
    y = torch.empty_like(x)
    convolve(*(t.data_ptr() for t in (x, tail, weight, y)), *x.shape, len(weight), silu, unit_heads, head_dim)
    return y


@torch.library.custom_op("hfa::causal_conv", mutates_args=())
def conv_operator(x: Tensor, tail: Tensor, weight: Tensor, silu: bool, unit_heads: int, head_dim: int) -> Tensor:
    """:func:`causal_conv` for contiguous tensors."""
    return _forward(x, tail, weight, silu, unit_heads, head_dim)


@conv_operator.register_fake
def _(x: Tensor, tail: Tensor, weight: Tensor, silu: bool, unit_heads: int, head_dim: int) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("hfa::causal_conv_backward", mutates_args=())
def _gradient(
    grad: Tensor, x: Tensor, tail: Tensor, weight: Tensor, silu: bool, unit_heads: int, head_dim: int
) -> tuple[Tensor, Tensor, Tensor]:
    batch, length, channels = x.shape
    grad, dx, d_tail = grad.contiguous(), torch.empty_like(x), torch.empty_like(tail)
    d_weight = x.new_zeros(-(-length // _BLOCK), *weight.shape)
    recent = torch.empty_like(weight)  # gradients before the convolution's sum, of as many tokens as it has taps
    tensors = (grad, x, tail, weight, dx, d_tail, d_weight, recent)
    sizes = (batch, length, channels, len(weight))
    _unconv(*(t.data_ptr() for t in tensors), *sizes, silu, unit_heads, head_dim)
    return dx, d_tail, d_weight.sum(0)


@_gradient.register_fake
def _(
    grad: Tensor, x: Tensor, tail: Tensor, weight: Tensor, silu: bool, unit_heads: int, head_dim: int
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(tail), torch.empty_like(weight)


@njit(error_model="numpy")
def _taps(x: int, tail: int, weight: int, b: int, t: int, c: int, length: int, channels: int, width: int) -> Any:
    """The convolution at one token, sixteen channels."""
    z = splat(0.0)
    for j in range(width):
        z = z + load(weight, j * channels + c) * _past(x, tail, b, t - j, c, length, channels, width)
    return z


@njit(error_model="numpy")
def _past(x: int, tail: int, b: int, t: int, c: int, length: int, channels: int, width: int) -> Any:
    if t >= 0:
        return load(x, (b * length + t) * channels + c)
    return load(tail, ((b + 1) * (width - 1) + t) * channels + c)


@njit(cache=True, nogil=True, error_model="numpy")
def convolve(
    x: int, tail: int, weight: int, y: int,
    batch: int, length: int, channels: int, width: int, silu: bool, unit_heads: int, head_dim: int,
) -> None:  # fmt: skip
    """:func:`causal_conv` of addresses."""
    for b in range(batch):
        for t in range(length):
            row = (b * length + t) * channels
            for first in range(0, channels, head_dim):
                squares = splat(0.0)
                for c in range(first, first + head_dim, WIDTH):
                    z = _taps(x, tail, weight, b, t, c, length, channels, width)
                    if silu:
                        z = z * sigmoid(z)
                    squares = squares + z * z
                    store(y, row + c, z)
                if first < unit_heads * head_dim:
                    scale = splat(1.0 / math.sqrt(total(squares) + EPS))
                    for c in range(first, first + head_dim, WIDTH):
                        store(y, row + c, load(y, row + c) * scale)


@njit(error_model="numpy")
def shift(tail: int, x: int, after: int, length: int, channels: int, kept: int) -> None:
    """The tail of one row after its tokens: addresses of the tails [kept, channels] and of x [length, channels]."""
    for j in range(kept):
        t = length - kept + j
        for c in range(0, channels, WIDTH):
            past = load(x, t * channels + c) if t >= 0 else load(tail, (kept + t) * channels + c)
            store(after, j * channels + c, past)


@njit(error_model="numpy")
def convolve_rows(
    x: int, tail: int, weight: int, y: int, after: int, lengths: Array,
    channels: int, width: int, silu: bool, unit_heads: int, head_dim: int,
) -> None:  # fmt: skip
    """`convolve` and `shift` of rows of different lengths, whose tokens stand row after row in x and y."""
    past = 4 * (width - 1) * channels
    for b in range(len(lengths)):
        convolve(x, tail, weight, y, 1, lengths[b], channels, width, silu, unit_heads, head_dim)
        shift(tail, x, after, lengths[b], channels, width - 1)
        own = 4 * lengths[b] * channels
        x, y, tail, after = x + own, y + own, tail + past, after + past


@njit(cache=True, nogil=True, error_model="numpy")
def _unconv(
    grad: int, x: int, tail: int, weight: int, dx: int, d_tail: int, d_weight: int, recent: int,
    batch: int, length: int, channels: int, width: int, silu: bool, unit_heads: int, head_dim: int,
) -> None:  # fmt: skip
    for b in range(batch):
        for t in range(length - 1, -width, -1):
            if t >= 0:
                for first in range(0, channels, head_dim):
                    _before_sum(
                        grad, x, tail, weight, recent, b, t, first,
                        length, channels, width, silu, first < unit_heads * head_dim, head_dim,
                    )  # fmt: skip
            block = t // _BLOCK * width
            for c in range(0, channels, WIDTH):
                pull = splat(0.0)
                for j in range(width):
                    if 0 <= t + j < length:
                        pull = pull + load(weight, j * channels + c) * load(recent, (t + j) % width * channels + c)
                    if t >= 0:
                        place = (block + j) * channels + c
                        past = _past(x, tail, b, t - j, c, length, channels, width)
                        step = load(recent, t % width * channels + c) * past
                        store(d_weight, place, load(d_weight, place) + step)
                if t >= 0:
                    store(dx, (b * length + t) * channels + c, pull)
                else:
                    store(d_tail, ((b + 1) * (width - 1) + t) * channels + c, pull)


@njit(error_model="numpy")
def _before_sum(
    grad: int, x: int, tail: int, weight: int, recent: int, b: int, t: int, first: int,
    length: int, channels: int, width: int, silu: bool, unit: bool, head_dim: int,
) -> None:  # fmt: skip
    """The gradient of one head's sums at one token, into that token's row of `recent`."""
    row, place = (b * length + t) * channels, t % width * channels
    squares, product = splat(0.0), splat(0.0)
    for c in range(first, first + head_dim, WIDTH):
        z = _taps(x, tail, weight, b, t, c, length, channels, width)
        store(recent, place + c, z)
        if unit:
            s = z * sigmoid(z) if silu else z
            squares, product = squares + s * s, product + s * load(grad, row + c)
    scale = 1.0 / math.sqrt(total(squares) + EPS) if unit else 1.0
    along = splat(total(product) * scale**3 if unit else 0.0)
    for c in range(first, first + head_dim, WIDTH):
        z, pull = load(recent, place + c), load(grad, row + c) * splat(scale)
        open_ = sigmoid(z) if silu else splat(1.0)
        s = z * open_
        pull = pull - s * along
        store(recent, place + c, pull * (open_ + s - s * open_) if silu else pull)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.silu, ctx.unit_heads, ctx.head_dim = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    grads = _gradient(grad, *ctx.saved_tensors, ctx.silu, ctx.unit_heads, ctx.head_dim)
    return (*grads, None, None, None)


conv_operator.register_autograd(_backward, setup_context=_setup)
