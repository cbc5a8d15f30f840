"""An artifact of ours as a model of `transformers`: ``python -m hfa.export CHECKPOINT FOLDER``.

The folder loads wherever this package and `transformers` are installed::

    import hfa.export
    model = AutoModelForCausalLM.from_pretrained(FOLDER)
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    model.generate(**tokenizer(["def f("], return_tensors="pt"), max_new_tokens=32)

and without the import with ``trust_remote_code=True``, which reads one line that does it. That is how tools that know
only `transformers` run it, the language-model evaluation harness among them: see experiments/harness.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hfa import checkpoint
from hfa.config import from_mapping
from hfa.data.tokenizers.bpe import byte_letters
from hfa.errors import ConfigError, HFAError
from hfa.mistakes import sentence
from hfa.models import architectures
from hfa.models.hf import transformers as load_transformers
from hfa.models.state import State, select_rows, stack_rows
from hfa.types import Tokenizer

try:
    load_transformers()
except ConfigError as missing:
    if __name__ != "__main__":
        raise
    sys.stderr.write(f"{missing}\n")
    sys.exit(2)

from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Cache,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.modeling_outputs import CausalLMOutputWithPast

_MODULE = "modeling_hfa"
_END = "<|endoftext|>"
_POSITIONS = ("position_ids", "cache_position", "token_type_ids")


class ExportedConfig(PreTrainedConfig):
    """What config.json says.

    Args:
        architecture: one of this package's.
        sizes: of it, as in an artifact.
    """

    model_type = "hfa"

    architecture: str = ""
    sizes: dict[str, Any] | None = None
    vocab_size: int = 0
    hidden_size: int = 0
    num_hidden_layers: int = 0
    max_position_embeddings: int = 0
    tie_word_embeddings: bool = False  # to transformers there is one matrix


class StateCache(Cache):
    """A state of ours, where generation keeps its keys and values."""

    def __init__(self, state: State = None, length: int = 0) -> None:
        super().__init__(layers=[])
        self.state, self.length = state, length

    @property
    def is_compileable(self) -> bool:
        return False

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.length

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.state = select_rows(self.state, beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        rows = torch.arange(len(self._first)).repeat_interleave(repeats)
        self.state = select_rows(self.state, rows)

    def batch_select_indices(self, indices: Tensor) -> None:
        self.state = select_rows(self.state, torch.arange(len(self._first))[indices.cpu()])

    @property
    def _first(self) -> Tensor:
        node = self.state
        while not isinstance(node, Tensor):
            node = node[0]
        return node


class ExportedForCausalLM(PreTrainedModel, GenerationMixin):
    """A model of ours, as `transformers` calls it; rows may be padded on the left, as it pads prompts."""

    config_class = ExportedConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    _supports_attention_backend = False
    accepts_loss_kwargs = False  # transformers' Trainer then averages over accumulated batches itself

    def __init__(self, config: ExportedConfig) -> None:
        super().__init__(config)
        known = architectures()
        if config.architecture not in known:
            raise ConfigError("architecture", config.architecture, f"one of {', '.join(known)}")
        self.model = from_mapping(known[config.architecture], config.sizes or {}, "sizes").build()
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: StateCache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        return_dict: bool | None = None,
        **others: Any,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """As the causal models of `transformers` do.

        Args:
            input_ids: int64 [B, T].
            attention_mask: [B, T so far]; zeros may stand before a row's first token, in the first call.
            past_key_values: from the call before.
            labels: int64 [B, T], not shifted; -100 is not scored.
            use_cache: hand back the state.
            logits_to_keep: logits of so many last tokens; 0 for all.
            return_dict: false for a tuple.
            others: what `generate` says about positions, which our models count themselves.

        Raises:
            ValueError: something is asked for that there is not.
        """
        asked = [name for name, value in others.items() if value is not None and value is not False]
        if unknown := [name for name in asked if name not in _POSITIONS]:
            raise ValueError(f"{', '.join(unknown)}: a model of hfa has no such argument; leave it out")
        cache = self._cache(past_key_values)
        if attention_mask is not None:
            whole = (len(input_ids), cache.length + input_ids.shape[1])
            if tuple(attention_mask.shape) != whole:
                raise ValueError(f"attention_mask: got {tuple(attention_mask.shape)}, expected {whole}")
            if cache.state is not None and not bool(attention_mask[:, cache.length :].all()):
                raise ValueError("attention_mask has zeros after the first call; give each row its own tokens alone")
        if cache.state is None and attention_mask is not None and not bool(attention_mask.all()):
            hidden, state = self._unpadded(input_ids, attention_mask)
        else:
            hidden, state = self.model.hidden(input_ids, cache.state, last=logits_to_keep or None)
        logits = self.model.head(hidden[:, -logits_to_keep:] if logits_to_keep else hidden)
        loss = None
        if labels is not None:
            loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())
            auxiliary = self.model.auxiliary_loss()  # the index learns from it, and from nothing else
            loss = loss if auxiliary is None else loss + auxiliary
        kept = StateCache(state, cache.length + input_ids.shape[1]) if use_cache else None
        output = CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=kept)
        return output.to_tuple() if return_dict is False else output

    def get_input_embeddings(self) -> torch.nn.Module:
        embedding: torch.nn.Module = self.model.embedding
        return embedding

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # the first call makes one of ours

    def _init_weights(self, module: torch.nn.Module) -> None:
        """Weights are loaded, or as our own models make them."""

    @staticmethod
    def _cache(given: object) -> StateCache:
        """What came before; of an empty cache of another kind, which `transformers` may hand in first, nothing."""
        if isinstance(given, StateCache):
            return given
        length = getattr(given, "get_seq_length", None)
        if given is None or (length is not None and not length()):
            return StateCache()
        raise ValueError(f"past_key_values: got a {type(given).__name__}, expected what the call before handed back")

    def _unpadded(self, tokens: Tensor, mask: Tensor) -> tuple[Tensor, State]:
        """Each row without what was padded before it."""
        if not self.model.ragged and not bool((mask.sum(1) == mask.shape[1]).all()):
            raise ValueError("rows of several lengths are no batch for a peer from transformers; give one at a time")
        hidden = torch.zeros(*tokens.shape, self.model.config.d_model, dtype=self.dtype, device=tokens.device)
        states = []
        for row, (ids, there) in enumerate(zip(tokens, mask.bool(), strict=True)):
            start = int(there.int().argmax())
            if not bool(there[start:].all()):
                raise ValueError("an attention mask with zeros behind a row's first token; pad on the left")
            features, state = self.model.hidden(ids[None, start:])
            hidden[row, start:] = features[0]
            states.append(state)
        return hidden, stack_rows(states)


AutoConfig.register("hfa", ExportedConfig, exist_ok=True)
AutoModelForCausalLM.register(ExportedConfig, ExportedForCausalLM, exist_ok=True)


def export(artifact: Path, folder: Path) -> Path:
    """Write an artifact as a folder for ``from_pretrained``.

    Args:
        artifact: where it is.
        folder: gets config.json, the weights, the tokenizer and one line of code.

    Returns:
        `folder`.

    Raises:
        CheckpointError: there is no artifact.
        ConfigError: `folder` is a file, or holds what no export wrote.
    """
    earlier = (folder / f"{_MODULE}.py").is_file()
    if folder.exists() and not earlier and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError("FOLDER", str(folder), "a folder that is empty, of an earlier export, or not there yet")
    loaded = checkpoint.load(artifact)
    sizes = loaded.model.config
    config = ExportedConfig(
        architecture=sizes.name,
        sizes=sizes.to_dict(),
        vocab_size=sizes.vocab_size,
        hidden_size=sizes.d_model,
        num_hidden_layers=sizes.num_layers,
        max_position_embeddings=sizes.max_seq_len,
    )
    config.eos_token_id = config.pad_token_id = loaded.tokenizer.end_of_text
    config.auto_map = {
        "AutoConfig": f"{_MODULE}.{ExportedConfig.__name__}",
        "AutoModelForCausalLM": f"{_MODULE}.{ExportedForCausalLM.__name__}",
    }
    model = ExportedForCausalLM(config)
    model.model.load_state_dict(loaded.model.state_dict())
    folder.mkdir(parents=True, exist_ok=True)
    line = f"from hfa.export import {ExportedConfig.__name__}, {ExportedForCausalLM.__name__}  # noqa: F401\n"
    (folder / f"{_MODULE}.py").write_text(line, encoding="utf-8")  # first, so that what is cut off can be done again
    model.save_pretrained(folder)
    exported_tokenizer(loaded.tokenizer, sizes.max_seq_len).save_pretrained(folder)
    return folder


def exported_tokenizer(tokenizer: Tokenizer, max_seq_len: int) -> PreTrainedTokenizerFast:
    """A tokenizer of ours as one of `transformers`, with the same ids; the end of text is never read from a text."""
    from tokenizers import Tokenizer as Engine
    from tokenizers import decoders, models, pre_tokenizers

    data: dict[str, Any] = tokenizer.to_json()  # type: ignore[attr-defined]
    letters = sorted(byte_letters(), key=byte_letters().__getitem__)
    tokens = data.get("tokens", letters)
    merges = [tuple(pair) for pair in data.get("merges", [])]
    engine = Engine(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.decoder = decoders.ByteLevel()
    engine.add_special_tokens([*(f"<|unused{i}|>" for i in range(len(tokens), tokenizer.end_of_text)), _END])
    return PreTrainedTokenizerFast(
        tokenizer_object=engine,
        eos_token=_END,
        pad_token=_END,
        padding_side="left",
        split_special_tokens=True,
        clean_up_tokenization_spaces=False,
        model_max_length=max_seq_len,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m hfa.export", description="An artifact as a model of transformers.")
    parser.add_argument("checkpoint", help="latest | best | a folder")
    parser.add_argument("folder", type=Path, help="where it is written")
    parser.add_argument("--root", type=Path, default=Path("outputs"), help="where latest and best are looked for")
    asked = parser.parse_args(arguments)
    found = checkpoint.resolve(asked.checkpoint, architecture=None, root=asked.root)
    sys.stdout.write(f"{export(found, asked.folder)}\n")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (HFAError, OSError) as error:
        sys.stderr.write(f"{sentence(error) or error}\n")
        sys.exit(2)
