"""The stream of training examples and the small set that is validated on."""

from __future__ import annotations

import os
import re

import lightning.pytorch as L
import torch
from torch.utils.data import DataLoader, Dataset

from hfa.config import Config, NonNegativeInt, PositiveInt, config
from hfa.data.loader import ExampleDataset, Item, StreamSampler, collate
from hfa.errors import ConfigError, DataError
from hfa.training.module import LMModule
from hfa.types import Batch, Source, Split

_ENDLESS = 2**48  # more examples than any run takes


@config
class LoaderConfig(Config):
    """How examples become batches."""

    batch_size: PositiveInt  # per device and micro-batch
    num_workers: NonNegativeInt
    val_examples: PositiveInt  # of every source


class EveryPart(Dataset[Item]):
    """The first `num_examples` examples of each source in a mixture, or as many as it has.

    Raises:
        DataError: a source has none.
    """

    def __init__(self, source: Source, split: Split, num_examples: int) -> None:
        self._split, self._parts = split, list(source.parts().values())
        counts = [part.num_examples(split) for part in self._parts]
        for name, count in zip(source.parts(), counts, strict=True):
            if count == 0:
                raise DataError(
                    f"{name}: its {split} documents are shorter than one example of {source.seq_len} tokens; "
                    f"add documents, or set a larger {split}_fraction or a smaller seq_len."
                )
        self._places = [
            (place, index)
            for place, count in enumerate(counts)
            for index in range(num_examples if count is None else min(num_examples, count))
        ]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Item:
        place, inner = self._places[index]
        return Item(self._parts[place].example(inner, self._split), place)


class DataModule(L.LightningDataModule):
    """Gives each process its share of the stream, from the first example that no step has used yet.

    Example `index` is a pure function of `index`, so where a run is in its data is one number, whatever the batch
    size, the accumulation and the worker processes.
    """

    def __init__(self, source: Source, settings: LoaderConfig) -> None:
        super().__init__()
        self.source, self.settings = source, settings

    def train_dataloader(self) -> DataLoader[Item]:
        assert self.trainer is not None
        module = self.trainer.lightning_module
        assert isinstance(module, LMModule)
        return self._loader(ExampleDataset(self.source, "train"), module.examples_seen, _ENDLESS)

    def val_dataloader(self) -> DataLoader[Item]:
        examples = EveryPart(self.source, "val", self.settings.val_examples)
        assert self.trainer is not None
        if len(examples) < (processes := self.trainer.world_size):
            raise DataError(
                f"There are {len(examples)} examples to validate on, fewer than the {processes} processes; "
                "raise loader.val_examples or give it more text."
            )
        return self._loader(examples, 0, len(examples))

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        return Batch(*(tensor.to(device, non_blocking=True) for tensor in batch))

    def _loader(self, examples: Dataset[Item], start: int, stop: int) -> DataLoader[Item]:
        assert self.trainer is not None
        sampler = StreamSampler(start, stop, rank=self.trainer.global_rank, num_replicas=self.trainer.world_size)
        return DataLoader(
            examples,
            sampler=sampler,
            batch_size=self.settings.batch_size,
            num_workers=self.settings.num_workers,
            persistent_workers=self.settings.num_workers > 0,
            collate_fn=collate,
            pin_memory=self.trainer.strategy.root_device.type == "cuda",
            worker_init_fn=_leave_the_process_group,
            generator=torch.Generator(),  # else the loader draws from the global one, and a resumed run differs
        )


def said_by_worker(error: Exception) -> str | None:
    """The sentence of an error of ours that a worker process met, from the traceback that torch makes of it."""
    text = str(error)
    kinds = "|".join(f"{kind.__module__}.{kind.__name__}" for kind in (ConfigError, DataError))
    found = re.search(rf"^(?:{kinds}): (.+)\Z", text, re.MULTILINE | re.DOTALL)
    return found[1].strip() if found and " in DataLoader worker process " in text.splitlines()[0] else None


def _leave_the_process_group(_: int) -> None:
    """Ctrl-C and the like go to the whole group; the parent still needs its workers to finish the step."""
    os.setpgrp()
