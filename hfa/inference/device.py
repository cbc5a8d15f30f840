"""Where a model runs."""

from __future__ import annotations

import re

import torch

from hfa.errors import ConfigError

CPU = torch.device("cpu")


def is_device_name(name: str) -> bool:
    """Whether `name` is one of auto, cpu, cuda, cuda:N."""
    return re.fullmatch(r"auto|cpu|cuda(:\d+)?", name) is not None


def choose_device(name: str) -> torch.device:
    """The device called `name`; ``auto`` is the first GPU where there is one.

    Raises:
        ConfigError: a GPU that torch does not see.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        seen = f"torch sees {torch.cuda.device_count()} CUDA devices here"
        raise ConfigError("device", name, "a device of this machine", f"{seen}, and auto or cpu always works")
    return device
