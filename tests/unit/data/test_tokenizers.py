from __future__ import annotations

import json
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import constants

from hfa.data import tokenizers
from hfa.data.tokenizers.bpe import BPEConfig, BPETokenizer, byte_letters
from hfa.data.tokenizers.byte import ByteConfig, ByteTokenizer
from hfa.data.tokenizers.gpt2 import GPT2Config
from hfa.errors import CheckpointError, ConfigError, DataError

TEXTS = [f"def flow_{i}(state, token):\n    return state + token * {i}\n" for i in range(40)]


@pytest.fixture(scope="session")
def bpe() -> BPETokenizer:
    return BPEConfig(vocab_size=400, train_bytes=10**6).build(lambda: TEXTS)


def test_every_kind_is_found_by_name() -> None:
    assert set(tokenizers.kinds()) >= {"byte", "bpe", "gpt2"}


def test_bytes_are_their_own_ids() -> None:
    byte = ByteTokenizer()
    assert byte.encode("né") == [110, 195, 169]
    assert (byte.vocab_size, byte.end_of_text) == (257, 256)
    assert byte.decode([110, 195, 169, byte.end_of_text]) == "né"
    assert byte.byte_lengths().tolist() == [1] * 256 + [0]


def test_special_tokens_in_text_are_ordinary_text(bpe: BPETokenizer) -> None:
    text = "a <|endoftext|> b"
    assert bpe.end_of_text not in bpe.encode(text)
    assert bpe.decode(bpe.encode(text)) == text


def test_bpe_merges_what_is_frequent(bpe: BPETokenizer) -> None:
    assert len(bpe.encode("return state")) < len("return state") / 2
    assert bpe.byte_lengths()[bpe.encode("return state")].sum() == len("return state")
    assert bpe.byte_lengths()[bpe.end_of_text] == 0
    assert bpe.end_of_text == bpe.vocab_size - 1 == 399


def test_bpe_training_is_deterministic(bpe: BPETokenizer) -> None:
    again = BPEConfig(vocab_size=400, train_bytes=10**6).build(lambda: iter(TEXTS))
    assert again.to_json() == bpe.to_json()
    assert again.fingerprint() == bpe.fingerprint()


def test_bpe_is_trained_once_for_the_same_documents(tmp_path: Path, bpe: BPETokenizer) -> None:
    settings = BPEConfig(vocab_size=400, train_bytes=10**6)
    first = settings.build(lambda: TEXTS, tmp_path)
    (kept,) = tmp_path.rglob("*.json")
    kept.write_text(json.dumps({**first.to_json(), "vocab_size": 500}), encoding="utf-8")
    assert settings.build(lambda: TEXTS, tmp_path).vocab_size == 500, "it was read back"
    assert settings.build(lambda: TEXTS[1:], tmp_path).vocab_size == 400, "other documents, another tokenizer"
    assert first.to_json() == bpe.to_json()


def test_bpe_reads_no_more_documents_than_asked() -> None:
    read = []

    def documents() -> object:
        for text in TEXTS:
            read.append(text)
            yield text

    BPEConfig(vocab_size=300, train_bytes=len(TEXTS[0]) + 1).build(documents)  # type: ignore[arg-type]
    assert len(read) == 2


def test_bpe_with_little_data_leaves_ids_unused(caplog: pytest.LogCaptureFixture) -> None:
    small = BPEConfig(vocab_size=5000, train_bytes=10**6).build(lambda: ["low lower lowest"])
    assert small.vocab_size == 5000
    assert small.decode([4000]) == ""
    assert "unused" in caplog.text


def test_bpe_without_text_says_so() -> None:
    with pytest.raises(ConfigError, match=r"^tokenizer: got 'bpe', expected data with text"):
        BPEConfig(vocab_size=300, train_bytes=1).build(lambda: ())


@pytest.mark.parametrize(
    "make",
    [
        lambda: ByteConfig(vocab_size=256),
        lambda: BPEConfig(vocab_size=257, train_bytes=1),
        lambda: GPT2Config(vocab_size=257, path=None, repo="a/b"),
    ],
)
def test_impossible_vocabulary(make: object) -> None:
    with pytest.raises(ConfigError, match="vocab_size"):
        make()  # type: ignore[operator]


def gpt2_like() -> dict[str, object]:
    """A tokenizer.json of GPT-2's shape and size, with other merges."""
    letters = list(byte_letters())
    pairs = [(a, b) for a in letters for b in letters][:50000]
    vocab = {token: i for i, token in enumerate([*letters, *(a + b for a, b in pairs), "<|endoftext|>"])}
    return {"model": {"type": "BPE", "vocab": vocab, "merges": [" ".join(pair) for pair in pairs]}}


def test_gpt2_from_a_file_and_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = tmp_path / "models--some--gpt2" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("abc")
    (snapshot / "tokenizer.json").write_text(json.dumps(gpt2_like()), encoding="utf-8")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    cached = GPT2Config(vocab_size=50257, path=None, repo="some/gpt2").build(lambda: ())
    given = GPT2Config(vocab_size=50257, path=str(snapshot / "tokenizer.json"), repo="x/y").build(lambda: ())
    assert (cached.name, cached.end_of_text) == ("gpt2", 50256)
    assert cached.fingerprint() == given.fingerprint()
    assert cached.decode(cached.encode("naïve €")) == "naïve €"
    cached.save(tmp_path / "tokenizer.json")
    assert tokenizers.load(tmp_path / "tokenizer.json").fingerprint() == cached.fingerprint()


def test_gpt2_that_is_not_there_is_one_sentence_without_asking_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_, **__: pytest.fail("asked the network"))
    with pytest.raises(ConfigError, match=r"hf download no/body tokenizer.json") as caught:
        GPT2Config(vocab_size=50257, path=None, repo="no/body").build(lambda: ())
    assert caught.value.key == "tokenizer.path"
    with pytest.raises(ConfigError, match="in the hub's cache"):
        GPT2Config(vocab_size=50257, path=None, repo="not a repo").build(lambda: ())
    with pytest.raises(ConfigError, match=r"got 'nowhere\.json'"):
        GPT2Config(vocab_size=50257, path="nowhere.json", repo="no/body").build(lambda: ())


@pytest.mark.parametrize("text", ["", "{", "[]", '{"model": {}}', '{"model": {"vocab": {"a": 0}, "merges": []}}'])
def test_gpt2_from_a_foreign_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match="expected GPT-2's"):
        GPT2Config(vocab_size=50257, path=str(path), repo="a/b").build(lambda: ())


def test_a_saved_tokenizer_is_the_same_when_loaded(tmp_path: Path, bpe: BPETokenizer) -> None:
    for tokenizer in (ByteTokenizer(), bpe):
        tokenizer.save(tmp_path / "tokenizer.json")
        loaded = tokenizers.load(tmp_path / "tokenizer.json")
        assert loaded.fingerprint() == tokenizer.fingerprint()
        assert loaded.encode(TEXTS[0] + "€") == tokenizer.encode(TEXTS[0] + "€")
        assert np.array_equal(loaded.byte_lengths(), tokenizer.byte_lengths())


@pytest.mark.parametrize(
    "text",
    [
        "",
        '{"kind": "byte"',
        "[1]",
        "null",
        '{"version": "1.0", "model": {}}',
        '{"kind": "base"}',
        '{"kind": "os"}',
        '{"kind": ["byte"]}',
        '{"kind": "bpe"}',
        '{"kind": "bpe", "vocab_size": 300, "tokens": ["a"], "merges": []}',
        '{"kind": "bpe", "vocab_size": 300, "tokens": 7, "merges": []}',
        "[" * 100_000,
    ],
)
def test_a_torn_or_foreign_file_is_one_sentence(tmp_path: Path, text: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(text)
    with pytest.raises(CheckpointError, match="tokenizer"):
        tokenizers.load(path)


def test_an_absurd_vocabulary_size_does_not_fill_the_memory(tmp_path: Path, bpe: BPETokenizer) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({**bpe.to_json(), "vocab_size": 10**15}))
    with pytest.raises(CheckpointError):
        tokenizers.load(path)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no tokenizer here"):
        tokenizers.load(tmp_path / "tokenizer.json")


@pytest.mark.parametrize("token", [-1, -100, 257, 10**9])
def test_an_id_outside_the_vocabulary(token: int) -> None:
    with pytest.raises(DataError, match=f"token id {token} "):
        ByteTokenizer().decode([65, token])


def test_a_lone_surrogate_is_one_sentence(bpe: BPETokenizer) -> None:
    for tokenizer in (ByteTokenizer(), bpe):
        with pytest.raises(DataError, match=r"U\+D800 at 2"):
            tokenizer.encode("ab\ud800")
