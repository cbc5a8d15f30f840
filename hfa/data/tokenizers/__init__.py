"""Tokenizers: one file each, found by name; whatever has a `from_json` here can be in an artifact."""

from __future__ import annotations

import importlib
import json
import pkgutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hfa.data.tokenizers.base import ByteLevelTokenizer, TokenizerConfig
from hfa.data.tokenizers.stream import StreamDecoder
from hfa.errors import CheckpointError
from hfa.types import Tokenizer

__all__ = ["ByteLevelTokenizer", "StreamDecoder", "TokenizerConfig", "kinds", "load"]

_MAX_BYTES = 64 << 20


def kinds() -> dict[str, Callable[[Mapping[str, Any]], Tokenizer]]:
    """What reads each kind of tokenizer back, by name."""
    modules = {info.name: importlib.import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__)}
    return {name: module.from_json for name, module in modules.items() if hasattr(module, "from_json")}


def load(path: Path) -> Tokenizer:
    """Read a tokenizer that `Tokenizer.save` wrote; nothing in the file is executed.

    Raises:
        CheckpointError: the file is missing, torn or foreign.
    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ValueError(f"larger than {_MAX_BYTES} bytes")
        data = json.loads(path.read_text(encoding="utf-8"))
        kind = data.get("kind") if isinstance(data, dict) else None
        known = kinds()
        if not isinstance(kind, str) or kind not in known:
            raise CheckpointError(f"{path}: tokenizer kind {kind!r} is not one of {', '.join(known)}.")
        return known[kind](data)
    except OSError:
        raise CheckpointError(f"{path}: no tokenizer here; the artifact is torn.") from None
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not a tokenizer of this package ({error!r}); it is torn or foreign.") from None
