"""One token of a layer of routed channels in one kernel, for decoding."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from torch import Tensor

from hfa.ops.fused.conv import convolve, shift
from hfa.ops.fused.linear import products
from hfa.ops.fused.norm import normalise
from hfa.ops.routing.recurrent import GATES, Routing, routed_step
from hfa.ops.routing.threshold import ROUTERS
from hfa.ops.simd import WIDTH, first, load, one, put, store


class RoutedWeights(NamedTuple):
    """Of a layer of routed channels, all contiguous."""

    qkv: Tensor  # [2 H C + D, D]
    gates: Tensor  # [4 H, D]: decay, write strength, thresholds of the query and of the key
    out_gate: Tensor  # [D, D]
    out: Tensor  # [D, D]
    conv: Tensor  # [J, 2 H C + D]
    norm: Tensor  # [V]
    bias: Tensor  # [4 H], of the gates


def routed_layer_step(
    x: Tensor, channels: Tensor, tail: Tensor, weights: RoutedWeights, routing: Routing
) -> tuple[Tensor, Tensor, Tensor]:
    """What :class:`hfa.models.simplemind.RoutedChannels` computes for one token a row, without gradients.

    In float32 on the CPU, if the layer has an output gate and its channels keep sums.

    Args:
        x: [B, 1, D].
        channels: [B, H, C, V], C and V in whole vectors.
        tail: [B, J - 1, 2 H C + D].

    Returns:
        y [B, 1, D], and the channels and the tail after the token.
    """
    batch, heads, count, width = channels.shape
    y, new_channels, new_tail = (t.new_empty(t.shape) for t in (x, channels, tail))
    scratch = x.new_empty(batch * (2 * len(weights.qkv) + 3 * heads * width + GATES * heads))
    tensors = (x.contiguous(), channels.contiguous(), tail.contiguous(), *weights, y, new_channels, new_tail, scratch)
    sizes = (batch, heads, count, width, len(weights.conv))
    options = (ROUTERS.index(routing.router), routing.budget, routing.erase)
    _step(*(t.data_ptr() for t in tensors), *sizes, *options)
    return y, new_channels, new_tail


@njit(cache=True, nogil=True, error_model="numpy")
def _step(
    x: int, channels: int, tail: int, qkv: int, gates: int, out_gate: int, out: int, conv: int, norm: int, bias: int,
    y: int, new_channels: int, new_tail: int, scratch: int,
    batch: int, heads: int, C: int, V: int, taps: int, router: int, budget: int, erase: bool,
) -> None:  # fmt: skip
    D, W = heads * V, 2 * heads * C + heads * V
    index = np.zeros(C, np.int64)
    weight, decay = np.zeros(C, np.float32), np.zeros(C, np.float32)
    mixed = scratch + 4 * batch * W
    read = mixed + 4 * batch * W
    gate, normed, opened = read + 4 * batch * D, read + 8 * batch * D, read + 12 * batch * D
    products(x, qkv, scratch, batch, W, D)
    convolve(scratch, tail, conv, mixed, batch, 1, W, taps, False, 0, WIDTH)
    shift(tail, scratch, new_tail, batch, W, taps - 1)
    products(x, gates, opened, batch, GATES * heads, D)
    for i in range(0, batch * heads * C * V, WIDTH):
        store(new_channels, i, load(channels, i))
    for b in range(batch):
        for i in range(GATES * heads):
            place = GATES * heads * b + i
            put(opened, place, first(one(opened, place) + one(bias, i)))
        for h in range(heads):
            q, v = W * b + h * C, W * b + 2 * heads * C + h * V
            routed_step(
                mixed, q, mixed, q + heads * C, mixed, v, opened, GATES * heads * b + h, heads,
                new_channels, (heads * b + h) * C * V, read, (heads * b + h) * V,
                C, V, router, budget, erase, index, weight, decay,
            )  # fmt: skip
    products(x, out_gate, gate, batch, D, D)
    normalise(read, norm, gate, normed, batch * heads, V, 1e-6)
    products(normed, out, y, batch, D, D)
