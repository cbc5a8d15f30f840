"""Documents: the tables in them that the ledger writes, and the figures in them that it lacks.

A table stands between ``<!-- table: NAME -->`` and ``<!-- end -->``. Elsewhere a *figure* is a number with decimals, a
percentage, a number before a unit of measurement, one in millions or billions, so many times (3x), a rate of anything
(300 tokens a second), so many of so many (87 of 100), and a cell of a table that is a number and no words, unless it
stands in code, in a link's address or in a phrase of `given.txt`: what somebody decided on, and nobody measured.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from experiments.claims.claim import REPO, Table
from hfa.errors import HFAError

GIVEN = Path(__file__).parent / "given.txt"
_BLOCK = re.compile(r"(<!-- table: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
_CODE = re.compile(r"```.*?```|`[^`\n]*`|\]\([^)]*\)|<!--.*?-->|arXiv \S+", re.DOTALL)
_NUMBER = r"(?<![\w.,/-])\d[\d,]*(?:\.\d+)?"
_UNITS = (
    r"tokens/s|ms|s|seconds?|minutes?|hours?|h|min|days?|KiB|MiB|GiB|kB|KB|MB|GB|bits per byte|times|TFLOP|GFLOP|MFLOP|"
    r"percent|per cent|percentage points|million|billion|\w+ (?:a|per) (?:second|minute|hour|day|token)"
)
_FIGURE = re.compile(
    rf"{_NUMBER} ?%|{_NUMBER}(?=[MB]\b|[x×](?!\w))|(?<![\w.,/-])\d[\d,]*\.\d+(?!\w|\.\d)"
    rf"|{_NUMBER}(?= (?:{_UNITS})\b)|{_NUMBER}(?= (?:out )?of (?:the )?\d)"
)
_IN_ROW = re.compile(rf"(?<=\|) *\**({_NUMBER}%?)(?=[^|A-Za-z]*(?:(?:{_UNITS}|[KMB])\b[^|A-Za-z]*)?\|)")


def documents() -> list[Path]:
    """README.md, those of the experiments, and those of the packages."""
    found = [REPO / "README.md", *REPO.glob("experiments/*/README.md"), *REPO.glob("hfa/*/README.md")]
    return sorted(path for path in found if path.is_file())


def filled(text: str, tables: Mapping[str, Table], name: str = "the document") -> str:
    """A document with its tables written anew.

    Args:
        text: of the document.
        tables: by name.
        name: of the document, for errors.

    Raises:
        HFAError: it has a block for which there is no table.
    """

    def table(match: re.Match[str]) -> str:
        if match[2] not in tables:
            raise HFAError(f"{name}: there is no table {match[2]!r}; there are {', '.join(tables)}.")
        return f"{match[1]}{tables[match[2]].markdown()}\n{match[3]}"

    return _BLOCK.sub(table, text)


def unknown_figures(text: str) -> Iterator[tuple[int, str]]:
    """Figures outside the ledger's tables: line and figure."""
    blanked = _BLOCK.sub(lambda match: _blank(match[0]), text)
    blanked = _CODE.sub(lambda match: _blank(match[0]), blanked)
    for phrase in given():
        blanked = re.sub(rf"(?<!\w){re.escape(phrase)}(?!\w)".replace(r"\ ", r"\s+"), lambda m: _blank(m[0]), blanked)
    for number, line in enumerate(blanked.splitlines(), 1):
        found = {match.start(match.lastindex or 0): match[match.lastindex or 0] for match in _FIGURE.finditer(line)}
        if line.startswith("|"):
            found |= {match.start(1): match[1] for match in _IN_ROW.finditer(line)}
        yield from ((number, found[at]) for at in sorted(found))


def given() -> list[str]:
    """Phrases with numbers that nobody measured, the longest first."""
    lines = GIVEN.read_text(encoding="utf-8").splitlines()
    return sorted((line for line in lines if line and not line.startswith("#")), key=len, reverse=True)


def _blank(text: str) -> str:
    """As many lines, with nothing in them."""
    return re.sub(r"[^\n]", " ", text)
