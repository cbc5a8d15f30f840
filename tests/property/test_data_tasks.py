from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from hfa.data.mixture import Mixture, MixtureConfig
from hfa.data.tasks.mqar import MQARConfig
from hfa.data.tasks.needle import NeedleConfig
from hfa.data.tokenizers.byte import ByteTokenizer
from hfa.types import IGNORE, NOWHERE, Example, Source

BYTE = ByteTokenizer()
indices = st.integers(0, 2**40)
splits = st.sampled_from(["train", "val", "test"])


@st.composite
def mqar_configs(draw: st.DrawFn) -> MQARConfig:
    pairs = draw(st.lists(st.integers(1, 12), min_size=1, max_size=3))
    queries = draw(st.none() | st.integers(1, min(pairs)))
    return MQARConfig(
        name="mqar",
        seed=draw(st.integers(0, 99)),
        seq_len=draw(st.integers(4 * max(pairs), 150)),
        vocab_size=draw(st.integers(64, 300)),
        num_pairs=draw(st.sampled_from([pairs[0], tuple(pairs)])) if min(pairs) == pairs[0] else tuple(pairs),
        num_queries=queries,
        layout=draw(st.sampled_from(["first", "spread"])),
        noise=draw(st.sampled_from(["zero", "random", "same", "apart", "repeated"])),
        noise_vocab_size=16,
        phrase_len=draw(st.integers(1, 9)),
        power_alpha=draw(st.sampled_from([0.01, 1.0])),
    )


@st.composite
def needle_configs(draw: st.DrawFn) -> NeedleConfig:
    needles = draw(st.integers(1, 5))
    return NeedleConfig(
        name="needle",
        seed=draw(st.integers(0, 99)),
        seq_len=draw(st.integers(280, 500)),
        template=draw(st.sampled_from(["# secret {key} = {value}\n", "{key}{value}", "the {key} is {value}.\n\n"])),
        key_alphabet="ABCDEF",
        key_len=4,
        value_alphabet="01é",
        value_len=draw(st.integers(1, 5)),
        num_needles=draw(st.sampled_from([needles, (needles, needles + 1)])),
        num_questions=draw(st.integers(1, min(needles, 3))),
        label_all=draw(st.booleans()),
        haystack=None,
    )


def check_gold(example: Example, seq_len: int) -> None:
    assert len(example.tokens) == len(example.labels) == len(example.gold) == seq_len
    assert {part.dtype for part in example if isinstance(part, np.ndarray)} == {np.dtype(np.int64)}
    answered = np.flatnonzero(example.gold != NOWHERE)
    assert len(answered)
    assert (example.gold[answered] <= answered).all(), "the evidence has been seen"
    assert np.array_equal(example.labels[answered], example.tokens[example.gold[answered]])


@given(config=mqar_configs(), index=indices, split=splits)
def test_mqar_labels_are_the_tokens_at_gold(config: MQARConfig, index: int, split: str) -> None:
    example = config.build(BYTE, Path()).example(index, split)  # type: ignore[arg-type]
    check_gold(example, config.seq_len)
    queries = np.flatnonzero(example.labels != IGNORE)
    assert np.array_equal(queries, np.flatnonzero(example.gold != NOWHERE))
    assert np.array_equal(example.tokens[queries], example.tokens[example.gold[queries] - 1]), "the key stands before"
    assert (example.tokens >= 0).all()
    assert (example.tokens < config.vocab_size).all()
    asked = example.tokens[queries].tolist()
    assert len(set(asked)) == len(asked) == (config.num_queries or len(asked))
    if config.noise != "random":
        for key, query in zip(asked, queries.tolist(), strict=True):
            assert (example.tokens[:query] == key).sum() == 1, "nothing else claims to be the key"


@given(config=needle_configs(), index=indices, split=splits)
def test_needle_labels_are_the_tokens_at_gold(config: NeedleConfig, index: int, split: str) -> None:
    example = config.build(BYTE, Path()).example(index, split)  # type: ignore[arg-type]
    check_gold(example, config.seq_len)
    assert example.gold[-1] != NOWHERE, "the example ends with an answer"
    scored = np.flatnonzero(example.labels != IGNORE)
    if config.label_all:
        assert len(scored) == config.seq_len
        assert np.array_equal(example.labels[:-1], example.tokens[1:])
    else:
        assert np.array_equal(scored, np.flatnonzero(example.gold != NOWHERE))
    start = np.flatnonzero(np.diff(example.gold, prepend=NOWHERE) != 1)[-1]
    question = config.template.partition("{key}")[2].partition("{value}")[0]
    key_len = config.key_len + len(question)
    before = int(example.gold[start])
    shown = example.tokens[before - key_len : before]
    assert np.array_equal(example.tokens[start + 1 - key_len : start + 1], shown)


@given(source=st.one_of(mqar_configs(), needle_configs()), index=indices, split=splits)
def test_an_example_is_a_pure_function_of_seed_split_and_index(source: object, index: int, split: str) -> None:
    made = [source.build(BYTE, Path()) for _ in range(2)]  # type: ignore[attr-defined]
    made[1].example(index + 1, split)  # what was asked before changes nothing
    one, same = (m.example(index, split) for m in made)
    assert all(np.array_equal(a, b) for a, b in zip(one, same, strict=True))


class Counting:
    """A source whose every token is the index that was asked for."""

    kind = "text"
    seq_len = 4
    vocab_size = 2**40
    fingerprint = ""

    def __init__(self, num_examples: int | None) -> None:
        self._num_examples = num_examples

    def example(self, index: int, split: str) -> Example:
        return Example(*[np.full(4, index)] * 3)

    def num_examples(self, split: str) -> int | None:
        return self._num_examples


def mixture(weights: list[int], seed: int, ends: list[int | None]) -> Mixture:
    some = MQARConfig(
        name="",
        seed=0,
        seq_len=4,
        vocab_size=9,
        num_pairs=1,
        num_queries=None,
        layout="first",
        noise="zero",
        noise_vocab_size=1,
        phrase_len=1,
        power_alpha=1.0,
    )
    names = [f"part{i}" for i in range(len(weights))]
    config = MixtureConfig(
        name="mixture",
        seed=seed,
        seq_len=4,
        sources=dict.fromkeys(names, some),
        weights=dict(zip(names, weights, strict=True)),
    )
    parts: dict[str, Source] = {name: Counting(end) for name, end in zip(names, ends, strict=True)}  # type: ignore[misc]
    return Mixture(config, parts)


@settings(max_examples=50)
@given(
    weights=st.lists(st.integers(0, 9), min_size=1, max_size=5).filter(any),
    seed=st.integers(0, 99),
    cycles=st.integers(1, 4),
)
def test_a_mixture_skips_no_example_and_keeps_its_proportions(weights: list[int], seed: int, cycles: int) -> None:
    mixed = mixture(weights, seed, [None] * len(weights))
    places = [mixed.locate(i) for i in range(cycles * sum(weights))]
    for part, weight in enumerate(weights):
        assert [inner for place, inner in places if place == part] == list(range(cycles * weight))
    for start in range(0, len(places), sum(weights)):
        assert Counter(place for place, _ in places[start : start + sum(weights)]) == Counter(
            {part: weight for part, weight in enumerate(weights) if weight}
        ), "exact in every cycle"
    assert [int(mixed.example(i, "train").tokens[0]) for i in range(len(places))] == [inner for _, inner in places]


@settings(max_examples=50)
@given(
    weights=st.tuples(st.integers(0, 9), st.integers(1, 9), st.integers(0, 9)).map(list),
    seed=st.integers(0, 99),
    end=st.integers(0, 60),
)
def test_a_pass_of_a_mixture_asks_no_part_for_more_than_it_has(weights: list[int], seed: int, end: int) -> None:
    ends: list[int | None] = [None, *[end] * (len(weights) - 1)]
    mixed = mixture(weights, seed, ends)
    count = mixed.num_examples("val")
    assert count is not None
    asked = [mixed.locate(i) for i in range(count)]
    assert all(ends[part] is None or inner < end for part, inner in asked)
    part, inner = mixed.locate(count)
    assert (ends[part], inner) == (end, end), "the next one would be too much"
