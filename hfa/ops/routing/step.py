"""One token of a layer of routed channels in one kernel, for decoding."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from torch import Tensor

from hfa.ops.fused.conv import convolve, shift
from hfa.ops.fused.linear import decodes, product, products, projections
from hfa.ops.fused.norm import EPS, normalise
from hfa.ops.routing.recurrent import GATES, Routing, routed_step
from hfa.ops.routing.threshold import ROUTERS
from hfa.ops.simd import WIDTH, first, load, one, put, store


class RoutedWeights(NamedTuple):
    """Of a layer of routed channels, all contiguous."""

    project: Tensor  # [H C + D, D]
    gates: Tensor  # [2 H, D]: decay, write strength
    out_gate: Tensor  # [D, D]
    out: Tensor  # [D, D]
    read_conv: Tensor  # [J, H C]
    conv: Tensor  # [J, H C + D]
    norm: Tensor  # [V]
    bias: Tensor  # [2 H], of the gates; this and the next need not be whole vectors
    thresholds: Tensor  # [2 H], of the query and of the key


def routed_layer_step(
    x: Tensor, channels: Tensor, tail: Tensor, weights: RoutedWeights, routing: Routing
) -> tuple[Tensor, Tensor, Tensor]:
    """What :class:`hfa.models.simplemind.RoutedChannels` computes for one token a row, without gradients.

    In float32 on the CPU, for a layer with an output gate, whose channels keep sums and none of them is shared.

    Args:
        x: [B, 1, D].
        channels: [B, H, C, V], C and V in whole vectors.
        tail: [B, J - 1, H C + D].

    Returns:
        y [B, 1, D], and the channels and the tail after the token.
    """
    batch, heads, count, width = channels.shape
    y, new_channels, new_tail = (t.new_empty(t.shape) for t in (x, channels, tail))
    taps, scores = len(weights.conv), heads * count
    x, few = x.contiguous(), decodes(x, *weights[:4])
    projected = projections(x[:, 0], weights[:3], few)
    normed = x.new_empty(batch, heads * width)
    scratch = x.new_empty(batch * (len(weights.project) + (taps + 1) * scores + heads * (width + GATES)))
    tensors = (
        x, channels.contiguous(), tail.contiguous(), *weights, *projected, normed, y, new_channels, new_tail, scratch
    )  # fmt: skip
    sizes = (batch, heads, count, width, taps)
    options = (ROUTERS.index(routing.router), routing.budget, routing.erase, routing.signed)
    _step(*(t.data_ptr() for t in tensors), few, *sizes, *options)
    if not few:
        y = product(normed, weights.out)[:, None]
    return y, new_channels, new_tail


@njit(cache=True, nogil=True, error_model="numpy")
def _step(
    x: int, channels: int, tail: int, project: int, gates: int, out_gate: int, out: int, read_conv: int, conv: int,
    norm: int, bias: int, thresholds: int, projected: int, opened: int, gate: int, normed: int, y: int,
    new_channels: int, new_tail: int, scratch: int, few: bool, batch: int, heads: int, C: int, V: int, taps: int,
    router: int, budget: int, erase: bool, signed: bool,
) -> None:  # fmt: skip
    D, S, kept = heads * V, heads * C, taps - 1
    W = S + D
    index = np.zeros(C, np.int64)
    weight, decay = np.zeros(C, np.float32), np.zeros(C, np.float32)
    written, scores = scratch, scratch + 4 * batch * W
    query = scores + 4 * batch * S
    scores_tail = query + 4 * batch * S
    read = scores_tail + 4 * batch * kept * S
    own = read + 4 * batch * D  # gates and thresholds, [B, 4 H]
    if few:
        products(x, project, projected, batch, W, D)
        products(x, gates, opened, batch, 2 * heads, D)
        products(x, out_gate, gate, batch, D, D)
    for c in range(0, S, WIDTH):
        for b in range(batch):
            store(scores, b * S + c, load(projected, b * W + c))
        for j in range(batch * kept):
            store(scores_tail, j * S + c, load(tail, j * W + c))
    convolve(scores, scores_tail, read_conv, query, batch, 1, S, taps, False, 0, WIDTH)
    convolve(projected, tail, conv, written, batch, 1, W, taps, False, 0, WIDTH)
    for b in range(batch):
        shift(tail + 4 * b * kept * W, projected + 4 * b * W, new_tail + 4 * b * kept * W, 1, W, kept)
    for i in range(0, batch * heads * C * V, WIDTH):
        store(new_channels, i, load(channels, i))
    for b in range(batch):
        for i in range(2 * heads):
            put(own, GATES * heads * b + i, first(one(opened, 2 * heads * b + i) + one(bias, i)))
            put(own, GATES * heads * b + 2 * heads + i, first(one(thresholds, i)))
        for h in range(heads):
            routed_step(
                query, S * b + h * C, written, W * b + h * C, written, W * b + S + h * V,
                own, GATES * heads * b + h, heads, new_channels, (heads * b + h) * C * V, read, (heads * b + h) * V,
                C, V, router, budget, erase, signed, index, weight, decay,
            )  # fmt: skip
    normalise(read, norm, gate, normed, batch * heads, V, EPS)
    if few:
        products(normed, out, y, batch, D, D)
