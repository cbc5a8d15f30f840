"""What people use today, built from `transformers` configs with fresh weights; nothing is downloaded.

`hfa.models.hf` builds them, from conf/model/hf; what stands in a peer's way, and the way round it, is written
down there. Here they are fed as serves each best, and through the package's own caches, which cost no copies. Every
peer has our body: 6 layers, 512 wide, feed-forward 2048, about 25M parameters, float32; Mamba-2, whose block has no
feed-forward layer, has 15 layers for the same number of parameters.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from experiments.complexity.subjects import PIECE, Entry, State, Subject, our_config
from hfa.errors import ConfigError
from hfa.models.hf import HFModel, transformers

_SHORT = 4096  # a constant state is as fast to continue after this many tokens as after any other number


class _Carried(NamedTuple):
    """A cache of the package, and the tokens it stands for."""

    cache: Any
    count: int


class Peer(Subject):
    """A body of `transformers`.

    Args:
        model: the model.
        piece: tokens fed at once in prefill; None for all.
    """

    def __init__(self, model: HFModel, piece: int | None) -> None:
        super().__init__(model.body, model.embedding.weight, piece)
        self.model = model

    def hidden(self, tokens: Tensor, state: State | None) -> tuple[Tensor, State]:
        cache, count = state or _Carried(None, 0)
        features, cache = self.model.run(tokens, count, cache)
        return features, _Carried(cache, count + tokens.shape[1])

    def train_hidden(self, tokens: Tensor) -> Tensor:
        out = self.body(input_ids=tokens, use_cache=False, **self.model.positions(tokens, 0))
        features: Tensor = out.last_hidden_state
        return features

    def context(self, tokens: Tensor, room: int) -> State:
        return self.prefill(tokens[:, :_SHORT])[1]

    def state_bytes(self, length: int) -> int:
        return self.model.state_bytes(length)


class Attention(Peer):
    """Llama: in decoding, its cache is a buffer of fixed size, which is how it decodes fastest."""

    def context(self, tokens: Tensor, room: int) -> State:
        """A context of random keys and values: the cost of reading them does not depend on what they are."""
        from transformers import StaticCache

        sizes, length = cast(Any, self.body.config), tokens.shape[1]
        cache = StaticCache(config=sizes, max_cache_len=length + room)
        generator = torch.Generator().manual_seed(0)
        shape = (1, sizes.num_key_value_heads, length, sizes.head_dim)
        for layer in range(sizes.num_hidden_layers):
            keys, values = (torch.randn(shape, generator=generator) for _ in range(2))
            cache.update(keys, values, layer)
        return _Carried(cache, length)


def peer_entries() -> dict[str, Entry]:
    """The peers by their names on the command line."""
    pieces, whole = f"pieces of {PIECE} tokens, cache carried", "one shot"
    rows = {
        "llama": ("Llama, SDPA", f"{whole}; decoding from a static cache"),
        "gated-deltanet": ("Gated DeltaNet", pieces),
        "minimax": ("MiniMax lightning attention", f"{whole}: its cache is continued token by token"),
        "xlstm": ("xLSTM", pieces),
        "mamba2": ("Mamba-2", pieces),
    }
    return {
        name: Entry(
            title=title,
            ours=False,
            growth="quadratic" if name == "llama" else "linear",
            feeding=feeding,
            load=partial(load, name),
        )
        for name, (title, feeding) in rows.items()
    }


def preload() -> None:
    """Import `transformers`.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        transformers()
    except ConfigError:
        raise ConfigError("--models", "a peer", "the extra hf", "pip install 'hfa[hf]'") from None


def load(name: str, **changes: int) -> Subject:
    """A peer, fed as serves it best.

    Args:
        name: one of `peer_entries`.
        changes: of its sizes, as in conf/model/hf.
    """
    model = our_config(f"hf/{name.replace('-', '_')}", **changes).build()
    assert isinstance(model, HFModel)
    piece = None if name in ("llama", "minimax") else PIECE
    return (Attention if name == "llama" else Peer)(model, piece)
