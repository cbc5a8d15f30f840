"""A flood of requests of mixed sizes: every one is answered or refused with a reason, and the memory stays flat."""

from __future__ import annotations

import asyncio
import random
import resource
import statistics
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from experiments.complexity.subjects import our_config
from experiments.serving.bench import serving
from hfa.errors import RequestError
from hfa.inference import FinishEvent, GenerationRequest, Sampling

_OPEN = 82  # requests that callers have open together: two more than the engine takes
_LOST_S = 300.0  # without an end: none is answered as late as that
_REFUSED_S = 0.5  # that a caller who was refused leaves the engine alone


def resident_mib() -> float:
    """Memory of this process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def flood(count: int, say: Callable[[str], None], seed: int = 0) -> dict[str, Any]:
    """Send `count` requests: prompts of 1 to 2,000 tokens, answers of 1 to 32, callers who leave, deadlines."""
    torch.manual_seed(seed)
    sizes = {"d_model": 64, "num_layers": 3, "num_heads": 2, "d_ff": 128, "vocab_size": 512}
    model = our_config("hfa", **sizes).build().eval()
    draw, ended, refused = random.Random(seed), Counter[str](), Counter[str]()
    memory: list[tuple[int, float]] = []
    settings = {"state_budget_mib": 24, "checkpoint_budget_mib": 8, "swap_budget_mib": 8, "max_concurrent": 16}

    async def one(engine: Any, number: int, places: asyncio.Semaphore) -> None:
        request = GenerationRequest(
            tokens=tuple(draw.choices(range(512), k=draw.choice([1, 10, 50, 200, 2000]))),
            max_tokens=draw.choice([1, 4, 16, 32]),
            sampling=Sampling(seed=number, temperature=draw.choice([0.0, 0.8]), top_k=draw.choice([0, 40])),
            priority=draw.choice([0, 0, 0, 1, 2]),
            caller=draw.choice("abcdefgh"),
            deadline_s=draw.choice([None, None, None, 2.0]),
        )
        leaves = draw.random() < 0.1
        async with places:
            try:
                async with asyncio.timeout(_LOST_S):
                    async for event in engine.submit(request):
                        if isinstance(event, FinishEvent):
                            ended[event.reason] += 1
                        elif leaves:
                            ended["left"] += 1
                            break
            except TimeoutError:
                say(f"request {number} came to no end in {_LOST_S:.0f} s")
            except RequestError as error:
                refused[f"{error.status}"] += 1
                await asyncio.sleep(_REFUSED_S)
        done = sum(ended.values()) + sum(refused.values())
        if done % max(1, count // 60) == 0:
            memory.append((done, round(resident_mib(), 1)))

    with serving(model, "hfa", **settings) as engine:

        async def main() -> None:
            places = asyncio.Semaphore(_OPEN)
            tasks = set()
            for number in range(count):
                task = asyncio.create_task(one(engine, number, places))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
                while len(tasks) > _OPEN:
                    await asyncio.sleep(0.005)
            await asyncio.gather(*tasks)

        began = time.perf_counter()
        asyncio.run(main())
        seconds = time.perf_counter() - began
        while engine.load().running + engine.load().waiting:
            time.sleep(0.01)
        pool = engine._pool.pages
        held, idle, free = pool.num_held, pool.num_idle, pool.num_free
    answered = sum(ended.values()) + sum(refused.values())
    middle, last = (
        statistics.median(mib for done, mib in memory if low < 3 * done / count <= low + 1) for low in (1, 2)
    )
    growth = last / middle - 1
    say(f"{answered} of {count} answered or refused in {seconds:.0f} s; memory grew {growth:.1%} in the last third")
    return {
        "requests": count,
        "ended": dict(ended),
        "refused": dict(refused),
        "lost": count - answered,
        "seconds": seconds,
        "memory_mib": memory,
        "growth_in_the_last_third": growth,
        "pages": {"held": held, "idle": idle, "free": free, "all": pool.num_pages},
    }
