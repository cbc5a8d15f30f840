"""Which signed requests were seen already: a replay store that workers share and restarts keep."""

from __future__ import annotations

import sqlite3
import threading
import time
from pathlib import Path

import filelock

from hfa.errors import PASSING, NetworkError, PassingError

_SCHEMA = """
CREATE TABLE IF NOT EXISTS nonces (hotkey TEXT, nonce INTEGER, PRIMARY KEY (hotkey, nonce)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS nonces_by_age ON nonces (nonce);
CREATE TABLE IF NOT EXISTS floor (nonce INTEGER NOT NULL);
INSERT INTO floor SELECT 0 WHERE NOT EXISTS (SELECT 1 FROM floor);
"""
_INSERT = "INSERT OR IGNORE INTO nonces SELECT ?, ? WHERE ? > (SELECT nonce FROM floor)"
_BUSY_TIMEOUT_S = 5.0
_PASSING_CODES = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)


class NonceStore:
    """Remembers (hotkey, nonce) pairs in a SQLite file, for as long as a signature is fresh.

    A nonce is the time of signing, so what is older than `retention` is stale by itself and is forgotten. What was
    forgotten leaves a floor: no nonce at or below the newest forgotten one is accepted again, not even when the
    clock is set back. The store is therefore bounded without ever accepting a replay.

    Args:
        path: the file; processes that share it share their memory.
        retention: seconds to remember, at least ``max_age_s + allowed_skew_s``.
        max_nonces: pairs to remember, give or take an eighth for each process.
    """

    def __init__(self, path: Path, retention: float, max_nonces: int) -> None:
        self.path, self.retention = path, retention
        self._max_nonces = max_nonces
        self._connection: sqlite3.Connection | None = None
        self._lock = threading.Lock()
        self._pruned_at = 0.0
        self._added = 0

    def open(self) -> None:
        """Open or create the file.

        Raises:
            PassingError: the disk is full or fails, or another process holds the file.
            NetworkError: it is something else, or cannot be written.
        """
        with self._lock:
            try:
                self._opened()
            except (sqlite3.Error, OSError) as error:
                if _passes(error):
                    raise PassingError(f"{self.path} cannot be used as replay store just now ({error}).") from error
                remedy = "move it away or set network.auth.nonce_dir to a folder that can be written"
                raise NetworkError(f"{self.path} cannot be used as replay store ({error}); {remedy}.") from error

    def close(self) -> None:
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def check_and_store(self, hotkey_ss58: str, nonce_ns: int) -> bool:
        """Remember the pair; False when it was seen before. Raises sqlite3.Error or OSError when it cannot be kept."""
        with self._lock:
            connection = self._opened()
            stored = connection.execute(_INSERT, (hotkey_ss58, nonce_ns, nonce_ns)).rowcount == 1
            self._added += stored
            if self._added > self._max_nonces // 8 or time.monotonic() - self._pruned_at > self.retention:
                self._prune(connection)
            return stored

    def _opened(self) -> sqlite3.Connection:
        if self._connection is None:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            # SQLite does not wait for others while it turns a file to WAL: workers that start together take turns.
            with filelock.FileLock(f"{self.path}.lock", timeout=_BUSY_TIMEOUT_S):
                connection = sqlite3.connect(
                    self.path, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
                )
                try:
                    connection.execute("PRAGMA journal_mode=WAL")
                    connection.execute("PRAGMA synchronous=NORMAL")
                    connection.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} COMMIT;")
                except sqlite3.Error:
                    connection.close()
                    raise
            self._connection = connection
        return self._connection

    def _prune(self, connection: sqlite3.Connection) -> None:
        self._added, self._pruned_at = 0, time.monotonic()
        oldest = time.time_ns() - int(self.retention * 1e9)
        connection.execute("BEGIN IMMEDIATE")
        try:
            beyond = connection.execute(
                "SELECT nonce FROM nonces ORDER BY nonce DESC LIMIT 1 OFFSET ?", (self._max_nonces,)
            ).fetchone()
            forget = max(oldest, beyond[0] if beyond else 0)
            newest = connection.execute("SELECT max(nonce) FROM nonces WHERE nonce <= ?", (forget,)).fetchone()[0]
            if newest is not None:
                connection.execute("UPDATE floor SET nonce = max(nonce, ?)", (newest,))
                connection.execute("DELETE FROM nonces WHERE nonce <= ?", (newest,))
            connection.execute("COMMIT")
        except sqlite3.Error:
            connection.execute("ROLLBACK")
            raise


def _passes(error: Exception) -> bool:
    """Whether it is about the machine at the moment, and not about the file."""
    if isinstance(error, sqlite3.Error):
        return getattr(error, "sqlite_errorcode", 0) & 0xFF in _PASSING_CODES  # without what extends it
    return isinstance(error, filelock.Timeout) or (isinstance(error, OSError) and error.errno in PASSING)
