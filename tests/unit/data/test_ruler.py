"""RULER's tasks: the published wording, evidence where it is said to be, and any length."""

from __future__ import annotations

import dataclasses
import re
import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from hfa.config import from_node
from hfa.data.loader import Item, collate
from hfa.data.mixture import MixtureConfig
from hfa.data.source import SourceConfig
from hfa.data.tasks.ruler import NOISE, Ruler, flat
from hfa.data.tasks.words import all_words
from hfa.data.texts.files import FilesConfig
from hfa.data.tokenizers.bpe import BPEConfig, BPETokenizer
from hfa.data.tokenizers.byte import ByteTokenizer
from hfa.errors import ConfigError, DataError
from hfa.metrics.recall import find_answers
from hfa.training.answering import find_free
from hfa.types import IGNORE, NOWHERE, Example, Source, Tokenizer

CONF = Path(__file__).parents[3] / "conf"
RULER = (
    "niah_single_1", "niah_single_2", "niah_single_3", "niah_multikey_1", "niah_multikey_2", "niah_multikey_3",
    "niah_multivalue", "niah_multiquery", "vt", "cwe", "fwe",
)  # fmt: skip
ANSWERS = {"niah_multivalue": 4, "niah_multiquery": 4, "vt": 5, "cwe": 10, "fwe": 3}
Make = Callable[..., Source]


def settings_of(option: str, *overrides: str) -> SourceConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        node: Any = OmegaConf.to_container(compose(overrides=["+seed=7", f"+data={option}", *overrides]), resolve=True)
    return from_node(node["data"], "data", SourceConfig)


@pytest.fixture
def make(files_config: Callable[..., FilesConfig], tmp_path: Path) -> Make:
    """A task over a few small documents."""

    def make(option: str, seq_len: int, tokenizer: Tokenizer | None = None, **changes: Any) -> Source:
        settings = settings_of(option, f"data.seq_len={seq_len}")
        if getattr(settings, "haystack", None) is not None:
            changes = {"haystack": files_config(seq_len=seq_len), **changes}
        return dataclasses.replace(settings, **changes).build(tokenizer or ByteTokenizer(), tmp_path)

    return make


@pytest.fixture(scope="module")
def bpe() -> BPETokenizer:
    """A tokenizer that has a token for most words of `vt`."""
    wording = settings_of("vt", "data.seq_len=4096").build(ByteTokenizer(), Path()).example(0, "test")
    return BPEConfig(vocab_size=400, train_bytes=100_000).build(lambda: [text_of(wording)] * 5)


def text_of(example: Example, tokenizer: Tokenizer | None = None) -> str:
    return (tokenizer or ByteTokenizer()).decode(example.tokens.tolist())


def answers_of(example: Example) -> list[str]:
    found = find_answers(example.gold[None])
    return [ByteTokenizer().decode(example.labels[one.start : one.stop].tolist()) for one in found]


def check(example: Example, seq_len: int) -> None:
    assert len(example.tokens) == len(example.labels) == len(example.gold) == seq_len
    at = np.flatnonzero(example.gold != NOWHERE)
    assert np.array_equal(example.labels[at], example.tokens[example.gold[at]])
    assert (example.gold[at] < at).all(), "the evidence has been seen"
    first = int(np.flatnonzero(example.labels != IGNORE)[0])
    assert np.array_equal(example.labels[first:-1], example.tokens[first + 1 :]), "the end is labelled, all of it"
    assert find_free(collate([Item(example, 0)])) == first


@pytest.mark.parametrize("seq_len", [1024, 4096])
@pytest.mark.parametrize("task", [*RULER, "niah_paraphrase"])
def test_every_task_at_any_length(make: Make, task: str, seq_len: int) -> None:
    source = make(task, seq_len)
    for index in range(3):
        example = source.example(index, "test")
        check(example, seq_len)
        assert len(answers_of(example)) == ANSWERS.get(task, 1)
    again, other = make(task, seq_len).example(2, "test"), source.example(2, "train")
    assert np.array_equal(example.tokens, again.tokens)
    assert not np.array_equal(example.tokens, other.tokens)


@pytest.mark.parametrize("task", RULER)
def test_a_million_tokens(make: Make, task: str) -> None:
    """In arrays: tokens, labels and evidence of an example are 24 bytes a token, and as Python's lists 36 each."""
    source = make(task, 2048).at_length(1 << 20)
    tracemalloc.start()
    try:
        example = source.example(0, "test")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 80 * (1 << 20)
    check(example, 1 << 20)
    spare = np.flatnonzero(example.tokens != ord("\n"))[0]
    assert spare < 4096, "the length is filled"


def test_the_tokens_of_another_tokenizer(make: Make) -> None:
    texts = ["the special magic number for text is 1 2 3 4 5 6 7 8 9 0 . VAR ABCDE = VAR"] * 50
    tokenizer = BPEConfig(vocab_size=300, train_bytes=10_000).build(lambda: texts)
    for task in RULER:
        check(make(task, 1024, tokenizer).example(0, "test"), 1024)


def test_needles_are_worded_as_published(make: Make) -> None:
    one = text_of(make("niah_single_1", 1024).example(0, "test"))
    assert (
        "A special magic number is hidden within the following text. Make sure to memorize it. I will quiz you" in one
    )
    (key, value) = re.search(r"One of the special magic numbers for (\w+-[\w-]+) is: (\d{7})\.\n", one).groups()  # type: ignore[union-attr]
    assert f"\nWhat is the special magic number for {key} mentioned in the provided text? The special magic" in one
    assert one.endswith(f"mentioned in the provided text is {value[:-1]}")
    several = text_of(make("niah_multiquery", 1024).example(0, "test"))
    assert "Some special magic numbers are hidden" in several
    assert re.search(
        r"What are all the special magic numbers for [\w-]+, [\w-]+, [\w-]+, and [\w-]+ mentioned", several
    )
    uuids = make("niah_multikey_3", 2048).example(0, "test")
    assert re.fullmatch(r" [0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", answers_of(uuids)[0])


def test_an_essay_has_the_fingerprint_of_its_documents(
    files_config: Callable[..., FilesConfig], tmp_path: Path, make: Make
) -> None:
    documents = files_config().build(ByteTokenizer(), tmp_path).fingerprint
    assert documents
    assert make("niah_single_2", 2048).fingerprint == documents
    assert {make(task, 2048).fingerprint for task in ("niah_single_1", "vt")} == {""}


def test_an_essay_begins_with_a_line(files_config: Callable[..., FilesConfig], tmp_path: Path, make: Make) -> None:
    lines = [f"{i} {'and so on ' * (i % 7)}" for i in range(2000)]
    (tmp_path / "long.txt").write_text("\n".join(lines))
    (tmp_path / "lineless.txt").write_text("and so on " * 2000)
    changes: dict[str, Any] = {"seq_len": 2048, "val_fraction": 0.0, "test_fraction": 0.0}

    def beginnings(name: str) -> list[str]:
        source = make("niah_single_2", 2048, haystack=files_config(paths=(str(tmp_path / name),), **changes))
        texts = [text_of(source.example(index, "train")) for index in range(8)]
        return [text.partition("afterwards.\n")[2].partition("\n")[0] for text in texts]

    found = [line for line in beginnings("long.txt") if not line.startswith("One of the special")]
    assert set(found) <= set(lines)
    assert len(set(found)) == len(found) >= 4, "another part of the text each time"
    assert len(set(beginnings("lineless.txt"))) > 1


def test_each_needle_is_asked_for_by_its_own_key(make: Make) -> None:
    for task in ("niah_multiquery", "niah_multikey_1", "niah_multikey_2", "niah_multivalue"):
        example = make(task, 2048).example(1, "test")
        text = text_of(example)
        context, _, question = text.rpartition("What ")
        asked = re.search(r"for (.+?) mentioned", question).group(1).replace(" and", "").split(", ")  # type: ignore[union-attr]
        needles = re.findall(r"for (\S+) is: (\d+)\.", context)
        expected = [value for key in asked for other, value in needles if other == key]
        assert [one.strip() for one in answers_of(example)] == expected


def test_a_paraphrase_shows_the_asked_word_nowhere_and_always_means_the_same_key(make: Make) -> None:
    meant: dict[str, set[str]] = {}
    for split in ("train", "test"):
        source = make("niah_paraphrase", 1024, num_aliases=6, num_needle_k=2)
        for index in range(40):
            text = text_of(source.example(index, split))  # type: ignore[arg-type]
            context, _, question = text.rpartition("What ")
            asked = re.search(r"for (\S+) mentioned", question).group(1)  # type: ignore[union-attr]
            assert asked not in context
            value = question.rpartition(" ")[2]
            keys = {key for key, number in re.findall(r"for (\S+) is: (\d+)\.", context) if number.startswith(value)}
            meant.setdefault(asked, set()).update(keys)
    assert len(meant) == 6
    assert all(len(keys) == 1 for keys in meant.values())


def test_variables_are_those_that_the_chain_reaches(make: Make) -> None:
    example = make("vt", 8192, num_chains=2).example(0, "test")
    text = text_of(example)
    shown, _, mine = text.strip().partition("\n\nMemorize and track")
    assert shown.count("VAR ") == 18, "an example was shown first"
    assert len(re.findall(r"they are:  [A-Z]", text)) == 2, "two spaces, as published"
    context, _, question = mine.partition("Question: Find all variables that are assigned the value ")
    reached = {question.split(" ")[0]}
    order = []
    for name, value in re.findall(r"VAR (\w+) = (?:VAR )?(\w+)", context):
        if value in reached:
            reached.add(name)
            order.append(name)
    assert [one.strip() for one in answers_of(example)] == order
    assert len(order) == 5


@pytest.mark.parametrize("seq_len", [1500, 8192])
def test_the_example_of_variables_has_as_much_noise_as_published(make: Make, bpe: BPETokenizer, seq_len: int) -> None:
    """500 tokens without its answers, or a quarter of the length with them."""
    example = make("vt", seq_len, bpe).example(0, "test")
    instruction, noise = bpe.encode_batch(["Memorize and track the chain(s) of variable assignment", NOISE])
    windows = np.lib.stride_tricks.sliding_window_view(example.tokens, len(instruction))
    first, second = np.flatnonzero((windows == instruction).all(1))
    names = bpe.decode(example.tokens[first:second].tolist()).rpartition("they are: ")[2].split()
    said = sum(map(len, bpe.encode_batch([*(f" {name}" for name in names), "\n\n"])))
    most = min(500, seq_len // 4 - said)
    assert most - len(noise) < second - first - said <= most


def test_the_example_of_variables_has_five_lines_of_noise_at_least(make: Make) -> None:
    shown = text_of(make("vt", 8192).example(0, "test")).strip().partition("\n\nMemorize and track")[0]
    assert shown.count(NOISE) == 5


@pytest.mark.parametrize(
    ("seq_len", "form"),
    [
        (1 << 17, "words 30 and 3 times, an example shown first"),
        (1 << 19, "pairs of words 30 and 3 times, an example shown first"),
    ],
)
def test_common_words_are_pairs_only_where_words_run_out(make: Make, seq_len: int, form: str) -> None:
    example = make("cwe", seq_len).example(0, "test")
    check(example, seq_len)
    assert example.form == form
    text = text_of(example)
    listed = text.rpartition("Below is a numbered list of words.")[2].partition("Question:")[0]
    words = set(re.findall(r"\d+\. (.+?)(?= \d+\. |\n)", listed))  # some have a space
    if form.startswith("pairs"):
        assert all("-" in word for word in words)
    else:
        assert words <= set(all_words())
    assert len(text) - len(text.lstrip("\n")) < 256, "the length is filled"


@pytest.mark.parametrize(("seq_len", "often", "seldom"), [(1024, 3, 1), (4096, 6, 1), (16384, 30, 3)])
def test_common_words_are_the_most_common(make: Make, seq_len: int, often: int, seldom: int) -> None:
    example = make("cwe", seq_len).example(0, "test")
    listed = text_of(example).rpartition("Below is a numbered list of words.")[2].partition("Question:")[0]
    numbers, words = zip(*re.findall(r"(\d+)\. (\S+)", listed), strict=True)
    assert [int(number) for number in numbers] == list(range(1, len(numbers) + 1))
    times = Counter(words)
    assert {word for word, count in times.items() if count == often} == {one.strip() for one in answers_of(example)}
    assert set(times.values()) == {often, seldom}


@pytest.mark.parametrize(
    ("task", "seq_len", "form"),
    [
        ("cwe", 1024, "words 3 and 1 times, no example shown"),
        ("cwe", 16384, "words 30 and 3 times, an example shown first"),
        ("vt", 1024, "no example shown"),
        ("vt", 8192, "an example shown first"),
        ("fwe", 4096, ""),
    ],
)
def test_the_form_that_a_length_leaves_room_for_is_said(make: Make, task: str, seq_len: int, form: str) -> None:
    example = make(task, seq_len).example(0, "test")
    assert example.form == form
    intro = {"cwe": "Below is a numbered list", "vt": "Memorize and track"}.get(task, "Read the following")
    assert text_of(example).count(intro) == 1 + ("shown first" in form)


def test_frequent_words_are_the_most_frequent(make: Make) -> None:
    example = make("fwe", 4096).example(0, "test")
    coded = text_of(example).partition("coded words. ")[2].partition("\nQuestion:")[0]
    (dots, _), *top = Counter(coded.split(" ")).most_common(4)
    assert dots == "..."
    assert [word for word, _ in top] == [one.strip() for one in answers_of(example)]


def test_too_short_is_one_sentence(make: Make) -> None:
    for task in ("niah_multiquery", "vt", "cwe", "fwe"):
        with pytest.raises(DataError, match=rf"^{task}: seq_len is 96, and its shortest example takes \d+ tokens"):
            make(task, 96).example(0, "test")


def test_settings_that_cannot_work() -> None:
    with pytest.raises(ConfigError, match=r"^data.haystack: got None, expected a text"):
        settings_of("niah_single_1", "data.type_haystack=essay")
    with pytest.raises(ConfigError, match=r"^data.num_aliases: got 3, expected 0, or at least the 4 keys"):
        settings_of("niah_paraphrase", "data.num_aliases=3")


def test_the_suite_has_all_tasks_at_one_length() -> None:
    suite = settings_of("suite", "data.seq_len=2048")
    assert isinstance(suite, MixtureConfig)
    assert set(suite.sources) == {*RULER, "niah_paraphrase", "mqar", "copying", "alias"}
    assert {source.seq_len for source in suite.sources.values()} == {2048}
    assert all(source.name == name for name, source in suite.sources.items())
    assert set(settings_of("ruler").sources) == set(RULER)  # type: ignore[attr-defined]


def test_copying(make: Make) -> None:
    example = make("copying", 64, num_tokens=5).example(0, "test")
    contents = example.tokens[:59][example.tokens[:59] > 1]
    assert np.array_equal(example.labels[59:], contents)
    assert np.array_equal(example.tokens[example.gold[59:]], contents)
    assert example.tokens[59] == 1
    assert (np.diff(example.gold[59:]) > 1).all(), "each is an answer by itself"
    assert (example.labels[:59] == IGNORE).all()


def test_pieces_laid_end_to_end() -> None:
    tokens, starts = flat([np.array([1, 2]), np.array([3])], np.array([1, 0, 1]))
    assert tokens.tolist() == [3, 1, 2, 3]
    assert starts.tolist() == [0, 1, 3]
    assert issubclass(type(settings_of("vt").build(ByteTokenizer(), Path())), Ruler)


@pytest.mark.parametrize(
    ("task", "override", "message"),
    [
        ("cwe", "data.num_cw=21", "num_cw: got 21, expected at most 20"),
        ("fwe", "data.coded_wordlen=1", "coded_wordlen: got 1, expected more, for 40 different words"),
        ("fwe", "data.coded_wordlen=14", "coded_wordlen: got 14"),
        ("vt", "data.shot_lines=2", "shot_lines: got 2, expected 0, or at least 5"),
        ("copying", "data.num_tokens=900", "seq_len: got 2000, expected at least 2700"),
    ],
)
def test_tasks_that_cannot_be_laid_out_are_refused(task: str, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"^data.{message}"):
        settings_of(task, "data.seq_len=2000", override)
