"""Our side of the measurements: an engine of the default size with random weights, and callers on an event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import yaml

from experiments.complexity.subjects import CONF, VOCAB_SIZE, our_config
from hfa.inference import Engine, EngineConfig, FinishEvent, GenerationRequest, Sampling


class Stream(NamedTuple):
    """When what came of one request, on the clock of `time.perf_counter`."""

    asked: float
    tokens: list[float]
    end: FinishEvent

    @property
    def first_s(self) -> float:
        return self.tokens[0] - self.asked

    @property
    def gaps_s(self) -> list[float]:
        return [after - before for before, after in zip(self.tokens, self.tokens[1:], strict=False)]


def build(name: str, seed: int = 0) -> Any:
    """A model of conf/model with random weights."""
    torch.manual_seed(seed)
    return our_config(name).build().eval()


@contextmanager
def serving(model: Any, name: str, **settings: object) -> Iterator[Engine]:
    """An engine as conf/engine/default.yaml has it, with one thread."""
    values = yaml.safe_load((CONF.parent / "engine" / "default.yaml").read_text())
    values.pop("_target_")
    engine = EngineConfig(**{**values, "device": "cpu", "threads": 1, **settings}).build(model, name)
    try:
        yield engine
    finally:
        engine.close()


def prompt(length: int, seed: int) -> list[int]:
    return torch.randint(VOCAB_SIZE, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def request(tokens: Sequence[int], max_tokens: int) -> GenerationRequest:
    return GenerationRequest(tokens=tuple(tokens), max_tokens=max_tokens, sampling=Sampling())


async def listen(engine: Engine, asked: GenerationRequest, session: str | None = None) -> Stream:
    """Ask, and note when each token comes."""
    began, times = time.perf_counter(), []
    async for event in engine.submit(asked, session):
        if isinstance(event, FinishEvent):
            return Stream(began, times, event)
        times.append(time.perf_counter())
    raise AssertionError("a stream without an end")


async def together(engine: Engine, asked: Sequence[GenerationRequest]) -> list[Stream]:
    """All at once."""
    return await asyncio.gather(*(listen(engine, one) for one in asked))
