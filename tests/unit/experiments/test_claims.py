"""Every figure of a document is in the ledger, and every entry of the ledger is what the results say."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from experiments.claims import __main__ as command
from experiments.claims import counted
from experiments.claims.claim import REPO
from experiments.claims.documents import filled, unknown_figures
from experiments.claims.studies import tables
from hfa.errors import HFAError


def test_documents_carry_the_ledgers_figures_and_no_others() -> None:
    assert command.document_errors(command.read_ledger()) == []


def test_the_ledger_is_what_the_results_say() -> None:
    assert command.differences({table.name: table for table in tables()}, command.read_ledger()) == []


@pytest.mark.parametrize("name", ["hfa", "simplemind"])
def test_nothing_that_is_counted_has_grown(name: str) -> None:
    """A change that makes a token cost more says so in the ledger, or is not made."""
    kept = {claim.claim: claim.value for claim in command.read_ledger()["counted"].claims}
    for what, (value, shown) in counted.count(name).items():
        assert value <= (1 + command.TOLERANCE) * kept[f"{counted.MODELS[name]}: {what}"], f"{what}: {shown}"


def test_every_entry_says_how_it_was_made() -> None:
    for table in command.read_ledger().values():
        figures = " | ".join(cell for row in table.rows for cell in row)
        for claim in table.claims:
            assert claim.shown in figures
            assert {"command", "commit", "seed", "machine", "date", "config"} <= {
                k for k, v in claim.made.items() if v is not None
            }
            assert (REPO / claim.source).exists()
            assert claim.interval is None or claim.interval[0] <= claim.value <= claim.interval[1]


@pytest.mark.parametrize(
    ("text", "figures"),
    [
        ("It reads 1,744 tokens/s, 3 times more, and 12.5% of 0.93.", ["1,744", "3", "12.5%", "0.93"]),
        ("| HFA | 12 | about 7 | 64 channels of 8 | 0.5 s each |", ["12", "0.5"]),
        ("| 99.9 [98, 100] | 1.5K | 7 ms | 3 ± 1 |, see arXiv 2312.04927", ["99.9", "1.5", "7", "3"]),
        ("| model | **9** |\n\ntook 4 minutes", ["9", "4"]),
        ("Run `--steps 1.5` at [a page](x/0.5.md) in 3 steps, Python 3.11 to 3.13.", []),
        ("```\n0.5 ms\n```\n64 channels, one of 8 tasks", []),
        ("<!-- table: x -->\n| a | 0.5 |\n<!-- end -->", []),
    ],
)
def test_which_numbers_are_figures(text: str, figures: list[str]) -> None:
    assert [figure for _, figure in unknown_figures(text)] == figures


def test_a_figure_that_nobody_can_make_again_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    kept = command.read_ledger()
    document = tmp_path / "README.md"
    document.write_text(
        f"HFA is 7.5 times faster.\n<!-- table: slopes -->\n{kept['slopes'].markdown()}\n<!-- end -->\n"
    )
    monkeypatch.setattr(command, "documents", lambda: [document])
    (found,) = command.document_errors(kept)
    assert found.startswith(f"{document}:1: 7.5 is in no entry; make it one")
    document.write_text(document.read_text().replace("7.5", "many").replace("prefill", "Prefill"))
    (found,) = command.document_errors(kept)
    assert found == f"{document}: a table is not the ledger's; python -m experiments.claims --write"
    with pytest.raises(HFAError, match="there is no table 'speed'; there are quickstart, "):
        filled("<!-- table: speed -->\n\n<!-- end -->", kept)


def test_a_result_that_changed_is_found() -> None:
    kept = command.read_ledger()
    claim, *others = kept["decode"].claims
    faster = dataclasses.replace(kept["decode"], claims=[dataclasses.replace(claim, value=1.0, shown="1.0"), *others])
    (found,) = command.differences({"decode": faster}, kept)
    assert f"{claim.claim}: 1.0 now, {claim.shown} in the ledger" in found
