"""What people use today, built from `transformers` configs with fresh weights; nothing is downloaded.

Every peer has our body: 6 layers, 512 wide, feed-forward 2048, about 25M parameters, float32. Where the package's own
code stands in a peer's way, the way round it is here and not in the package:

- a cache whose layers are all linear does not know its length and raises: positions and masks are handed in;
- where `fla` or its kin can be imported, linear layers call Triton even on CPU: `load` hides them;
- MiniMax's feed-forward is a mixture of experts, which with one expert still sorts and copies tokens: it gets
  Llama's instead;
- MiniMax continues a cache one token at a time, however many are fed: it is prefilled in one shot;
- Mamba-2's block has no feed-forward layer: it gets 15 layers, for the same number of parameters.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from experiments.complexity.subjects import PIECE, VOCAB_SIZE, Entry, State, Subject, tensors
from hfa.errors import ConfigError

WIDTH, LAYERS, HEADS, FF = 512, 6, 8, 2048
_TRITON = ("fla", "mamba_ssm", "causal_conv1d", "xlstm", "mlstm_kernels", "kernels")
_SHORT = 4096  # a constant state is as fast to continue after this many tokens as after any other number


class Peer(Subject):
    """A body of `transformers`.

    Args:
        body: the model without its head.
        embedding: its embedding's weights.
        piece: tokens fed at once in prefill; None for all.
        cache: makes an empty cache.
        cache_name: the keyword it is passed by, and its name in the output.
        more: other keywords of every call, from the number of tokens so far and now.
        constant: whether the cache never grows.
    """

    def __init__(
        self,
        body: Any,
        embedding: Tensor,
        piece: int | None,
        cache: Callable[[], State],
        *,
        cache_name: str = "past_key_values",
        more: Callable[[int], dict[str, Any]] = lambda count: {},
        constant: bool = True,
    ) -> None:
        super().__init__(body, embedding, piece)
        self.cache, self.cache_name, self.more, self.constant = cache, cache_name, more, constant

    def hidden(self, tokens: Tensor, state: State | None) -> tuple[Tensor, State]:
        state = self.cache() if state is None else state
        passed = {self.cache_name: state, "use_cache": True, **self.more(tokens.shape[1])}
        return self.body(input_ids=tokens, **passed).last_hidden_state, state

    def train_hidden(self, tokens: Tensor) -> Tensor:
        out = self.body(input_ids=tokens, use_cache=False, **self.more(tokens.shape[1]))
        features: Tensor = out.last_hidden_state
        return features

    def context(self, tokens: Tensor, room: int) -> State:
        return self.prefill(tokens[:, :_SHORT])[1]

    def state_bytes(self, length: int) -> int:
        held = []
        for count in (128, 256):
            _, state = self.hidden(torch.zeros(1, count, dtype=torch.long), None)
            held.append(sum(x.numel() * x.element_size() for x in tensors(state)))
        if self.constant:
            return held[1]
        return held[0] + (length - 128) * (held[1] - held[0]) // 128


class Attention(Peer):
    """Llama: in decoding, its cache is a buffer of fixed size, which is how it decodes fastest."""

    def context(self, tokens: Tensor, room: int) -> State:
        """A context of random keys and values: the cost of reading them does not depend on what they are."""
        from transformers import StaticCache

        length = tokens.shape[1]
        cache = StaticCache(config=cast(Any, self.body.config), max_cache_len=length + room)
        generator = torch.Generator().manual_seed(0)
        for layer in range(LAYERS):
            keys, values = (torch.randn(1, HEADS, length, WIDTH // HEADS, generator=generator) for _ in range(2))
            cache.update(keys, values, layer)
        return cache


def peer_entries() -> dict[str, Entry]:
    """The peers by their names on the command line."""
    pieces, whole = f"pieces of {PIECE} tokens, cache carried", "one shot"
    rows: dict[str, tuple[str, str, Callable[[], Subject]]] = {
        "llama": ("Llama, SDPA", f"{whole}; decoding from a static cache", _llama),
        "gated-deltanet": ("Gated DeltaNet", pieces, _gated_deltanet),
        "minimax": ("MiniMax lightning attention", f"{whole}: its cache is continued token by token", _minimax),
        "xlstm": ("xLSTM", pieces, _xlstm),
        "mamba2": ("Mamba-2", pieces, _mamba2),
    }
    return {
        name: Entry(
            title=title,
            ours=False,
            growth="quadratic" if name == "llama" else "linear",
            feeding=feeding,
            load=_guarded(load),
        )
        for name, (title, feeding, load) in rows.items()
    }


def preload() -> None:
    """Import `transformers` without the packages that would take its CPU paths away.

    Raises:
        ConfigError: it is not installed.
    """
    for name in _TRITON:
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]  # None: importing it fails
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        import transformers
    except ImportError:
        raise ConfigError("--models", "a peer", "the extra bench", "pip install 'hfa[bench]'") from None
    transformers.utils.logging.set_verbosity_error()


def _guarded(load: Callable[[], Subject]) -> Callable[[], Subject]:
    def guarded() -> Subject:
        preload()
        return load()

    return guarded


def _llama() -> Subject:
    from transformers import DynamicCache, LlamaConfig, LlamaModel

    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=WIDTH,
        intermediate_size=FF,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=1 << 20,
    )
    config._attn_implementation = "sdpa"
    body = LlamaModel(config)
    return Attention(body, body.embed_tokens.weight, None, lambda: DynamicCache(config=config), constant=False)


def _gated_deltanet() -> Subject:
    from transformers import DynamicCache
    from transformers.models.qwen3_5.configuration_qwen3_5 import Qwen3_5TextConfig
    from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5TextModel

    config = Qwen3_5TextConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=WIDTH,
        intermediate_size=FF,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        head_dim=WIDTH // HEADS,
        linear_num_key_heads=HEADS,
        linear_num_value_heads=HEADS,
        linear_key_head_dim=WIDTH // HEADS,
        linear_value_head_dim=WIDTH // HEADS,
        layer_types=["linear_attention"] * LAYERS,
    )
    body = Qwen3_5TextModel(config)
    no_masks = {"linear_attention": None, "full_attention": None}

    def more(count: int) -> dict[str, Any]:
        return {"attention_mask": no_masks, "position_ids": torch.arange(count)[None]}

    return Peer(body, body.embed_tokens.weight, PIECE, lambda: DynamicCache(config=config), more=more)


def _minimax() -> Subject:
    from transformers import LlamaConfig, MiniMaxConfig
    from transformers.models.llama.modeling_llama import LlamaMLP
    from transformers.models.minimax.modeling_minimax import MiniMaxCache, MiniMaxModel

    config = MiniMaxConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=WIDTH,
        intermediate_size=FF,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        num_local_experts=1,
        num_experts_per_tok=1,
        layer_types=["linear_attention"] * LAYERS,
    )
    body = MiniMaxModel(config)
    for layer in body.layers:
        layer.mlp = LlamaMLP(LlamaConfig(hidden_size=WIDTH, intermediate_size=FF))
    no_masks = {"linear_attention": None, "full_attention": None}
    return Peer(body, body.embed_tokens.weight, None, MiniMaxCache, more=lambda count: {"attention_mask": no_masks})


def _xlstm() -> Subject:
    from transformers import xLSTMConfig, xLSTMModel
    from transformers.models.xlstm.modeling_xlstm import xLSTMCache

    config = xLSTMConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_heads=HEADS // 2,
        ffn_proj_factor=FF / WIDTH,
        autocast_kernel_dtype="float32",
    )
    body = xLSTMModel(config)
    cache = lambda: xLSTMCache(config, 1, dtype=torch.float32, device="cpu")  # noqa: E731
    return Peer(body, body.embeddings.weight, PIECE, cache, cache_name="cache_params")


def _mamba2() -> Subject:
    from transformers import DynamicCache, Mamba2Config, Mamba2Model

    config = Mamba2Config(
        vocab_size=VOCAB_SIZE,
        hidden_size=WIDTH,
        num_hidden_layers=15,
        num_heads=2 * WIDTH // 64,
        head_dim=64,
        n_groups=1,
        state_size=128,
        chunk_size=64,
    )
    body = Mamba2Model(config)
    return Peer(body, body.embeddings.weight, PIECE, lambda: DynamicCache(config=config), cache_name="cache_params")
