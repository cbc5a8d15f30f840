from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hfa.data.mixture import Mixture, MixtureConfig
from hfa.data.tasks.mqar import MQARConfig
from hfa.data.texts.files import FilesConfig
from hfa.data.tokenizers.byte import ByteTokenizer
from hfa.errors import ConfigError

Make = Callable[..., MixtureConfig]


@pytest.fixture
def mixture(mixture_config: Make, tokenizer: ByteTokenizer, tmp_path: Path) -> Mixture:
    return mixture_config().build(tokenizer, tmp_path)


def test_each_part_gives_its_examples_in_order(mixture: Mixture) -> None:
    parts = list(mixture.parts().values())
    for index in range(40):
        place, inner = mixture.locate(index)
        theirs, ours = parts[place].example(inner, "train"), mixture.example(index, "train")
        assert all(np.array_equal(a, b) for a, b in zip(theirs, ours, strict=True))


def test_what_it_says_about_itself(mixture: Mixture) -> None:
    assert list(mixture.parts()) == ["prose", "pairs"]
    assert (mixture.kind, mixture.seq_len, mixture.vocab_size) == ("text", 32, 257)


def test_one_pass_ends_with_the_first_part_that_ends(mixture: Mixture) -> None:
    count, of_prose = mixture.num_examples("val"), mixture.parts()["prose"].num_examples("val")
    assert count is not None
    assert of_prose is not None
    inner = [mixture.locate(i)[1] for i in range(count) if mixture.locate(i)[0] == 0]
    assert inner == list(range(of_prose)), "all of it, and nothing twice"
    assert mixture.locate(count) == (0, of_prose)
    mixture.example(count - 1, "val")


def test_without_an_end(
    mixture_config: Make, mqar_config: Callable[..., MQARConfig], tokenizer: ByteTokenizer, tmp_path: Path
) -> None:
    endless = {"pairs": mqar_config(seq_len=32)}
    alone = mixture_config(sources=endless, weights={"pairs": 1}).build(tokenizer, tmp_path)
    assert alone.num_examples("val") is None
    assert alone.kind == "recall"


def test_another_length_is_another_length_for_all(mixture: Mixture) -> None:
    longer = mixture.at_length(96)
    assert {part.seq_len for part in longer.parts().values()} == {longer.seq_len} == {96}
    assert [longer.locate(i) for i in range(20)] == [mixture.locate(i) for i in range(20)]
    assert all(len(longer.example(i, "test").tokens) == 96 for i in range(5))


def test_documents_are_those_of_the_parts(mixture_config: Make, files_config: Callable[..., FilesConfig]) -> None:
    twice = {"one": files_config(), "two": files_config(seed=1)}
    settings = mixture_config(sources=twice, weights={"one": 1, "two": 1})
    assert list(settings.documents()) == list(files_config().documents())


def test_impossible_combinations(mixture_config: Make, files_config: Callable[..., FilesConfig]) -> None:
    with pytest.raises(ConfigError, match="weights"):
        mixture_config(weights={"prose": 1})
    with pytest.raises(ConfigError, match=r"sources.prose.seq_len: got 64, expected the mixture's seq_len=32"):
        mixture_config(sources={"prose": files_config(seq_len=64)}, weights={"prose": 1})
    with pytest.raises(ConfigError, match="at least one above 0"):
        mixture_config(weights={"prose": 0, "pairs": 0})
    with pytest.raises(ConfigError, match="at least one source"):
        mixture_config(sources={}, weights={})
    with pytest.raises(ConfigError, match="no mixture"):
        mixture_config(sources={"inner": mixture_config()}, weights={"inner": 1})
