"""The recurrence token by token, as one CPU kernel: the state stays in the first-level cache."""

from __future__ import annotations

from typing import Any

import torch
from numba import njit
from torch import Tensor

from hfa.ops.simd import WIDTH, load, one, splat, store, suits

ROWS = 4  # of the state at once, in independent sums


def fits(*inputs: Tensor) -> bool:
    """Whether the kernels can compute this scan: float32 on the CPU, widths that vectors divide."""
    q, v, state = inputs[0], inputs[2], inputs[-1]
    return suits(v, state) and all(x.dtype == torch.float32 for x in inputs) and q.shape[-1] % ROWS == 0


def recurrent_scan(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    state: Tensor,
    *,
    erase: bool,
    starts: Tensor | None = None,
    chunk_size: int = 1,
) -> tuple[Tensor, Tensor]:
    """What :func:`hfa.ops.scan.naive_scan` computes, without gradients, in float32 on the CPU.

    Args:
        starts: [T / chunk_size, B, H, K, V], filled with the state before each chunk; None to leave that out.

    Shapes and the remaining arguments are those of `naive_scan`; V is in whole vectors, K in whole `ROWS`.
    """
    batch, heads, length, key_width = q.shape
    (q, q_row), (k, k_row), (v, v_row) = rows(q), rows(k), rows(v)
    decay = log_decay.transpose(1, 2).exp().contiguous()
    beta = beta.transpose(1, 2).contiguous()
    out, state = v.new_empty(v.shape), state.clone(memory_format=torch.contiguous_format)
    _scan(
        *(x.data_ptr() for x in (q, k, v, decay, beta, state, out)),
        starts.data_ptr() if starts is not None else 0,
        *(q_row, k_row, v_row, batch, length, heads, key_width, v.shape[-1], decay.shape[-1], chunk_size, erase),
    )
    return out.transpose(1, 2), state


def rows(x: Tensor) -> tuple[Tensor, int]:
    """[B, H, T, X] to [B, T, H, X], a token's heads beside each other, and how far a token is from the one before."""
    x = x.transpose(1, 2)
    batch, length, heads, width = x.shape
    row = x.stride(1) if length > 1 else x.stride(0) if batch > 1 else heads * width
    dense = x.stride(3) == 1 and (heads == 1 or x.stride(2) == width) and (batch == 1 or x.stride(0) == length * row)
    return (x, row) if dense else (x.contiguous(), heads * width)


@njit(cache=True, nogil=True, error_model="numpy")
def _scan(
    q: int, k: int, v: int, decay: int, beta: int, state: int, out: int, starts: int,
    q_row: int, k_row: int, v_row: int,
    batch: int, length: int, heads: int, K: int, V: int, D: int, chunk_size: int, erase: bool,
) -> None:  # fmt: skip
    for b in range(batch):
        for h in range(heads):
            memory = (b * heads + h) * K * V
            for t in range(length):
                if starts and t % chunk_size == 0:
                    start = ((t // chunk_size * batch + b) * heads + h) * K * V
                    for i in range(0, K * V, WIDTH):
                        store(starts, start + i, load(state, memory + i))
                row, place = b * length + t, (b * length + t) * heads + h
                write_and_read(
                    q, q_row * row + h * K, k, k_row * row + h * K, v, v_row * row + h * V,
                    decay, place * D, 1 if D > 1 else 0, one(beta, place),
                    state, memory, memory, out, place * V, 0, 0, K, V, erase,
                )  # fmt: skip


@njit(error_model="numpy")
def write_and_read(
    q: int, qi: int, k: int, ki: int, v: int, vi: int, decay: int, di: int, step: int, strength: Any,
    state: int, before: int, after: int, out: int, oi: int, errors: int, ei: int, K: int, V: int, erase: bool,
) -> None:  # fmt: skip
    """One token of one head: from the state at `before` to the one at `after`, which may be the same place.

    Every array comes as its address and the offset of this token; `step` is 1 if each row has its own decay.
    What the token had to write, before `strength` scales it, goes to `errors`, unless that is 0.
    """
    for c in range(0, V, 4 * WIDTH if V % (4 * WIDTH) == 0 else WIDTH):
        arguments = (
            q, qi, k, ki, v, vi + c, decay, di, step, strength,
            state, before + c, after + c, out, oi + c, errors, ei + c, K, V, erase,
        )  # fmt: skip
        if V % (4 * WIDTH) == 0:
            _wide(*arguments)
        else:
            _narrow(*arguments)


@njit(error_model="numpy")
def _wide(
    q: int, qi: int, k: int, ki: int, v: int, vi: int, decay: int, di: int, step: int, strength: Any,
    state: int, before: int, after: int, out: int, oi: int, errors: int, ei: int, K: int, V: int, erase: bool,
) -> None:  # fmt: skip
    """One token, 64 columns of one head's state: a row at a time, so that its key is read once."""
    zero = splat(0.0)
    p0, p1, p2, p3 = zero, zero, zero, zero
    if erase:
        for i in range(K):
            s, key = before + i * V, one(k, ki + i) * one(decay, di + i * step)
            p0 = p0 + key * load(state, s)
            p1 = p1 + key * load(state, s + WIDTH)
            p2 = p2 + key * load(state, s + 2 * WIDTH)
            p3 = p3 + key * load(state, s + 3 * WIDTH)
    u0 = load(v, vi) - p0
    u1 = load(v, vi + WIDTH) - p1
    u2 = load(v, vi + 2 * WIDTH) - p2
    u3 = load(v, vi + 3 * WIDTH) - p3
    if errors:
        store(errors, ei, u0)
        store(errors, ei + WIDTH, u1)
        store(errors, ei + 2 * WIDTH, u2)
        store(errors, ei + 3 * WIDTH, u3)
    u0, u1, u2, u3 = strength * u0, strength * u1, strength * u2, strength * u3
    o0, o1, o2, o3 = zero, zero, zero, zero
    for i in range(K):
        s, key, query, a = before + i * V, one(k, ki + i), one(q, qi + i), one(decay, di + i * step)
        s0 = a * load(state, s) + key * u0
        s1 = a * load(state, s + WIDTH) + key * u1
        s2 = a * load(state, s + 2 * WIDTH) + key * u2
        s3 = a * load(state, s + 3 * WIDTH) + key * u3
        s = after + i * V
        store(state, s, s0)
        store(state, s + WIDTH, s1)
        store(state, s + 2 * WIDTH, s2)
        store(state, s + 3 * WIDTH, s3)
        o0, o1, o2, o3 = o0 + query * s0, o1 + query * s1, o2 + query * s2, o3 + query * s3
    store(out, oi, o0)
    store(out, oi + WIDTH, o1)
    store(out, oi + 2 * WIDTH, o2)
    store(out, oi + 3 * WIDTH, o3)


@njit(error_model="numpy")
def _narrow(
    q: int, qi: int, k: int, ki: int, v: int, vi: int, decay: int, di: int, step: int, strength: Any,
    state: int, before: int, after: int, out: int, oi: int, errors: int, ei: int, K: int, V: int, erase: bool,
) -> None:  # fmt: skip
    """One token, 16 columns of one head's state: four rows at a time, so that no sum waits for the one before it."""
    zero = splat(0.0)
    p0, p1, p2, p3 = zero, zero, zero, zero
    if erase:
        for i in range(0, K, ROWS):
            s, d = before + i * V, di + i * step
            p0 = p0 + one(k, ki + i) * one(decay, d) * load(state, s)
            p1 = p1 + one(k, ki + i + 1) * one(decay, d + step) * load(state, s + V)
            p2 = p2 + one(k, ki + i + 2) * one(decay, d + 2 * step) * load(state, s + 2 * V)
            p3 = p3 + one(k, ki + i + 3) * one(decay, d + 3 * step) * load(state, s + 3 * V)
    error = load(v, vi) - ((p0 + p1) + (p2 + p3))
    if errors:
        store(errors, ei, error)
    u = strength * error
    o0, o1, o2, o3 = zero, zero, zero, zero
    for i in range(0, K, ROWS):
        s, d = before + i * V, di + i * step
        s0 = one(decay, d) * load(state, s) + one(k, ki + i) * u
        s1 = one(decay, d + step) * load(state, s + V) + one(k, ki + i + 1) * u
        s2 = one(decay, d + 2 * step) * load(state, s + 2 * V) + one(k, ki + i + 2) * u
        s3 = one(decay, d + 3 * step) * load(state, s + 3 * V) + one(k, ki + i + 3) * u
        s = after + i * V
        store(state, s, s0)
        store(state, s + V, s1)
        store(state, s + 2 * V, s2)
        store(state, s + 3 * V, s3)
        o0, o1 = o0 + one(q, qi + i) * s0, o1 + one(q, qi + i + 1) * s1
        o2, o3 = o2 + one(q, qi + i + 2) * s2, o3 + one(q, qi + i + 3) * s3
    store(out, oi, (o0 + o1) + (o2 + o3))
