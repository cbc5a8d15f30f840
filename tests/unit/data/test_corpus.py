from __future__ import annotations

import pickle
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from hfa.data.corpus import digest, open_corpus, split_documents
from hfa.data.tokenizers.byte import ByteTokenizer
from hfa.errors import DataError


def test_tokens_stand_one_after_the_other(tmp_path: Path, tokenizer: ByteTokenizer) -> None:
    corpus = open_corpus(tmp_path, "key", ["hello", "wörld"], tokenizer)
    assert bytes(corpus.tokens.astype(np.uint8)) == "hellowörld".encode()
    assert corpus.tokens.dtype == np.uint16
    assert corpus.offsets.tolist() == [0, 5, 11]
    assert corpus.digests.tolist() == [digest("hello"), digest("wörld")]


def test_documents_are_read_once(tmp_path: Path, tokenizer: ByteTokenizer) -> None:
    def never() -> Iterator[str]:
        raise AssertionError("read again")
        yield

    first = open_corpus(tmp_path, "key", ["hello"], tokenizer)
    assert np.array_equal(open_corpus(tmp_path, "key", never(), tokenizer).tokens, first.tokens)
    with pytest.raises(AssertionError, match="read again"):
        open_corpus(tmp_path, "another key", never(), tokenizer)
    assert len(list((tmp_path / "corpora").iterdir())) == 1, "what failed leaves nothing behind"


def test_two_writers_at_once(tmp_path: Path, tokenizer: ByteTokenizer) -> None:
    both_write = threading.Barrier(2, timeout=30)

    def documents() -> Iterator[str]:
        yield "hello"
        both_write.wait()
        yield "world"

    with ThreadPoolExecutor(2) as pool:
        opened = list(pool.map(lambda _: open_corpus(tmp_path, "key", documents(), tokenizer), range(2)))
    for corpus in opened:
        assert bytes(corpus.tokens.astype(np.uint8)) == b"helloworld"
    assert len(list((tmp_path / "corpora").iterdir())) == 1


def test_other_processes_map_the_files_again(tmp_path: Path, tokenizer: ByteTokenizer) -> None:
    corpus = open_corpus(tmp_path, "key", ["x" * 100_000], tokenizer)
    sent = pickle.dumps(corpus)
    assert len(sent) < 1000
    assert np.array_equal(pickle.loads(sent).tokens, corpus.tokens)


@pytest.mark.parametrize("name", ["tokens.bin", "offsets.npy", "digests.npy"])
@pytest.mark.parametrize("keep", [0, 9])
def test_a_torn_cache_says_which_folder_to_delete(
    tmp_path: Path, tokenizer: ByteTokenizer, name: str, keep: int
) -> None:
    open_corpus(tmp_path, "key", ["hello world"], tokenizer)
    (torn,) = tmp_path.rglob(name)
    torn.write_bytes(torn.read_bytes()[:keep])
    with pytest.raises(DataError, match=f"{torn.parent}: .*torn; delete"):
        open_corpus(tmp_path, "key", ["hello world"], tokenizer)


def test_no_documents(tmp_path: Path, tokenizer: ByteTokenizer) -> None:
    with pytest.raises(DataError, match="has no documents"):
        open_corpus(tmp_path, "key", [], tokenizer)


def test_too_few_documents_to_split() -> None:
    with pytest.raises(DataError, match="2 distinct documents leave none to train on"):
        split_documents(np.array([1, 2, 2], dtype=np.uint64), 0, 0.01, 0.01)
    alone = split_documents(np.array([1, 2, 2], dtype=np.uint64), 0, 0.0, 0.0)
    assert alone["train"].tolist() == [0, 1, 2]
