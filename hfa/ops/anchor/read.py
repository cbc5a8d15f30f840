"""The read of the exact memory as one torch operator for the CPU.

The window is read block by block with torch's flash kernel, whose log-sum-exp lets the retrieved tokens join the same
softmax afterwards. Its backward takes the joint output and log-sum-exp, so that the gradients are those of one softmax.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hfa.ops.anchor.far import EMPTY, join, join_backward, join_vectors
from hfa.ops.simd import suits, tracked

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def anchor_read(
    q: Tensor, k: Tensor, v: Tensor, chosen: Tensor, start: Tensor, *, window: int, block_size: int
) -> Tensor:
    """What :func:`hfa.ops.anchor.naive_anchor_read` computes, with the same arguments; on the CPU, with V = K.

    The -1 of `chosen` come last.
    """
    if tracked(q, k, v):
        read: Tensor = torch.ops.hfa.anchor_read(q, k, v, chosen, start, window, block_size)[0]
        return read
    return _read(q, k, v, chosen, start, window, block_size)[0]


class _Span(NamedTuple):
    """Blocks of queries that lie equally to the keys of their window, which overlap."""

    query: int  # the first query, counted from the first new token
    blocks: int
    length: int  # queries of a block
    key: int  # position of the first key of the first block
    reach: int  # keys of a block, of which the last query sees all

    def queries(self, x: Tensor, groups: int) -> Tensor:
        """[H, T, X] to [blocks, G, H/G * length, X], copied."""
        part = x[:, self.query : self.query + self.blocks * self.length]
        part = part.unflatten(1, (self.blocks, self.length)).unflatten(0, (groups, -1))
        together: Tensor = part.permute(2, 0, 1, 3, 4).flatten(2, 3)
        return together

    def put(self, x: Tensor, part: Tensor) -> None:
        """Write what has the shape of `queries` to where it belongs in [H, T, X]."""
        groups = part.shape[1]
        part = part.unflatten(2, (-1, self.length)).permute(1, 2, 0, 3, 4)
        target = x[:, self.query : self.query + self.blocks * self.length]
        target.unflatten(1, (self.blocks, self.length)).unflatten(0, (groups, -1)).copy_(part)

    def keys(self, x: Tensor) -> Tensor:
        """[N, G, X] to [blocks, G, reach, X], a view."""
        row, group, feature = x.stride()
        shape = (self.blocks, x.shape[1], self.reach, x.shape[2])
        return x.as_strided(shape, (self.length * row, group, row, feature), x.storage_offset() + self.key * row)

    def add(self, x: Tensor, part: Tensor) -> None:
        """Add what has the shape of `keys` to where it belongs in [N, G, X]."""
        if self.blocks == 1:
            x[self.key : self.key + self.reach] += part[0].transpose(0, 1)
            return
        for first in range(0, self.reach, self.length):
            piece = part[:, :, first : first + self.length].transpose(1, 2).flatten(0, 1)
            x[self.key + first : self.key + first + len(piece)] += piece

    def mask(self, heads_per_group: int, like: Tensor) -> Tensor | None:
        """What each query may see, added to its logits: [H/G * length, reach]."""
        if self.length == 1:
            return None
        last = torch.arange(self.length)[:, None] + self.reach - self.length
        mask = torch.where(torch.arange(self.reach) > last, -torch.inf, 0.0).to(like.dtype)
        return mask.repeat(heads_per_group, 1)


def _spans(start: int, length: int, window: int, block_size: int) -> Iterator[_Span]:
    """The queries of positions ``start .. start + length - 1`` in as few spans as can be."""
    position, end = start, start + length
    while position < end:
        key = max(0, position // block_size * block_size - window)
        if key == 0:  # all that there is
            stop, blocks = min(end, window + block_size), 1
        elif position % block_size or end - position < block_size:
            stop, blocks = min(end, position // block_size * block_size + block_size), 1
        else:
            blocks = (end - position) // block_size
            stop = position + blocks * block_size
        count = (stop - position) // blocks
        yield _Span(position - start, blocks, count, key, position + count - key)
        position = stop


def window_pairs(start: int, length: int, window: int, block_size: int) -> int:
    """Pairs of a query and a key that reading the windows multiplies, those that its mask hides included."""
    return sum(span.blocks * span.length * span.reach for span in _spans(start, length, window, block_size))


def _read(
    q: Tensor, k: Tensor, v: Tensor, chosen: Tensor, start: Tensor, window: int, block_size: int
) -> tuple[Tensor, Tensor]:
    """What is read and the log-sum-exp of its logits, [B, H, T, V] and [B, H, T]."""
    groups, q, k, v = k.shape[2], q.contiguous(), _dense(k), _dense(v)
    out, lse = torch.empty_like(q), q.new_empty(q.shape[:3])
    for b, first in enumerate(start.tolist()):
        vectors = suits(q, k, v) and k[b].is_contiguous() and v[b].is_contiguous()
        far = chosen[b]
        if vectors and q.shape[2] == 1:  # decoding: the window is joined as if it had been chosen
            far = _with_window(far[0], first, window, block_size)
            out[b], lse[b] = 0.0, EMPTY
        else:
            _read_windows(q[b], k[b], v[b], first, window, block_size, out[b], lse[b])
        if vectors:
            addresses = (x[b].data_ptr() for x in (q, k, v, out))
            join_vectors(*addresses, far.numpy(), lse[b].numpy(), groups, q.shape[3])
        else:
            join(*(x[b].numpy() for x in (q, k, v, chosen, out, lse)))
    return out, lse


def _dense(x: Tensor) -> Tensor:
    """x with its features side by side: torch's flash kernel takes for granted that they are."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _with_window(chosen: Tensor, position: int, window: int, block_size: int) -> Tensor:
    """What is read at `position`, int32 [1, S]."""
    first = max(0, position // block_size * block_size - window)
    return torch.cat([chosen[chosen >= 0], torch.arange(first, position + 1, dtype=torch.int32)])[None]


def _read_windows(
    q: Tensor, k: Tensor, v: Tensor, start: int, window: int, block_size: int, out: Tensor, lse: Tensor
) -> None:
    """Read the windows alone, of one row."""
    groups = k.shape[1]
    for span in _spans(start, q.shape[1], window, block_size):
        mask = span.mask(len(q) // groups, q)
        read, norm = _flash(span.queries(q, groups), span.keys(k), span.keys(v), attn_mask=mask, scale=1.0)
        span.put(out, read)
        span.put(lse[..., None], norm[..., None])


_anchor_read = torch.library.custom_op("hfa::anchor_read", _read, mutates_args=(), device_types="cpu")


@_anchor_read.register_fake
def _(q, k, v, chosen, start, window, block_size):  # type: ignore[no-untyped-def]
    return q.new_empty(q.shape), q.new_empty(q.shape[:3])


@torch.library.custom_op("hfa::anchor_read_backward", mutates_args=(), device_types="cpu")
def _anchor_read_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    chosen: Tensor,
    start: Tensor,
    out: Tensor,
    lse: Tensor,
    window: int,
    block_size: int,
) -> tuple[Tensor, Tensor, Tensor]:
    groups, grad, q, k, v = k.shape[2], grad.contiguous(), q.contiguous(), _dense(k), _dense(v)
    grad_q, grad_k, grad_v = (
        torch.empty_like(q),
        torch.zeros(k.shape, dtype=k.dtype),
        torch.zeros(v.shape, dtype=v.dtype),
    )
    delta = (grad * out).sum(-1)
    for b, first in enumerate(start.tolist()):
        for span in _spans(first, q.shape[2], window, block_size):
            mask = span.mask(q.shape[1] // groups, q)
            above, query, read = (span.queries(x[b], groups) for x in (grad, q, out))
            norm = span.queries(lse[b, ..., None], groups)[..., 0]
            to_q, to_k, to_v = _flash_backward(
                above, query, span.keys(k[b]), span.keys(v[b]), read, norm, 0.0, False, attn_mask=mask, scale=1.0
            )
            span.put(grad_q[b], to_q)
            span.add(grad_k[b], to_k)
            span.add(grad_v[b], to_v)
        rows = (grad, q, k, v, chosen, lse, delta, grad_q, grad_k, grad_v)
        join_backward(*(x[b].numpy() for x in rows))
    return grad_q, grad_k, grad_v


@_anchor_read_backward.register_fake
def _(grad, q, k, v, *_):  # type: ignore[no-untyped-def]
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.window, ctx.block_size = inputs
    ctx.save_for_backward(*tensors, *output)


def _backward(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    grads = torch.ops.hfa.anchor_read_backward(grad, *ctx.saved_tensors, ctx.window, ctx.block_size)
    return (*grads, None, None, None, None)


torch.library.register_autograd("hfa::anchor_read", _backward, setup_context=_setup)
