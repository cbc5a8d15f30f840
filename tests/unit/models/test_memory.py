"""The exact memory: appending never changes what an older memory reads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from hfa.config import from_node
from hfa.models.anchor import Anchor
from hfa.models.base import ModelConfig
from hfa.models.memory import Memory
from hfa.models.transformer import Attention

CONF = Path(__file__).parents[3] / "conf" / "model"
SMALL = {"vocab_size": 50, "d_model": 32, "num_layers": 3, "num_heads": 2, "d_ff": 32, "dropout": 0.0}

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


def test_room_that_was_reserved_is_used_without_copying() -> None:
    generator = torch.Generator().manual_seed(0)
    first, new = tokens(generator, 1, 5), tokens(generator, 1, 100)
    short = Memory.empty(1, *PAGES).append(first, first)
    memory = short.reserved(2000)
    begins = [page.data_ptr() for page in memory.pages]
    for _ in range(20):
        memory = memory.append(new, new)
    assert [page.data_ptr() for page in memory.pages] == begins
    assert memory.reserved(0) is memory
    fork = memory.cut(torch.tensor([5]))
    assert not fork.reserved(100).shares(memory)
    for grown, expected in ((memory, [first] + [new] * 20), (short, [first]), (fork, [first])):
        assert torch.equal(grown.read()[0], torch.cat(expected, 1))


@pytest.mark.parametrize("name", ["hfa", "transformer"])
def test_a_long_prompt_is_given_its_room_at_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    node = OmegaConf.to_container(OmegaConf.merge(OmegaConf.load(CONF / f"{name}.yaml"), SMALL), resolve=True)
    assert isinstance(node, dict)
    model = from_node(node, "model", ModelConfig).build().eval()  # type: ignore[type-abstract]
    copies, copied = [], Memory._copied
    monkeypatch.setattr(Memory, "_copied", lambda memory, room: copies.append(room) or copied(memory, room))
    with torch.no_grad():
        _, state = model.hidden(torch.randint(50, (1, 5000)), None, last=1)
        assert len(copies) == sum(isinstance(part, Anchor | Attention) for part in model.modules())
        model.hidden(torch.randint(50, (1, 3)), state, last=1)
    assert min(copies) > 5003
