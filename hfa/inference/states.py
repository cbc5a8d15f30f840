"""What becomes of the states of requests: where they begin, what is kept of them, what goes when memory is short."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import torch

from hfa.errors import first_line
from hfa.inference.disk import CheckpointFolder, Origin
from hfa.inference.prefix import PrefixTree
from hfa.inference.row import Row
from hfa.inference.runner import Runner
from hfa.inference.sequence import Sequence
from hfa.inference.session import Sessions

log = logging.getLogger(__name__)

_MIB = 2**20


class States:
    """The states of running requests, of those set aside, of checkpoints and of sessions: one memory for all.

    Args:
        runner: the model, and the pool that the states are in.
        name: of the model, for logs.
        origin: what a state belongs to, asked for when it is needed: it takes a look at all weights.
        wake: called before what takes long, so that nobody waits for what is there already.
        checkpoint_every: tokens between two checkpoints; 0 for none.
        checkpoint_budget_mib: memory for checkpoints.
        checkpoint_dir: where they are written to, as well; empty for nowhere.
        checkpoint_disk_mib: for what is written there.
        swap_budget_mib: memory for the states of sequences that are set aside.
        max_sessions: that stay.
        session_budget_mib: memory for what their states have beside their pages.
    """

    def __init__(
        self,
        runner: Runner,
        name: str,
        origin: Callable[[], Origin],
        wake: Callable[[], None],
        *,
        checkpoint_every: int,
        checkpoint_budget_mib: int,
        checkpoint_dir: str,
        checkpoint_disk_mib: int,
        swap_budget_mib: int,
        max_sessions: int,
        session_budget_mib: int,
    ) -> None:
        self._runner, self._pool, self._name, self._wake = runner, runner.pool, name, wake
        folder = None
        if checkpoint_dir and checkpoint_every:
            folder = CheckpointFolder(Path(checkpoint_dir).expanduser(), origin(), checkpoint_disk_mib * _MIB)
        self.prefixes = PrefixTree(self._pool, checkpoint_every, checkpoint_budget_mib * _MIB, folder)
        self.sessions = Sessions(
            self._pool, self.prefixes, max_sessions, session_budget_mib * _MIB, origin, self.reclaim
        )
        self._swap_budget = swap_budget_mib * _MIB
        self.swapped_bytes = 0  # of sequences that are set aside

    def begin(self, sequence: Sequence) -> Row:
        """The state that an admitted sequence starts from: its own, its session's, a snapshot's or a checkpoint's."""
        self._wake()
        if sequence.stash is not None:
            sequence.position = sequence.stash.length
            return Row()
        row = self.sessions.take(sequence.session) if sequence.session else None
        if row is None:
            found = self.prefixes.find(sequence.keys, len(sequence.tokens))
            if sequence.session and sequence.session.marks:
                reached = found.node.position if found.node else 0
                row = self.sessions.marked(sequence.session, after=reached, before=len(sequence.tokens))
                # Making room for it may have taken the checkpoint.
                found = self.prefixes.find(sequence.keys, len(sequence.tokens))
            if row is None:
                row = self.prefixes.start(found.node) if found.node else Row()
                sequence.node = found.node
            sequence.miss = found.miss
        sequence.position = row.length
        if not sequence.preemptions:
            sequence.cached = row.length
        return row

    def keep(self, sequence: Sequence) -> None:
        """Make a checkpoint where one is due; never of a state that may stem from outside."""
        row, every = sequence.row, self.prefixes.every
        if not every or row is None or (sequence.session is not None and sequence.session.imported):
            return
        if row.length and row.length % every == 0 and row.length == sequence.position:
            try:
                self.prefixes.put(sequence.keys, row, self._runner.recurrent(row))
            except torch.OutOfMemoryError as error:
                log.warning("No room for a checkpoint of %s (%s)", self._name, first_line(error))

    def reclaim(self, count: int) -> None:
        """Free pages of checkpoints and idle sessions, the longest unused first, until `count` are free."""
        while count > self._pool.pages.num_free:
            kept = self.prefixes if self.prefixes.oldest <= self.sessions.oldest else self.sessions
            if not kept.evict():
                return

    def park(self, sequence: Sequence) -> None:
        """A session keeps the state of its stream, unless the stream has failed."""
        if sequence.session is not None and not sequence.failed:
            try:
                self._runner.part(sequence.active)
            except Exception:  # the session is read again from its tokens
                log.exception("The state of a session of %s is lost", self._name)
                return
            if sequence.active.recurrent is not None:
                self.sessions.park(sequence.session, sequence.active)

    def set_aside(self, sequence: Sequence) -> None:
        """Keep the state of a sequence that is preempted; without one, its tokens are read again."""
        self._wake()
        row = sequence.active
        if sequence.stash is not None or not row.length:
            return  # it has not got its state back yet, or none
        if self.swapped_bytes + self._pool.state_bytes(row.length) > self._swap_budget:
            self._runner.release(row)
            return
        sequence.stash = self._runner.stash(row)
        self.swapped_bytes += sequence.stash.num_bytes

    def restore(self, sequence: Sequence) -> None:
        """Give a sequence that was set aside its state again."""
        if sequence.stash is not None:
            self._runner.restore(sequence.active, sequence.stash)
            self.drop(sequence)

    def drop(self, sequence: Sequence) -> None:
        """Forget what was set aside of a sequence."""
        if sequence.stash is not None:
            self.swapped_bytes -= sequence.stash.num_bytes
            sequence.stash = None

    def distrust(self, sequence: Sequence) -> None:
        """Forget what a sequence began with: it may be to blame for numbers that are none."""
        if sequence.node is not None:
            self.prefixes.drop(sequence.node)
        if sequence.session is not None:
            self.sessions.forget_marks(sequence.session)

    def release(self, sequence: Sequence) -> None:
        """Take what a sequence that has ended holds."""
        if sequence.row is not None:
            try:
                self._runner.release(sequence.row)
            except Exception:  # of a device that is lost: its callers are told all the same
                log.exception("The batch of %s could not be closed up", self._name)
        self.drop(sequence)
