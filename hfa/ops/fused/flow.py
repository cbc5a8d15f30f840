"""A few tokens of a flow layer in one kernel: between the matrices there is too little work to pay for a call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from torch import Tensor

from hfa.ops.fused.conv import convolve_rows
from hfa.ops.fused.linear import decodes, product, products, projections
from hfa.ops.fused.norm import EPS, normalise
from hfa.ops.scan.recurrent import write_and_read
from hfa.ops.simd import first, one, put, sigmoid

Array = np.ndarray[Any, Any]


class FlowWeights(NamedTuple):
    """Of a flow layer, all contiguous."""

    qkv: Tensor  # [3 D, D]
    gates: Tensor  # [2 H, D]: decay and write strength
    out_gate: Tensor  # [D, D]
    out: Tensor  # [D, D]
    conv: Tensor  # [J, 3 D]
    norm: Tensor  # [V]
    bias: Tensor  # [2 H], of the gates


def flow_step(
    x: Tensor, memory: Tensor, tail: Tensor, lengths: Sequence[int], weights: FlowWeights
) -> tuple[Tensor, Tensor, Tensor]:
    """What :class:`hfa.models.flow.Flow` computes for a few tokens a row, without gradients, in float32 on the CPU.

    Args:
        x: [N, D], the tokens of all rows, row after row.
        memory: [B, H, K, K], K in whole vectors.
        tail: [B, J - 1, 3 D].
        lengths: tokens of each row, at least 1; N together.

    Returns:
        y [N, D], and the memory and the tail after the tokens.
    """
    x, count, heads, width = x.contiguous(), len(x), memory.shape[1], x.shape[-1]
    few = decodes(x, *weights[:4])
    y, new_memory, new_tail = (t.new_empty(t.shape) for t in (x, memory, tail))
    projected = projections(x, (weights.qkv, weights.gates, weights.out_gate), few)
    mixed, read, normed = x.new_empty(count, 3 * width), x.new_empty(count, width), x.new_empty(count, width)
    tensors = (
        x, memory.contiguous(), tail.contiguous(), *weights, *projected, mixed, read, normed, y, new_memory, new_tail
    )  # fmt: skip
    sizes = (count, heads, width // heads, len(weights.conv))
    _step(*(t.data_ptr() for t in tensors), np.array(lengths, np.int64), *sizes, few)
    if not few:
        y = product(normed, weights.out)
    return y, new_memory, new_tail


@njit(cache=True, nogil=True, error_model="numpy")
def _step(
    x: int, memory: int, tail: int, qkv_w: int, gates_w: int, out_gate_w: int, out_w: int, conv: int, norm: int,
    bias: int, qkv: int, strengths: int, gate: int, mixed: int, read: int, normed: int,
    y: int, new_memory: int, new_tail: int, lengths: Array,
    count: int, heads: int, head_dim: int, taps: int, project: bool,
) -> None:  # fmt: skip
    D, square = heads * head_dim, head_dim * head_dim
    if project:
        products(x, qkv_w, qkv, count, 3 * D, D)
        products(x, gates_w, strengths, count, 2 * heads, D)
        products(x, out_gate_w, gate, count, D, D)
    convolve_rows(qkv, tail, conv, mixed, new_tail, lengths, 3 * D, taps, True, 2 * heads, head_dim)
    begin = 0
    for b in range(len(lengths)):
        end = begin + lengths[b]
        for h in range(heads):
            state = (heads * b + h) * square
            before, after = memory // 4 + state, new_memory // 4 + state
            for t in range(begin, end):
                decay, write, q = 2 * heads * t + h, 2 * heads * t + heads + h, 3 * D * t + h * head_dim
                put(strengths, decay, first(sigmoid(one(strengths, decay) + one(bias, h))))
                strength = sigmoid(one(strengths, write) + one(bias, heads + h))
                write_and_read(
                    mixed, q, mixed, q + D, mixed, q + 2 * D, strengths, decay, 0, strength,
                    0, before, after, read, D * t + h * head_dim, 0, 0, head_dim, head_dim, True,
                )  # fmt: skip
                before = after
        begin = end
    normalise(read, norm, gate, normed, count * heads, head_dim, EPS)
    if project:
        products(normed, out_w, y, count, D, D)
