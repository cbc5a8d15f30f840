from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from hfa.data.loader import ExampleDataset, StreamSampler, collate
from hfa.data.mixture import Mixture, MixtureConfig
from hfa.data.tokenizers.byte import ByteTokenizer
from hfa.types import Batch


@pytest.fixture
def mixture(mixture_config: Callable[..., MixtureConfig], tokenizer: ByteTokenizer, tmp_path: Path) -> Mixture:
    return mixture_config().build(tokenizer, tmp_path)


def batches(mixture: Mixture, start: int, stop: int, **options: object) -> list[Batch]:
    sampler = StreamSampler(start, stop)
    loader = DataLoader(ExampleDataset(mixture, "train"), 4, sampler=sampler, collate_fn=collate, **options)
    return list(loader)


def same(one: list[Batch], other: list[Batch]) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a, b) for x, y in zip(one, other, strict=True) for a, b in zip(x, y, strict=True)
    )


def test_a_batch(mixture: Mixture) -> None:
    (batch,) = batches(mixture, 0, 4)
    assert batch.tokens.shape == batch.labels.shape == batch.gold.shape == (4, 32)
    assert {tensor.dtype for tensor in batch} == {torch.int64}
    assert batch.source.tolist() == [mixture.locate(i)[0] for i in range(4)]


@pytest.mark.parametrize("start_method", ["fork", "spawn"])
def test_workers_change_nothing(mixture: Mixture, start_method: str) -> None:
    workers = 2 if start_method == "fork" else 1
    found = batches(mixture, 0, 12, num_workers=workers, multiprocessing_context=start_method)
    assert same(found, batches(mixture, 0, 12))


def test_a_stream_can_be_entered_anywhere(mixture: Mixture) -> None:
    assert same(batches(mixture, 8, 24), batches(mixture, 0, 24)[2:])


def test_replicas_share_the_stream_without_overlap() -> None:
    shares = [list(StreamSampler(3, 14, rank=rank, num_replicas=3)) for rank in range(3)]
    assert shares == [[3, 6, 9], [4, 7, 10], [5, 8, 11]]
    assert len(StreamSampler(3, 14, rank=1, num_replicas=3)) == 3
    assert list(StreamSampler(5, 5)) == []
    assert list(StreamSampler(7, 5)) == []
