"""Callers in a process of their own, as callers are: signed requests at once, each a stream that is read to its end."""

from __future__ import annotations

import asyncio
import sys

from hfa.network.base import WalletConfig
from hfa.network.bittensor import open_hotkey
from hfa.network.client import AsyncHFAClient


def prompt(number: int) -> str:
    """What the caller of that number says."""
    return f"{number} " + "word " * 64


async def main(url: str, receiver: str, wallets: str, count: int, tokens: int) -> None:
    """Ask `count` times at once for `tokens` tokens, with the key of the validator."""
    wallet = WalletConfig(name="validator", hotkey="default", path=wallets)
    signer = open_hotkey(wallet, "run experiments.serving, which makes it")

    async def ask(number: int) -> None:
        async for _ in client.stream(prompt(number), max_tokens=tokens, temperature=0.0):
            continue

    async with AsyncHFAClient(signer, url=url, receiver=receiver) as client:
        await asyncio.gather(*map(ask, range(count)))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:4], *map(int, sys.argv[4:6])))
