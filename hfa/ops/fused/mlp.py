"""SwiGLU and its three matrix products, a piece of the tokens at a time, so that what lies between stays in cache."""

from __future__ import annotations

from typing import Any

import torch
from numba import njit
from torch import Tensor

from hfa.ops.fused.linear import decodes, products
from hfa.ops.fused.matmul import add_times, times
from hfa.ops.fused.norm import EPS, normalise
from hfa.ops.fused.packing import packed, packed_product
from hfa.ops.simd import WIDTH, first, load, one, put, sigmoid, store, tracked

_PIECE = 1024  # tokens: enough to keep the matrix unit busy, few enough that their activations stay in cache
_PACKED_PIECE = 256  # enough with packed weights


def swiglu_mlp(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """``W_down(silu(W_gate x) * W_up x)`` in float32 on the CPU.

    Args:
        x: [..., D].
        gate_up: [2 F, D], the gate's rows before the rest's; F in whole vectors.
        down: [D, F].
    """
    flat = x.reshape(-1, x.shape[-1])
    y = swiglu_operator(flat, gate_up, down)[0] if tracked(x, gate_up, down) else _forward(flat, gate_up, down, None)
    return y.view(x.shape)


def feed_forward_step(x: Tensor, mixed: Tensor, norm: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """``z + swiglu_mlp(rms_norm(z))`` of ``z = x + mixed``, without gradients, for what `pays` is true of.

    Args:
        x, mixed: [..., D], contiguous.
        norm: [D].
        gate_up, down: those of `swiglu_mlp`.
    """
    d, width, rows = x.shape[-1], down.shape[1], x.numel() // x.shape[-1]
    if not decodes(x, gate_up, down, norm):
        return _step_of_many(x, mixed, norm, gate_up, down)
    y, scratch = x.new_empty(x.shape), x.new_empty(rows * (max(d, 2 * width) + max(d, width)))
    tensors = (x, mixed, norm, gate_up, down, scratch, y)
    _step(*(t.data_ptr() for t in tensors), rows, d, width)
    return y


def _step_of_many(x: Tensor, mixed: Tensor, norm: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    z = x + mixed
    flat = z.view(-1, z.shape[-1])
    normed = torch.empty_like(flat)
    normalise(z.data_ptr(), norm.data_ptr(), 0, normed.data_ptr(), *flat.shape, EPS)
    gate_up_packed, down_packed = packed(gate_up), packed(down)
    if gate_up_packed is not None and down_packed is not None:
        hidden = x.new_empty(min(_PACKED_PIECE, len(flat)), down.shape[1])
        for part, into in zip(normed.split(_PACKED_PIECE), flat.split(_PACKED_PIECE), strict=True):
            both, rows = packed_product(part, gate_up_packed), len(part)
            _swiglu(both.data_ptr(), hidden.data_ptr(), rows, down.shape[1])
            into += packed_product(hidden[:rows], down_packed)
        return z
    both = torch.mm(gate_up, normed.t())  # a column for each token, so that nothing wide is ever transposed
    hidden = both[: len(both) // 2]
    _swiglu_in_place(both.data_ptr(), hidden.numel())
    return z.add_(torch.mm(down, hidden).t().view(z.shape))


@torch.library.custom_op("hfa::swiglu_mlp", mutates_args=())
def swiglu_operator(x: Tensor, gate_up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    """:func:`swiglu_mlp` for x [T, D], and ``W_gate_up x`` [T, 2 F] for the backward pass."""
    kept = x.new_empty(x.shape[0], gate_up.shape[0])
    return _forward(x, gate_up, down, kept), kept


@swiglu_operator.register_fake
def _(x: Tensor, gate_up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape[0], gate_up.shape[0])


@torch.library.custom_op("hfa::swiglu_mlp_backward", mutates_args=())
def _gradient(grad: Tensor, x: Tensor, gate_up: Tensor, down: Tensor, kept: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    dx, d_gate_up, d_down = x.new_empty(x.shape), torch.zeros_like(gate_up), torch.zeros_like(down)
    piece, width = min(_PIECE, len(x)), down.shape[1]
    d_hidden, hidden, d_kept = (x.new_empty(piece, n) for n in (width, width, 2 * width))
    parts = zip(*(t.contiguous().split(_PIECE) for t in (grad, x, kept, dx)), strict=True)
    for grad_part, x_part, kept_part, dx_part in parts:
        rows = len(x_part)
        times(grad_part, down.t(), out=d_hidden[:rows])
        _unswiglu(*(t.data_ptr() for t in (kept_part, d_hidden, hidden, d_kept)), rows, width)
        add_times(d_down, grad_part.t(), hidden[:rows].t())
        add_times(d_gate_up, d_kept[:rows].t(), x_part.t())
        times(d_kept[:rows], gate_up.t(), out=dx_part)
    return dx, d_gate_up, d_down


@_gradient.register_fake
def _(grad: Tensor, x: Tensor, gate_up: Tensor, down: Tensor, kept: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(gate_up), torch.empty_like(down)


def _forward(x: Tensor, gate_up: Tensor, down: Tensor, kept: Tensor | None) -> Tensor:
    y, width = x.new_empty(x.shape), down.shape[1]
    hidden = x.new_empty(min(_PIECE, len(x)), width)
    between = x.new_empty(len(hidden), 2 * width) if kept is None else kept
    for begin in range(0, len(x), _PIECE):
        part = slice(begin, min(begin + _PIECE, len(x)))
        rows = part.stop - begin
        product = times(x[part], gate_up, out=between[:rows] if kept is None else kept[part])
        _swiglu(product.data_ptr(), hidden.data_ptr(), rows, width)
        times(hidden[:rows], down, out=y[part])
    return y


@njit(cache=True, nogil=True, error_model="numpy")
def _swiglu(gate_up: int, hidden: int, rows: int, width: int) -> None:
    for row in range(rows):
        for c in range(0, width, WIDTH):
            gate, up = load(gate_up, 2 * row * width + c), load(gate_up, (2 * row + 1) * width + c)
            store(hidden, row * width + c, gate * sigmoid(gate) * up)


@njit(cache=True, nogil=True, error_model="numpy")
def _swiglu_in_place(gate: int, count: int) -> None:
    """Of gates, and as many others after them; into the gates. The last few are done one at a time."""
    whole = count // WIDTH * WIDTH
    for c in range(0, whole, WIDTH):
        store(gate, c, load(gate, c) * sigmoid(load(gate, c)) * load(gate, count + c))
    for c in range(whole, count):
        put(gate, c, first(one(gate, c) * sigmoid(one(gate, c)) * one(gate, count + c)))


@njit(cache=True, nogil=True, error_model="numpy")
def _step(
    x: int, mixed: int, norm: int, gate_up: int, down: int, product: int, y: int,
    rows: int, d: int, width: int,
) -> None:  # fmt: skip
    hidden = product + 4 * rows * max(d, 2 * width)
    for c in range(0, rows * d, WIDTH):
        store(y, c, load(x, c) + load(mixed, c))
    normalise(y, norm, 0, hidden, rows, d, EPS)
    products(hidden, gate_up, product, rows, 2 * width, d)
    _swiglu(product, hidden, rows, width)
    products(hidden, down, product, rows, d, width)
    for c in range(0, rows * d, WIDTH):
        store(y, c, load(y, c) + load(product, c))


@njit(cache=True, nogil=True, error_model="numpy")
def _unswiglu(gate_up: int, grad: int, hidden: int, d_gate_up: int, rows: int, width: int) -> None:
    for row in range(rows):
        for c in range(0, width, WIDTH):
            left, right = 2 * row * width + c, (2 * row + 1) * width + c
            gate, up, pull = load(gate_up, left), load(gate_up, right), load(grad, row * width + c)
            open_ = sigmoid(gate)
            silu = gate * open_
            store(hidden, row * width + c, silu * up)
            store(d_gate_up, left, pull * up * (open_ + silu - silu * open_))
            store(d_gate_up, right, pull * silu)


def _setup(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor, _: None) -> tuple[Tensor, ...]:
    grads: tuple[Tensor, ...] = _gradient(grad, *ctx.saved_tensors)
    return grads


swiglu_operator.register_autograd(_backward, setup_context=_setup)
