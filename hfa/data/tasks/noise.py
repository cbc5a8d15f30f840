"""What recall tasks over plain ids share: keys in the lower half, values in the upper, and noise between them."""

from __future__ import annotations

from typing import TypeVar

import numpy as np

from hfa.config import PositiveInt, config
from hfa.data.source import SourceConfig
from hfa.errors import ConfigError

_T = TypeVar("_T")


@config
class NoisyConfig(SourceConfig):
    """Base of the configs of tasks over ids.

        id       0   1 .. first_value - 1   first_value .. noise_from - 1   noise_from ..
        is    nothing       a key                     a value               only noise, if it is apart

    Args:
        vocab_size: ids the task uses, from 0.
        noise: what stands between; a task may know more kinds. ``same``: keys that are not in the example, and any
            values; ``apart``: ids that only noise uses; ``repeated``: one phrase of ``same``, again and again.
        noise_vocab_size: ids that ``apart`` takes from the top of the vocabulary.
        phrase_len: tokens of the phrase of ``repeated``.
    """

    vocab_size: PositiveInt
    noise: str
    noise_vocab_size: PositiveInt
    phrase_len: PositiveInt

    @property
    def noise_to(self) -> int:
        """What noise may be ends before this id, as a task may have others beyond."""
        return self.vocab_size

    @property
    def noise_from(self) -> int:
        return self.noise_to - (self.noise_vocab_size if self.noise == "apart" else 0)

    @property
    def first_value(self) -> int:
        """Keys are 1 to this, values from this to `noise_from`, both without the end."""
        return self.noise_from // 2

    @property
    def num_keys(self) -> int:
        return self.first_value - 1

    def check_keys(self, needed: int) -> None:
        """Raise ConfigError unless the vocabulary has more than `needed` keys: noise takes others."""
        if self.num_keys <= needed:
            expected = f"room for more than {needed} keys in its lower half, where {self.num_keys} are"
            raise ConfigError("vocab_size", self.vocab_size, expected)


def draw_noise(settings: NoisyConfig, rng: np.random.Generator, count: int, keys: np.ndarray) -> np.ndarray:
    """`count` tokens of ``same``, ``apart`` or ``repeated``, int64, none of them in `keys`."""
    match settings.noise:
        case "apart":
            return rng.integers(settings.noise_from, settings.noise_to, count)
        case "repeated":
            return np.resize(_other(settings, rng, settings.phrase_len, keys), count)
        case _:
            return _other(settings, rng, count, keys)


def choices(value: _T | tuple[_T, ...]) -> tuple[_T, ...]:
    """What a setting that is one value or several leaves to choose from."""
    return value if isinstance(value, tuple) else (value,)


def _other(settings: NoisyConfig, rng: np.random.Generator, count: int, keys: np.ndarray) -> np.ndarray:
    """Keys that are not in the example, and any values, in equal parts."""
    others = np.setdiff1d(np.arange(1, settings.first_value), keys)
    values = rng.integers(settings.first_value, settings.noise_from, count)
    return np.where(rng.random(count) < 0.5, rng.choice(others, count), values)
