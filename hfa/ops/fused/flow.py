"""One token of a flow layer in one kernel: between the matrices there is too little work to pay for a call."""

from __future__ import annotations

from typing import NamedTuple

from numba import njit
from torch import Tensor

from hfa.ops.fused.conv import convolve, shift
from hfa.ops.fused.linear import products
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
    batch, heads, width = len(x), memory.shape[1], x.shape[-1]
    y, new_memory, new_tail = (t.new_empty(t.shape) for t in (x, memory, tail))
    scratch = x.new_empty(batch * (9 * width + 2 * heads))
    tensors = (x.contiguous(), memory.contiguous(), tail.contiguous(), *weights, y, new_memory, new_tail, scratch)
    _step(*(t.data_ptr() for t in tensors), batch, heads, width // heads, len(weights.conv))
    return y, new_memory, new_tail


@njit(cache=True, nogil=True, error_model="numpy")
def _step(
    x: int, memory: int, tail: int, qkv: int, gates: int, out_gate: int, out: int, conv: int, norm: int, bias: int,
    y: int, new_memory: int, new_tail: int, scratch: int, batch: int, heads: int, head_dim: int, taps: int,
) -> None:  # fmt: skip
    D, square = heads * head_dim, head_dim * head_dim
    mixed = scratch + 12 * batch * D
    read, gate = mixed + 12 * batch * D, mixed + 16 * batch * D
    strengths, normed = gate + 4 * batch * D, scratch
    products(x, qkv, scratch, batch, 3 * D, D)
    convolve(scratch, tail, conv, mixed, batch, 1, 3 * D, taps, True, 2 * heads, head_dim)
    shift(tail, scratch, new_tail, batch, 3 * D, taps - 1)
    products(x, gates, strengths, batch, 2 * heads, D)
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
    products(x, out_gate, gate, batch, D, D)
    normalise(read, norm, gate, normed, batch * heads, head_dim, 1e-6)
    products(normed, out, y, batch, D, D)
