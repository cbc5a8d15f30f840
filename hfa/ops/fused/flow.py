"""One token of a flow layer in one kernel: between the matrices there is too little work to pay for a call."""

from __future__ import annotations

from typing import NamedTuple

from numba import njit
from torch import Tensor

from hfa.ops.fused.conv import convolve, shift
from hfa.ops.fused.linear import decodes, product, products, projections
from hfa.ops.fused.norm import normalise
from hfa.ops.scan.recurrent import write_and_read
from hfa.ops.simd import first, one, put, sigmoid


class FlowWeights(NamedTuple):
    """Of a flow layer, all contiguous."""

    qkv: Tensor  # [3 D, D]
    gates: Tensor  # [2 H, D]: decay and write strength
    out_gate: Tensor  # [D, D]
    out: Tensor  # [D, D]
    conv: Tensor  # [J, 3 D]
    norm: Tensor  # [V]
    bias: Tensor  # [2 H], of the gates


def flow_step(x: Tensor, memory: Tensor, tail: Tensor, weights: FlowWeights) -> tuple[Tensor, Tensor, Tensor]:
    """What :class:`hfa.models.flow.Flow` computes for one token a row, without gradients, in float32 on the CPU.

    Args:
        x: [B, 1, D].
        memory: [B, H, K, K], K in whole vectors.
        tail: [B, J - 1, 3 D].

    Returns:
        y [B, 1, D], and the memory and the tail after the token.
    """
    x, batch, heads, width = x.contiguous(), len(x), memory.shape[1], x.shape[-1]
    few = decodes(x, *weights[:4])
    y, new_memory, new_tail = (t.new_empty(t.shape) for t in (x, memory, tail))
    projected = projections(x, (weights.qkv, weights.gates, weights.out_gate), few)
    mixed, read, normed = x.new_empty(batch, 3 * width), x.new_empty(batch, width), x.new_empty(batch, width)
    tensors = (
        x, memory.contiguous(), tail.contiguous(), *weights, *projected, mixed, read, normed, y, new_memory, new_tail
    )  # fmt: skip
    _step(*(t.data_ptr() for t in tensors), batch, heads, width // heads, len(weights.conv), few)
    if not few:
        y = product(normed, weights.out)[:, None]
    return y, new_memory, new_tail


@njit(cache=True, nogil=True, error_model="numpy")
def _step(
    x: int, memory: int, tail: int, qkv_w: int, gates_w: int, out_gate_w: int, out_w: int, conv: int, norm: int,
    bias: int, qkv: int, strengths: int, gate: int, mixed: int, read: int, normed: int,
    y: int, new_memory: int, new_tail: int, batch: int, heads: int, head_dim: int, taps: int, project: bool,
) -> None:  # fmt: skip
    D, square = heads * head_dim, head_dim * head_dim
    if project:
        products(x, qkv_w, qkv, batch, 3 * D, D)
        products(x, gates_w, strengths, batch, 2 * heads, D)
        products(x, out_gate_w, gate, batch, D, D)
    convolve(qkv, tail, conv, mixed, batch, 1, 3 * D, taps, True, 2 * heads, head_dim)
    shift(tail, qkv, new_tail, batch, 3 * D, taps - 1)
    for b in range(batch):
        for h in range(heads):
            decay, write = 2 * heads * b + h, 2 * heads * b + heads + h
            put(strengths, decay, first(sigmoid(one(strengths, decay) + one(bias, h))))
            strength = sigmoid(one(strengths, write) + one(bias, heads + h))
            q, state = 3 * D * b + h * head_dim, (heads * b + h) * square
            write_and_read(
                mixed, q, mixed, q + D, mixed, q + 2 * D, strengths, decay, 0, strength,
                0, memory // 4 + state, new_memory // 4 + state, read, D * b + h * head_dim, 0, 0,
                head_dim, head_dim, True,
            )  # fmt: skip
    normalise(read, norm, gate, normed, batch * heads, head_dim, 1e-6)
    if project:
        products(normed, out_w, y, batch, D, D)
