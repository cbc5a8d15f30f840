"""GPT-2's tokenizer, from its file."""

from __future__ import annotations

import json
from pathlib import Path

from hfa.config import config
from hfa.data.tokenizers.base import Documents, TokenizerConfig
from hfa.data.tokenizers.bpe import BPETokenizer, from_json
from hfa.errors import ConfigError

__all__ = ["GPT2Config", "from_json"]

VOCAB_SIZE = 50257
END_OF_TEXT = "<|endoftext|>"


@config
class GPT2Config(TokenizerConfig):
    """Where GPT-2's tokenizer.json stands; nothing is ever downloaded.

    Args:
        path: the file; None looks into the local Hugging Face cache.
        repo: whose tokenizer.json to take from that cache.
    """

    path: str | None
    repo: str

    def check(self) -> None:
        if self.vocab_size != VOCAB_SIZE:
            raise ConfigError("vocab_size", self.vocab_size, f"{VOCAB_SIZE}, GPT-2's")

    def build(self, documents: Documents, cache_dir: Path | None = None) -> BPETokenizer:
        """Read the file.

        Raises:
            ConfigError: it is not there, or is another tokenizer's.
        """
        path = self._file()
        try:
            model = json.loads(path.read_text(encoding="utf-8"))["model"]
            vocab = dict(model["vocab"])
            if vocab.pop(END_OF_TEXT) != VOCAB_SIZE - 1 or sorted(vocab.values()) != list(range(VOCAB_SIZE - 1)):
                raise ValueError("other ids")
            merges = [tuple(merge.split(" ") if isinstance(merge, str) else merge) for merge in model["merges"]]
            return BPETokenizer("gpt2", sorted(vocab, key=vocab.__getitem__), merges, VOCAB_SIZE)
        except (OSError, KeyError, TypeError, ValueError, AttributeError):
            expected = f"GPT-2's tokenizer.json with {VOCAB_SIZE} ids"
            raise ConfigError("tokenizer.path", str(path), expected, f"take {self.repo}'s") from None

    def _file(self) -> Path:
        from huggingface_hub import try_to_load_from_cache

        try:
            found = self.path or try_to_load_from_cache(self.repo, "tokenizer.json")
        except ValueError:  # not the name of a repo
            found = None
        if isinstance(found, str) and Path(found).is_file():
            return Path(found)
        remedy = f"run `hf download {self.repo} tokenizer.json` where there is a network, or choose tokenizer=byte"
        raise ConfigError("tokenizer.path", self.path, "GPT-2's tokenizer.json as a file or in the hub's cache", remedy)
