from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hfa.data.tasks.mqar import MQAR, MQARConfig
from hfa.data.tokenizers.byte import ByteTokenizer
from hfa.errors import ConfigError
from hfa.types import IGNORE, NOWHERE

Make = Callable[..., MQARConfig]


@pytest.fixture
def mqar(mqar_config: Make) -> Callable[..., MQAR]:
    return lambda **changes: mqar_config(**changes).build(ByteTokenizer(), Path())


def test_first_is_zoologys_setting(mqar: Callable[..., MQAR]) -> None:
    example = mqar().example(0, "train")
    keys, values = example.tokens[0:8:2], example.tokens[1:8:2]
    assert (keys >= 1).all()
    assert (keys < 64).all()
    assert (values >= 64).all()
    queries = np.flatnonzero(example.labels != IGNORE)
    assert len(queries) == 4
    assert (queries >= 8).all()
    assert (queries % 2 == 0).all()
    lookup = dict(zip(keys.tolist(), values.tolist(), strict=True))
    assert [lookup[key] for key in example.tokens[queries].tolist()] == example.labels[queries].tolist()
    rest = np.setdiff1d(np.arange(8, 64), queries)
    assert not example.tokens[rest].any()
    assert (example.gold[rest] == NOWHERE).all()


def test_small_gaps_are_frequent_in_first(mqar: Callable[..., MQAR]) -> None:
    source = mqar(seq_len=256, num_queries=1)
    gaps = [int(np.flatnonzero(source.example(i, "train").labels != IGNORE)[0]) - 8 for i in range(400)]
    # p(g) ~ 1/g over 124 gaps: half of the mass lies on the first 12 or so
    assert 0.4 < np.mean(np.array(gaps) < 24) < 0.7


def test_spread_is_uniform_in_depth_and_ends_in_a_question(mqar: Callable[..., MQAR]) -> None:
    source = mqar(layout="spread", seq_len=256, num_queries=2)
    depths = []
    for i in range(300):
        example = source.example(i, "train")
        assert np.flatnonzero(example.labels != IGNORE).tolist() == [253, 255]
        assert example.tokens[254] == example.labels[253], "an answer stands after its question"
        depths += (example.gold[[253, 255]] / 256).tolist()
    quarters = np.histogram(depths, bins=4, range=(0, 1))[0]
    assert (quarters > 100).all()


def test_noise_of_its_own_alphabet(mqar: Callable[..., MQAR]) -> None:
    example = mqar(layout="spread", noise="apart", num_queries=1).example(0, "train")
    shown = np.flatnonzero(example.tokens < 112)
    assert len(shown) == 2 * 4 + 1
    assert (example.tokens[:-1][example.tokens[:-1] >= 112] < 128).all()


def test_repeated_noise_repeats(mqar: Callable[..., MQAR]) -> None:
    example = mqar(layout="spread", noise="repeated", num_pairs=1, num_queries=1).example(0, "train")
    differing = (example.tokens[8:] != example.tokens[:-8]).sum()
    assert differing <= 6, "only where the pair and the question stand"


def test_other_lengths_and_numbers_of_pairs(mqar: Callable[..., MQAR]) -> None:
    source = mqar(num_pairs=(2, 8)).at_length(1000)
    found = {int((source.example(i, "test").labels != IGNORE).sum()) for i in range(30)}
    assert found == {2, 8}
    assert len(source.example(0, "test").tokens) == 1000
    assert source.num_examples("test") is None
    with pytest.raises(ConfigError, match="seq_len: got 8, expected at least 32 for 8 pairs and 8 queries"):
        source.at_length(8)


def test_the_tightest_fit(mqar: Callable[..., MQAR]) -> None:
    for layout, length in (("first", 16), ("spread", 15)):
        example = mqar(layout=layout, seq_len=length).example(0, "train")
        assert (example.labels != IGNORE).sum() == 4
        with pytest.raises(ConfigError, match="seq_len"):
            mqar(layout=layout, seq_len=length - 1)


@pytest.mark.parametrize(
    "changes",
    [{"num_pairs": ()}, {"num_queries": 5}, {"num_pairs": 64, "seq_len": 999}, {"noise": "apart", "vocab_size": 20}],
)
def test_impossible_combinations(mqar: Callable[..., MQAR], changes: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        mqar(**changes)
