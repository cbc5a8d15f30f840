"""The anchor layer: the exact memory of every token, and what a query retrieves from it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from hfa.config import NonNegativeInt, PositiveFloat, PositiveInt, config
from hfa.errors import ConfigError
from hfa.models.base import Mixer
from hfa.models.flow import FlowSettings
from hfa.models.index import CODES, GROUPS, Index, Tries
from hfa.models.memory import Memory
from hfa.models.pages import PagedMemory
from hfa.models.state import num_bytes
from hfa.nn.conv import ShortConv
from hfa.nn.linear import Linear
from hfa.nn.norm import l2_norm
from hfa.ops.anchor import AnchorWeights, Row, anchor_read, anchor_step, gathered_anchor_read, read_piece
from hfa.ops.attention import causal_attention
from hfa.ops.index import CHUNK, Search, retrieve, retrieve_exactly, retrieve_in_pages, room
from hfa.ops.simd import WIDTH, suits, tracked

# Where match-init points the short convolutions of an anchor layer: a query describes the tokens up to the present
# one, a key the tokens before its own, so that a repeated context matches the token that followed it.
_QUERY_TAPS = (0.6, 0.3, 0.15)
_KEY_TAPS = (0.0, 0.6, 0.3, 0.15)

# How much sharper the first head is than the last. A sharp head is not diluted by many near misses, and a soft one
# goes on learning of keys that it does not match yet.
_SCALES = 4.0


@config
class AnchorSettings(FlowSettings):
    """What flow and anchor layers need, and how layers of different kinds follow each other."""

    pattern: tuple[str, ...]  # kinds of layer, repeated from the first layer to the last
    num_kv_heads: PositiveInt  # key-value heads of an anchor layer
    window: PositiveInt  # tokens an anchor layer always reads
    block_size: PositiveInt  # tokens that leave the window, and enter the index, together: an anchor
    num_retrieved: NonNegativeInt  # tokens read beyond the window; with 0 that is all that is read
    num_trees: PositiveInt  # tries of the index; each sees the codes in another order
    beam: PositiveInt  # leaves that a query reaches in each
    leaf_size: PositiveInt  # tokens looked at in a leaf
    num_ranked: PositiveInt  # of all those, the nearest by code are ranked by their keys; the best are read
    read_all: NonNegativeInt  # tokens of a training example up to which all are read: what is never read is not learnt
    cross_batch: NonNegativeInt = 0  # examples of the batch that one reads in training, too; artifacts may be older
    logit_scale: PositiveFloat  # of the sharpest head's attention at the start; learnt from there
    logn_length: PositiveInt  # tokens of context from which it grows as their logarithm

    def check(self) -> None:
        super().check()
        if self.num_heads % self.num_kv_heads:
            raise ConfigError("num_kv_heads", self.num_kv_heads, f"a divisor of num_heads={self.num_heads}")
        if self.window % self.block_size:
            raise ConfigError("window", self.window, f"a multiple of block_size={self.block_size}")
        if self.num_ranked < self.num_retrieved:
            raise ConfigError("num_ranked", self.num_ranked, f"at least num_retrieved={self.num_retrieved}")
        if self.logn_length < 2:
            raise ConfigError("logn_length", self.logn_length, "at least 2", "a context of 1 token has no logarithm")
        if self.num_trees > GROUPS:
            raise ConfigError("num_trees", self.num_trees, f"at most {GROUPS}, one for every first code")
        unused = set(self.pattern) - set(self.kinds)
        if not self.pattern or unused:
            missing = f"; {self.num_layers} layers never come to {', '.join(sorted(unused))}" if unused else ""
            raise ConfigError("pattern", self.pattern, f"at least one kind of layer and at most num_layers{missing}")

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kind of every layer."""
        return tuple(itertools.islice(itertools.cycle(self.pattern), self.num_layers))


class AnchorState(NamedTuple):
    """What an anchor layer carries."""

    memory: Memory | PagedMemory  # keys [.., G, K], values [.., G, V] and codes [.., GROUPS] of every token
    tries: Tries | tuple[Tries, ...]  # in the engine those of each row, of different sizes
    query_tail: Tensor  # [B, conv_width - 1, H K]
    key_tail: Tensor  # [B, conv_width - 1, G K]


class Anchor(Mixer):
    """The exact memory: every key and value stays; a query reads a window and what it retrieves.

    No positional encoding, unit-norm queries and keys, a learnt logit scale, and short convolutions that let a key
    describe the tokens before its own. In a context of n tokens the scale is ``log n / log logn_length`` times what is
    learnt, and at least that (Su Jianlin 2021, as in Qwen-7B; SSMax, arXiv 2501.19399). `match_init` starts every head
    as a content-addressed copy. Training reads all of an example that is short enough (`read_all`): an association
    that the index cannot find yet is never read, and what is never read gets no gradient. There, the tokens of
    `cross_batch` other examples can stand before each: keys learn to be told from those of contexts that are longer
    than any that is trained on (Focused Transformer, arXiv 2307.03170, section 3).
    """

    decodes: ClassVar[bool] = True  # whether one kernel makes a step of the layer

    def __init__(self, settings: AnchorSettings) -> None:
        super().__init__()
        width, heads, kv_heads = settings.d_model, settings.num_heads, settings.num_kv_heads
        self.num_heads, self.num_kv_heads, self.head_dim = heads, kv_heads, settings.head_dim
        self.search = Search(
            settings.window,
            settings.block_size,
            settings.num_retrieved,
            settings.num_trees,
            settings.beam,
            settings.leaf_size,
            settings.num_ranked,
        )
        memory_width = kv_heads * self.head_dim
        self.read_all, self.cross_batch = settings.read_all, settings.cross_batch
        self.logn_length = settings.logn_length
        self.query = Linear(width, width, bias=False)
        self.key = Linear(width, memory_width, bias=False)
        self.value = Linear(width, memory_width, bias=False)
        self.query_conv = ShortConv(width, settings.conv_width)
        self.key_conv = ShortConv(memory_width, settings.conv_width)
        sharpest = math.log(settings.logit_scale)
        self.log_scale = nn.Parameter(torch.linspace(sharpest, sharpest - math.log(_SCALES), heads))
        self.out = Linear(width, width, bias=False)
        self.index = Index(memory_width)
        self.index_loss: Tensor | None = None  # of the last call in training
        self.on_read: Callable[..., None] | None = None  # see hfa.models.audit
        self.match_init()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "index_loss": None}  # a copy is not of a graph

    @torch.no_grad()
    def match_init(self) -> None:
        """Equal contexts match (queries are projected as keys are), and what is read is copied to the stream."""
        group = self.num_heads // self.num_kv_heads
        nn.init.orthogonal_(self.value.weight)
        nn.init.orthogonal_(self.key.weight)  # or keys of what differs would lie in few directions, and look alike
        heads = self.value.weight.unflatten(0, (self.num_kv_heads, self.head_dim))
        self.out.weight.copy_(heads.repeat_interleave(group, dim=0).flatten(0, 1).T / group)
        keys = self.key.weight.unflatten(0, (self.num_kv_heads, self.head_dim))
        self.query.weight.copy_(keys.repeat_interleave(group, dim=0).flatten(0, 1))
        self.query_conv.peak(_QUERY_TAPS)
        self.key_conv.peak(_KEY_TAPS)

    def init_state(self, batch_size: int) -> AnchorState:
        weight = self.key.weight
        page = weight.new_empty(self.num_kv_heads, self.head_dim)
        memory = Memory.empty(batch_size, page, page, weight.new_empty(GROUPS, dtype=torch.uint8))
        tails = self.query_conv.init_state(batch_size), self.key_conv.init_state(batch_size)
        return AnchorState(memory, Tries.empty(batch_size, weight.device), *tails)

    def state_bytes(self, seq_len: int) -> int:
        pages = 2 * self.num_kv_heads * self.head_dim * self.key.weight.element_size() + GROUPS
        tables, chunks = self._room(seq_len)
        return num_bytes(self.init_state(1)) + seq_len * pages + 4 * (tables * CODES + chunks * CHUNK)

    def reserve(self, state: AnchorState, count: int) -> AnchorState:
        if isinstance(state.memory, PagedMemory):
            return state
        memory = state.memory.reserved(count)
        assert isinstance(state.tries, Tries)
        return state._replace(memory=memory, tries=self._prepared(state.tries, memory, state.memory))

    def auxiliary_loss(self) -> Tensor | None:
        loss, self.index_loss = self.index_loss, None  # handed over once: a graph does not outlive its step
        return loss

    def forward(self, x: Tensor, state: AnchorState, last: int | None = None) -> tuple[Tensor, AnchorState]:
        memory = state.memory
        paged = isinstance(memory, PagedMemory)
        if x.shape[1] == 1 and (paged or memory.capacity) and self.takes_varlen:
            held = memory.pools if isinstance(memory, PagedMemory) else memory.pages
            if suits(x, *self._tails(state), *held[:2]) and not tracked(x, *self._weights(), *held):
                y, after = self.step(x[:, 0], state, (1,) * len(x))
                return y[:, None], after
        asks = min(last or x.shape[1], x.shape[1])  # queries, the last tokens of
        start = state.memory.length + x.shape[1] - asks
        query_x = self.query(x[:, -asks - self.query_conv.width + 1 :])  # of these, and of what they look back at
        key_x = self.key(x)
        query, query_tail = self.query_conv(query_x, state.query_tail)
        key, key_tail = self.key_conv(key_x, state.key_tail)
        query = query[:, -asks:]
        seen = start[:, None] + torch.arange(1, asks + 1, device=start.device)  # tokens, [B, A]
        growth = (seen.double().log() / math.log(self.logn_length)).clamp(min=1.0)
        scale = growth.to(query.dtype)[..., None, None] * self.log_scale.exp()[:, None]
        q = l2_norm(query.unflatten(-1, (self.num_heads, self.head_dim))) * scale
        k = l2_norm(key.unflatten(-1, (self.num_kv_heads, self.head_dim)))
        v = self.value(x).unflatten(-1, (self.num_kv_heads, self.head_dim)).to(k.dtype)  # autocast keeps norms
        ranking = self._together(q.detach())
        asks_for, told_by = self._described(query_x, key_x, state, asks)
        asked, described = torch.cat([*asks_for, ranking], -1), torch.cat([*told_by, k.detach().flatten(2)], -1)
        if isinstance(state.memory, PagedMemory):
            pages = state.memory.append(k, v, self.index.codes(described))
            assert not isinstance(state.tries, Tries)
            read, indexes = self._read_in_pages(q.transpose(1, 2), asked, ranking, pages, start, state.tries)
            return self.out(read.transpose(1, 2).flatten(2)), AnchorState(pages, indexes, query_tail, key_tail)
        memory = state.memory.append(k, v, self.index.codes(described))
        learns = self.training and torch.is_grad_enabled()
        self.index_loss = self.index.loss(asked, described, q, k) if learns else None
        tries, q = state.tries, q.transpose(1, 2)
        read_all = max(self.search.window + self.search.block_size, self.read_all if learns else 0)
        if memory.capacity == x.shape[1] <= read_all and not self.on_read:
            if learns and self.cross_batch:
                k, v = _after_others(k, self.cross_batch), _after_others(v, self.cross_batch)
                start = start + k.shape[1] - x.shape[1]
            read = self._read_all(q, k, v, start if asks < k.shape[1] else None)
        else:
            near_from = self._near_from(start, asks)
            assert isinstance(tries, Tries)
            tries = self._prepared(tries, memory, state.memory)
            chosen, touched = self._retrieve(asked, ranking, memory, start, tries)
            read = self._read(q, memory, chosen, start)
            if self.on_read:
                self.on_read(start, chosen[:, None], near_from, touched, q.transpose(1, 2), asked, memory, tries)
        state = AnchorState(memory, tries, query_tail, key_tail)
        return self.out(read.transpose(1, 2).flatten(2)), state

    @property
    def takes_varlen(self) -> bool:
        return self.decodes and not self.on_read and suits(*self._weights()[:-1]) and not self.head_dim % WIDTH

    def step(self, x: Tensor, state: AnchorState, lengths: Sequence[int]) -> tuple[Tensor, AnchorState]:
        starts = state.memory.length.tolist()
        ends = [start + length for start, length in zip(starts, lengths, strict=True)]
        memory: Memory | PagedMemory
        tries: Tries | tuple[Tries, ...]
        if isinstance(state.memory, PagedMemory):
            memory = state.memory._replace(length=torch.tensor(ends))
            assert not isinstance(state.tries, Tries)
            tries = self._roomy_for(state.tries, ends)
            k, v, codes = (pool.flatten(0, 1) for pool in memory.pools)
            shift = memory.pools[0].shape[1].bit_length() - 1
            rows = [
                Row(k, v, codes, own.tables[0], own.chunks[0], own.counts[0], start, pages, shift)
                for own, start, pages in zip(tries, starts, memory.table, strict=True)
            ]
        else:
            if len(set(lengths)) > 1:
                raise ValueError(f"lengths {list(lengths)} of rows whose memory is no pages: there, all grow alike")
            memory = state.memory.extended(lengths[0])
            assert isinstance(state.tries, Tries)
            tries = self._prepared(state.tries, memory, state.memory)
            rows = [Row(*parts) for parts in zip(*memory.pages, *tries, starts, strict=True)]
        y, after = anchor_step(x, self._tails(state), rows, lengths, self._weights(), self.search, self.logn_length)
        return y, AnchorState(memory, tries, *after)

    @staticmethod
    def _tails(state: AnchorState) -> tuple[Tensor, Tensor]:
        return state.query_tail, state.key_tail

    def _weights(self) -> AnchorWeights:
        token_book, before_book, memory_book = self.index.codebooks
        return AnchorWeights(
            self.query.weight,
            self.key.weight,
            self.value.weight,
            self.out.weight,
            self.query_conv.weight,
            self.key_conv.weight,
            token_book,
            before_book,
            memory_book,
            self.log_scale,
        )

    def _described(
        self, query_x: Tensor, key_x: Tensor, state: AnchorState, asks: int
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The last token of each query and the one before it, and those before each key, as they are projected."""
        heads = (self.num_heads, self.head_dim)
        queries = torch.cat([state.query_tail.to(query_x.dtype), query_x], 1).detach().unflatten(-1, heads)
        keys = torch.cat([state.key_tail.to(key_x.dtype), key_x], 1).detach()
        most = self.query_conv.width - 1  # attention itself looks back no further
        backs = [(min(back, max(0, most - 1)), min(back + 1, most)) for back in (0, 1)]
        queries = self._together(queries)
        return (
            [queries[:, queries.shape[1] - asks - back : queries.shape[1] - back] for back, _ in backs],
            [keys[:, keys.shape[1] - key_x.shape[1] - back : keys.shape[1] - back] for _, back in backs],
        )

    def _together(self, x: Tensor) -> Tensor:
        """[B, T, H, K] to [B, T, G K]: all heads of a key-value head choose together."""
        summed: Tensor = x.unflatten(2, (self.num_kv_heads, -1)).sum(3)
        return summed.flatten(2)

    def _read_in_pages(
        self, q: Tensor, asked: Tensor, ranking: Tensor, memory: PagedMemory, start: Tensor, tries: tuple[Tries, ...]
    ) -> tuple[Tensor, tuple[Tries, ...]]:
        """[B, H, T, K] to [B, H, T, V], of rows that each have tries of their own, which are returned with room."""
        if not _in_place(q):
            keys, values, _ = memory.read()
            chosen, _ = retrieve_exactly(ranking, keys.flatten(2), start, self.search)
            window, block_size = self.search.window, self.search.block_size
            read = gathered_anchor_read(q, keys, values, chosen, start, window=window, block_size=block_size)
            return read, tries
        ends = (start + q.shape[2]).tolist()
        indexes = self._roomy_for(tries, ends)
        k, v, codes = memory.pools
        chosen = self._nothing(asked)
        if self.search.num_retrieved and max(ends) > self.search.window:
            scores = self.index.scores(asked)
            table = memory.table
            chosen, _ = retrieve_in_pages(scores, ranking, k.flatten(2), codes, table, indexes, start, self.search)
        window, block_size = self.search.window, self.search.block_size
        pieces = [
            read_piece(q[b : b + 1], k, v, memory.table[b], first, chosen[b : b + 1], window, block_size)
            for b, first in enumerate(start.tolist())
        ]
        return torch.cat(pieces), indexes

    def _roomy_for(self, tries: tuple[Tries, ...], lengths: list[int]) -> tuple[Tries, ...]:
        """The tries of the engine's rows, with room for so many tokens and, where they have to move, some more."""
        return tuple(self._roomy(own, length) for own, length in zip(tries, lengths, strict=True))

    def _roomy(self, tries: Tries, length: int) -> Tries:
        wanted = self._room(length)
        if all(x.shape[1] >= want for x, want in zip(tries[:2], wanted, strict=True)):
            return tries
        return tries.copied(self._room(length + max(length // 8, 256)), tries.counts[:, 0])

    def _near_from(self, start: Tensor, length: int) -> Tensor:
        """The first position of the window of each new token, [B, T]."""
        position = start[:, None] + torch.arange(length, device=start.device)
        return (position // self.search.block_size * self.search.block_size - self.search.window).clamp(min=0)

    def _room(self, capacity: int) -> tuple[int, int]:
        """Tables and chunks of the tries for a memory of that capacity; nothing enters while all is in the window."""
        return room(capacity, self.search.num_trees) if capacity > self.search.window else (0, 0)

    def _prepared(self, tries: Tries, memory: Memory, before: Memory) -> Tries:
        """The tries as `before` had them, and with room for what is to come."""
        wanted = self._room(memory.capacity)
        there = (tries.tables.shape[1], tries.chunks.shape[1])  # none in a state that comes from another device
        roomy = all(have >= want for have, want in zip(there, wanted, strict=True))
        if memory.pages[0].device.type != "cpu" or (memory.shares(before) and roomy):
            return tries
        return tries.copied(wanted, self._near_from(before.length, 1)[:, 0])

    @torch.no_grad()
    def _retrieve(
        self, asked: Tensor, ranking: Tensor, memory: Memory, start: Tensor, tries: Tries
    ) -> tuple[Tensor, Tensor]:
        """Positions to read beyond the window, int32 [B, T, R], and how many were looked at, [B, T]."""
        keys, _, codes = memory.read()
        if codes.shape[1] <= self.search.window or not self.search.num_retrieved:
            nothing = self._nothing(asked)
            return nothing, torch.zeros_like(nothing[..., 0])
        scores = self.index.scores(asked)
        if codes.device.type == "cpu":
            return retrieve(scores, ranking, keys.flatten(2), codes, *tries, start, self.search)
        return retrieve_exactly(ranking, keys.flatten(2), start, self.search)

    def _nothing(self, asked: Tensor) -> Tensor:
        """Positions to read, none so far: -1, int32 [B, T, R]."""
        return asked.new_full((*asked.shape[:2], max(1, self.search.num_retrieved)), -1, dtype=torch.int32)

    def _read_all(self, q: Tensor, k: Tensor, v: Tensor, start: Tensor | None) -> Tensor:
        """[B, H, T, K] to [B, H, T, V], of all tokens that there are."""
        return causal_attention(q, k.transpose(1, 2), v.transpose(1, 2), start, scale=1.0)

    def _read(self, q: Tensor, memory: Memory, chosen: Tensor, start: Tensor) -> Tensor:
        """[B, H, T, K] to [B, H, T, V]."""
        keys, values, _ = memory.read()
        read = anchor_read if _in_place(q) else gathered_anchor_read
        return read(q, keys, values, chosen, start, window=self.search.window, block_size=self.search.block_size)


def _after_others(x: Tensor, count: int) -> Tensor:
    """Each row of [B, T, ..] after `count` others, as far as there are so many: [B, (count + 1) T, ..]."""
    others = [x.roll(row, dims=0) for row in range(1, min(count, len(x) - 1) + 1)]
    return torch.cat([*others, x], dim=1)


def _in_place(q: Tensor) -> bool:
    """Whether kernels read the memory where it lies; what has half the precision is gathered for torch, as on a GPU."""
    return q.is_cpu and q.dtype in (torch.float32, torch.float64)
