"""The soak's ways to ask are those of real clients: over each, a miner gives the same answer."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from experiments.soak.load import _SHARES
from experiments.soak.wires import WIRES, Answered, Asked, CutOff, Door, Refused, _events
from experiments.soak.world import MAX_TOKENS

PROMPT = "def double(x):\n    return"


def test_every_wire_is_asked():
    assert set(_SHARES) == set(WIRES)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("wire", WIRES)
def test_each_wire_gives_the_same_answer(shared, wire, stream):
    with shared.client() as client:
        right = {
            name: client.generate(PROMPT, max_tokens=MAX_TOKENS, model=name).text for name in ("hfa", "simplemind")
        }

    async def ask(model: str | None) -> Answered:
        async with httpx.AsyncClient(trust_env=False, timeout=60) as http:
            return await WIRES[wire](
                Door(http, shared.url, shared.hotkey, shared.validator), Asked(PROMPT, model, stream)
            )

    assert asyncio.run(ask("simplemind")) == ("simplemind", right["simplemind"])
    assert asyncio.run(ask(None)) == ("hfa", right["hfa"])


@pytest.mark.parametrize("wire", WIRES)
def test_a_refusal_is_one(shared, wire):
    stranger = shared.subnet.signer(f"stranger-{wire}", register=False)

    async def ask() -> Answered:
        async with httpx.AsyncClient(trust_env=False, timeout=60) as http:
            return await WIRES[wire](Door(http, shared.url, shared.hotkey, stranger), Asked(PROMPT, None, False))

    with pytest.raises(Refused, match="403"):
        asyncio.run(ask())


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", CutOff),
        ('data: {"text": "a"}\n\n', CutOff),
        ('data: {"text": "a"}\n\ndata: {"error": {"code": "model_failed", "message": "."}}\n\n', Refused),
        ('data: {"error": {"code": "model_failed"}}\n\ndata: [DONE]\n\n', Refused),
    ],
)
def test_a_stream_that_does_not_end_is_no_answer(text, error):
    with pytest.raises(error):
        _events(httpx.Response(200, text=text))
