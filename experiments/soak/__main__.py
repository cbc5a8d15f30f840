"""`python -m experiments.soak --minutes 30`: load and faults, and what came of them."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from experiments.entry import leave
from experiments.soak.faults import Faults
from experiments.soak.load import Callers, Tally
from experiments.soak.world import Worker, World, every
from hfa.errors import ConfigError
from hfa.training.provenance import processor, provenance

RESULTS = Path(__file__).parent / "results"
_SAMPLE_S = 5.0
_SETTLED = 1 / 3  # of the time: caches, allocators and both versions of the weights are filled by then
_FAILED = ("500", "in a stream: model_failed")  # how an attempt ends when the model fails
_SHORTEST_MINUTES = 1.0
_MAX_GROWTH = 0.10  # of resident memory, from the second third to the last


def main() -> int:
    """Run it; returns 0 when everything held."""
    arguments = _arguments()
    torch.set_num_threads(1)
    world = World(Path(arguments.folder), arguments.seed, arguments.questions)
    workers = [Worker(world, index) for index in range(2)]
    try:
        return _soak(arguments, world, workers)
    finally:  # whatever went wrong, nobody goes on serving
        for worker in workers:
            worker.kill()
        world.node.kill()


def _soak(arguments: argparse.Namespace, world: World, workers: list[Worker]) -> int:
    for worker in workers:
        worker.start()
    _say(f"{len(workers)} workers and {len(world.questions)} questions are ready; {arguments.minutes:g} minutes begin")
    began = time.monotonic()
    faults = Faults(world, workers, arguments.fault_every)
    memory: list[tuple[float, float]] = []  # seconds, MiB of the worker that is never killed
    callers = Callers(world, workers, arguments.seed, arguments.pause)

    def sample() -> None:
        memory.append((round(time.monotonic() - began, 1), round(workers[0].rss_mib(), 1)))

    async def load() -> None:
        loop = asyncio.get_running_loop()
        running = asyncio.create_task(callers.run())
        await asyncio.sleep(arguments.minutes * 60)
        await loop.run_in_executor(None, faults.stop)
        callers.stop()
        await running

    faults.start()
    try:
        with every(_SAMPLE_S, sample):
            asyncio.run(load())
    finally:
        faults.stop()
    codes = [worker.stop() for worker in workers]
    disagreements = sum(question.disagreements for question in world.questions)
    result = _result(arguments, callers.tally, faults, memory, codes, time.monotonic() - began, disagreements)
    _say(json.dumps({name: value for name, value in result.items() if name not in ("memory_mib", "faults")}, indent=1))
    if arguments.record:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "soak.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0 if all(result["held"].values()) else 1


def _result(
    arguments: argparse.Namespace,
    tally: Tally,
    faults: Faults,
    memory: list[tuple[float, float]],
    codes: list[int],
    seconds: float,
    disagreements: int,
) -> dict[str, Any]:
    settled = [mib for at_s, mib in memory if at_s > seconds * _SETTLED]
    half = len(settled) // 2
    before, after = statistics.median(settled[:half]), statistics.median(settled[half:])
    waits = statistics.quantiles(tally.waited_s, n=100)
    failures = sum(count for ended in tally.attempts.values() for how, count in ended.items() if how in _FAILED)
    injected = {entry["fault"] for entry in faults.log}
    down_s = sum(entry["lasted_s"] for entry in faults.log if entry["fault"] == "worker_killed")
    return {
        "held": {
            "no wrong answer": not tally.wrong,
            "no lost request": not tally.lost,
            "no answer cut off by a worker that lives": not tally.dropped,
            "a failing model says so": bool(failures) or "model_failing" not in injected,
            "nobody got in": not tally.intruded,
            "flat memory": after <= before * (1 + _MAX_GROWTH),
            "clean stop": codes == [0, 0],
            "faults to the end": faults.error is None,
        },
        "engine_and_model_disagree": f"{disagreements} of {arguments.questions * 4} reference answers",
        "requests": len(tally.waited_s),
        "answered": dict(tally.answered),
        "streamed": tally.streamed,
        "answered_by": dict(tally.models),
        "attempts": {wire: dict(ended.most_common()) for wire, ended in tally.attempts.items()},
        "model_failures": failures,
        "wrong": tally.wrong,
        "lost": tally.lost,
        "dropped": tally.dropped,
        "intruders": dict(sorted(tally.refused.items())),
        "intruded": tally.intruded,
        "waited_s": {
            "p50": round(waits[49], 3),
            "p95": round(waits[94], 3),
            "p99": round(waits[98], 3),
            "max": round(max(tally.waited_s), 3),
        },
        "resident_mib": {"middle_third": before, "last_third": after},
        "worker_down_s": round(down_s, 1),
        "exit_codes": codes,
        "provenance": provenance(
            {**vars(arguments), "minutes": round(seconds / 60, 1)},
            machine={"processor": processor(), "cores": os.cpu_count()},
        ),
        "faults": faults.log,
        "faults_ended_by": repr(faults.error) if faults.error else None,
        "memory_mib": memory[:: max(1, len(memory) // 120)],
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m experiments.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--fault-every", type=float, default=12.0, metavar="S", help="seconds between two faults")
    parser.add_argument("--pause", type=float, default=0.5, metavar="S", help="between two requests of a caller")
    parser.add_argument("--questions", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", default="outputs/soak")
    parser.add_argument("--record", action="store_true", help=f"keep the result in {RESULTS}")
    arguments = parser.parse_args()
    if arguments.minutes < _SHORTEST_MINUTES:
        raise ConfigError("--minutes", arguments.minutes, f"at least {_SHORTEST_MINUTES:g}, for memory to settle")
    return arguments


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    leave(main)
