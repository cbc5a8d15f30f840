"""The architectures. A module here that declares a `ModelConfig` with a `name` is one, with no edit elsewhere."""

from __future__ import annotations

import importlib
import pkgutil

from hfa.models.base import LanguageModel, ModelConfig

__all__ = ["LanguageModel", "ModelConfig", "architectures"]


def architectures() -> dict[str, type[ModelConfig]]:
    """The config class of every architecture by name."""
    found: dict[str, type[ModelConfig]] = {}
    for info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{info.name}")
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, ModelConfig) and "name" in vars(value):
                found[value.name] = value
    return dict(sorted(found.items()))
