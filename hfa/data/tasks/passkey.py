"""Passkeys: strings of tokens, each announced by a short marker, and asked for by it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import numpy as np

from hfa.config import PositiveInt, config
from hfa.data.source import generator
from hfa.data.tasks.noise import NoisyConfig, choices, draw_noise
from hfa.data.tasks.records import check_room, scatter
from hfa.errors import ConfigError
from hfa.types import Example, Source, Split, Tokenizer


@config
class PasskeyConfig(NoisyConfig):
    """See :class:`Passkey`.

    Args:
        num_passkeys: in an example, all of them asked for; of several numbers, each example draws one.
        marker_len: tokens that announce a passkey; no other token of the context is one of them.
        passkey_len: tokens of a passkey; of several numbers, each example draws one.
    """

    noise: Literal["same", "apart", "repeated"]
    num_passkeys: PositiveInt | tuple[PositiveInt, ...]
    marker_len: PositiveInt
    passkey_len: PositiveInt | tuple[PositiveInt, ...]

    def check(self) -> None:
        for field in ("num_passkeys", "passkey_len"):
            if not choices(getattr(self, field)):
                raise ConfigError(field, getattr(self, field), "a number or several", "e.g. 8 or [4, 8]")
        most, size = max(choices(self.num_passkeys)), self.marker_len + max(choices(self.passkey_len))
        self.check_keys(most * self.marker_len)
        check_room(self.seq_len, most, size, most, size)

    def build(self, tokenizer: Tokenizer, cache_dir: Path) -> Passkey:
        return Passkey(self)


class Passkey:
    """Passkeys anywhere in the noise; at the end each marker again, and the passkey is what follows it::

        tokens    . . m1 m2 p1 p2 p3 . . m3 m4 p4 p5 p6 . m3 m4 p4 p5 p6 m1 m2 p1 p2
        labels                                              p4 p5 p6       p1 p2 p3
        gold                                                11 12 13        4  5  6

    Markers are keys, passkeys any values; noise is of both, so it holds a passkey's tokens one by one.

    Source: Landmark Attention, arXiv 2305.16300, section 4.2.
    """

    kind: Literal["text", "recall"] = "recall"
    fingerprint = ""

    def __init__(self, settings: PasskeyConfig) -> None:
        self.name, self.seq_len, self.vocab_size = settings.name, settings.seq_len, settings.vocab_size
        self._settings = settings

    def example(self, index: int, split: Split) -> Example:
        settings, rng = self._settings, generator(self._settings.seed, split, index)
        count, length = int(rng.choice(choices(settings.num_passkeys))), int(rng.choice(choices(settings.passkey_len)))
        markers = 1 + rng.choice(settings.num_keys, (count, settings.marker_len), replace=False)
        passkeys = rng.integers(settings.first_value, settings.noise_from, (count, length))
        records = np.concatenate([markers, passkeys], axis=1)
        asked = rng.permutation(count)
        noise = draw_noise(settings, rng, self.seq_len, markers)
        return scatter(rng, noise, records, records[asked], asked, answer_len=length)

    def num_examples(self, split: Split) -> None:
        return None

    def parts(self) -> dict[str, Source]:
        return {self.name: self}

    def at_length(self, seq_len: int) -> Passkey:
        return Passkey(dataclasses.replace(self._settings, seq_len=seq_len))
