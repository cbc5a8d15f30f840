"""The kernels of routing as one operator, so that autograd, compile and export see one step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hfa.ops.routing.gradient import routed_gradient
from hfa.ops.routing.recurrent import Routing, recurrent_routed_scan


@torch.library.custom_op("hfa::routed_scan", mutates_args=())
def routed_scan_operator(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Tensor,
    state: Tensor,
    router: str,
    budget: int,
    erase: bool,
    signed: bool,
    chunk_size: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`hfa.ops.routing.naive_routed_scan` in float32 on the CPU, with first derivatives in linear time.

    Returns:
        o [B, T, H, V], the state after the last token, and for the backward pass, which makes all others again, the
        states before each chunk [N, B, H, C, V].
    """
    starts = _starts(v, state, chunk_size)
    routing = Routing(router, budget, erase, signed)
    return (*recurrent_routed_scan(q, k, v, gates, state, routing, starts, chunk_size), starts)


@routed_scan_operator.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Tensor,
    state: Tensor,
    router: str,
    budget: int,
    erase: bool,
    signed: bool,
    chunk_size: int,
) -> tuple[Tensor, Tensor, Tensor]:
    return v.new_empty(v.shape), state.new_empty(state.shape), _starts(v, state, chunk_size)


@torch.library.custom_op("hfa::routed_scan_backward", mutates_args=())
def routed_scan_backward(
    grad_out: Tensor,
    grad_state: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Tensor,
    starts: Tensor,
    router: str,
    budget: int,
    erase: bool,
    signed: bool,
    chunk_size: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """See :func:`hfa.ops.routing.gradient.routed_gradient`."""
    return routed_gradient(
        grad_out, grad_state, q, k, v, gates, starts, Routing(router, budget, erase, signed), chunk_size
    )


@routed_scan_backward.register_fake
def _(
    grad_out: Tensor,
    grad_state: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Tensor,
    starts: Tensor,
    router: str,
    budget: int,
    erase: bool,
    signed: bool,
    chunk_size: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    dq, dk, dv, d_gates, d_state = (x.new_empty(x.shape) for x in (q, k, v, gates, grad_state))
    return dq, dk, dv, d_gates, d_state


def _starts(v: Tensor, state: Tensor, chunk_size: int) -> Tensor:
    return state.new_empty(-(-v.shape[1] // chunk_size), *state.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    q, k, v, gates, _, *ctx.options = inputs
    ctx.save_for_backward(q, k, v, gates, output[2])
    ctx.mark_non_differentiable(output[2])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_out: Tensor | None, grad_state: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    *inputs, starts = ctx.saved_tensors
    grad_out = inputs[2].new_zeros(inputs[2].shape) if grad_out is None else grad_out
    grad_state = torch.zeros_like(starts[0]) if grad_state is None else grad_state
    return (*routed_scan_backward(grad_out, grad_state, *inputs, starts, *ctx.options), None, None, None, None, None)


routed_scan_operator.register_autograd(_backward, setup_context=_setup)
