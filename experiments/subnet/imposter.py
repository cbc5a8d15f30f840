"""Miners that no model stands behind: one lies, one is slow, one dies. Real ports, keys and signatures.

    python -m experiments.subnet.imposter liar --wallet.name liar --folder F --wallet.path W

liar    answers at once with one of the values in the text, whichever, and claims to be the best there is
slow    looks the value up, which is right, and answers after 5 seconds
dying   looks it up, and dies in the middle of its tenth answer
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import random
import re
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import yaml
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from hfa.config import from_mapping
from hfa.network.base import AuthConfig, WalletConfig
from hfa.network.local import LocalNetworkConfig, config_from_yaml
from hfa.serving import refusal
from hfa.serving.admission import BodyReader, RateLimiter
from hfa.serving.app import ServerConfig
from hfa.serving.auth import Gate
from hfa.serving.server import Server, bind

_CONF = Path(__file__).parents[2] / "conf" / "mine.yaml"
_SLOW_S = 5.0
_LIFE = 10  # answers
_NEVER = threading.Event()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("liar", "slow", "dying"))
    parser.add_argument("--wallet.name", dest="name", required=True)
    parser.add_argument("--wallet.path", dest="path", required=True)
    parser.add_argument("--folder", required=True, help="of subnets")
    arguments = parser.parse_args()
    values = vars(config_from_yaml(folder=arguments.folder))
    auth = from_mapping(AuthConfig, vars(values["auth"]) | {"nonce_dir": f"{arguments.folder}/nonces"}, "auth")
    config = from_mapping(LocalNetworkConfig, values | {"auth": auth}, "network")
    network = config.build(WalletConfig(name=arguments.name, hotkey="default", path=arguments.path))
    server = yaml.safe_load(_CONF.read_text())["server"] | {"host": "127.0.0.1", "port": 0, "rate_per_s": 1000.0}
    server.pop("_target_")
    settings = from_mapping(ServerConfig, server, "server")
    gate = Gate(network, RateLimiter(1000.0, 1000), BodyReader(2**23, 30.0, 32, 32))
    bound = bind("127.0.0.1", 0)
    running = Server(network, bound, settings)
    running.start(_app(gate, arguments.kind))
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    stop.wait()
    running.stop(lambda: None, _NEVER)


def _app(gate: Gate, kind: str) -> FastAPI:
    app = FastAPI()
    asked = itertools.count(1)
    rng = random.Random(0)

    @app.post("/v1/generate")
    async def generate(request: Request) -> JSONResponse:
        prompt = str(json.loads((await gate.admit(request)).body)["prompt"])
        if kind == "liar":
            return JSONResponse(_claim(rng.choice(re.findall(r" = (\d{8})\n", prompt) or ["00000000"])))
        text, _, question = prompt.rpartition("\n")
        found = re.search(re.escape(question) + r"(\d+)\n", text + "\n")
        if kind == "dying" and next(asked) >= _LIFE:
            os._exit(1)
        await asyncio.sleep(_SLOW_S if kind == "slow" else 0.0)
        return JSONResponse(_claim(found[1] if found else ""))

    refusal.install(app, lambda code: None)
    return app


def _claim(text: str) -> dict[str, Any]:
    """An answer that says of itself what a liar would say."""
    timings = {"queue_s": 0.0, "prefill_s": 0.001, "decode_s": 0.001, "total_s": 0.002, "tokens_per_s": 1e6}
    usage = {"prompt_tokens": 10**6, "completion_tokens": len(text)}
    return {"model": "hfa", "reason": "the best there is", "finish_reason": "stop", "text": text, "usage": usage,
            "timings": timings, "accuracy_score": 1.0}  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
