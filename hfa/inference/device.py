"""Where a model runs."""

from __future__ import annotations

import logging
import re

import torch

from hfa.errors import ConfigError
from hfa.models import LanguageModel

log = logging.getLogger(__name__)

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


def place(model: LanguageModel, device: torch.device) -> torch.device:
    """Move `model` to `device`, or to the CPU when it does not fit there; returns where it is."""
    try:
        model.to(device)
        return device
    except torch.OutOfMemoryError as error:
        if device == CPU:
            raise
        log.warning("%s does not fit on %s (%s); it runs on the CPU", type(model).__name__, device, error)
    model.to(CPU)
    return CPU
