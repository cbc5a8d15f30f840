from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hfa.data.mixture import MixtureConfig
from hfa.data.tasks.needle import Needle, NeedleConfig
from hfa.data.texts.files import FilesConfig
from hfa.data.tokenizers.bpe import BPEConfig
from hfa.data.tokenizers.byte import ByteTokenizer
from hfa.errors import ConfigError, DataError
from hfa.types import IGNORE, NOWHERE, Tokenizer

Make = Callable[..., FilesConfig]

VALUES = {
    "name": "needle",
    "seed": 0,
    "seq_len": 512,
    "template": "# secret {key} = {value}\n",
    "key_alphabet": "ABCDEFGH",
    "key_len": 4,
    "value_alphabet": "0123456789",
    "value_len": 6,
    "num_needles": 3,
    "num_questions": 1,
    "label_all": False,
    "haystack": None,
}


def needle(cache: Path, tokenizer: Tokenizer | None = None, **changes: object) -> Needle:
    return NeedleConfig(**{**VALUES, **changes}).build(tokenizer or ByteTokenizer(), cache)


def test_the_question_is_the_needle_up_to_its_value(
    tmp_path: Path, files_config: Make, tokenizer: ByteTokenizer
) -> None:
    source = needle(tmp_path, haystack=files_config())
    for i in range(20):
        example = source.example(i, "train")
        text = tokenizer.decode(example.tokens)
        assert len(example.tokens) == 512
        answer = tokenizer.decode(example.labels[-6:])
        question = text[text.rindex("\n# secret") + 1 : -5]
        assert (example.labels[:-6] == IGNORE).all()
        assert text.endswith(question + answer[:-1]), "the last token of the answer is only a label"
        assert f"\n{question}{answer}\n" in "\n" + text, "the needle is a line of its own"
        assert text.count("# secret") == 4
        where = int(example.gold[-6])
        assert text[where : where + 6] == answer


def test_questions_before_the_last_stand_with_their_answers(
    tmp_path: Path, files_config: Make, tokenizer: ByteTokenizer
) -> None:
    example = needle(tmp_path, haystack=files_config(), num_questions=3).example(0, "val")
    text = tokenizer.decode(example.tokens)
    asked = [line for line in (text + chr(example.labels[-1])).split("\n") if line.startswith("# secret")]
    assert sorted(asked[:3]) == sorted(asked[3:])
    assert (example.gold != NOWHERE).sum() == 3 * 6


def test_needles_are_uniformly_deep(tmp_path: Path, files_config: Make) -> None:
    source = needle(tmp_path, haystack=files_config(), seq_len=2048)
    depths = [source.example(i, "train").gold[-6] / 2048 for i in range(400)]
    assert (np.histogram(depths, bins=4, range=(0, 1))[0] > 60).all()


def test_the_haystack_is_of_the_same_split(tmp_path: Path, files_config: Make, tokenizer: ByteTokenizer) -> None:
    settings = files_config()
    train = "".join(settings.documents())
    source = needle(tmp_path, haystack=settings)

    def hay(split: str) -> list[str]:
        lines = tokenizer.decode(source.example(0, split).tokens).split("\n")  # type: ignore[arg-type]
        return [line for line in lines[1:] if line.startswith("document")]

    assert hay("train")
    assert all(f"{line}\n" in train for line in hay("train"))
    assert hay("test")
    assert not any(f"{line}\n" in train for line in hay("test"))


def test_a_haystack_of_noise(tmp_path: Path, tokenizer: ByteTokenizer) -> None:
    source = needle(tmp_path)
    text = tokenizer.decode(source.example(0, "train").tokens)
    assert set(text.replace("# secret", "").replace(" = ", "")) <= set("ABCDEFGH0123456789 \n")
    assert text.count("\n") > 8
    assert list(NeedleConfig(**VALUES).documents()) == []


def test_label_all_scores_the_text_too(tmp_path: Path, files_config: Make) -> None:
    some, everything = (
        needle(tmp_path, haystack=files_config(), label_all=all_).example(0, "train") for all_ in (False, True)
    )
    assert np.array_equal(some.tokens, everything.tokens)
    assert np.array_equal(some.gold, everything.gold)
    assert np.array_equal(everything.labels[:-1], everything.tokens[1:])
    assert np.array_equal(some.labels[some.gold != NOWHERE], everything.labels[some.gold != NOWHERE])


def test_any_tokenizer(tmp_path: Path, files_config: Make) -> None:
    bpe = BPEConfig(vocab_size=400, train_bytes=10**6).build(files_config().documents)
    source = needle(tmp_path, bpe, haystack=files_config())
    example = source.example(0, "train")
    answered = example.gold != NOWHERE
    assert bpe.decode(example.labels[answered]).isdigit()
    assert np.array_equal(example.labels[answered], example.tokens[example.gold[answered]])
    assert len(example.tokens) == 512


def test_numbers_of_needles_are_drawn(tmp_path: Path, tokenizer: ByteTokenizer) -> None:
    source = needle(tmp_path, num_needles=(1, 5)).at_length(1024)
    counts = {tokenizer.decode(source.example(i, "train").tokens).count("# secret") for i in range(20)}
    assert counts == {2, 6}
    assert source.seq_len == 1024


def test_the_tightest_fit(tmp_path: Path, tokenizer: ByteTokenizer) -> None:
    least = 3 * 23 + 1 + 22 - 1  # needles, a line end, the question and its answer without the last token
    example = needle(tmp_path, seq_len=least).example(0, "train")
    assert tokenizer.decode(example.tokens).count("# secret") == 4
    with pytest.raises(DataError, match=f"seq_len is {least - 1}, and 3 needles with 1 questions take {least}"):
        needle(tmp_path, seq_len=least - 1).example(0, "train")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("template", "no places"),
        ("template", "{value} {key}"),
        ("template", "{key} {value} {value}"),
        ("key_alphabet", ""),
        ("value_alphabet", "0\n"),
        ("num_needles", ()),
        ("num_questions", 4),
        ("num_needles", 3000),
    ],
)
def test_impossible_combinations(key: str, value: object) -> None:
    with pytest.raises(ConfigError):
        NeedleConfig(**{**VALUES, key: value})


def test_what_reads_documents_has_their_fingerprint(
    files_config: Make, mixture_config: Callable[..., MixtureConfig], tmp_path: Path
) -> None:
    """A haystack's and a mixture's, with every tokenizer; another choice of what is held out is another one."""
    byte, text = ByteTokenizer(), files_config()
    documents = text.build(byte, tmp_path).fingerprint
    bpe = BPEConfig(vocab_size=300, train_bytes=10_000).build(text.documents)
    needle = NeedleConfig(**{**VALUES, "haystack": text})
    assert documents
    assert {one.build(tokenizer, tmp_path).fingerprint for one in (text, needle) for tokenizer in (byte, bpe)} == {
        documents
    }
    assert mixture_config().build(byte, tmp_path).fingerprint == documents
    assert files_config(split_seed=1).build(byte, tmp_path).fingerprint != documents
    assert NeedleConfig(**VALUES).build(byte, tmp_path).fingerprint == ""
