"""Gradients of routing and its recurrence as one CPU kernel: a chunk is run again, then walked back through."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from hfa.ops.routing.choose import choose, unchoose
from hfa.ops.routing.recurrent import AHEAD, GATES, Routing, fetch, forget, gather, slowness, write
from hfa.ops.routing.threshold import FASTEST_DECAY, ROUTERS
from hfa.ops.scan.recurrent import rows
from hfa.ops.simd import WIDTH, first, load, one, put, sigmoid, splat, store, total


def routed_gradient(
    grad_out: Tensor,
    grad_state: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Tensor,
    starts: Tensor,
    routing: Routing,
    chunk_size: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of what :func:`hfa.ops.routing.recurrent.recurrent_routed_scan` took. From the last token back:

        dS  += r dO^T                   du = dS^T w          d beta = du . e         dv = y = beta du
        dr   = S_t dO                   dw = dS u - S' y     u = beta e, e what the token had to write
        dS'  = dS - w y^T               d log_decay = sum over V of dS' * S'         dS = exp(log_decay) dS'

    without the terms in S' y and w y^T if the write did not erase; then through the routing to its scores. A row that
    a token does not write to keeps its gradient; the others are restored from a log of what they were.

    Args:
        grad_out: [B, T, H, V].
        grad_state: [B, H, C, V], of the state after the last token.
        starts: [N, B, H, C, V], the states before each chunk.

    Returns:
        Gradients of q, k, v, gates, and of the state before the first token.
    """
    batch, length, heads, channels = q.shape
    width = v.shape[-1]
    (q, q_row), (k, k_row), (v, v_row), gates = *(rows(x.transpose(1, 2)) for x in (q, k, v)), gates.contiguous()
    dq, dk, dv, d_gates = (x.new_empty(x.shape) for x in (q, k, v, gates))
    grad_out, grad_state = grad_out.contiguous(), grad_state.clone(memory_format=torch.contiguous_format)
    most = channels if routing.router == "soft" else routing.budget
    state, log = v.new_empty(channels, width), v.new_empty(chunk_size, most, width)
    vectors = v.new_empty(chunk_size + 2, width)  # errors of the chunk, then u and y
    _gradient(
        *(
            x.data_ptr()
            for x in (q, k, v, gates, starts, grad_out, grad_state, dq, dk, dv, d_gates, state, log, vectors)
        ),
        *(q_row, k_row, v_row, batch, length, heads, channels, width, chunk_size, most),
        *(ROUTERS.index(routing.router), routing.budget, routing.erase, routing.signed),
    )
    return dq, dk, dv, d_gates, grad_state


@njit(cache=True, nogil=True, error_model="numpy")
def _gradient(
    q: int, k: int, v: int, gates: int, starts: int, d_out: int, d_state: int,
    dq: int, dk: int, dv: int, d_gates: int, state: int, log: int, vectors: int,
    q_row: int, k_row: int, v_row: int, batch: int, length: int, heads: int, C: int, V: int, chunk_size: int,
    most: int, router: int, budget: int, erase: bool, signed: bool,
) -> None:  # fmt: skip
    index, pull = np.zeros(chunk_size * C, np.int64), np.zeros(C, np.float32)
    weight, decay = np.zeros(chunk_size * C, np.float32), np.zeros(chunk_size * C, np.float32)
    of_decay, sizes = np.zeros(C, np.float32), np.zeros((chunk_size, 3), np.int64)
    scales = np.zeros((chunk_size, 2), np.float32)
    u, y = chunk_size * V, (chunk_size + 1) * V
    r_index, r_weight = np.zeros(C, np.int64), np.zeros(C, np.float32)
    for b in range(batch):
        for h in range(heads):
            memory = (b * heads + h) * C * V
            for n in range((length - 1) // chunk_size, -1, -1):
                begin, end = n * chunk_size, min(length, (n + 1) * chunk_size)
                start = ((n * batch + b) * heads + h) * C * V
                for i in range(0, C * V, WIDTH):
                    store(state, i, load(starts, start + i))
                for t in range(begin, end):
                    row, base, gate = b * length + t, (t - begin) * C, GATES * heads * (b * length + t) + h
                    fetch(k, k_row * (row + AHEAD) + h * C, C)
                    fetch(v, v_row * (row + AHEAD) + h * V, V)
                    fetch(q, q_row * row + h * C, C)  # for the way back
                    fetch(d_out, (row * heads + h) * V, V)
                    theta = first(one(gates, gate + 3 * heads))
                    found, root, source, scale = choose(
                        k, k_row * row + h * C, C, router, theta, budget, signed, index, weight, base
                    )
                    strongest = forget(weight, decay, base, found, slowness(first(one(gates, gate))))
                    sizes[t - begin, 0], sizes[t - begin, 1], sizes[t - begin, 2] = found, source, strongest
                    scales[t - begin, 0], scales[t - begin, 1] = root, scale
                    write(
                        state, 0, v, v_row * row + h * V, vectors, (t - begin) * V, log, (t - begin) * most * V,
                        sigmoid(one(gates, gate + heads)), index, weight, decay, base, found, V, erase,
                    )  # fmt: skip
                for t in range(end - 1, begin - 1, -1):
                    row, base, gate = b * length + t, (t - begin) * C, GATES * heads * (b * length + t) + h
                    place, at = (row * heads + h) * V, (row * heads + h) * C
                    # the read
                    theta = first(one(gates, gate + 2 * heads))
                    query = q_row * row + h * C
                    found, root, source, scale = choose(
                        q, query, C, router, theta, budget, signed, r_index, r_weight, 0
                    )
                    _ungather(state, d_state, memory, d_out, place, r_index, r_weight, pull, found, V)
                    of_theta = unchoose(
                        q, query, C, root, source, scale, signed, r_index, r_weight, pull, 0, found, dq, at
                    )
                    put(d_gates, gate + 2 * heads, of_theta)
                    # the write
                    found, source, strongest = sizes[t - begin, 0], sizes[t - begin, 1], sizes[t - begin, 2]
                    root, scale = scales[t - begin, 0], scales[t - begin, 1]
                    gather(d_state, memory, vectors, u, index, weight, base, found, V)
                    strength, of_strength = sigmoid(one(gates, gate + heads)), splat(0.0)
                    for c in range(0, V, WIDTH):
                        missed, written = load(vectors, (t - begin) * V + c), load(vectors, u + c)
                        of_strength = of_strength + written * missed
                        store(dv, place + c, strength * written)
                        store(vectors, u + c, strength * missed)
                        store(vectors, y + c, strength * written if erase else splat(0.0))
                    share = first(strength)
                    put(d_gates, gate + heads, total(of_strength) * share * (np.float32(1.0) - share))
                    if V == 64:  # the usual width, so that the loops over it are unrolled
                        _unwrite(
                            state, d_state, memory, vectors, u, y, log, (t - begin) * most * V,
                            index, weight, decay, pull, of_decay, base, found, 64,
                        )  # fmt: skip
                    else:
                        _unwrite(
                            state, d_state, memory, vectors, u, y, log, (t - begin) * most * V,
                            index, weight, decay, pull, of_decay, base, found, V,
                        )  # fmt: skip
                    put(d_gates, gate, _unforget(gates, gate, weight, of_decay, pull, base, found, strongest))
                    of_theta = unchoose(
                        k, k_row * row + h * C, C, root, source, scale, signed, index, weight, pull, base, found, dk, at
                    )
                    put(d_gates, gate + 3 * heads, of_theta)


@njit(error_model="numpy")
def _ungather(
    state: int, d_state: int, memory: int, d_out: int, place: int, index: Any, weight: Any, pull: Any, found: int,
    V: int,
) -> None:  # fmt: skip
    """Gradients of the weights that a token read with, and of the rows it read."""
    for j in range(found):
        row, query, product = index[j] * V, splat(weight[j]), splat(0.0)
        for c in range(0, V, WIDTH):
            out, s = load(d_out, place + c), memory + row + c
            product = product + load(state, row + c) * out
            store(d_state, s, load(d_state, s) + query * out)
        pull[j] = total(product)


@njit(error_model="numpy", forceinline=True)
def _unwrite(
    state: int, d_state: int, memory: int, vectors: int, u: int, y: int, log: int, li: int,
    index: Any, weight: Any, decay: Any, pull: Any, of_decay: Any, base: int, found: int, V: int,
) -> None:  # fmt: skip
    """Gradients of the weights and decays of a write; the state and its gradient as they are before the token."""
    for j in range(found):
        row, a, key = index[base + j] * V, splat(decay[base + j]), splat(weight[base + j])
        of_weight, of_row = splat(0.0), splat(0.0)
        for c in range(0, V, WIDTH):
            before, erased, s = load(log, li + j * V + c), load(vectors, y + c), memory + row + c
            kept, d = a * before, load(d_state, s)
            of_weight = of_weight + d * load(vectors, u + c) - kept * erased
            d = d - key * erased
            of_row = of_row + d * kept
            store(d_state, s, a * d)
            store(state, row + c, before)
        pull[j], of_decay[j] = total(of_weight), total(of_row)


@njit(error_model="numpy")
def _unforget(
    gates: int, gate: int, weight: Any, of_decay: Any, pull: Any, base: int, found: int, strongest: int
) -> Any:
    """Gradient of the decay's gate; that of the weights is added to `pull`."""
    if not found:
        return np.float32(0.0)
    level, greatest = slowness(first(one(gates, gate))), abs(weight[strongest]) + np.float32(1e-6)
    of_level, of_greatest = np.float32(0.0), np.float32(0.0)
    for j in range(found):
        share, one_more = abs(weight[base + j]) / greatest, level * of_decay[j] / greatest
        of_level += of_decay[j] * share
        pull[j] += one_more if weight[base + j] >= 0 else -one_more
        of_greatest -= one_more * share
    pull[strongest - base] += of_greatest if weight[strongest] >= 0 else -of_greatest
    return (
        of_level * (np.float32(1.0) - first(sigmoid(one(gates, gate)))) if level > -FASTEST_DECAY else np.float32(0.0)
    )
