from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hfa.data.corpus import Corpus, digest, open_corpus, split_documents
from hfa.data.stream import DocumentStream
from hfa.data.texts.files import cut
from hfa.data.tokenizers.byte import ByteTokenizer
from hfa.errors import DataError

END = 256
documents_of_some_text = st.lists(st.text("abc", min_size=1, max_size=9), min_size=1, max_size=8)


def opened(documents: list[str], folder: str) -> Corpus:
    return open_corpus(Path(folder), "key", documents, ByteTokenizer())


@given(
    documents=documents_of_some_text,
    data=st.data(),
    end=st.sampled_from([END, None]),
    seed=st.none() | st.integers(0, 9),
)
def test_any_window_equals_the_naive_stream(
    documents: list[str], data: st.DataObject, end: int | None, seed: int | None
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        chosen = data.draw(st.lists(st.integers(0, len(documents) - 1), min_size=1, unique=True))
        stream = DocumentStream(opened(documents, folder), np.array(chosen), end_of_text=end, shuffle_seed=seed)
        naive: list[int] = []
        for epoch in range(4):
            order = np.arange(len(chosen))
            if seed is not None:
                order = np.random.default_rng([seed, epoch]).permutation(order)
            for i in order:
                naive += list(documents[chosen[i]].encode()) + ([] if end is None else [end])
        position = data.draw(st.integers(0, len(naive)))
        count = data.draw(st.integers(0, len(naive) - position))
        assert stream.num_tokens * 4 == len(naive)
        assert stream.read(position, count).tolist() == naive[position : position + count]


@given(documents=documents_of_some_text, seq_len=st.integers(1, 12), seed=st.integers(0, 99))
def test_packing_loses_and_repeats_nothing_within_an_epoch(documents: list[str], seq_len: int, seed: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        stream = DocumentStream(
            opened(documents, folder), np.arange(len(documents)), end_of_text=END, shuffle_seed=seed
        )
        epochs = 3
        windows = -(-epochs * stream.num_tokens // seq_len)
        packed = np.concatenate([stream.read(i * seq_len, seq_len) for i in range(windows)])
        for epoch in np.split(packed[: epochs * stream.num_tokens], epochs):
            texts = bytes(np.where(epoch == END, 0, epoch).astype(np.uint8)).decode().split("\0")
            assert texts.pop() == ""
            assert Counter(texts) == Counter(documents)


@given(
    texts=st.lists(st.text("abcd", max_size=3), min_size=3, max_size=60),
    seed=st.integers(0, 2**32),
    held_out=st.tuples(st.floats(0, 0.3), st.floats(0, 0.3)),
)
def test_no_document_is_in_two_splits(texts: list[str], seed: int, held_out: tuple[float, float]) -> None:
    digests = np.array([digest(text) for text in texts], dtype=np.uint64)
    distinct = len(set(texts))
    if distinct <= sum(fraction > 0 for fraction in held_out):
        with pytest.raises(DataError, match="leave none to train on"):
            split_documents(digests, seed, *held_out)
        return
    splits = split_documents(digests, seed, *held_out)
    assert sorted(np.concatenate(list(splits.values())).tolist()) == list(range(len(texts)))
    found = {name: {texts[i] for i in members} for name, members in splits.items()}
    for split, fraction in zip(("val", "test"), held_out, strict=True):
        assert bool(found[split]) == (fraction > 0)
    assert found["train"]
    assert sum(map(len, found.values())) == distinct

    order = np.random.default_rng(0).permutation(len(texts))
    shuffled = split_documents(digests[order], seed, *held_out)
    assert {name: {texts[order[i]] for i in members} for name, members in shuffled.items()} == found


def test_documents_that_come_later_move_no_other() -> None:
    digests = np.array([digest(str(i)) for i in range(4000)], dtype=np.uint64)
    before, after = (split_documents(digests[:count], 0, 0.05, 0.1) for count in (2000, 4000))
    for split, documents in before.items():
        assert documents.tolist() == [i for i in after[split].tolist() if i < 2000]
    assert [len(after[split]) for split in ("val", "test")] == pytest.approx([200, 400], rel=0.15)


@settings(max_examples=200)
@given(text=st.text("ab\n"), limit=st.integers(1, 10))
def test_cutting_loses_nothing(text: str, limit: int) -> None:
    pieces = list(cut(text, limit))
    assert "".join(pieces) == text
    assert all(0 < len(piece) <= limit for piece in pieces)
    assert all(piece.endswith("\n") or len(piece) == limit for piece in pieces[:-1])
