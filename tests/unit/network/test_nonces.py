"""The replay store: each nonce once, whatever restarts, shares, fills up or sets the clock back."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import Mock

import filelock
import pytest

from hfa.errors import NetworkError, PassingError
from hfa.network import nonces
from hfa.network.nonces import NonceStore

RACE = """
import sys, time
from pathlib import Path
from hfa.network.nonces import NonceStore
store = NonceStore(Path(sys.argv[1]), 60.0, 1000)
print("ready", flush=True)
start = int(sys.stdin.readline())
print(sum(store.check_and_store("a", start + index) for index in range(200)))
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "nonces.sqlite3"


def test_each_pair_is_accepted_once(path: Path) -> None:
    store, now = NonceStore(path, 60.0, 1000), time.time_ns()
    assert store.check_and_store("a", now)
    assert not store.check_and_store("a", now)
    assert store.check_and_store("b", now)
    assert store.check_and_store("a", now + 1)
    store.close()


def test_two_stores_on_one_file_and_a_restart_share_what_was_seen(path: Path) -> None:
    first, second, now = NonceStore(path, 60.0, 1000), NonceStore(path, 60.0, 1000), time.time_ns()
    assert first.check_and_store("a", now)
    assert not second.check_and_store("a", now)
    first.close()
    second.close()
    reopened = NonceStore(path, 60.0, 1000)
    assert not reopened.check_and_store("a", now)
    reopened.close()


def test_processes_racing_for_the_same_nonces_accept_each_once(path: Path) -> None:
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACE, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    start = f"{time.time_ns()}\n"
    for racer in racers:  # the file does not exist yet: opening it is part of the race
        assert racer.stdin is not None
        racer.stdin.write(start)
        racer.stdin.flush()
    accepted = [int(racer.communicate(timeout=60)[0]) for racer in racers]
    assert [racer.returncode for racer in racers] == [0, 0, 0]
    assert sum(accepted) == 200


def count(path: Path) -> int:
    connection = sqlite3.connect(path)
    try:
        return int(connection.execute("SELECT count(*) FROM nonces").fetchone()[0])
    finally:
        connection.close()


def test_full_store_stays_bounded_and_never_accepts_what_it_forgot(path: Path) -> None:
    store, now = NonceStore(path, 60.0, 80), time.time_ns()
    assert all(store.check_and_store("a", now + index) for index in range(500))
    assert 80 <= count(path) <= 80 + 80 // 8 + 1
    assert not any(store.check_and_store("a", now + index) for index in range(500))
    assert store.check_and_store("a", now + 500)
    store.close()


def test_forgotten_nonce_stays_refused_when_the_clock_is_set_back(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, then = NonceStore(path, 12.0, 80), time.time_ns()
    assert store.check_and_store("a", then)
    monkeypatch.setattr(nonces.time, "time_ns", lambda: then + int(3600e9))
    for index in range(11):  # enough to prune by the clock of an hour later
        assert store.check_and_store("b", then + int(3600e9) + index)
    store.close()
    monkeypatch.undo()
    reopened = NonceStore(path, 12.0, 80)
    assert count(path) == 11
    assert not reopened.check_and_store("a", then)
    assert reopened.check_and_store("a", then + 1), "only what may have been seen is refused"
    reopened.close()


def test_foreign_file_is_one_sentence(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"not a database, but long enough to be looked at as one" * 100)
    with pytest.raises(
        NetworkError, match=r"nonces\.sqlite3 cannot be used as replay store .*network\.auth\.nonce_dir"
    ):
        NonceStore(path, 60.0, 1000).open()


def test_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file")
    with pytest.raises(NetworkError, match="cannot be used as replay store"):
        NonceStore(tmp_path / "state" / "nonces.sqlite3", 60.0, 1000).open()


def test_what_passes_is_no_reason_to_forget_what_was_seen(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that another process holds, or a full disk: to be started again, and not to be moved away."""
    monkeypatch.setattr(nonces, "_BUSY_TIMEOUT_S", 0.05)
    path.parent.mkdir()
    with filelock.FileLock(f"{path}.lock"), pytest.raises(PassingError) as held:
        NonceStore(path, 60.0, 1000).open()
    assert "move" not in str(held.value)
    for pragma in ("busy", "full"):
        connection = sqlite3.connect(path, isolation_level=None)
        connection.execute("PRAGMA journal_mode=WAL" if pragma == "full" else "BEGIN EXCLUSIVE")
        if pragma == "full":
            full = sqlite3.OperationalError("database or disk is full")
            full.sqlite_errorcode = sqlite3.SQLITE_FULL
            monkeypatch.setattr(nonces.sqlite3, "connect", Mock(side_effect=full))
        with pytest.raises(PassingError, match="just now"):
            NonceStore(path, 60.0, 1000).open()
        connection.close()
