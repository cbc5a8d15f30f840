"""Memories in pages against memories in one piece: rows of different lengths, in pages that lie anywhere."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from hfa.config import from_node
from hfa.inference.pool import StatePool
from hfa.inference.row import Row
from hfa.models import LanguageModel, ModelConfig
from hfa.models.pages import PagedMemory

CONF = Path(__file__).parents[2] / "conf" / "model"
SIZES = {
    "vocab_size": 61, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "d_ff": 48, "dropout": 0.0,
    "num_channels": 8, "active_channels": 4, "window": 8, "block_size": 4,
    "num_retrieved": 4, "num_ranked": 8, "leaf_size": 4, "chunk_size": 8, "logn_length": 8,
}  # fmt: skip


def build(name: str, d_model: int) -> LanguageModel:
    values = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    small = {key: value for key, value in (SIZES | {"d_model": d_model}).items() if key in values}
    if "pattern" in values:
        small["pattern"] = values["pattern"][-2:]
    torch.manual_seed(0)
    return from_node(values | small, "model", ModelConfig).build().eval()


@pytest.mark.parametrize("name", sorted(path.stem for path in CONF.glob("*.yaml") if path.stem != "hf"))
@pytest.mark.parametrize(
    ("d_model", "dtype", "atol"),
    [(64, torch.float32, 2e-5), (24, torch.float64, 1e-9)],  # heads in whole vectors, for the kernels, and not
)
@torch.inference_mode()
def test_rows_in_pages_give_the_logits_of_each_alone(name: str, d_model: int, dtype: torch.dtype, atol: float) -> None:
    model = build(name, d_model).to(dtype)
    pool = StatePool(model, torch.device("cpu"), 4 << 20, 4)
    free = pool.pages.take(pool.pages.num_pages)[::-3] if pool.page_size else []
    lengths, generator = [3, 8, 21, 70], torch.Generator().manual_seed(0)
    rows, alone = [], []
    for length in lengths:
        tokens = torch.randint(61, (1, length + 6), generator=generator)
        row = Row(pages=[free.pop() for _ in range(-(-(length + 6) // pool.page_size) if pool.page_size else 0)])
        pool.begin(row)
        plain = None
        for part in tokens[:, :length].split(7, 1):  # the prompt, in pieces
            wanted, plain = model(part, plain)
            found, state = model(part, pool.rows([row], row.recurrent))
            row.recurrent, row.length = pool.recurrent(state), row.length + part.shape[1]
            pool.take_tries(state, [row])
            torch.testing.assert_close(found, wanted, atol=atol, rtol=0)
        rows.append((row, tokens[0, length:]))
        alone.append(plain)
    batch = [torch.cat(parts) for parts in zip(*(row.recurrent for row, _ in rows), strict=True)]
    for step in range(6):
        tokens = torch.stack([rest[step] for _, rest in rows])
        found, state = model.step(tokens, pool.rows([row for row, _ in rows], batch))
        batch = pool.recurrent(state)
        pool.take_tries(state, [row for row, _ in rows])
        for number, (row, _) in enumerate(rows):
            row.length += 1
            wanted, alone[number] = model.step(tokens[number : number + 1], alone[number])
            torch.testing.assert_close(found[number], wanted[0], atol=atol, rtol=0)


@pytest.mark.parametrize("counts", [(1, 5, 2), (9, 1, 13), (1, 1, 1)])
@torch.inference_mode()
def test_rows_with_different_numbers_of_tokens_are_read_in_one_pass(counts: tuple[int, ...]) -> None:
    """Their last features and their states are those of each row alone, whatever stands beside it."""
    model = build("hfa", 64)
    assert model.takes_varlen
    pool = StatePool(model, torch.device("cpu"), 4 << 20, 4)
    free, generator = pool.pages.take(pool.pages.num_pages)[::-3], torch.Generator().manual_seed(0)
    rows, alone, texts = [], [], []
    for before, count in zip((3, 21, 0), counts, strict=True):
        tokens = torch.randint(61, (1, before + 4 * count), generator=generator)
        row = Row(pages=[free.pop() for _ in range(-(-tokens.shape[1] // pool.page_size))])
        pool.begin(row)
        state = None
        if before:
            state = model.hidden(tokens[:, :before])[1]
            after = model.hidden(tokens[:, :before], pool.rows([row], row.recurrent))[1]
            row.recurrent, row.length = pool.recurrent(after), before
            pool.take_tries(after, [row])
        rows.append(row)
        alone.append(state)
        texts.append(tokens[0, before:].split(count))
    batch = [torch.cat(parts) for parts in zip(*(row.recurrent for row in rows), strict=True)]
    for pieces in zip(*texts, strict=True):
        found, state = model.hidden_varlen(torch.cat(pieces), counts, pool.rows(rows, batch))
        batch = pool.recurrent(state)
        pool.take_tries(state, rows)
        for number, (row, piece) in enumerate(zip(rows, pieces, strict=True)):
            row.length += len(piece)
            wanted, alone[number] = model.hidden(piece[None], alone[number], last=1)
            torch.testing.assert_close(found[number], wanted[0, 0], atol=2e-5, rtol=0)
    wanted = [torch.cat(parts) for parts in zip(*(pool.recurrent(state) for state in alone), strict=True)]
    for ours, theirs in zip(batch, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=0)


def test_what_lies_beyond_a_row_is_not_read() -> None:
    """A page has room that nobody wrote, or somebody else did; NaN there reach nobody."""
    pool = torch.full((4, 4, 2), torch.nan)
    memory = PagedMemory((pool,), torch.tensor([[2, 0], [3, 1]]), torch.tensor([3, 1]))
    memory = memory.append(torch.arange(8.0).view(2, 2, 2))
    (read,) = memory.read()
    assert read.shape == (2, 5, 2)
    assert torch.equal(pool[2, 3], torch.tensor([0.0, 1.0]))
    assert torch.equal(pool[0, 0], torch.tensor([2.0, 3.0]))
    assert torch.equal(read[1, 1:3], torch.tensor([[4.0, 5.0], [6.0, 7.0]]))
    assert (read[1, 3:] == 0).all()
