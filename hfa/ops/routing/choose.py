"""Choosing channels inside kernels: those of one token and head, as a list, and the gradients of their weights.

All of it is inlined: a call that passes lists costs as much as a few channels.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

from hfa.ops.routing.threshold import EPS, MARGIN, ROUTERS
from hfa.ops.simd import WIDTH, above, count, first, greatest, load, lowest, most, one, put, splat, store, total, where

_SOFT, _DYNAMIC = ROUTERS.index("soft"), ROUTERS.index("dynamic")
_ALL = (1 << WIDTH) - 1
_NOTHING, _THETA = -1, -2  # where a threshold comes from; else from the channel of this number


@njit(error_model="numpy", forceinline=True)
def choose(
    scores: int, at: int, C: int, router: int, theta: Any, budget: int, signed: bool, index: Any, weight: Any, base: int
) -> Any:
    """The channels above the threshold, from `index[base]` and `weight[base]` on.

    Args:
        scores: address; those of this token and head begin at `at`.
        C: channels, in whole vectors.
        router: a place in `ROUTERS`.
        theta: the threshold, in units of the scores' root mean square (`dynamic` only).
        signed: whether scores below 0 count as those above, and their weights are below 0.

    Returns:
        how many were chosen; and for the gradient, the scores' root mean square, where the threshold comes from, and
        what the weights were multiplied with.
    """
    squares, best = splat(0.0), sizes(scores, at, signed)
    for c in range(0, C, WIDTH):
        x = load(scores, at + c)
        squares, best = squares + x * x, most(best, sizes(scores, at + c, signed))
    root = math.sqrt(total(squares) / C + EPS)
    if not math.isfinite(theta * root if router == _DYNAMIC else root):  # what is read has to say so
        for j in range(budget):
            index[base + j], weight[base + j] = j, np.nan
        return budget, root, _NOTHING, np.nan
    cut, source, chosen = np.float32(0.0), _NOTHING, budget + 1
    if router == _DYNAMIC:
        cut, source = np.float32(theta * root), _THETA
        nearly = np.float32(greatest(best) - MARGIN * root)
        if nearly < cut:
            cut, source = nearly, _place(scores, at, C, greatest(best), signed)
        chosen = _count(scores, at, C, cut, signed)
    if router != _SOFT and chosen > budget:
        cut = _ranked(scores, at, C, budget, signed)
        source = _place(scores, at, C, cut, signed)
    found, norm, edge = 0, 0.0, splat(cut)
    for c in range(0, C, WIDTH):
        bits = above(sizes(scores, at + c, signed), edge)
        while bits:
            i = c + lowest(bits)
            bits &= bits - 1
            score = first(one(scores, at + i))
            rise = (score + cut if signed and score < 0 else score - cut) / root
            index[base + found], weight[base + found] = i, rise
            found, norm = found + 1, norm + rise * rise
    scale = 1.0 / math.sqrt(norm + EPS)
    for j in range(base, base + found):
        weight[j] *= scale
    return found, root, source, scale


@njit(error_model="numpy", forceinline=True)
def unchoose(
    scores: int, at: int, C: int, root: Any, source: int, scale: Any, signed: bool,
    index: Any, weight: Any, pull: Any, base: int, found: int, grad: int, gi: int,
) -> Any:  # fmt: skip
    """Gradients of the scores, to `grad` from `gi` on, and of theta, from `pull`, those of the weights.

    The rest is what `choose` took and gave.
    """
    along = 0.0
    for j in range(base, base + found):
        along += weight[j] * pull[j - base]
    of_cut, product = 0.0, 0.0  # of the threshold; and what all gradients have in common with the scores
    for j in range(base, base + found):
        pull[j - base] = scale * (pull[j - base] - weight[j] * along)
        of_cut -= pull[j - base] if weight[j] >= 0 else -pull[j - base]
        product += pull[j - base] * first(one(scores, at + index[j]))
    of_source = of_cut  # by its score, which counts by its size
    if source >= 0:
        score = first(one(scores, at + source))
        of_source = -of_cut if signed and score < 0 else of_cut
        product += of_source * score
    shrink = splat(-product / (C * root * root * root))
    for c in range(0, C, WIDTH):
        store(grad, gi + c, shrink * load(scores, at + c))
    for j in range(base, base + found):
        place = gi + index[j]
        put(grad, place, first(one(grad, place)) + pull[j - base] / root)
    if source >= 0:
        put(grad, gi + source, first(one(grad, gi + source)) + of_source / root)
    return of_cut if source == _THETA else 0.0


@njit(error_model="numpy", forceinline=True)
def sizes(scores: int, at: int, signed: bool) -> Any:
    """What a vector of scores is ranked by."""
    x = load(scores, at)
    return most(x, splat(0.0) - x) if signed else x


@njit(error_model="numpy", forceinline=True)
def _count(scores: int, at: int, C: int, cut: Any, signed: bool) -> int:
    edge, found = splat(cut), 0
    for c in range(0, C, WIDTH):
        found += count(above(sizes(scores, at + c, signed), edge))
    return found


@njit(error_model="numpy", forceinline=True)
def _place(scores: int, at: int, C: int, value: Any, signed: bool) -> int:
    """The first channel whose score is `value`, or of that size."""
    wanted = splat(value)
    for c in range(0, C, WIDTH):
        x = sizes(scores, at + c, signed)
        others = above(x, wanted) | above(wanted, x)
        if others != _ALL:
            return int(c + lowest(others ^ _ALL))
    return 0


@njit(error_model="numpy", forceinline=True)
def _ranked(scores: int, at: int, C: int, rank: int, signed: bool) -> Any:
    """The score that `rank` others exceed, where no two are equal: an interval around it is halved."""
    highest = sizes(scores, at, signed)
    lowest_ = splat(0.0) - highest
    for c in range(WIDTH, C, WIDTH):
        x = sizes(scores, at + c, signed)
        highest, lowest_ = most(highest, x), most(lowest_, splat(0.0) - x)
    high = greatest(highest)
    low = -greatest(lowest_) - np.float32(1.0)  # more than `rank` are above `low`, no more than that above `high`
    while True:
        middle = np.float32(0.5) * (low + high)
        if not low < middle < high:
            break
        more = _count(scores, at, C, middle, signed)
        if more > rank:
            low = middle
        else:
            high = middle
            if more == rank:
                break
    found, edge = splat(low), splat(high)
    for c in range(0, C, WIDTH):
        x = sizes(scores, at + c, signed)
        found = most(found, where(above(x, edge), splat(low), x))
    return greatest(found)
