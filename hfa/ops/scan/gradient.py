"""The recurrence's gradients as one CPU kernel: a chunk's states are made again, then walked back through."""

from __future__ import annotations

from typing import Any

import torch
from numba import njit
from torch import Tensor

from hfa.ops.scan.recurrent import ROWS, rows, write_and_read
from hfa.ops.simd import WIDTH, load, one, put, splat, store, total


def recurrent_gradient(
    grad_out: Tensor,
    grad_state: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    starts: Tensor,
    *,
    erase: bool,
    chunk_size: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of what :func:`hfa.ops.scan.recurrent.recurrent_scan` took. From the last token to the first:

        dS  += q dO^T                   du = dS^T k          d beta = du . e         dv = y = beta du
        dq   = S_t dO                   dk = dS u - S' y     u = beta e, e what the token had to write
        dS'  = dS - k y^T               d log_decay = sum over V of dS' * S'         dS = exp(log_decay) dS'

    without the terms in S' y and k y^T if the write did not erase.

    Args:
        grad_out: [B, T, H, V].
        grad_state: [B, H, K, V], of the state after the last token.
        starts: [N, B, H, K, V], the states before each chunk.

    Returns:
        Gradients of q, k, v, log_decay and beta as [B, T, H, ...], and of the state before the first token.
    """
    batch, heads, length, key_width = q.shape
    width, decays = v.shape[-1], log_decay.shape[-1]
    (q, q_row), (k, k_row), (v, v_row), grad_out = rows(q), rows(k), rows(v), grad_out.contiguous()
    decay, beta = log_decay.transpose(1, 2).exp().contiguous(), beta.transpose(1, 2).contiguous()
    grads = [q.new_empty(batch, length, heads, x) for x in (key_width, key_width, width, decays, 1)]
    grad_state = grad_state.clone(memory_format=torch.contiguous_format)
    states = q.new_empty(chunk_size + 1, key_width, width)
    vectors = q.new_empty(chunk_size + 3, width)  # errors of the chunk, then u, y and what is read again
    _scan_gradient(
        *(x.data_ptr() for x in (q, k, v, decay, beta, starts, grad_out, grad_state, *grads, states, vectors)),
        *(q_row, k_row, v_row, batch, length, heads, key_width, width, decays, chunk_size, erase),
    )
    dq, dk, dv, d_decay, d_beta = grads
    return dq, dk, dv, d_decay, d_beta, grad_state


@njit(cache=True, nogil=True, error_model="numpy")
def _scan_gradient(
    q: int, k: int, v: int, decay: int, beta: int, starts: int, d_out: int, d_state: int,
    dq: int, dk: int, dv: int, d_decay: int, d_beta: int, states: int, vectors: int,
    q_row: int, k_row: int, v_row: int,
    batch: int, length: int, heads: int, K: int, V: int, D: int, chunk_size: int, erase: bool,
) -> None:  # fmt: skip
    u, y, again = chunk_size * V, (chunk_size + 1) * V, (chunk_size + 2) * V
    step = 1 if D > 1 else 0
    for b in range(batch):
        for h in range(heads):
            pull = (b * heads + h) * K * V
            for n in range((length - 1) // chunk_size, -1, -1):
                first, last = n * chunk_size, min(length, (n + 1) * chunk_size)
                start = ((n * batch + b) * heads + h) * K * V
                for i in range(0, K * V, WIDTH):
                    store(states, i, load(starts, start + i))
                for t in range(first, last):
                    row, place, before = b * length + t, (b * length + t) * heads + h, (t - first) * K * V
                    write_and_read(
                        q, q_row * row + h * K, k, k_row * row + h * K, v, v_row * row + h * V,
                        decay, place * D, step, one(beta, place),
                        states, before, before + K * V, vectors, again, vectors, (t - first) * V, K, V, erase,
                    )  # fmt: skip
                for t in range(last - 1, first - 1, -1):
                    row, place = b * length + t, (b * length + t) * heads + h
                    query, key = q_row * row + h * K, k_row * row + h * K
                    writing = (
                        q, query, k, key, d_out, d_state, pull, dv, d_beta, place,
                        vectors, (t - first) * V, u, y, one(beta, place), erase, K,
                    )  # fmt: skip
                    reading = (
                        k, key, decay, step, d_out, d_state, pull, dq, dk, d_decay, place,
                        states, (t - first) * K * V, vectors, u, y, K, D,
                    )  # fmt: skip
                    if V == 64:  # the usual width, so that the loops over it are unrolled
                        _unwrite(*writing, 64)
                        _unread(*reading, 64)
                    else:
                        _unwrite(*writing, V)
                        _unread(*reading, V)


@njit(error_model="numpy", forceinline=True)
def _unwrite(
    q: int, qi: int, k: int, ki: int, d_out: int, d_state: int, si: int, dv: int, d_beta: int, place: int,
    vectors: int, error: int, u: int, y: int, strength: Any, erase: bool, K: int, V: int,
) -> None:  # fmt: skip
    """Add q dO^T to dS, then the gradients of the value and of how much of it was written."""
    zero = splat(0.0)
    of_strength = zero
    for c in range(0, V, WIDTH):
        out = load(d_out, place * V + c)
        p0, p1, p2, p3 = zero, zero, zero, zero
        for i in range(0, K, ROWS):
            s = si + i * V + c
            s0 = load(d_state, s) + one(q, qi + i) * out
            s1 = load(d_state, s + V) + one(q, qi + i + 1) * out
            s2 = load(d_state, s + 2 * V) + one(q, qi + i + 2) * out
            s3 = load(d_state, s + 3 * V) + one(q, qi + i + 3) * out
            store(d_state, s, s0)
            store(d_state, s + V, s1)
            store(d_state, s + 2 * V, s2)
            store(d_state, s + 3 * V, s3)
            p0, p1 = p0 + one(k, ki + i) * s0, p1 + one(k, ki + i + 1) * s1
            p2, p3 = p2 + one(k, ki + i + 2) * s2, p3 + one(k, ki + i + 3) * s3
        written = (p0 + p1) + (p2 + p3)
        missed = load(vectors, error + c)
        of_strength = of_strength + written * missed
        store(vectors, u + c, strength * missed)
        store(dv, place * V + c, strength * written)
        store(vectors, y + c, strength * written if erase else zero)
    put(d_beta, place, total(of_strength))


@njit(error_model="numpy", forceinline=True)
def _unread(
    k: int, ki: int, decay: int, step: int, d_out: int, d_state: int, si: int,
    dq: int, dk: int, d_decay: int, place: int,
    states: int, before: int, vectors: int, u: int, y: int, K: int, D: int, V: int,
) -> None:  # fmt: skip
    """Gradients of query, key and decay, and dS as it is before the token."""
    zero = splat(0.0)
    written = zero
    for c in range(0, V, WIDTH):
        written = written + load(vectors, u + c) * load(d_out, place * V + c)
    of_decay = zero
    for i in range(K):
        a, key = one(decay, place * D + i * step), one(k, ki + i)
        of_query, of_key, of_erased, of_row = key * written, zero, zero, zero
        for c in range(0, V, WIDTH):
            s = i * V + c
            kept, pull, erased = a * load(states, before + s), load(d_state, si + s), load(vectors, y + c)
            of_query = of_query + kept * load(d_out, place * V + c)
            of_key = of_key + pull * load(vectors, u + c)
            of_erased = of_erased + kept * erased
            pull = pull - key * erased
            of_row = of_row + pull * kept
            store(d_state, si + s, a * pull)
        put(dq, place * K + i, total(of_query))
        put(dk, place * K + i, total(of_key - of_erased))
        of_decay = of_decay + of_row
        if step:
            put(d_decay, place * D + i, total(of_row))
    if not step:
        put(d_decay, place, total(of_decay))
