"""Numba kernels of the anchor read: what was retrieved joins the softmax of the window."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

from hfa.ops.simd import REORDERED, WIDTH, exponential, load, prefetch, splat, store, total

Array = np.ndarray[Any, Any]

NEGLIGIBLE = -30.0  # a logit below the greatest: too little for a sum to notice
EMPTY = -1e30  # the log-sum-exp of no token


@njit(nogil=True, cache=True, fastmath=REORDERED, error_model="numpy")
def join(q: Array, k: Array, v: Array, chosen: Array, out: Array, lse: Array) -> None:
    """Extend the softmax over the window by the tokens chosen, in place.

    Args:
        q: [H, T, K]; k: [N, G, K]; v: [N, G, V]; chosen: int32 [T, R], -1 for none.
        out: [H, T, V] and lse: [H, T], of the window; on return of both together.
    """
    heads, length, width = q.shape
    group, value_width, wanted = heads // k.shape[1], v.shape[2], chosen.shape[1]
    logits = np.empty((group, wanted), q.dtype)
    top = np.empty(group, q.dtype)
    for t in range(length):
        if chosen[t, 0] < 0:  # what there is comes first
            continue
        for g in range(k.shape[1]):
            for h in range(group):
                top[h] = lse[g * group + h, t]
            count = 0
            while count < wanted and chosen[t, count] >= 0:
                key = k[chosen[t, count], g]
                for h in range(group):
                    query = q[g * group + h, t]
                    logit = query[0] * key[0]
                    for x in range(1, width):
                        logit += query[x] * key[x]
                    logits[h, count] = logit
                    top[h] = max(top[h], logit)
                count += 1
            for h in range(group):
                head = g * group + h
                read = out[head, t]
                total = math.exp(lse[head, t] - top[h])
                for x in range(value_width):
                    read[x] *= total
                for i in range(count):
                    if logits[h, i] - top[h] < NEGLIGIBLE:
                        continue
                    weight = math.exp(logits[h, i] - top[h])
                    total += weight
                    value = v[chosen[t, i], g]
                    for x in range(value_width):
                        read[x] += weight * value[x]
                for x in range(value_width):
                    read[x] /= total
                lse[head, t] = top[h] + math.log(total)


@njit(nogil=True, cache=True, fastmath=REORDERED, error_model="numpy")
def join_vectors(q: int, k: int, v: int, out: int, chosen: Array, lse: Array, groups: int, width: int) -> None:
    """What `join` does, for float32 and a width in whole vectors: q, k, v and out are addresses, all contiguous.

    Logits that are not finite make NaN of the whole row, so that nobody takes what they give for an answer.
    """
    heads, length = lse.shape
    group, row = heads // groups, groups * width
    weights = np.empty(chosen.shape[1] + WIDTH, np.float32)  # whole vectors of them
    weighed = weights.ctypes.data
    for t in range(length):
        _fetch_next(k, v, chosen, t + 1, row)
        count = 0
        while count < chosen.shape[1] and chosen[t, count] >= 0:
            count += 1
        if count == 0:
            continue
        for head in range(heads):
            query, memory = (head * length + t) * width, head // group * width
            top = lse[head, t]
            for i in range(count):
                key = np.intp(chosen[t, i]) * row + memory
                product = load(q, query) * load(k, key)
                for x in range(WIDTH, width, WIDTH):
                    product = product + load(q, query + x) * load(k, key + x)
                weights[i] = total(product)
                top = max(top, weights[i])
            weights[count : count + WIDTH] = np.float32(-1e30)  # beside a logit, its weight is lost in rounding
            whole, logits, highest = splat(0.0), splat(0.0), splat(top)
            for i in range(0, count, WIDTH):
                logits = logits + load(weighed, i)
                weight = exponential(load(weighed, i) - highest)
                store(weighed, i, weight)
                whole = whole + weight
            kept = np.float32(math.exp(lse[head, t] - top))
            everything = kept + total(whole + splat(0.0) * logits)  # 0, or NaN of a logit that is not finite
            for x in range(0, width, WIDTH):
                s0, s1, s2, s3 = load(out, query + x) * splat(kept), splat(0.0), splat(0.0), splat(0.0)
                at = memory + x
                for i in range(0, count - 3, 4):
                    s0 = s0 + splat(weights[i]) * load(v, np.intp(chosen[t, i]) * row + at)
                    s1 = s1 + splat(weights[i + 1]) * load(v, np.intp(chosen[t, i + 1]) * row + at)
                    s2 = s2 + splat(weights[i + 2]) * load(v, np.intp(chosen[t, i + 2]) * row + at)
                    s3 = s3 + splat(weights[i + 3]) * load(v, np.intp(chosen[t, i + 3]) * row + at)
                for i in range(count // 4 * 4, count):
                    s0 = s0 + splat(weights[i]) * load(v, np.intp(chosen[t, i]) * row + at)
                store(out, query + x, ((s0 + s1) + (s2 + s3)) * splat(np.float32(1) / everything))
            lse[head, t] = top + math.log(everything)


@njit(nogil=True, inline="always")
def _fetch_next(k: int, v: int, chosen: Array, t: int, row: int) -> None:
    """Start to bring what a token reads into the cache, while the one before it is at work."""
    if t == len(chosen):
        return
    for i in range(chosen.shape[1]):
        if chosen[t, i] < 0:
            return
        for x in range(0, row, WIDTH):
            prefetch(k, np.intp(chosen[t, i]) * row + x)
            prefetch(v, np.intp(chosen[t, i]) * row + x)


@njit(nogil=True, cache=True, fastmath=REORDERED)
def join_backward(
    grad: Array,
    q: Array,
    k: Array,
    v: Array,
    chosen: Array,
    lse: Array,
    delta: Array,
    grad_q: Array,
    grad_k: Array,
    grad_v: Array,
) -> None:
    """Add the gradients through the tokens chosen.

    Args:
        grad: [H, T, V], of the joint output; delta: [H, T], ``grad . out``; lse: of the joint softmax.
        grad_q, grad_k, grad_v: like q, k and v; added to.
    """
    heads, length, width = q.shape
    group, value_width = heads // k.shape[1], v.shape[2]
    for t in range(length):
        for i in range(chosen.shape[1]):
            position = chosen[t, i]
            if position < 0:
                break
            for g in range(k.shape[1]):
                key, value, grad_key, grad_value = (
                    k[position, g],
                    v[position, g],
                    grad_k[position, g],
                    grad_v[position, g],
                )
                for h in range(group):
                    head = g * group + h
                    query, above = q[head, t], grad[head, t]
                    logit = query[0] * key[0]
                    for x in range(1, width):
                        logit += query[x] * key[x]
                    if logit - lse[head, t] < NEGLIGIBLE:
                        continue
                    weight = math.exp(logit - lse[head, t])
                    along = above[0] * value[0]
                    for x in range(1, value_width):
                        along += above[x] * value[x]
                    slope = weight * (along - delta[head, t])
                    for x in range(value_width):
                        grad_value[x] += weight * above[x]
                    for x in range(width):
                        grad_q[head, t, x] += slope * key[x]
                        grad_key[x] += slope * query[x]
