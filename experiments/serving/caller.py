"""Callers in a process of their own, as callers are: signed requests at once, each a stream that is read to its end."""

from __future__ import annotations

import asyncio
import sys

import httpx

from hfa.network.base import WalletConfig
from hfa.network.bittensor import open_hotkey
from hfa.network.client import BittensorAuth


async def stream(http: httpx.AsyncClient, number: int, tokens: int) -> None:
    """One request and its answer."""
    body = {"prompt": prompt(number), "max_tokens": tokens, "stream": True, "temperature": 0}
    async with http.stream("POST", "/v1/generate", json=body) as response:
        assert response.status_code == 200, await response.aread()
        async for _ in response.aiter_lines():
            continue


def prompt(number: int) -> str:
    """What the caller of that number says."""
    return f"{number} " + "word " * 64


async def main(url: str, receiver: str, wallets: str, count: int, tokens: int) -> None:
    """Ask `count` times at once for `tokens` tokens, with the key of the validator."""
    signer = open_hotkey(
        WalletConfig(name="validator", hotkey="default", path=wallets), "it was made by the miner's process"
    )
    async with httpx.AsyncClient(
        base_url=url, auth=BittensorAuth(signer, receiver), timeout=600, trust_env=False
    ) as http:
        await asyncio.gather(*(stream(http, number, tokens) for number in range(count)))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:4], *map(int, sys.argv[4:6])))
