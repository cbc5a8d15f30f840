"""The kernel of the index against dictionaries, and both against looking at everything."""

from __future__ import annotations

import pytest
import torch

from hfa.ops.index import (
    CHUNK,
    TOGETHER,
    Search,
    log_agreement,
    naive_log_agreement,
    naive_retrieve,
    retrieve,
    retrieve_exactly,
    room,
)

GROUPS, CODES, WIDTH = 6, 64, 16


def inputs(stored: int, asked: int, values: int) -> tuple[torch.Tensor, ...]:
    """Scores, queries, keys and codes of one row; every third token has the codes of the first."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, values, (1, stored, GROUPS), generator=generator).to(torch.uint8)
    codes[:, ::3] = codes[:, :1]
    scores = torch.randn(1, asked, GROUPS, CODES, generator=generator)
    query = torch.randn(1, asked, WIDTH, generator=generator, dtype=torch.float64)
    keys = torch.randn(1, stored, WIDTH, generator=generator, dtype=torch.float64)
    return scores, query, keys, codes


def empty(stored: int, num_trees: int) -> tuple[torch.Tensor, ...]:
    tables, chunks = room(stored, num_trees)
    zeros = torch.zeros(1, tables, CODES, dtype=torch.int32), torch.zeros(1, chunks, CHUNK, dtype=torch.int32)
    return *zeros, torch.zeros(1, 4, dtype=torch.long)


def search(num_trees: int, beam: int, leaf_size: int, num_retrieved: int = 200) -> Search:
    """Long shortlists, unless told otherwise: which of many equal codes comes last on a short one is open."""
    return Search(
        16, 4, num_retrieved, num_trees, beam, leaf_size, 4 * num_retrieved, regret_cap=100.0
    )  # no ties at the cap


def products(query: torch.Tensor, keys: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """``query . key`` of the tokens chosen, sorted."""
    found = torch.einsum("tw,tsw->ts", query[0], keys[0, chosen[0].clamp(min=0).long()])
    return found.masked_fill(chosen[0] < 0, -torch.inf).sort(-1, descending=True).values


@pytest.mark.parametrize("values", [8, 64])
@pytest.mark.parametrize(("num_trees", "beam", "leaf_size"), [(1, 1, 4), (2, 3, 4), (4, 4, 8), (3, 20, 16), (6, 2, 12)])
def test_the_kernel_retrieves_what_dictionaries_do(num_trees: int, beam: int, leaf_size: int, values: int) -> None:
    scores, query, keys, codes = inputs(700, 40, values)
    how = search(num_trees, beam, leaf_size)
    chosen, touched = retrieve(scores, query, keys, codes, *empty(700, num_trees), torch.tensor([660]), how)
    expected = naive_retrieve(scores[0], query[0], keys[0], codes[0], 660, how)
    for got, wanted in zip(chosen[0].tolist(), expected, strict=True):
        assert sorted(position for position in got if position >= 0) == sorted(wanted)
    assert touched.max() <= num_trees * beam * leaf_size


@pytest.mark.parametrize("alike", [1.0, 0.9])
def test_tokens_that_share_most_codes_are_told_apart_by_the_others(alike: float) -> None:
    """A crowd of one code in all groups but two, many of which share those too."""
    scores, query, keys, codes = inputs(700, 40, 64)
    crowd = torch.rand(700, generator=torch.Generator().manual_seed(2)) < 0.8
    shared = torch.rand(700, generator=torch.Generator().manual_seed(3)) < alike
    codes[0, crowd, : GROUPS - 2] = 5
    codes[0, crowd & ~shared, GROUPS - 2 :] = 7
    how = search(2, 3, 4)
    chosen, _ = retrieve(scores, query, keys, codes, *empty(700, 2), torch.tensor([660]), how)
    expected = naive_retrieve(scores[0], query[0], keys[0], codes[0], 660, how)
    assert [sorted(i for i in found if i >= 0) for found in chosen[0].tolist()] == [sorted(found) for found in expected]


def test_a_token_is_found_among_a_crowd_that_shares_a_code_with_it_whatever_stands_around_it() -> None:
    """The crowd is of one token and split by its contexts; of that asked for, the query does not know them."""
    scores, query, keys, codes = inputs(3000, 1, 64)
    codes[0] = torch.randint(0, CODES, (3000, GROUPS), generator=torch.Generator().manual_seed(1))
    codes[0, :, :TOGETHER] = torch.tensor([5, 1, 1, 1])
    wanted = 2500  # when the crowd has taken its place already
    codes[0, wanted, :TOGETHER] = torch.tensor([5, 2, 3, 4])
    for group, code in enumerate(codes[0, wanted].tolist()):
        scores[..., group, code] = 10.0 if group < TOGETHER else -10.0
    arguments = (scores, query, keys, codes, *empty(3000, 1), torch.tensor([2999]), search(1, 4, 16))
    assert (retrieve(*arguments)[0] == wanted).any()


def test_a_short_list_is_of_those_nearest_by_code() -> None:
    scores, query, keys, _ = inputs(700, 40, 64)
    codes = torch.randint(0, 64, (1, 700, GROUPS), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    how = search(2, 4, 16, 3)
    chosen, _ = retrieve(scores, query, keys, codes, *empty(700, 2), torch.tensor([660]), how)
    expected = naive_retrieve(scores[0], query[0], keys[0], codes[0], 660, how)
    assert [sorted(found) for found in chosen[0].tolist()] == [sorted(found) for found in expected]


def test_a_beam_as_wide_as_the_trie_finds_what_looking_at_everything_finds() -> None:
    scores, query, keys, codes = inputs(300, 20, 64)
    how = search(1, 400, 300, 70)
    chosen, _ = retrieve(scores, query, keys, codes, *empty(300, 1), torch.tensor([280]), how)
    exact, touched = retrieve_exactly(query, keys, torch.tensor([280]), how)
    torch.testing.assert_close(products(query, keys, chosen), products(query, keys, exact))
    assert touched[0, 0] == 280 - 16


def test_pieces_of_any_length_build_the_same_index() -> None:
    scores, query, keys, codes = inputs(300, 300, 4)
    how = search(2, 3, 4)
    index = empty(300, 2)
    whole, _ = retrieve(scores, query, keys, codes, *index, torch.tensor([0]), how)
    parts, first, streamed = [], 0, empty(300, 2)
    for size in (1, 16, 3, 100, 1, 64, 115):  # four values: more splits than there are tables for
        stop = first + size
        piece = (scores[:, first:stop], query[:, first:stop], keys[:, :stop], codes[:, :stop])
        parts.append(retrieve(*piece, *streamed, torch.tensor([first]), how)[0])
        first = stop
    assert torch.equal(torch.cat(parts, 1), whole)
    for one, other in zip(streamed, index, strict=True):
        assert torch.equal(one, other)


def test_of_a_full_leaf_each_trie_looks_at_other_tokens() -> None:
    """All codes are equal, and the leaf is the same in every trie."""
    scores, query, keys, codes = inputs(5000, 1, 1)
    limit = 4996 - 16
    everything = search(2, 4, 32, 100)
    chosen, touched = retrieve(scores, query, keys, codes, *empty(5000, 2), torch.tensor([4999]), everything)
    assert touched.item() == 64
    assert sorted(chosen[chosen >= 0].tolist()) == list(range(limit - 64, limit))
    keys[0, limit - 64] = 100 * query[0, 0]
    best, _ = retrieve(scores, query, keys, codes, *empty(5000, 2), torch.tensor([4999]), search(2, 4, 32, 16))
    assert limit - 64 in best[0, 0]


def test_a_leaf_that_is_a_little_too_full_is_looked_at_whole() -> None:
    scores, query, keys, codes = inputs(59, 1, 1)
    chosen, _ = retrieve(scores, query, keys, codes, *empty(59, 4), torch.tensor([59]), search(4, 4, 32, 100))
    assert sorted(chosen[chosen >= 0].tolist()) == list(range(56 - 16))


def held(tables: torch.Tensor, chunks: torch.Tensor) -> list[int]:
    """Every position in the index, as often as it stands there."""
    found = []
    for entry in tables[0, tables[0] < 0].tolist():
        chunk = -entry
        while chunk:
            count = (int(chunks[0, chunk, 1]) - 1) % (CHUNK - 2) + 1
            found += chunks[0, chunk, 2 : 2 + count].tolist()
            chunk = int(chunks[0, chunk, 0])
    return sorted(found)


@pytest.mark.parametrize("values", [1, 2, 64])
@pytest.mark.parametrize("leaf_size", [1, 3, 32])
def test_nothing_is_forgotten_and_no_room_is_overrun(values: int, leaf_size: int) -> None:
    """Crowds of equal codes want more tables than there are; their leaves grow until there are."""
    scores, query, keys, codes = inputs(3000, 1, values)
    index = empty(3000, 4)
    guarded = [torch.cat([x, torch.full_like(x[:, :1], -7)], 1) for x in index[:2]]  # one more, which stays as it is
    chosen, touched = retrieve(
        scores, query, keys, codes, *guarded, index[2], torch.tensor([2999]), search(4, 4, leaf_size)
    )
    assert held(guarded[0][:, :-1], guarded[1]) == sorted(4 * list(range(2996 - 16)))
    assert all(torch.equal(x[:, -1], torch.full_like(x[:, -1], -7)) for x in guarded)
    assert 0 < touched.item() <= 4 * 4 * leaf_size
    assert chosen.max() < 2996 - 16


def test_the_operator_is_one_for_torch() -> None:
    scores, query, keys, codes = inputs(60, 10, 8)
    arguments = (scores, query, keys, codes, *empty(60, 2), torch.tensor([50]), *search(2, 3, 4))
    torch.library.opcheck(torch.ops.hfa.retrieve.default, arguments)


@pytest.mark.parametrize("groups", [5, 8])
def test_what_the_codes_learn_from_is_what_logarithms_of_single_groups_give(groups: int) -> None:
    generator = torch.Generator().manual_seed(0)
    sizes = ((7, groups, CODES), (13, groups, CODES))
    queries, keys = ((torch.randn(size, generator=generator).double() * 6).softmax(-1) for size in sizes)
    inputs = (queries.requires_grad_(), keys.requires_grad_())
    assert torch.autograd.gradcheck(lambda *x: log_agreement(*x, floor=1e-4), inputs)
    pull = torch.randn(7, 13, generator=generator).double()
    fast, naive = (how(*inputs, floor=1e-4) for how in (log_agreement, naive_log_agreement))
    torch.testing.assert_close(fast, naive)
    for got, expected in zip(*(torch.autograd.grad(x, inputs, pull) for x in (fast, naive)), strict=True):
        torch.testing.assert_close(got, expected)
