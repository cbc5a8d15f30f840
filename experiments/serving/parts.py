"""The measurements, each a function from its sizes to JSON."""

from __future__ import annotations

import asyncio
import itertools
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch

from experiments.serving.bench import Stream, build, listen, prompt, request, serving, together
from experiments.serving.peer import Peer
from hfa.inference import runner
from hfa.inference.sampling import likeliest

Facts = dict[str, Any]
Say = Callable[[str], None]


def concurrent(sizes: Facts, say: Say) -> Facts:
    """Requests that come at once: ours in the engine, the peer's as one batch, in turns."""
    rows: dict[str, list[Facts]] = {"hfa": [], "loop": [], "generate": []}
    peer = Peer(sizes["peer"])
    count, length, new = sizes["requests"], sizes["prompt"], sizes["new"]
    with serving(build("hfa"), "hfa", max_concurrent=count) as engine:
        asyncio.run(together(engine, [request(prompt(40, 1), 2) for _ in range(count)]))  # kernels are compiled
        for run in (peer.loop, peer.generate):
            run(torch.tensor([prompt(40, 1)] * 2), 2)
        for turn in range(sizes["rounds"]):
            prompts = [prompt(length, 1000 * (turn + 1) + number) for number in range(count)]
            streams = asyncio.run(together(engine, [request(one, new) for one in prompts]))
            begin, end = min(s.asked for s in streams), max(s.tokens[-1] for s in streams)
            rows["hfa"].append({"total_s": end - begin, "last_first_s": max(s.first_s for s in streams)})
            batch = torch.tensor(prompts)
            rows["loop"].append(peer.loop(batch, new)._asdict())
            if turn < sizes["generate_rounds"]:
                rows["generate"].append({"total_s": peer.generate(batch, new).total_s})
            say(f"round {turn + 1}: " + ", ".join(f"{k} {v[-1]['total_s']:.1f} s" for k, v in rows.items() if v))
    ours = statistics.median(row["total_s"] for row in rows["hfa"])
    totals = {k: statistics.median(row["total_s"] for row in v) for k, v in rows.items() if v}
    ratios = {f"over_{k}": ours / v for k, v in totals.items() if k != "hfa"}
    return {"rows": rows, "total_s": totals, **ratios}


def decode(sizes: Facts, say: Say) -> Facts:
    """Tokens a second while all requests decode together, after prompts of 512 tokens, in two types of products."""
    kinds = {kind: decode_in(kind, sizes, say) for kind in sizes["dtypes"]}
    first = kinds[sizes["dtypes"][0]]
    best = {name: max(kind["tokens_per_s"][name] for kind in kinds.values()) for name in ("hfa", "loop", "generate")}
    ratios = {name: first[name] for name in ("over_loop", "over_generate")}
    return {**kinds, **ratios, **{f"best_{name}": best["hfa"] / best[name[5:]] for name in ratios}}


def decode_in(kind: str, sizes: Facts, say: Say) -> Facts:
    """`decode` with products of one type, for the peer as for us."""
    count, length, new = sizes["requests"], sizes["prompt"], sizes["new"]
    peer = Peer(sizes["peer"], getattr(torch, kind))
    rows: dict[str, list[float]] = {"hfa": [], "loop": [], "generate": []}
    with serving(build("hfa"), "hfa", max_concurrent=count, dtype=kind) as engine:
        asyncio.run(together(engine, [request(prompt(40, 1), 2) for _ in range(count)]))
        for turn in range(sizes["rounds"]):
            prompts = [prompt(length, 5000 * (turn + 1) + number) for number in range(count)]
            streams = asyncio.run(together(engine, [request(one, new) for one in prompts]))
            begin, end = max(s.tokens[0] for s in streams), min(s.tokens[-1] for s in streams)
            rows["hfa"].append(sum(begin < at <= end for s in streams for at in s.tokens) / (end - begin))
            for name, run in (("loop", peer.loop), ("generate", peer.generate)):
                seconds = run(torch.tensor(prompts), sizes["peer_new"]).decode_s
                rows[name].append(count * (sizes["peer_new"] - 1) / seconds)
            say(f"{kind}, round {turn + 1}: " + ", ".join(f"{k} {v[-1]:.0f} tokens/s" for k, v in rows.items()))
    middle = {name: statistics.median(values) for name, values in rows.items()}
    ratios = {f"over_{name}": middle["hfa"] / middle[name] for name in ("loop", "generate")}
    return {"rounds": rows, "tokens_per_s": middle, **ratios}


def session(sizes: Facts, say: Say) -> Facts:
    """The first token of the second turn of a long session, against that of the first turn, which reads it all."""
    with serving(build("hfa"), "hfa") as engine:
        asyncio.run(listen(engine, request(prompt(40, 1), 2)))
        name = engine.call(lambda sessions: sessions.create().name).result()
        cold = asyncio.run(listen(engine, request(prompt(sizes["tokens"], 2), 4), name))
        say(f"cold: {cold.first_s:.2f} s to the first token of {sizes['tokens']:,}")
        warm = [asyncio.run(listen(engine, request(prompt(16, 3 + n), 4), name)) for n in range(sizes["rounds"])]
        again = asyncio.run(listen(engine, request([*prompt(sizes["tokens"], 2), *prompt(16, 9)], 4)))
    return {
        "cold_first_s": cold.first_s,
        "second_turn_first_s": [one.first_s for one in warm],
        "share_of_cold": statistics.median(one.first_s for one in warm) / cold.first_s,
        "same_prompt_elsewhere_first_s": again.first_s,
        "same_prompt_elsewhere_cached": again.end.cached_tokens,
    }


def gap(sizes: Facts, say: Say) -> Facts:
    """Gaps between the tokens of a running stream: alone, and while a long prompt is read beside it."""
    with serving(build("hfa"), "hfa") as engine:

        async def stream(until: asyncio.Task[Any] | None, tokens: int) -> list[float]:
            gaps: list[float] = []
            while not gaps or (until is not None and not until.done()):
                run = await listen(engine, request(prompt(64, 4), tokens))
                gaps += run.gaps_s
            return gaps

        async def main() -> tuple[list[float], list[float], Stream]:
            await listen(engine, request(prompt(64, 4), 16))
            alone = await stream(None, sizes["idle_tokens"])
            reading = asyncio.create_task(listen(engine, request(prompt(sizes["tokens"], 5), 1)))
            beside = await stream(reading, 256)
            return alone, beside, await reading

        alone, beside, long = asyncio.run(main())
    p99 = float(np.quantile(alone, 0.99)), float(np.quantile(beside, 0.99))
    say(f"p99 {p99[0] * 1e3:.0f} ms alone, {p99[1] * 1e3:.0f} ms beside; median {statistics.median(beside) * 1e3:.0f}")
    return {
        "alone_s": {"p50": statistics.median(alone), "p99": p99[0], "gaps": len(alone)},
        "beside_s": {"p50": statistics.median(beside), "p99": p99[1], "gaps": len(beside)},
        "over_alone": p99[1] / p99[0],
        "p50_over_alone": statistics.median(beside) / statistics.median(alone),
        "long_prompt_first_s": long.first_s,
    }


def overhead(sizes: Facts, say: Say) -> Facts:
    """What scheduling, text and HTTP add to the model's time while eight streams go over signed connections.

    The model's time is that of its steps when the same prompts are given to the engine and nobody listens. While all
    stream to another process over HTTP, two things are compared with it: the processor time of the miner outside of the
    model's steps, and by how much longer than a step it takes from one step's beginning to the next one's. The latter
    has more in it: waiting for the interpreter's lock, and steps that slow down because the other core is busy. Of the
    former, what it takes to choose the likeliest of 50,257 tokens is told by itself: that is neither of them.
    """
    from experiments.serving import caller
    from experiments.serving.world import miner

    with ExitStack() as patches:
        folder = patches.enter_context(tempfile.TemporaryDirectory())
        running, call = patches.enter_context(miner(Path(folder), "hfa"))
        served = running.models["hfa"]
        engine, count = served.engine, sizes["requests"]
        steps: list[_Step] = []
        chosen_s: list[float] = []
        step = engine._runner.model.step

        def timed(tokens: torch.Tensor, state: Any) -> Any:
            begin, process, thread = time.perf_counter(), time.process_time(), time.thread_time()
            out = step(tokens, state)
            steps.append(_Step(begin, time.perf_counter() - begin, process, time.thread_time() - thread, len(tokens)))
            return out

        def choosing(logits: torch.Tensor) -> list[int]:
            begin = time.thread_time()
            best = likeliest(logits)
            chosen_s.append(time.thread_time() - begin)
            return best

        engine._runner.model.step = timed
        patches.enter_context(mock.patch.object(runner, "likeliest", choosing))

        def unheard() -> None:
            for number in range(count):
                engine.submit(request(served.tokenizer.encode(caller.prompt(number)), sizes["new"]))
            while engine.load().running + engine.load().waiting:
                time.sleep(0.05)

        unheard()
        rows = []
        for _ in range(sizes["rounds"]):
            steps.clear()
            unheard()
            model_s = statistics.median(one.seconds for one in steps if one.rows == count)
            steps.clear()
            chosen_s.clear()
            call(count, sizes["new"])
            pairs = [(one, after) for one, after in itertools.pairwise(steps) if one.rows == after.rows == count]
            period_s = statistics.median(after.begin - one.begin for one, after in pairs)
            beside_s = statistics.mean(after.process - one.process - one.thread_s for one, after in pairs)
            choosing_s = statistics.mean(chosen_s)
            rows.append({"model_s": model_s, "beside_s": beside_s, "choosing_s": choosing_s, "period_s": period_s})
            said = f"{beside_s * 1e3:.2f} ms of the processor beside it, of which {choosing_s * 1e3:.2f} choose tokens"
            said += f", {period_s * 1e3:.1f} ms from step to step"
            say(f"{model_s * 1e3:.1f} ms a step, {said}")
    return {
        "rounds": rows,
        "share": statistics.median((row["beside_s"] - row["choosing_s"]) / row["model_s"] for row in rows),
        "choosing_share": statistics.median(row["choosing_s"] / row["model_s"] for row in rows),
        "clock_share": statistics.median(row["period_s"] / row["model_s"] - 1 for row in rows),
    }


class _Step(NamedTuple):
    """One of the model's, in seconds."""

    begin: float
    seconds: float
    process: float  # of the processor, of all threads, when it began
    thread_s: float  # of the processor, in it
    rows: int


def ready(sizes: Facts, say: Say) -> Facts:
    """From the command to the line that says both models of the default size answer."""
    from experiments.serving.world import artifacts, environment

    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        artifacts(Path(folder) / "outputs")
        for _ in range(sizes["rounds"]):
            began = time.perf_counter()
            process = subprocess.Popen(
                [sys.executable, str(Path(__file__).parents[2] / "mine.py"), "server.host=127.0.0.1", "server.port=0"],
                cwd=folder,
                env=environment(),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            assert process.stdout is not None
            said = []
            for line in process.stdout:
                said.append(line)
                if "Miner ready with 2 models" in line:
                    seconds.append(time.perf_counter() - began)
                    break
            process.terminate()
            process.wait(60)
            assert seconds, "".join(said)
            say(f"ready after {seconds[-1]:.1f} s")
    return {"seconds": seconds, "median_s": statistics.median(seconds)}


def load(sizes: Facts, say: Say) -> Facts:
    """Many requests of mixed sizes to a small model: what became of each, and the memory over time."""
    from experiments.serving.load import flood

    return flood(sizes["requests"], say)


PARTS: dict[str, Callable[[Facts, Say], Facts]] = {
    "concurrent": concurrent,
    "decode": decode,
    "session": session,
    "gap": gap,
    "overhead": overhead,
    "ready": ready,
    "load": load,
}
DTYPES = ["float32", "bfloat16"]  # of the matrix products
FULL: dict[str, Facts] = {
    "concurrent": {"requests": 32, "prompt": 512, "new": 64, "rounds": 3, "generate_rounds": 1, "peer": "xlstm"},
    "decode": {
        "requests": 32,
        "prompt": 512,
        "new": 96,
        "peer_new": 33,
        "rounds": 3,
        "peer": "xlstm",
        "dtypes": DTYPES,
    },
    "session": {"tokens": 65536, "rounds": 5},
    "gap": {"tokens": 99_000, "idle_tokens": 512},
    "overhead": {"requests": 8, "new": 128, "rounds": 3},
    "ready": {"rounds": 3},
    "load": {"requests": 10_000},
}
QUICK: dict[str, Facts] = {
    "concurrent": {"requests": 8, "prompt": 128, "new": 16, "rounds": 1, "generate_rounds": 1, "peer": "xlstm"},
    "decode": {
        "requests": 8,
        "prompt": 64,
        "new": 32,
        "peer_new": 9,
        "rounds": 1,
        "peer": "xlstm",
        "dtypes": DTYPES,
    },
    "session": {"tokens": 4096, "rounds": 2},
    "gap": {"tokens": 4096, "idle_tokens": 64},
    "overhead": {"requests": 8, "new": 48, "rounds": 1},
    "ready": {"rounds": 1},
    "load": {"requests": 500},
}
