"""RULER's variable tracking: which variables have a value, through a chain of assignments."""

from __future__ import annotations

import string
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np

from hfa.config import NonNegativeInt, PositiveInt, config
from hfa.data.source import SourceConfig
from hfa.data.tasks.ruler import NOISE, SHOT_SHARE, SHOWN, Answer, Prompt, Ruler
from hfa.errors import ConfigError
from hfa.types import Split, Tokenizer

_INSTRUCTION = "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n"
_QUESTION = (
    "Question: Find all variables that are assigned the value {query} in the text above. Answer: According to the "
    "chain(s) of variable assignment in the text above, {count} variables are assigned the value {query}, they are: "
)
_SHOT_TOKENS = 500  # up to which the example shown before is filled with noise, its answers not counted
_LETTERS = np.array(list(string.ascii_uppercase))


@config
class VariableTrackingConfig(SourceConfig):
    """See :class:`VariableTracking`; the names are those of RULER's arguments.

    Args:
        num_chains: chains in the context; the first is asked for.
        num_hops: assignments of a chain after its first.
        shot_lines: lines of noise in the example that is shown before, at least; there are more if 500 tokens, or a
            quarter of the length if that is less, hold them. 0 shows none.
    """

    num_chains: PositiveInt
    num_hops: PositiveInt
    shot_lines: NonNegativeInt

    def check(self) -> None:
        if 0 < self.shot_lines <= self.num_hops:
            expected = f"0, or at least {self.num_hops + 1}, a line for each of num_hops={self.num_hops} and the first"
            raise ConfigError("shot_lines", self.shot_lines, expected)

    def build(self, tokenizer: Tokenizer, cache_dir: Path) -> VariableTracking:
        return VariableTracking(self, tokenizer)


class _Text(NamedTuple):
    """Chains in noise."""

    tokens: np.ndarray
    names: list[np.ndarray]  # of the first chain
    evidence: list[int]  # where each is assigned


class VariableTracking(Ruler):
    """A chain of assignments, scattered over noise in its order, and the question for all its variables::

        Memorize and track the chain(s) of variable assignment hidden in the following text.

        The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.
        VAR QWERT = 48213
        The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.
        VAR ZXCVB = VAR QWERT
        Question: Find all variables that are assigned the value 48213 in the text above. Answer: .. they are: QWERT
        ZXCVB

    The evidence of a variable is its name where it is assigned; it stands once more where it is assigned on.

    Source: RULER, arXiv 2404.06654, section 3.2.
    """

    def __init__(self, settings: VariableTrackingConfig, tokenizer: Tokenizer) -> None:
        super().__init__(settings, tokenizer)
        self._settings = settings
        self._noise, self._var = self.encode(NOISE), self.encode("VAR")

    def prompt(self, rng: np.random.Generator, split: Split) -> Prompt:
        settings = self._settings
        shot = self._shot(rng)
        shown = 0 < len(shot) * SHOT_SHARE <= self.seq_len
        instruction = np.concatenate([shot if shown else shot[:0], self._instruction])
        value = int(rng.integers(10_000, 99_999))
        question = self._question(value)
        chains = self._chains(rng, value, name_len=5)
        room = self.room(instruction, question, [*chains[0][1], *(line for lines, _ in chains for line in lines)])
        text = self._scattered(rng, room // len(self._noise), chains)
        answers = [Answer(name[:0], name, at) for name, at in zip(text.names, text.evidence, strict=True)]
        assert len(answers) == settings.num_hops + 1
        return Prompt(instruction, text.tokens, question, answers, SHOWN[shown])

    def _with(self, settings: SourceConfig) -> Self:
        assert isinstance(settings, VariableTrackingConfig)
        return type(self)(settings, self._tokenizer)

    @property
    def _instruction(self) -> np.ndarray:
        return self.encode(_INSTRUCTION)

    def _question(self, value: int) -> np.ndarray:
        return self.encode(_QUESTION.format(query=value, count=self._settings.num_hops + 1))

    def _shot(self, rng: np.random.Generator) -> np.ndarray:
        """A short example with its answers."""
        if not self._settings.shot_lines:
            return self._var[:0]
        value = int(rng.integers(10_000, 99_999))
        chains, question = self._chains(rng, value, name_len=3), self._question(value)
        said = np.concatenate([*chains[0][1], self.encode("\n\n")])
        asked = sum(map(len, [self._instruction, *(line for lines, _ in chains for line in lines), question]))
        room = min(_SHOT_TOKENS, self.seq_len // SHOT_SHARE - len(said)) - asked
        text = self._scattered(rng, max(self._settings.shot_lines, room // len(self._noise)), chains)
        return np.concatenate([self._instruction, text.tokens, question, said])

    def _chains(
        self, rng: np.random.Generator, value: int, name_len: int
    ) -> list[tuple[list[np.ndarray], list[np.ndarray]]]:
        """The lines and the names of each chain; the first starts with `value`, the others with others."""
        each = self._settings.num_hops + 1
        letters = rng.choice(len(_LETTERS) ** name_len, each * self._settings.num_chains, replace=False)
        names = ["".join(_LETTERS[i // len(_LETTERS) ** np.arange(name_len) % len(_LETTERS)]) for i in letters]
        chains = []
        for chain in range(self._settings.num_chains):
            mine = names[chain * each : (chain + 1) * each]
            start = value if not chain else (value - 10_000 + chain) % 89_999 + 10_000
            ends = [f" = {start}\n", *(f" = VAR {name} \n" for name in mine[:-1])]
            encoded = self.encode_all([f" {name}" for name in mine])
            lines = [
                np.concatenate([self._var, name, end]) for name, end in zip(encoded, self.encode_all(ends), strict=True)
            ]
            chains.append((lines, encoded))
        return chains

    def _scattered(
        self, rng: np.random.Generator, count: int, chains: list[tuple[list[np.ndarray], list[np.ndarray]]]
    ) -> _Text:
        """The lines of every chain, in its order, each before one of `count` lines of noise."""
        if count < len(chains[0][0]):
            self.refuse((len(chains[0][0]) - count) * len(self._noise))
        lines = [line for chain, _ in chains for line in chain]
        before = np.concatenate([np.sort(rng.choice(count, len(chain), replace=False)) for chain, _ in chains])
        order = np.argsort(before, kind="stable")
        lengths = np.array([len(lines[i]) for i in order])
        cuts = before[order] * len(self._noise)
        tokens = np.insert(
            np.resize(self._noise, count * len(self._noise)),
            np.repeat(cuts, lengths),
            np.concatenate([lines[i] for i in order]),
        )
        starts = np.empty_like(cuts)
        starts[order] = cuts + np.cumsum(lengths) - lengths
        first = starts[: len(chains[0][0])] + len(self._var)
        return _Text(tokens, chains[0][1], first.tolist())
