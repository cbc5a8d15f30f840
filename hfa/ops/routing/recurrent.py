"""Routing and its recurrence as one CPU kernel, which touches no channel that a token is not routed to."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from numba import njit
from torch import Tensor

from hfa.ops.routing.choose import choose, sizes
from hfa.ops.routing.threshold import FASTEST_DECAY, ROUTERS
from hfa.ops.scan.recurrent import rows
from hfa.ops.simd import WIDTH, exponential, first, load, one, prefetch, sigmoid, splat, store

GATES = 4  # decay, write strength, thresholds of the query and of the key
AHEAD = 4  # tokens
_FOUR = 4 * WIDTH


class Routing(NamedTuple):
    """How tokens are routed."""

    router: str  # one of ROUTERS
    budget: int  # most channels of a token, of `hard` and `dynamic`
    erase: bool  # whether a write first removes what the channels predicted
    signed: bool  # whether scores below 0 count as those above, with weights below 0


def recurrent_routed_scan(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Tensor,
    state: Tensor,
    routing: Routing,
    starts: Tensor | None = None,
    chunk_size: int = 1,
) -> tuple[Tensor, Tensor]:
    """What :func:`hfa.ops.routing.naive_routed_scan` computes, without gradients, in float32 on the CPU.

    Args:
        starts: [T / chunk_size, B, H, C, V], filled with the state before each chunk; None to leave that out.

    Shapes and the remaining arguments are those of `naive_routed_scan`; C and V are in whole vectors.
    """
    batch, length, heads, channels = q.shape
    width = v.shape[-1]
    (q, q_row), (k, k_row), (v, v_row), gates = *(rows(x.transpose(1, 2)) for x in (q, k, v)), gates.contiguous()
    out, state = v.new_empty(batch, length, heads, width), state.clone(memory_format=torch.contiguous_format)
    _scan(
        *(x.data_ptr() for x in (q, k, v, gates, state, out)),
        starts.data_ptr() if starts is not None else 0,
        *(q_row, k_row, v_row, batch, length, heads, channels, width, chunk_size),
        *(ROUTERS.index(routing.router), routing.budget, routing.erase, routing.signed),
    )
    return out, state


@njit(cache=True, nogil=True, error_model="numpy")
def _scan(
    q: int, k: int, v: int, gates: int, state: int, out: int, starts: int,
    q_row: int, k_row: int, v_row: int, batch: int, length: int, heads: int, C: int, V: int, chunk_size: int,
    router: int, budget: int, erase: bool, signed: bool,
) -> None:  # fmt: skip
    index = np.zeros(C, np.int64)
    weight, decay = np.zeros(C, np.float32), np.zeros(C, np.float32)
    for b in range(batch):
        for h in range(heads):
            memory = (b * heads + h) * C * V
            for t in range(length):
                if starts and t % chunk_size == 0:
                    start = ((t // chunk_size * batch + b) * heads + h) * C * V
                    for i in range(0, C * V, WIDTH):
                        store(starts, start + i, load(state, memory + i))
                row = b * length + t
                fetch(q, q_row * (row + AHEAD) + h * C, C)
                fetch(k, k_row * (row + AHEAD) + h * C, C)
                fetch(v, v_row * (row + AHEAD) + h * V, V)
                routed_step(
                    q, q_row * row + h * C, k, k_row * row + h * C, v, v_row * row + h * V,
                    gates, GATES * heads * row + h, heads, state, memory, out, (row * heads + h) * V,
                    C, V, router, budget, erase, signed, index, weight, decay,
                )  # fmt: skip


@njit(error_model="numpy", forceinline=True)
def fetch(x: int, at: int, width: int) -> None:
    """Start to bring a vector into the cache: the processor does not see by itself that a head's tokens lie apart."""
    for c in range(0, width, WIDTH):
        prefetch(x, at + c)


@njit(error_model="numpy", forceinline=True)
def routed_step(
    q: int, qi: int, k: int, ki: int, v: int, vi: int, gates: int, gi: int, heads: int,
    state: int, memory: int, out: int, oi: int, C: int, V: int, router: int, budget: int, erase: bool, signed: bool,
    index: Any, weight: Any, decay: Any,
) -> None:  # fmt: skip
    """One token of one head, every array as its address and the offset of this token; the lists are scratch."""
    theta = first(one(gates, gi + 3 * heads))
    found, _, _, _ = choose(k, ki, C, router, theta, budget, signed, index, weight, 0)
    forget(weight, decay, 0, found, slowness(first(one(gates, gi))))
    strength = sigmoid(one(gates, gi + heads))
    write(state, memory, v, vi, 0, 0, 0, 0, strength, index, weight, decay, 0, found, V, erase)
    theta = first(one(gates, gi + 2 * heads))
    found, _, _, _ = choose(q, qi, C, router, theta, budget, signed, index, weight, 0)
    gather(state, memory, out, oi, index, weight, 0, found, V)


@njit(error_model="numpy", forceinline=True)
def slowness(gate: Any) -> Any:
    """logsigmoid of the decay's gate, at least -FASTEST_DECAY: the log decay of the channel written to most."""
    level = min(gate, 0.0) - math.log1p(math.exp(-abs(gate)))
    return np.float32(max(level, -FASTEST_DECAY))


@njit(error_model="numpy", forceinline=True)
def forget(weight: Any, decay: Any, base: int, found: int, level: Any) -> int:
    """`level` times a channel's share of the strongest write, as a factor; the place of the strongest in the lists."""
    strongest = base
    for j in range(base, base + found):
        if abs(weight[j]) > abs(weight[strongest]):
            strongest = j
    rate = splat(level / (abs(weight[strongest]) + 1e-6) if found else 0.0)
    for j in range(base, base + found, WIDTH):
        store(decay.ctypes.data, j, exponential(rate * sizes(weight.ctypes.data, j, True)))
    return strongest


@njit(error_model="numpy", forceinline=True)
def write(
    state: int, memory: int, v: int, vi: int, errors: int, ei: int, log: int, li: int, strength: Any,
    index: Any, weight: Any, decay: Any, base: int, found: int, V: int, erase: bool,
) -> None:  # fmt: skip
    """Decay the chosen rows of the state and write to them.

    What there was to write, before `strength` scales it, goes to `errors`, and the rows as they were to `log`, unless
    those are 0.
    """
    zero, last = splat(0.0), base + found
    for c in range(0, V - V % _FOUR, _FOUR):
        p0, p1, p2, p3 = zero, zero, zero, zero
        if erase:
            for j in range(base, last):
                row, key = memory + index[j] * V + c, splat(weight[j] * decay[j])
                p0 = p0 + key * load(state, row)
                p1 = p1 + key * load(state, row + WIDTH)
                p2 = p2 + key * load(state, row + 2 * WIDTH)
                p3 = p3 + key * load(state, row + 3 * WIDTH)
        u0, u1 = load(v, vi + c) - p0, load(v, vi + c + WIDTH) - p1
        u2, u3 = load(v, vi + c + 2 * WIDTH) - p2, load(v, vi + c + 3 * WIDTH) - p3
        if errors:
            store(errors, ei + c, u0)
            store(errors, ei + c + WIDTH, u1)
            store(errors, ei + c + 2 * WIDTH, u2)
            store(errors, ei + c + 3 * WIDTH, u3)
        u0, u1, u2, u3 = strength * u0, strength * u1, strength * u2, strength * u3
        for j in range(base, last):
            row, a, key = memory + index[j] * V + c, splat(decay[j]), splat(weight[j])
            s0, s1 = load(state, row), load(state, row + WIDTH)
            s2, s3 = load(state, row + 2 * WIDTH), load(state, row + 3 * WIDTH)
            if log:
                place = li + (j - base) * V + c
                store(log, place, s0)
                store(log, place + WIDTH, s1)
                store(log, place + 2 * WIDTH, s2)
                store(log, place + 3 * WIDTH, s3)
            store(state, row, a * s0 + key * u0)
            store(state, row + WIDTH, a * s1 + key * u1)
            store(state, row + 2 * WIDTH, a * s2 + key * u2)
            store(state, row + 3 * WIDTH, a * s3 + key * u3)
    for c in range(V - V % _FOUR, V, WIDTH):
        p0 = zero
        if erase:
            for j in range(base, last):
                p0 = p0 + splat(weight[j] * decay[j]) * load(state, memory + index[j] * V + c)
        u0 = load(v, vi + c) - p0
        if errors:
            store(errors, ei + c, u0)
        u0 = strength * u0
        for j in range(base, last):
            row = memory + index[j] * V + c
            s0 = load(state, row)
            if log:
                store(log, li + (j - base) * V + c, s0)
            store(state, row, splat(decay[j]) * s0 + splat(weight[j]) * u0)


@njit(error_model="numpy", forceinline=True)
def gather(state: int, memory: int, out: int, oi: int, index: Any, weight: Any, base: int, found: int, V: int) -> None:
    """The sum of the chosen rows, each times its weight."""
    zero, last = splat(0.0), base + found
    for c in range(0, V - V % _FOUR, _FOUR):
        o0, o1, o2, o3 = zero, zero, zero, zero
        for j in range(base, last):
            row, query = memory + index[j] * V + c, splat(weight[j])
            o0 = o0 + query * load(state, row)
            o1 = o1 + query * load(state, row + WIDTH)
            o2 = o2 + query * load(state, row + 2 * WIDTH)
            o3 = o3 + query * load(state, row + 3 * WIDTH)
        store(out, oi + c, o0)
        store(out, oi + c + WIDTH, o1)
        store(out, oi + c + 2 * WIDTH, o2)
        store(out, oi + c + 3 * WIDTH, o3)
    for c in range(V - V % _FOUR, V, WIDTH):
        o0 = zero
        for j in range(base, last):
            o0 = o0 + splat(weight[j]) * load(state, memory + index[j] * V + c)
        store(out, oi + c, o0)
