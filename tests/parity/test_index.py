"""The kernel of the index against dictionaries, and both against looking at everything."""

from __future__ import annotations

import pytest
import torch

from hfa.ops.index import CHUNK, Search, naive_retrieve, retrieve, retrieve_exactly

GROUPS, CODES, WIDTH = 6, 64, 16


def inputs(stored: int, asked: int, values: int, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Scores, queries, keys and codes of one row; every third token has the codes of the first."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, values, (1, stored, GROUPS), generator=generator).to(torch.uint8)
    codes[:, ::3] = codes[:, :1]
    scores = torch.randn(1, asked, GROUPS, CODES, generator=generator)
    query = torch.randn(1, asked, WIDTH, generator=generator, dtype=torch.float64)
    keys = torch.randn(1, stored, WIDTH, generator=generator, dtype=torch.float64)
    return scores, query, keys, codes


def empty(stored: int, num_trees: int) -> tuple[torch.Tensor, ...]:
    tables = torch.zeros(1, num_trees + stored // 8, CODES, dtype=torch.int32)
    chunks = torch.zeros(1, num_trees * stored + 1, CHUNK, dtype=torch.int32)
    return tables, chunks, torch.zeros(1, 4, dtype=torch.long)


def search(num_trees: int, beam: int, leaf_size: int, num_retrieved: int = 5) -> Search:
    return Search(16, 4, num_retrieved, num_trees, beam, leaf_size, regret_cap=100.0)  # no ties at the cap


@pytest.mark.parametrize("values", [2, 8, 64])
@pytest.mark.parametrize(("num_trees", "beam", "leaf_size"), [(1, 1, 4), (2, 3, 4), (4, 4, 8), (3, 64, 5), (6, 2, 1)])
def test_the_kernel_retrieves_what_dictionaries_do(num_trees: int, beam: int, leaf_size: int, values: int) -> None:
    scores, query, keys, codes = inputs(700, 40, values)
    how = search(num_trees, beam, leaf_size)
    tables, chunks, counts = empty(700, num_trees)
    tables = torch.zeros(1, 2000, CODES, dtype=torch.int32)  # room for every split
    chosen, touched = retrieve(scores, query, keys, codes, tables, chunks, counts, torch.tensor([660]), how)
    expected = naive_retrieve(scores[0], query[0], keys[0], codes[0], 660, how)
    for got, wanted in zip(chosen[0].tolist(), expected, strict=True):
        assert sorted(position for position in got if position >= 0) == sorted(wanted)
    assert touched.max() <= num_trees * beam * leaf_size


def test_a_beam_as_wide_as_the_trie_finds_what_looking_at_everything_finds() -> None:
    scores, query, keys, codes = inputs(300, 20, 64)
    codes[:, ::3] = codes[:, 1::3]  # no leaf too full
    how = search(1, 400, 8)
    chosen, _ = retrieve(scores, query, keys, codes, *empty(300, 1), torch.tensor([280]), how)
    exact, touched = retrieve_exactly(query, keys, torch.tensor([280]), how)
    assert torch.equal(chosen.sort(-1).values, exact.sort(-1).values)
    assert touched[0, 0] == 280 - 16


def test_pieces_of_any_length_build_the_same_index() -> None:
    scores, query, keys, codes = inputs(300, 300, 4)
    how = search(2, 3, 4)
    index = empty(300, 2)
    whole, _ = retrieve(scores, query, keys, codes, *index, torch.tensor([0]), how)
    parts, first, streamed = [], 0, empty(300, 2)
    for size in (1, 16, 3, 100, 1, 64, 115):
        piece = slice(first, first + size)
        arguments = (scores[:, piece], query[:, piece], keys[:, : piece.stop], codes[:, : piece.stop])
        parts.append(retrieve(*arguments, *streamed, torch.tensor([first]), how)[0])
        first += size
    assert torch.equal(torch.cat(parts, 1), whole)
    for one, other in zip(streamed, index, strict=True):
        assert torch.equal(one, other)


def test_a_full_leaf_forgets_nothing() -> None:
    """Thousands of tokens of equal codes: each of them stays in the index."""
    codes = torch.zeros(1, 5000, GROUPS, dtype=torch.uint8)
    tables, chunks, counts = empty(5000, 2)
    query, keys = torch.ones(1, 1, WIDTH), torch.ones(1, 5000, WIDTH)
    scores = torch.zeros(1, 1, GROUPS, CODES)
    arguments = (scores, query, keys, codes, tables, chunks, counts, torch.tensor([4999]))
    _, touched = retrieve(*arguments, search(2, 4, 32))
    held = []
    for entry in tables[0, tables[0] < 0].tolist():
        chunk = -entry
        while chunk:
            count = (int(chunks[0, chunk, 1]) - 1) % (CHUNK - 2) + 1
            held += chunks[0, chunk, 2 : 2 + count].tolist()
            chunk = int(chunks[0, chunk, 0])
    assert sorted(held) == sorted(2 * list(range(4996 - 16)))
    assert touched.item() == 32  # the newest, once


def test_without_room_to_split_leaves_only_grow() -> None:
    scores, query, keys, codes = inputs(600, 10, 64)
    tables, chunks, counts = empty(600, 1)
    arguments = (scores, query, keys, codes, tables[:, :1].contiguous(), chunks, counts, torch.tensor([590]))
    chosen, _ = retrieve(*arguments, search(1, 64, 600))
    exact, _ = retrieve_exactly(query, keys, torch.tensor([590]), search(1, 64, 600))
    assert torch.equal(chosen.sort(-1).values, exact.sort(-1).values)
