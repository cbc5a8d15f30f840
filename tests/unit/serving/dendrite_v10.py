"""Asks a miner with the Dendrite of Bittensor v10; run by an environment that has that SDK, not this one.

    python dendrite_v10.py WALLET_PATH WALLET MINER_HOTKEY PORT < questions.jsonl

Every line is {"kind": "call" | "stream" | "many", "fields": {...}, "timeout": s}; every answer is a line of JSON.
"""

import asyncio
import json
import sys
from typing import Any

arguments, sys.argv = sys.argv[1:], sys.argv[:1]  # the SDK parses what it finds there

import bittensor as bt  # noqa: E402
from bittensor.core import dendrite as module  # noqa: E402

module.networking.get_external_ip = lambda: "203.0.113.9"  # it would ask public sites


class InfiniteContextSynapse(bt.Synapse):
    context: str
    prompt: str
    max_tokens: int = 100
    evaluation_type: str = "memory_retention"
    architecture_preference: str | None = None
    response: str | None = None
    processing_time: float | None = None
    context_length: int | None = None
    tokens_per_second: float | None = None
    memory_usage_mb: float | None = None
    checkpoint_count: int | None = None
    architecture_type: str | None = None
    model_info: dict[str, Any] | None = None
    accuracy_score: float | None = None
    per_item_scores: dict[str, float] | None = None


class StreamingInfiniteContextSynapse(bt.StreamingSynapse):
    context: str
    prompt: str
    max_tokens: int = 100
    response: str | None = None

    async def process_streaming_response(self, response):
        rest = b""
        self.response = ""
        async for chunk in response.content.iter_any():
            *events, rest = (rest + chunk).split(b"\n\n")
            for event in events:
                content = json.loads(event.removeprefix(b"data: "))
                if "text" in content:
                    self.response += content["text"]
                yield content

    def extract_response_json(self, response):
        return {"context": self.context, "prompt": self.prompt, "response": self.response}


async def main() -> None:
    path, name, hotkey, port = arguments
    wallet = bt.Wallet(name=name, hotkey="default", path=path)
    miner = bt.AxonInfo(version=1, ip="127.0.0.1", port=int(port), ip_type=4, hotkey=hotkey, coldkey=hotkey, protocol=4)
    async with bt.Dendrite(wallet=wallet) as dendrite:
        for line in sys.stdin:
            asked = json.loads(line)
            timeout = asked.get("timeout", 30.0)
            if asked["kind"] == "stream":
                synapse = StreamingInfiniteContextSynapse(**asked["fields"])
                pieces = [piece async for piece in dendrite.call_stream(miner, synapse, timeout, deserialize=False)]
                say({"status": pieces[-1].dendrite.status_code, "pieces": pieces[:-1], "response": synapse.response})
                continue
            synapses = [InfiniteContextSynapse(**asked["fields"]) for _ in range(asked.get("count", 1))]
            answers = await asyncio.gather(*(dendrite.call(miner, one, timeout, deserialize=False) for one in synapses))
            for answer in answers:
                say({"status": answer.dendrite.status_code, "message": answer.dendrite.status_message,
                     "time": answer.axon.process_time, "synapse": answer.model_dump()})  # fmt: skip


def say(content: dict[str, Any]) -> None:
    print(json.dumps(content, default=str), flush=True)  # noqa: T201


asyncio.run(main())
