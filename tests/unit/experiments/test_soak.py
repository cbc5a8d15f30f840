"""The soak: its model that fails while it serves does so, and its result is readable."""

from __future__ import annotations

import argparse
import asyncio
import json
from types import SimpleNamespace

import pytest
import torch
import yaml

from experiments.claims import studies
from experiments.soak.__main__ import _result
from experiments.soak.faults import Faults
from experiments.soak.load import Tally
from experiments.soak.world import POISON, ROOT, World, _model
from hfa.config import from_mapping
from hfa.inference import EngineConfig, FinishEvent, GenerationRequest, Sampling, TokenEvent
from hfa.serving.loading import Loader


@pytest.fixture
def engine_config():
    values = yaml.safe_load((ROOT / "conf" / "engine" / "default.yaml").read_text())
    values.pop("_target_")
    return from_mapping(EngineConfig, values | {"threads": 1}, "engine")


def test_a_poisoned_model_passes_its_warm_up_and_fails_at_what_it_was_poisoned_with(tmp_path, engine_config):
    world = SimpleNamespace(_seed=0, artifact=lambda name: tmp_path / name / "checkpoints" / "last")
    world.artifact("hfa").parent.mkdir(parents=True)
    World.poison(world, "hfa", 0)
    loader = Loader(spec="latest", root=tmp_path, asked=["hfa"], engine=engine_config)
    served = loader.newer("hfa")
    assert served is not None, "the warm-up lets it pass"

    async def answers(*prompts: str) -> list[tuple[list[int], str]]:
        async def answer(prompt: str) -> tuple[list[int], str]:
            request = GenerationRequest(tokens=tuple(prompt.encode()), max_tokens=4, sampling=Sampling())
            events = [event async for event in served.engine.submit(request)]
            tokens = [event.token for event in events if isinstance(event, TokenEvent)]
            return tokens, next(event.reason for event in events if isinstance(event, FinishEvent))

        return list(await asyncio.gather(*(answer(prompt) for prompt in prompts)))

    try:
        whole, failed, after = asyncio.run(answers("a question", f"a {POISON} question", "another question"))
    finally:
        served.engine.close()
    assert failed == ([], "error")
    healthy = _model("hfa", 0)
    for prompt, (tokens, reason) in (("a question", whole), ("another question", after)):
        assert reason == "length"
        assert tokens == _greedy(healthy, prompt, 4), "those beside it in the batch are right"


def _greedy(model, prompt: str, count: int) -> list[int]:
    tokens = list(prompt.encode())
    with torch.inference_mode():
        for _ in range(count):
            tokens.append(int(model(torch.tensor([tokens]))[0][0, -1].argmax()))
    return tokens[-count:]


@pytest.fixture
def result():
    tally = Tally(streamed=1, waited_s=[0.5, 1.0, 7.0], lost=["openai: 'x'"])
    tally.answered.update(generate=1, openai=1)
    tally.models.update(hfa=2)
    tally.attempts["generate"].update({"answered": 1, "500": 2})
    tally.attempts["openai"].update({"answered": 1, "in a stream: model_failed": 1, "ConnectError": 3})
    tally.refused.update({"replay: 401": 4, "dendrite replay: 401": 1})
    log = [{"fault": "model_failing", "at_s": 1.0, "lasted_s": 12.0}]
    arguments = argparse.Namespace(minutes=1.0, seed=3, questions=2)
    memory = [(float(second), 100.0) for second in range(60)]
    return _result(arguments, tally, SimpleNamespace(log=log, error=None), memory, [0, 0], 60.0, 1)


def test_what_did_not_hold_is_said(result):
    assert {what for what, held in result["held"].items() if not held} == {"no lost request"}
    assert result["model_failures"] == 3
    assert result["waited_s"]["max"] == 7.0
    assert result["requests"] == 3


def test_faults_that_end_early_are_said():
    faults = Faults(SimpleNamespace(), [], every_s=0.0)
    faults.chain_away = lambda: 1 / 0
    faults.start()
    faults._thread.join(10)
    faults.stop()
    assert isinstance(faults.error, ZeroDivisionError)


def test_the_ledger_reads_the_result_and_says_when_there_is_none(result, tmp_path, monkeypatch):
    monkeypatch.setattr(studies, "_SOAK", str(tmp_path / "soak.json"))
    assert studies.soak().rows == [["not recorded yet", ""]]
    (tmp_path / "soak.json").write_text(json.dumps({"held": {}, "provenance": {"machine": "x86_64"}}))
    assert studies.soak().claims == [], "a result of before attempts were counted"
    (tmp_path / "soak.json").write_text(json.dumps(result))
    table = studies.soak()
    assert ["lost requests", "1"] in table.rows
    assert ["attempts that were refused or cut off, and made again", "6"] in table.rows
    assert ["a caller's wait, longest, s", "7.00"] in table.rows
    assert all(claim.made["seed"] == 3 and claim.made["machine"] for claim in table.claims)
