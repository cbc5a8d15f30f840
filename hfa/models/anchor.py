"""The anchor layer: the exact memory of every token, and what a query retrieves from it."""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from hfa.config import PositiveFloat, PositiveInt, config
from hfa.errors import ConfigError
from hfa.models.base import Mixer
from hfa.models.flow import FlowSettings
from hfa.models.memory import Memory
from hfa.nn.conv import ShortConv
from hfa.nn.norm import l2_norm
from hfa.ops.anchor import anchor_read

# Where match-init points the short convolutions of an anchor layer: a query describes the tokens up to the present
# one, a key the tokens before its own, so that a repeated context matches the token that followed it.
_QUERY_TAPS = (0.6, 0.3, 0.15)
_KEY_TAPS = (0.0, 0.6, 0.3, 0.15)


@config
class AnchorSettings(FlowSettings):
    """What flow and anchor layers need, and how layers of different kinds follow each other."""

    pattern: tuple[str, ...]  # kinds of layer, repeated from the first layer to the last
    num_memory_heads: PositiveInt  # key-value heads of an anchor layer
    window: PositiveInt  # tokens an anchor layer always reads
    num_retrieved: PositiveInt  # tokens it reads beyond them
    logit_scale: PositiveFloat  # of its attention at the start; learnt from there

    def check(self) -> None:
        super().check()
        if self.num_heads % self.num_memory_heads:
            raise ConfigError("num_memory_heads", self.num_memory_heads, f"a divisor of num_heads={self.num_heads}")
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

    memory: Memory
    query_tail: Tensor  # [B, conv_width - 1, H K]
    key_tail: Tensor  # [B, conv_width - 1, G K]


class Anchor(Mixer):
    """The exact memory: every key and value stays; a query reads a window and what it retrieves.

    No positional encoding, unit-norm queries and keys, a learnt logit scale, and short convolutions that let a key
    describe the tokens before its own. `match_init` starts every head as a content-addressed copy.
    """

    def __init__(self, settings: AnchorSettings) -> None:
        super().__init__()
        width, heads, memory_heads = settings.d_model, settings.num_heads, settings.num_memory_heads
        self.num_heads, self.num_memory_heads, self.head_dim = heads, memory_heads, settings.head_dim
        self.window, self.num_retrieved = settings.window, settings.num_retrieved
        memory_width = memory_heads * self.head_dim
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, memory_width, bias=False)
        self.value = nn.Linear(width, memory_width, bias=False)
        self.query_conv = ShortConv(width, settings.conv_width)
        self.key_conv = ShortConv(memory_width, settings.conv_width)
        self.log_scale = nn.Parameter(torch.full((heads,), math.log(settings.logit_scale)))
        self.out = nn.Linear(width, width, bias=False)
        self.match_init()

    @torch.no_grad()
    def match_init(self) -> None:
        """Equal contexts match (queries are projected as keys are), and what is read is copied to the stream."""
        group = self.num_heads // self.num_memory_heads
        nn.init.orthogonal_(self.value.weight)
        heads = self.value.weight.unflatten(0, (self.num_memory_heads, self.head_dim))
        self.out.weight.copy_(heads.repeat_interleave(group, dim=0).flatten(0, 1).T / group)
        keys = self.key.weight.unflatten(0, (self.num_memory_heads, self.head_dim))
        self.query.weight.copy_(keys.repeat_interleave(group, dim=0).flatten(0, 1))
        self.query_conv.peak(_QUERY_TAPS)
        self.key_conv.peak(_KEY_TAPS)

    def init_state(self, batch_size: int) -> AnchorState:
        memory = Memory.empty(batch_size, self.num_memory_heads, self.head_dim, self.key.weight)
        return AnchorState(memory, self.query_conv.init_state(batch_size), self.key_conv.init_state(batch_size))

    @property
    def bytes_per_token(self) -> int:
        return 2 * self.num_memory_heads * self.head_dim * self.key.weight.element_size()

    def forward(self, x: Tensor, state: AnchorState) -> tuple[Tensor, AnchorState]:
        query, query_tail = self.query_conv(self.query(x), state.query_tail)
        key, key_tail = self.key_conv(self.key(x), state.key_tail)
        q = l2_norm(query.unflatten(-1, (self.num_heads, self.head_dim))) * self.log_scale.exp()[:, None]
        k = l2_norm(key.unflatten(-1, (self.num_memory_heads, self.head_dim)))
        v = self.value(x).unflatten(-1, (self.num_memory_heads, self.head_dim))
        start = state.memory.length if state.memory.capacity else None
        memory = state.memory.append(k, v)
        keys, values = memory.read()
        read = anchor_read(q.transpose(1, 2), keys, values, start, window=self.window, num_retrieved=self.num_retrieved)
        return self.out(read.transpose(1, 2).flatten(2)), AnchorState(memory, query_tail, key_tail)
