"""The tasks made of scattered records, whatever they are set to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hfa.data.source import SourceConfig
from hfa.data.tasks.alias import AliasConfig
from hfa.data.tasks.crowding import CrowdingConfig
from hfa.data.tasks.multivalue import MultiValueConfig
from hfa.data.tasks.noise import NoisyConfig
from hfa.data.tasks.passkey import PasskeyConfig
from hfa.data.tasks.renamed import RenamedConfig
from hfa.data.tokenizers.byte import ByteTokenizer
from hfa.errors import ConfigError
from hfa.types import IGNORE, NOWHERE, Example

BYTE = ByteTokenizer()
indices = st.integers(0, 2**40)
splits = st.sampled_from(["train", "val", "test"])


def noisy(draw: st.DrawFn) -> dict[str, Any]:
    return {
        "name": "task",
        "seed": draw(st.integers(0, 99)),
        "seq_len": draw(st.integers(100, 200)),
        "vocab_size": draw(st.integers(128, 300)),
        "noise": draw(st.sampled_from(["same", "apart", "repeated"])),
        "noise_vocab_size": 16,
        "phrase_len": draw(st.integers(1, 9)),
    }


@st.composite
def passkeys(draw: st.DrawFn) -> PasskeyConfig:
    lengths = draw(st.sampled_from([1, 4, (2, 5)]))
    return PasskeyConfig(
        **noisy(draw), num_passkeys=draw(st.integers(1, 6)), marker_len=draw(st.integers(1, 3)), passkey_len=lengths
    )


@st.composite
def crowds(draw: st.DrawFn) -> CrowdingConfig:
    return CrowdingConfig(
        **noisy(draw),
        num_pairs=draw(st.integers(1, 10)),
        key_len=draw(st.integers(2, 3)),
        crowd_share=draw(st.sampled_from([0.0, 0.05, 0.9])),
    )


@st.composite
def aliases(draw: st.DrawFn) -> AliasConfig:
    return AliasConfig(
        **noisy(draw),
        num_aliases=20,
        mapping_seed=3,
        num_pairs=draw(st.sampled_from([1, 20, (2, 8)])),
        inverse_share=draw(st.sampled_from([0.0, 0.5, 1.0])),
    )


@st.composite
def values(draw: st.DrawFn) -> MultiValueConfig:
    return MultiValueConfig(
        **noisy(draw), num_keys_shown=draw(st.integers(1, 5)), num_values=draw(st.sampled_from([1, 5, (2, 3)]))
    )


@st.composite
def renamed(draw: st.DrawFn) -> RenamedConfig:
    few = draw(st.one_of(passkeys(), crowds(), values()))
    size = draw(st.sampled_from([600, 5000]))
    return RenamedConfig(name="renamed", seed=few.seed, seq_len=few.seq_len, source=few, vocab_size=size)


def made(config: SourceConfig, index: int, split: str) -> tuple[Example, np.ndarray]:
    """The example, and the positions where something is asked."""
    example = config.build(BYTE, Path()).example(index, split)  # type: ignore[arg-type]
    return example, np.flatnonzero(example.gold != NOWHERE)


@given(config=st.one_of(passkeys(), crowds(), aliases(), values(), renamed()), index=indices, split=splits)
def test_labels_are_the_tokens_at_gold(config: NoisyConfig | RenamedConfig, index: int, split: str) -> None:
    example, asked = made(config, index, split)
    assert len(example.tokens) == len(example.labels) == len(example.gold) == config.seq_len
    assert {part.dtype for part in example if isinstance(part, np.ndarray)} == {np.dtype(np.int64)}
    assert np.array_equal(asked, np.flatnonzero(example.labels != IGNORE))
    assert asked[-1] == config.seq_len - 1, "the example ends with a question"
    assert (example.gold[asked] < asked[0]).all(), "all evidence stands before the questions"
    assert np.array_equal(example.labels[asked], example.tokens[example.gold[asked]])
    assert np.array_equal(example.labels[asked[:-1]], example.tokens[asked[:-1] + 1]), "an answer follows its question"
    assert len(set(example.gold[asked].tolist())) == len(asked), "no token is asked for twice"
    assert (example.tokens > 0).all()
    assert (example.tokens < config.vocab_size).all()
    again, _ = made(config, index, split)
    assert all(np.array_equal(a, b) for a, b in zip(example, again, strict=True))


@given(config=passkeys(), index=indices, split=splits)
def test_a_passkey_stands_behind_its_marker_and_nowhere_else(config: PasskeyConfig, index: int, split: str) -> None:
    example, asked = made(config, index, split)
    starts = asked[np.flatnonzero(np.diff(example.gold[asked], prepend=-2) != 1)]
    shown = config.marker_len
    markers = np.array([example.tokens[at + 1 - shown : at + 1] for at in starts])
    evidence = np.array([example.tokens[example.gold[at] - shown : example.gold[at]] for at in starts])
    assert np.array_equal(markers, evidence)
    first_question = starts[0] + 1 - shown
    assert np.isin(example.tokens[:first_question], markers).sum() == markers.size


@given(config=crowds(), index=indices, split=splits)
def test_only_what_stands_before_the_last_token_tells_keys_apart(
    config: CrowdingConfig, index: int, split: str
) -> None:
    example, asked = made(config, index, split)
    keys = np.array([example.tokens[at + 1 - config.key_len : at + 1] for at in asked])
    evidence = np.array([example.tokens[at - config.key_len : at] for at in example.gold[asked]])
    assert np.array_equal(keys, evidence)
    assert len(set(keys[:, -1].tolist())) == 1
    context = example.tokens[: asked[0] + 1 - config.key_len]
    assert np.isin(context, keys[:, :-1]).sum() == keys[:, :-1].size
    if config.crowd_share == 0.9:
        assert (context == keys[0, -1]).mean() > 0.25, "the crowd"


@given(config=aliases(), index=indices, split=splits)
def test_an_alias_stands_nowhere_but_in_its_question(config: AliasConfig, index: int, split: str) -> None:
    example, asked = made(config, index, split)
    questions, keys = example.tokens[asked], example.tokens[example.gold[asked] - 1]
    context = example.tokens[: asked[0]]
    assert not np.isin(questions, context).any()
    names, meant = (questions, keys) if (questions >= config.first_alias).all() else (keys, questions)
    assert (names >= config.first_alias).all()
    assert (meant < config.first_value).all()
    assert config.inverse_share not in (0.0, 1.0) or (names is questions) == (config.inverse_share == 0.0)
    assert np.isin(context, keys).sum() == len(keys), "nothing else claims to be the key"
    other = AliasConfig(**{**config.to_dict(), "seed": config.seed + 1, "noise": "same", "inverse_share": 0.0})
    again, asked = made(other, index, "test")
    mapping = dict(zip(again.tokens[asked].tolist(), again.tokens[again.gold[asked] - 1].tolist(), strict=True))
    assert all(
        mapping.get(name, meaning) == meaning for name, meaning in zip(names.tolist(), meant.tolist(), strict=True)
    ), "one mapping for all seeds, splits and kinds of noise"


@given(config=values(), index=indices, split=splits)
def test_all_values_of_a_key_are_asked_for_in_a_row(config: MultiValueConfig, index: int, split: str) -> None:
    example, asked = made(config, index, split)
    assert example.group is not None
    groups, keys = example.group[asked], example.tokens[asked]
    assert np.array_equal(example.group != NOWHERE, example.gold != NOWHERE)
    assert np.array_equal(example.tokens[example.gold[asked] - 1], keys)
    each = len(asked) // config.num_keys_shown
    assert all(len(set(row)) == 1 for row in groups.reshape(-1, each).tolist())
    assert len(set(groups.tolist())) == len(set(keys.tolist())) == config.num_keys_shown
    assert (np.isin(example.tokens[: asked[0]], keys)).sum() == len(asked), "nothing else claims to be a key"


@given(config=renamed(), index=indices, split=splits)
def test_a_renamed_example_is_one_of_its_task_in_other_ids(config: RenamedConfig, index: int, split: str) -> None:
    (example, _), (few, _) = made(config, index, split), made(config.source, index, split)
    pairs = set(zip(few.tokens.tolist(), example.tokens.tolist(), strict=True))
    assert len(pairs) == len(set(few.tokens.tolist())) == len(set(example.tokens.tolist())), "one name for each id"
    keys = few.tokens < config.source.first_value
    assert np.array_equal(keys, example.tokens < config.vocab_size // 2), "keys stay in the lower half"
    assert np.array_equal(example.gold, few.gold)
    following, _ = made(config, index + 1, split)
    assert set(example.tokens.tolist()) != set(following.tokens.tolist()), "drawn anew"


def test_what_cannot_be_renamed_is_refused() -> None:
    common: dict[str, Any] = {"name": "task", "seed": 0, "seq_len": 100, "vocab_size": 128, "noise": "same"}
    common |= {"noise_vocab_size": 16, "phrase_len": 4, "num_pairs": 2}
    alias = AliasConfig(**common, num_aliases=20, mapping_seed=3, inverse_share=0.0)
    with pytest.raises(ConfigError, match=r"^source: got .*mean nothing by themselves"):
        RenamedConfig(name="renamed", seed=0, seq_len=100, source=alias, vocab_size=5000)
    task = CrowdingConfig(**common, key_len=2, crowd_share=0.1)
    with pytest.raises(ConfigError, match=r"^vocab_size: got 100, expected at least 128"):
        RenamedConfig(name="renamed", seed=0, seq_len=100, source=task, vocab_size=100)
