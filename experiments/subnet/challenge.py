"""What the validator asks: a value among others, somewhere in a text, whose answer only the validator knows."""

from __future__ import annotations

import random
import string
import sysconfig
from pathlib import Path
from typing import NamedTuple

_VALUE = 8  # digits
_KEY = 6  # letters and digits


class Challenge(NamedTuple):
    """One retention challenge: the context, right before the prompt, and the answer.

    import argparse .. # secret K7QX9B = 48213906 .. # secret AB12CD = 77120043 .. # secret K7QX9B =      48213906
    """

    length: int  # bytes of context, about
    depth: float  # of the value that is asked for, 0 at the beginning
    context: str
    prompt: str
    answer: str


def draw(rng: random.Random, length: int, num_secrets: int) -> Challenge:
    """A fresh challenge: `num_secrets` values at random depths of about `length` bytes of Python, one is asked for."""
    sources = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    text = ""
    while len(text) < length:
        text += rng.choice(sources).read_text(encoding="utf-8", errors="replace")
    start = rng.randrange(len(text) - length + 1)
    lines = text[start : start + length].splitlines(keepends=True)[1:] or ["\n"]
    secrets = {_word(rng, string.ascii_uppercase + string.digits, _KEY): _word(rng, string.digits, _VALUE)
               for _ in range(num_secrets)}  # fmt: skip
    for key, value in secrets.items():
        lines.insert(rng.randrange(len(lines)), f"# secret {key} = {value}\n")
    context = "".join(lines)
    if not context.endswith("\n"):
        context += "\n"
    key = rng.choice(list(secrets))
    depth = context.index(f"# secret {key} = ") / len(context)
    return Challenge(length, depth, context, f"# secret {key} = ", secrets[key])


def is_right(challenge: Challenge, text: str) -> bool:
    """Whether all digits are right and nothing else is said before them; what the miner says of itself is not asked."""
    return text[: len(challenge.answer)] == challenge.answer


def _word(rng: random.Random, alphabet: str, length: int) -> str:
    return "".join(rng.choices(alphabet, k=length))
