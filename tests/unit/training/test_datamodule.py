"""The stream of training examples, and what is validated on."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from hfa.errors import DataError
from hfa.training.datamodule import DataModule, EveryPart
from hfa.training.fit import build_data, build_model, build_module
from hfa.training.module import LMModule
from hfa.training.settings import TrainSettings, read_settings
from hfa.types import Batch, Source


@pytest.fixture
def settings(composed: Callable[..., dict[str, Any]]) -> TrainSettings:
    return read_settings(composed("loader.batch_size=2"), TrainSettings)


def data_module(
    settings: TrainSettings, seen: int = 0, rank: int = 0, processes: int = 1, workers: int = 0
) -> DataModule:
    """As a trainer of `processes` processes sees it after `seen` examples."""
    tokenizer, source = build_data(settings)
    module = build_module(settings, build_model(settings, tokenizer, source), tokenizer, source)
    module.examples_seen = seen
    data = DataModule(source, type(settings.loader)(**{**settings.loader.to_dict(), "num_workers": workers}))
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    data.trainer = cast(
        "Any",
        SimpleNamespace(lightning_module=module, global_rank=rank, world_size=processes, strategy=strategy),
    )
    assert isinstance(module, LMModule)
    return data


def tokens(data: DataModule, count: int) -> torch.Tensor:
    return torch.cat([cast("Batch", batch).tokens for batch in islice(iter(data.train_dataloader()), count)])


def test_the_stream_goes_on_where_it_was(settings: TrainSettings) -> None:
    whole = tokens(data_module(settings), 4)
    assert torch.equal(tokens(data_module(settings, seen=5), 1), whole[5:7])


def test_worker_processes_change_nothing(settings: TrainSettings) -> None:
    assert torch.equal(tokens(data_module(settings, workers=2), 4), tokens(data_module(settings), 4))


def test_processes_take_turns(settings: TrainSettings) -> None:
    whole = tokens(data_module(settings), 4)
    first, second = (tokens(data_module(settings, rank=rank, processes=2), 2) for rank in (0, 1))
    assert torch.equal(torch.stack([first, second], 1).flatten(0, 1), whole)


def test_every_source_is_validated(settings: TrainSettings) -> None:
    source: Source = build_data(settings)[1]
    examples = EveryPart(source, "val", 3)
    places = [examples[index].source for index in range(len(examples))]
    assert [places.count(place) for place in range(len(source.parts()))] == [3, 3, 3]
    second = list(source.parts().values())[1].example(0, "val")
    assert (examples[3].example.tokens == second.tokens).all()


def test_no_more_validation_examples_than_there_are(settings: TrainSettings) -> None:
    source = build_data(settings)[1].parts()["text"]
    there = source.num_examples("val")
    assert there is not None
    assert len(EveryPart(source, "val", 10**6)) == there


def test_a_text_too_short_to_be_validated_is_refused(settings: TrainSettings) -> None:
    source = build_data(settings)[1].parts()["text"].at_length(10**7)
    with pytest.raises(DataError, match=r"^text: its val documents are shorter than one example of 10000000 tokens"):
        EveryPart(source, "val", 3)
