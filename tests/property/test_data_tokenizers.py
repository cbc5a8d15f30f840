from __future__ import annotations

import json
import tempfile
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hfa.data import tokenizers
from hfa.data.tokenizers import ByteLevelTokenizer, StreamDecoder
from hfa.data.tokenizers.bpe import BPEConfig
from hfa.data.tokenizers.byte import ByteTokenizer
from hfa.errors import CheckpointError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)


@cache
def tokenizer(kind: str) -> ByteLevelTokenizer:
    if kind == "byte":
        return ByteTokenizer()
    source = Path(__file__).read_text(encoding="utf-8")
    return BPEConfig(vocab_size=500, train_bytes=10**6).build(lambda: [source, "naïve façade €5 日本語 日本"])


both = pytest.mark.parametrize("kind", ["byte", "bpe"])


@both
@given(text=st.text())
def test_text_survives_a_round_trip(kind: str, text: str) -> None:
    ids = tokenizer(kind).encode(text)
    assert tokenizer(kind).decode(ids) == text
    assert int(tokenizer(kind).byte_lengths()[ids].sum()) == len(text.encode())


@both
@given(texts=st.lists(st.text()))
def test_a_batch_is_its_texts_one_by_one(kind: str, texts: list[str]) -> None:
    assert [ids.tolist() for ids in tokenizer(kind).encode_batch(texts)] == [tokenizer(kind).encode(t) for t in texts]


@given(data=st.binary())
def test_any_bytes_are_tokens(data: bytes) -> None:
    assert tokenizer("byte").decode_bytes(data) == data


@both
@given(data=st.data())
def test_a_stream_equals_decoding_at_once(kind: str, data: st.DataObject) -> None:
    one = tokenizer(kind)
    pieces = data.draw(st.lists(st.lists(st.integers(0, one.vocab_size - 1), max_size=6)))
    decoder = StreamDecoder(one)
    streamed = "".join(decoder.push(piece) for piece in pieces) + decoder.flush()
    assert streamed == one.decode([token for piece in pieces for token in piece])


@both
@given(text=st.text())
def test_a_stream_of_text_never_shows_half_a_character(kind: str, text: str) -> None:
    decoder, one = StreamDecoder(tokenizer(kind)), tokenizer(kind)
    pieces = [decoder.push([token]) for token in one.encode(text)]
    assert "".join(pieces) == text
    assert decoder.flush() == ""
    assert sum(piece.count("\ufffd") for piece in pieces) == text.count("\ufffd")


@settings(max_examples=200)
@given(
    data=JSON
    | st.fixed_dictionaries(
        {"kind": st.sampled_from(["byte", "bpe", "gpt2", "base", "stream", "x"])},
        optional={"vocab_size": JSON, "tokens": JSON, "merges": JSON},
    )
)
def test_a_foreign_file_gives_a_tokenizer_or_one_sentence(data: object) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.json"
        path.write_text(json.dumps(data))
        problem = ""
        try:
            loaded = tokenizers.load(path)
        except CheckpointError as error:
            problem = str(error)
        assert str(path) in problem if problem else loaded.decode(loaded.encode("A")) == "A"


@both
@given(keep=st.floats(0, 0.999))
def test_a_torn_file_is_one_sentence(kind: str, keep: float) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.json"
        tokenizer(kind).save(path)
        whole = path.read_bytes()
        path.write_bytes(whole[: int(keep * len(whole))])
        with pytest.raises(CheckpointError):
            tokenizers.load(path)
