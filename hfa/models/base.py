"""The contract every model keeps, and the decoder they are all built on.

A model is an embedding, a stack of blocks and a head. A block is a *mixer* (the part in which architectures
differ: it moves information along time) and a feed-forward layer, each behind a norm and added to the stream.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from hfa.config import Config, Fraction, PositiveInt, config
from hfa.errors import ConfigError
from hfa.models.state import State, num_bytes, num_rows
from hfa.nn.linear import Linear
from hfa.nn.mlp import SwiGLU
from hfa.nn.norm import RMSNorm
from hfa.ops.fused import feed_forward_step, linear, pack, packed, packs, pays, unpack
from hfa.ops.simd import suits, tracked

_PIECE = 1024  # tokens run at once when no gradient is kept: activations then stay in tens of megabytes


@config
class ModelConfig(Config, ABC):
    """What every architecture has; each adds its own fields, a `name` and a `build`."""

    name: ClassVar[str]
    served: ClassVar[bool] = True  # or made for a study alone

    vocab_size: PositiveInt
    d_model: PositiveInt
    num_layers: PositiveInt
    num_heads: PositiveInt
    d_ff: PositiveInt
    dropout: Fraction
    max_seq_len: PositiveInt  # tokens a deployed model accepts, prompt and answer together

    def check(self) -> None:
        if self.d_model % self.num_heads:
            fits = [n for n in range(1, self.d_model + 1) if self.d_model % n == 0 and n <= 64]
            raise ConfigError(
                "num_heads", self.num_heads, f"a divisor of d_model={self.d_model}", f"one of {fits} would do"
            )
        if self.dropout == 1:
            raise ConfigError("dropout", self.dropout, "less than 1", "0.1 is usual, 0 switches it off")

    @property
    def head_dim(self) -> int:
        return self.d_model // self.num_heads

    @property
    def title(self) -> str:
        """What reports call the model."""
        return self.name

    def build(self) -> LanguageModel:
        """Allocate the model, with fresh weights from torch's global generator."""
        return LanguageModel(self, [self.mixer(layer) for layer in range(self.num_layers)])

    @abstractmethod
    def mixer(self, layer: int) -> Mixer:
        """The mixer of one layer, counted from 0."""


class Mixer(nn.Module, ABC):
    """Moves information along time; each architecture's own part."""

    @abstractmethod
    def init_state(self, batch_size: int) -> State:
        """The state before the first token."""

    @abstractmethod
    def forward(self, x: Tensor, state: State, last: int | None = None) -> tuple[Tensor, State]:
        """[B, T, D], any T >= 1, continuing from `state`, to [B, T, D] and the state after it.

        Args:
            x: of every token.
            state: what came before.
            last: of how many last tokens the output is wanted, at least 1; the state is of all. None for all.
        """

    def reserve(self, state: State, count: int) -> State:
        """The state with room for `count` more tokens a row, where it grows: they come one after the other."""
        return state

    @property
    def takes_varlen(self) -> bool:
        """Whether `step` takes rows with different numbers of tokens, here and now."""
        return False

    def step(self, x: Tensor, state: State, lengths: Sequence[int]) -> tuple[Tensor, State]:
        """What `forward` computes for the next few tokens of rows, as many as each has; without gradients.

        Args:
            x: [N, D], row after row.
            state: of B rows; exact memories of different growth stand in pages.
            lengths: tokens of each row, at least 1; N together.

        Returns:
            [N, D] and the state after them.
        """
        raise NotImplementedError(f"{type(self).__name__} takes rows of one length alone; see `takes_varlen`")

    def state_bytes(self, seq_len: int) -> int:
        """Bytes of one row's state after `seq_len` tokens; constant unless told otherwise."""
        return num_bytes(self.init_state(1))

    def auxiliary_loss(self) -> Tensor | None:
        """What the last forward pass in training adds to the loss."""
        return None


class Block(nn.Module):
    """``x + mixer(norm(x))``, then ``x + mlp(norm(x))``."""

    def __init__(self, settings: ModelConfig, mixer: Mixer) -> None:
        super().__init__()
        self.mixer_norm = RMSNorm(settings.d_model)
        self.mixer = mixer
        self.mlp_norm = RMSNorm(settings.d_model)
        self.mlp = SwiGLU(settings.d_model, settings.d_ff)
        self.dropout = nn.Dropout(settings.dropout)

    def forward(self, x: Tensor, state: State, last: int | None = None) -> tuple[Tensor, State]:
        mixed, state = self.mixer(self.mixer_norm(x), state, last)
        return self._fed_forward(x[:, -mixed.shape[1] :], mixed), state

    def step(self, x: Tensor, state: State, lengths: Sequence[int], last: Tensor | None = None) -> tuple[Tensor, State]:
        """What `forward` computes for rows with different numbers of tokens: see `Mixer.step`.

        Args:
            last: of which tokens the output is wanted; None for all.
        """
        mixed, state = self.mixer.step(self.mixer_norm(x), state, lengths)
        if last is not None:
            x, mixed = x[last], mixed[last]
        return self._fed_forward(x, mixed), state

    def _fed_forward(self, x: Tensor, mixed: Tensor) -> Tensor:
        norm, *matrices = self.mlp_norm.weight, self.mlp.gate_up.weight, self.mlp.down.weight
        if not self.training and not tracked(x, mixed, norm, *matrices) and pays(x, *matrices) and suits(norm):
            return feed_forward_step(x.contiguous(), mixed.contiguous(), norm, *matrices)
        x = x + self.dropout(mixed)
        y: Tensor = x + self.dropout(self.mlp(self.mlp_norm(x)))
        return y


class LanguageModel(nn.Module):
    """A decoder over tokens that carries its past in a state.

    The state is a tuple with one entry a layer. It is a value: it is handed in and a new one handed back, and the
    old one can be continued again, though not by two threads at once.

    Args:
        settings: the sizes.
        mixers: one a layer.
    """

    ragged: ClassVar[bool] = True  # whether rows of different lengths can be one batch

    def __init__(self, settings: ModelConfig, mixers: Sequence[Mixer]) -> None:
        super().__init__()
        self.config = settings
        self.embedding = nn.Embedding(settings.vocab_size, settings.d_model)
        nn.init.normal_(self.embedding.weight, std=settings.d_model**-0.5)
        self.blocks = nn.ModuleList(Block(settings, mixer) for mixer in mixers)
        self.norm = RMSNorm(settings.d_model)

    def init_state(self, batch_size: int) -> State:
        """The state before the first token, for `batch_size` rows."""
        return tuple(self._mixer(block).init_state(batch_size) for block in self.blocks)

    def forward(self, tokens: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Logits of the token after each given one.

        Args:
            tokens: int64 [B, T], any T >= 1.
            state: what came before; None for nothing.

        Returns:
            logits [B, T, vocab_size] and the state after the last token.

        Raises:
            ValueError: `state` has other rows than `tokens`.
        """
        hidden, state = self.hidden(tokens, state)
        return self.head(hidden), state

    def hidden(self, tokens: Tensor, state: State | None = None, last: int | None = None) -> tuple[Tensor, State]:
        """Like `forward`, but the final features [B, T, D]: `head` turns those one needs into logits.

        Args:
            tokens: int64 [B, T].
            state: what came before; None for nothing.
            last: of how many last tokens features are wanted, at least 1; None for all. What nobody asks for is not
                computed: the last layer's output for the others.
        """
        state = self.init_state(tokens.shape[0]) if state is None else state
        if torch.is_grad_enabled() or tokens.shape[1] <= _PIECE:
            return self._hidden(tokens, state, last)
        pieces, unwanted = [], tokens.shape[1] - (last or tokens.shape[1])
        state = tuple(
            cast(Block, block).mixer.reserve(own, tokens.shape[1])
            for block, own in zip(self.blocks, state, strict=True)
        )
        for start in range(0, tokens.shape[1], _PIECE):
            piece = tokens[:, start : start + _PIECE]
            wanted = start + piece.shape[1] - max(start, unwanted)
            features, state = self._hidden(piece, state, max(1, wanted))
            if wanted > 0:
                pieces.append(features)
        return torch.cat(pieces, dim=1), state

    def head(self, hidden: Tensor) -> Tensor:
        """Features [..., D] to logits [..., vocab_size]."""
        return linear(hidden, self.embedding.weight)

    @torch.no_grad()
    def keep_ids(self, vocab_size: int) -> None:
        """Leave out the token ids from `vocab_size` on, which a tokenizer with fewer can neither say nor read."""
        embedding = self.embedding
        embedding.weight = nn.Parameter(embedding.weight[:vocab_size].clone())
        embedding.num_embeddings, embedding.padding_idx = vocab_size, None
        self.config = dataclasses.replace(self.config, vocab_size=vocab_size)

    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """One token a row: tokens [B] to logits [B, vocab_size] and the next state."""
        logits, state = self.forward(tokens[:, None], state)
        return logits[:, 0], state

    @property
    def takes_varlen(self) -> bool:
        """Whether `hidden_varlen` can be asked, here and now."""
        mixers = [part for part in self.modules() if isinstance(part, Mixer)]
        return bool(mixers) and all(mixer.takes_varlen for mixer in mixers)

    def hidden_varlen(self, tokens: Tensor, lengths: Sequence[int], state: State) -> tuple[Tensor, State]:
        """Like `hidden`, for rows with different numbers of tokens, in one pass over the weights; without gradients.

            row 0, length 4    a b c d
            row 1, length 1    e               tokens  a b c d e, features of d and e

        It takes each token by itself where a long piece is read in parallel: for a few tokens a row.

        Args:
            tokens: int64 [N], row after row.
            lengths: tokens of each row, at least 1; N together.
            state: of B rows.

        Returns:
            the final features after the last token of each row [B, D], and the state after it.

        Raises:
            ValueError: `lengths` are not of these tokens, of at least 1 each, or of as many rows as `state` has, or
                they differ where the state cannot grow apart: it has to stand in pages.
        """
        if sum(lengths) != len(tokens) or min(lengths) < 1:
            raise ValueError(f"lengths: got {list(lengths)}, expected {len(tokens)} tokens together, at least 1 a row")
        check_rows(len(lengths), state)
        last = torch.tensor(lengths, device=tokens.device).cumsum(0) - 1
        x, states = self._embedded(tokens), []
        for layer, (block, inner) in enumerate(zip(self.blocks, state, strict=True), 1):
            assert isinstance(block, Block)
            x, inner = block.step(x, inner, lengths, last if layer == len(self.blocks) else None)
            states.append(inner)
        return self.norm(x), tuple(states)

    def pack(self, dtype: torch.dtype = torch.float32) -> bool:
        """Have what is computed without gradients use packed copies of the weights, until they change or `unpack`.

        For a model that serves, or that is evaluated at length: faster on the CPU, for a second copy of the weights.

        Args:
            dtype: of the products of layers with large matrices; those of the head, between whose results is chosen,
                stay float32.

        Returns:
            Whether they are of that type from now on. Not with weights that are not float32 on the CPU, on a processor
            without the type, or where no matrix is large enough to pay.
        """
        weights = self._matrices()
        if not weights or not all(packs(weight, dtype) for weight in weights):
            return False
        pack(self.embedding.weight)
        return sum(pack(weight, dtype) for weight in weights) > 0

    def unpack(self) -> None:
        """Drop what `pack` made."""
        if weights := self._matrices():
            for weight in (*weights, self.embedding.weight):
                unpack(weight)

    @property
    def is_packed(self) -> bool:
        return any(packed(weight) is not None for weight in self._matrices())

    def state_bytes(self, seq_len: int) -> int:
        """Bytes of one row's state after `seq_len` tokens."""
        return sum(self._mixer(block).state_bytes(seq_len) for block in self.blocks)

    def auxiliary_loss(self) -> Tensor | None:
        """What the last forward pass in training adds to the loss; None for nothing."""
        losses = [loss for block in self.blocks if (loss := self._mixer(block).auxiliary_loss()) is not None]
        return torch.stack(losses).sum() if losses else None

    @property
    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())

    def _hidden(self, tokens: Tensor, state: State, last: int | None) -> tuple[Tensor, State]:
        check_rows(len(tokens), state)
        x, states = self._embedded(tokens), []
        for layer, (block, inner) in enumerate(zip(self.blocks, state, strict=True), 1):
            x, inner = block(x, inner, last if layer == len(self.blocks) else None)
            states.append(inner)
        return self.norm(x), tuple(states)

    def _embedded(self, tokens: Tensor) -> Tensor:
        x: Tensor = self.embedding(tokens) * math.sqrt(self.config.d_model)
        return x

    def _matrices(self) -> list[Tensor]:
        """The weights of linear layers of ours."""
        return [part.weight for part in self.modules() if isinstance(part, Linear)]

    @staticmethod
    def _mixer(block: nn.Module) -> Mixer:
        mixer = block.mixer
        assert isinstance(mixer, Mixer)
        return mixer


def check_rows(rows: int, state: State) -> None:
    """Kernels take a state's rows for granted."""
    if (there := num_rows(state)) != rows:
        raise ValueError(f"tokens of {rows} rows cannot continue a state of {there} rows")
