"""The exact memory: appending never changes what an older memory reads."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hfa.models.memory import Memory

PAGES = (torch.zeros(2, 3), torch.zeros(2, 3))  # keys and values of one token


def tokens(generator: torch.Generator, rows: int, count: int) -> torch.Tensor:
    return torch.randn(rows, count, 2, 3, generator=generator)


@settings(max_examples=60)
@given(steps=st.lists(st.tuples(st.integers(0, 5), st.integers(1, 9)), min_size=1, max_size=8))
def test_any_tree_of_forks_reads_what_was_appended_on_its_path(steps: list[tuple[int, int]]) -> None:
    generator = torch.Generator().manual_seed(0)
    memories = [(Memory.empty(2, *PAGES), torch.zeros(2, 0, 2, 3))]
    for parent, count in steps:
        memory, expected = memories[parent % len(memories)]
        new = tokens(generator, 2, count)
        memories.append((memory.append(new, -new), torch.cat([expected, new], dim=1)))
    for memory, expected in memories[1:]:
        keys, values = memory.read()
        assert torch.equal(keys, expected)
        assert torch.equal(values, -expected)


def test_rows_of_different_length_grow_at_their_own_ends() -> None:
    generator = torch.Generator().manual_seed(0)
    first = tokens(generator, 2, 6)
    memory = Memory.empty(2, *PAGES).append(first, first).cut(torch.tensor([6, 2]))
    new = tokens(generator, 2, 3)
    keys, _ = memory.append(new, new).read()
    assert torch.equal(keys[0], torch.cat([first[0], new[0]]))
    assert torch.equal(keys[1, :5], torch.cat([first[1, :2], new[1]]))


def test_appending_one_token_at_a_time_copies_seldom() -> None:
    memory = Memory.empty(1, *PAGES)
    buffers = set()
    for _ in range(400):
        one = torch.zeros(1, 1, 2, 3)
        memory = memory.append(one, one)
        buffers.add(memory.pages[0].data_ptr())
    assert memory.length.item() == 400
    assert len(buffers) < 20
