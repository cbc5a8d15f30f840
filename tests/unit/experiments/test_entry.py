"""How a study's command ends."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from experiments.entry import at_least, check_seeds, leave
from hfa.errors import ConfigError, DataError

ROOT = Path(__file__).parents[3]


def fails(error: BaseException) -> Callable[[], int]:
    def main() -> int:
        raise error

    return main


@pytest.mark.parametrize(
    ("main", "code", "said"),
    [
        (lambda: 0, 0, ""),
        (lambda: 1, 1, ""),
        (fails(DataError("There is no text.")), 2, "There is no text.\n"),
        (fails(FileNotFoundError(2, "No such file", "here.json")), 2, "here.json: No such file; name another place"),
        (fails(subprocess.CalledProcessError(3, ["a", "b c"])), 1, "`a 'b c'` failed with exit code 3.\n"),
        (fails(KeyboardInterrupt()), 130, "Interrupted; what was finished is kept.\n"),
    ],
)
def test_how_it_ends(main: Callable[[], int], code: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        leave(main)
    assert left.value.code == code
    assert capsys.readouterr().err.startswith(said)


def test_our_own_fault_shows_where() -> None:
    with pytest.raises(ZeroDivisionError):
        leave(fails(ZeroDivisionError()))


@pytest.mark.parametrize("name", ["quickstart", "language", "ablations.hybrid", "claims", "retention", "subnet"])
def test_help_runs_nothing_and_says_how_it_was_called(name: str) -> None:
    command = [sys.executable, "-X", "importtime", "-m", f"experiments.{name}", "--help"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert shown.returncode == 0
    assert "lightning" not in shown.stderr, "help and reports wait for a framework that only trainings need"
    assert shown.stdout.startswith(f"usage: python -m experiments.{name} ")


@pytest.mark.parametrize("name", ["ablations.hybrid", "claims"])
def test_a_mistaken_option_runs_nothing(name: str) -> None:
    command = [sys.executable, "-m", f"experiments.{name}", "--recrod"]
    mistaken = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert mistaken.returncode == 2
    assert "Traceback" not in mistaken.stderr


@pytest.mark.parametrize("value", [-1.0, float("nan")])
def test_an_option_below_what_it_can_be_is_named(value: float) -> None:
    at_least("--lrs", [1e-3, 0.0], 0)
    check_seeds([0, 2**31 - 1])
    with pytest.raises(ConfigError, match=r"--seeds: got 12345678901234567890, expected a whole number from 0 to "):
        check_seeds([12345678901234567890])
    with pytest.raises(ConfigError, match=rf"--lrs: got {value}, expected at least 0\."):
        at_least("--lrs", [1e-3, value], 0)
