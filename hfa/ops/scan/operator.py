"""The CPU kernels as one operator, so that autograd, compile and export see one step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hfa.ops.scan.gradient import recurrent_gradient
from hfa.ops.scan.recurrent import recurrent_scan


@torch.library.custom_op("hfa::scan", mutates_args=())
def scan_operator(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    state: Tensor,
    erase: bool,
    chunk_size: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`hfa.ops.scan.naive_scan` in float32 on the CPU, with first derivatives in linear time and memory.

    Returns:
        o [B, T, H, V], the state after the last token, and for the backward pass, which makes all others again, the
        states before each chunk [N, B, H, K, V].
    """
    starts = _starts(v, state, chunk_size)
    out, final = recurrent_scan(q, k, v, log_decay, beta, state, erase=erase, starts=starts, chunk_size=chunk_size)
    return out.transpose(1, 2), final, starts


@scan_operator.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor, state: Tensor, erase: bool, chunk_size: int
) -> tuple[Tensor, Tensor, Tensor]:
    final = state.new_empty(state.shape)
    return _like_rows(v), final, _starts(v, state, chunk_size)


@torch.library.custom_op("hfa::scan_backward", mutates_args=())
def scan_backward(
    grad_out: Tensor,
    grad_state: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    starts: Tensor,
    erase: bool,
    chunk_size: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """See :func:`hfa.ops.scan.gradient.recurrent_gradient`."""
    saved = (q, k, v, log_decay, beta, starts)
    return recurrent_gradient(grad_out, grad_state, *saved, erase=erase, chunk_size=chunk_size)


@scan_backward.register_fake
def _(
    grad_out: Tensor,
    grad_state: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    starts: Tensor,
    erase: bool,
    chunk_size: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    dq, dk, dv, d_decay, d_beta = (_like_rows(x) for x in (q, k, v, log_decay, beta))
    return dq, dk, dv, d_decay, d_beta, grad_state.new_empty(grad_state.shape)


def _starts(v: Tensor, state: Tensor, chunk_size: int) -> Tensor:
    return state.new_empty(-(-v.shape[2] // chunk_size), *state.shape)


def _like_rows(x: Tensor) -> Tensor:
    batch, heads, length, width = x.shape
    return x.new_empty(batch, length, heads, width)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    q, k, v, log_decay, beta, _, ctx.erase, ctx.chunk_size = inputs
    ctx.save_for_backward(q, k, v, log_decay, beta, output[2])
    ctx.mark_non_differentiable(output[2])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_out: Tensor | None, grad_state: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    *inputs, starts = ctx.saved_tensors
    grad_out = _like_rows(inputs[2]).zero_() if grad_out is None else grad_out
    grad_state = torch.zeros_like(starts[0]) if grad_state is None else grad_state
    *grads, before = scan_backward(grad_out, grad_state, *inputs, starts, ctx.erase, ctx.chunk_size)
    return (*(x.transpose(1, 2) for x in grads), before, None, None)


scan_operator.register_autograd(_backward, setup_context=_setup)
