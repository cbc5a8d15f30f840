"""Sessions: streams that stay when an answer ends, to be continued, forked, rolled back and carried elsewhere."""

from __future__ import annotations

import json
import re
import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Set
from dataclasses import dataclass, field
from typing import NamedTuple

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from hfa.errors import RequestError
from hfa.inference.disk import Origin
from hfa.inference.pool import StatePool
from hfa.inference.prefix import PrefixTree
from hfa.inference.row import Row, Stash
from hfa.models.state import flatten, num_bytes, unflatten

_FORMAT = "hfa-session-1"
_LENGTH = re.compile("[0-9]{1,12}")
_MAX_MARKS = 8  # states that snapshots of one session keep


@dataclass(eq=False)
class Session:
    """A stream of tokens, and the state after some or all of them.

    Args:
        name: by which it is asked for.
        tokens: all so far; the last ones may not be read yet.
        owner: whose it is.
        imported: whether its states may stem from outside, so that nobody else is to go on from them.
        row: the state after the first ``row.length`` of them; None to read from the nearest checkpoint.
        marks: states that snapshots keep, by position.
        busy: whether a request is running on it.
        used: when it was, last, on the clock of the checkpoints.
    """

    name: str
    tokens: list[int] = field(default_factory=list)
    owner: str = ""
    imported: bool = False
    row: Row | None = None
    marks: dict[int, Row] = field(default_factory=dict)
    busy: bool = False
    used: int = 0

    def rows(self) -> list[Row]:
        """All states it keeps."""
        row = self.row  # read once: the engine's thread may take it
        return [*self.marks.values(), *([row] if row else [])]


class Moved(NamedTuple):
    """A session on its way to an engine of other weights: without a state, which is of the weights."""

    name: str
    tokens: list[int]
    owner: str


class Exported(NamedTuple):
    """A session outside of its engine, whose thread is not needed to read or write it."""

    facts: dict[str, str]
    tensors: dict[str, Tensor]

    @classmethod
    def from_bytes(cls, data: bytes) -> Exported:
        """Raises RequestError 422 for what is no exported session."""
        try:
            tensors = safetensors.torch.load(data)
            size = int.from_bytes(data[:8], "little")
            facts = json.loads(data[8 : 8 + size]).get("__metadata__") or {}
        except (safetensors.SafetensorError, ValueError, KeyError, RuntimeError, OverflowError) as error:
            raise RequestError(422, f"The body is no safetensors file ({str(error)[:80]}).") from None
        if facts.get("format") != _FORMAT or "tokens" not in tensors or not _LENGTH.fullmatch(facts.get("length", "")):
            raise RequestError(422, "The file is no exported session.")
        return cls(facts, tensors)

    def to_bytes(self) -> bytes:
        """As safetensors."""
        return safetensors.torch.save(self.tensors, metadata=self.facts)


class Sessions:
    """The sessions of one engine. Only its thread may call these; any may look at `num_bytes`.

    Their pages are kept as those of checkpoints are: when streams need the room, the state of the session unused for
    longest goes, and its tokens stay; they are read again when it is continued.

    Args:
        pool: the states.
        prefixes: the checkpoints, which sessions fall back on.
        budget_bytes: for what their states have beside their pages; beyond it, those go that were unused for longest.
        limit: sessions at once; for a new one goes an idle one of whoever has most, that which was unused for longest,
            and none of anybody who has fewer than the newcomer.
        origin: the model and the tokenizer, which an exported session names; asked for when it is needed.
        reclaim: frees pages, if it can.
    """

    def __init__(
        self,
        pool: StatePool,
        prefixes: PrefixTree,
        limit: int,
        budget_bytes: int,
        origin: Callable[[], Origin],
        reclaim: Callable[[int], None],
    ) -> None:
        self._pool, self._prefixes, self._limit, self._budget = pool, prefixes, limit, budget_bytes
        self._origin, self._reclaim = origin, reclaim
        self._sessions: dict[str, Session] = {}
        self._leaving = False  # all go to another engine
        self._awaited: Set[str] = frozenset()  # names of those that will come from another engine

    def __len__(self) -> int:
        return len(self._sessions)

    def create(self, tokens: Iterable[int] = (), owner: str = "") -> Session:
        """A session that begins with `tokens`, which are read with its first request.

        Raises:
            RequestError: 503 when none of those there may be can go.
        """
        if len(self._sessions) >= self._limit:
            have = Counter([owner, *(one.owner for one in self._sessions.values())])
            idle = [one for one in self._sessions.values() if not one.busy and have[one.owner] >= have[owner]]
            if not idle:
                raise RequestError(
                    503,
                    f"All {self._limit} sessions are taken, and no idle one is of anybody with as many as you; "
                    "delete one of yours, or try again later.",
                )
            self.delete(min(idle, key=lambda one: (-have[one.owner], one.used)).name)
        session = Session(secrets.token_urlsafe(12), list(tokens), owner, used=self._prefixes.tick())
        self._sessions[session.name] = session
        return session

    def get(self, name: str, owner: str | None = None) -> Session:
        """Raises RequestError 404 for a session that is not there, or not that owner's, which nobody else learns."""
        session = self._sessions.get(name)
        if session is None and (self._leaving or name in self._awaited):
            raise RequestError(503, "The weights are being replaced by newer ones; try again.")
        if session is None or owner not in (None, session.owner):
            raise RequestError(404, f"session: got {name[:40]!r}, which is not here; it may have been dropped.")
        return session

    def idle(self, name: str, owner: str | None = None) -> Session:
        """A session that nobody is using. Raises RequestError 404 or 409."""
        session = self.get(name, owner)
        if session.busy:
            raise RequestError(409, "A request is running on this session; wait for it to end, or fork the session.")
        return session

    def delete(self, name: str) -> None:
        """Forget a session that nobody is using."""
        session = self.idle(name)
        for row in session.rows():
            self._pool.pages.forget(row.pages)
        del self._sessions[name]

    def snapshot(self, name: str) -> int:
        """Keep the state as it is; returns how many tokens there are, to roll back to or to fork at.

        The next request then reads no more than it would have now: an answer's last token is not in the state yet. The
        states of the latest few are kept; going back to an earlier one reads what is between.
        """
        session = self.idle(name)
        session.used = self._prefixes.tick()
        if session.row is None:
            raise RequestError(409, "The session has no state to keep: continue it first.")
        row, length = session.row, session.row.length  # making room for the copy may take the session's own
        if length not in session.marks:
            session.marks[length] = self._parked(self._forked(row))
        while len(session.marks) > _MAX_MARKS:
            self._pool.pages.forget(session.marks.pop(next(iter(session.marks))).pages)
        self._keep_to_budget()
        return len(session.tokens)

    def fork(self, name: str, at: int | None = None) -> Session:
        """A new session with the first `at` tokens of another; with all of them when that is not said."""
        session = self.idle(name)
        at = len(session.tokens) if at is None else at
        self._check(session, at, "at")
        session.used = self._prefixes.tick()
        nearest = max((row for row in session.rows() if row.length <= at), key=lambda r: r.length, default=None)
        row = self._forked(nearest) if nearest is not None and nearest.length else None
        session.busy = True  # it is not to go for the new one
        try:
            other = self._begun(session.tokens[:at], session.owner, row)
        finally:
            session.busy = False
        other.imported = session.imported
        return other

    def roll_back(self, name: str, to: int) -> Session:
        """Forget all but the first `to` tokens."""
        session = self.idle(name)
        self._check(session, to, "to")
        marks = [position for position in session.marks if position <= to]
        if marks and (session.row is None or session.row.length > to):
            row = self._parked(self._forked(session.marks[max(marks)]))
            self._pool.pages.forget(session.row.pages if session.row else ())
            session.row = row
        self.settle(session, session.tokens[:to])
        self._keep_to_budget()
        return session

    def settle(self, session: Session, tokens: list[int]) -> None:
        """Make `tokens` all that the session has, and let go of states that are beyond them."""
        session.tokens = tokens
        for position in [position for position in session.marks if position > len(tokens)]:
            self._pool.pages.forget(session.marks.pop(position).pages)
        if session.row is not None and session.row.length > len(tokens):
            self._pool.pages.forget(session.row.pages)
            session.row = None

    def take(self, session: Session) -> Row | None:
        """The state to go on from, now the stream's own; None where there is none."""
        row, session.row = session.row, None
        if row is not None:
            self._pool.pages.hold(row.pages)
            self._pool.pages.forget(row.pages)
        return row

    def marked(self, session: Session, after: int, before: int) -> Row | None:
        """A copy of the latest state that snapshots keep between two positions; None where none is, or has room."""
        position = max((position for position in session.marks if after < position < before), default=None)
        try:
            return None if position is None else self._forked(session.marks[position])
        except RequestError:
            return None

    def forget_marks(self, session: Session) -> None:
        """Let go of the states of its snapshots; what they stand for is read again."""
        for row in session.marks.values():
            self._pool.pages.forget(row.pages)
        session.marks = {}

    def park(self, session: Session, row: Row) -> None:
        """Keep the state of a stream that has ended; it still holds its pages."""
        session.row = row
        self._pool.pages.keep(row.pages)
        session.used = self._prefixes.tick()
        self._keep_to_budget()

    def export(self, name: str) -> Exported:
        """Tokens and state of a session, to be loaded by any engine of the same model."""
        session = self.idle(name)
        stash = self._pool.stash(session.row, portable=True) if session.row else None
        tensors = flatten(stash.state) if stash else {}
        tensors = {f"state.{path}": x.contiguous() for path, x in tensors.items()}
        tensors["tokens"] = torch.tensor(session.tokens, dtype=torch.long)
        length = stash.length if stash else 0
        facts = {"format": _FORMAT, "length": str(length), **self._origin()._asdict()}
        return Exported(facts, tensors)

    def load(self, exported: Exported, owner: str = "") -> Session:
        """A session that another engine exported.

        Raises:
            RequestError: 422 for one of another model or tokenizer, or whose parts do not fit; 413 for more tokens than
                the model reads; 503 without room for it.
        """
        facts, tensors = exported.facts, dict(exported.tensors)
        for key, own in self._origin()._asdict().items():
            if facts.get(key) != own:
                raise RequestError(422, f"The session is of another {key}; it can go on with its own only.")
        tokens, length = tensors.pop("tokens"), int(facts["length"])
        vocab_size = self._pool.vocab_size
        if tokens.dtype != torch.long or tokens.dim() != 1 or not 0 <= length <= len(tokens):
            raise RequestError(422, "The session's tokens are not what an export has.")
        if len(tokens) > self._pool.max_seq_len:
            most = self._pool.max_seq_len
            raise RequestError(413, f"The session has {len(tokens)} tokens, and the model reads {most}; shorten it.")
        if ((tokens < 0) | (tokens >= vocab_size)).any():
            raise RequestError(422, f"The session has token ids outside 0 to {vocab_size - 1}.")
        row = self._filled({path.removeprefix("state."): x for path, x in tensors.items()}, length) if length else None
        session = self._begun(tokens.tolist(), owner, row)
        session.imported = True
        return session

    def leave(self) -> tuple[list[Moved], Set[str]]:
        """Give up the idle sessions, the longest unused first, for another engine; and the names of the busy ones."""
        self._leaving = True
        idle = sorted((one for one in self._sessions.values() if not one.busy), key=lambda one: one.used)
        for session in idle:
            self.delete(session.name)
        return [Moved(one.name, one.tokens, one.owner) for one in idle], set(self._sessions)

    def arrive(self, moved: Iterable[Moved], awaited: Set[str]) -> None:
        """Take up sessions that another engine gave up, of which `awaited` will still come."""
        for name, tokens, owner in moved:
            self._sessions[name] = Session(name, tokens, owner, used=self._prefixes.tick())
        self._awaited = awaited

    def evict(self) -> bool:
        """Drop the states of the idle session unused for longest; whether there were any."""
        session = min(self._evictable(), key=lambda one: one.used, default=None)
        if session is None:
            return False
        for row in session.rows():
            self._pool.pages.forget(row.pages)
        session.row, session.marks = None, {}
        return True

    @property
    def num_bytes(self) -> int:
        """What the states of all sessions have beside their pages."""
        sessions = list(self._sessions.values())  # at once: any thread may ask
        return sum(self._pool.own_bytes(row) for session in sessions for row in session.rows())

    @property
    def oldest(self) -> float:
        """When the next one to lose its state was used; infinity without any."""
        return min((session.used for session in self._evictable()), default=float("inf"))

    def _keep_to_budget(self) -> None:
        while self.num_bytes > self._budget and self.evict():
            continue

    def _evictable(self) -> list[Session]:
        return [session for session in self._sessions.values() if session.rows()]

    def _check(self, session: Session, position: int, key: str) -> None:
        if not 0 <= position <= len(session.tokens):
            raise RequestError(422, f"{key}: got {position}, expected 0 to {len(session.tokens)}.")

    def _begun(self, tokens: list[int], owner: str, row: Row | None) -> Session:
        """A new session in the state of `row`, whose pages are free again when there is no place for it."""
        try:
            session = self.create(tokens, owner)
        except RequestError:
            self._pool.pages.drop(row.pages if row else ())
            raise
        session.row = self._parked(row) if row else None
        self._keep_to_budget()
        return session

    def _forked(self, row: Row) -> Row:
        self._pool.pages.hold(row.pages)  # making room must not take them
        try:
            self._make_room(1 if self._pool.page_size and row.length % self._pool.page_size else 0)
            return self._pool.fork(row)
        finally:
            self._pool.pages.drop(row.pages)

    def _make_room(self, count: int) -> None:
        if count > self._pool.pages.num_free:
            self._reclaim(count)
        if count > self._pool.pages.num_free:
            free = self._pool.pages.num_free
            raise RequestError(503, f"The session needs {count} pages of memory, and {free} are free; try again later.")

    def _parked(self, row: Row) -> Row:
        self._pool.pages.keep(row.pages)
        self._pool.pages.drop(row.pages)
        return row

    def _filled(self, tensors: dict[str, Tensor], length: int) -> Row:
        try:
            state = self._pool.checked(unflatten(self._pool.like, tensors), length)
        except KeyError as error:
            raise RequestError(422, f"The session has no tensor {error}.") from None
        except ValueError as error:
            raise RequestError(422, f"The session's state is not one of this model: {error}.") from None
        needed = -(-length // self._pool.page_size) if self._pool.page_size else 0
        self._make_room(needed)
        row = Row(pages=self._pool.pages.take(needed))
        try:
            self._pool.restore(row, Stash(state, length, num_bytes(state)))
        except BaseException:
            self._pool.pages.drop(row.pages)
            raise
        return row
