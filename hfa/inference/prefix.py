"""Checkpoints of state in a tree of prefixes: a prompt that begins like an earlier one starts where they part."""

from __future__ import annotations

import hashlib
import itertools
import logging
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
from torch import Tensor

from hfa.inference.disk import CheckpointFolder
from hfa.inference.pool import StatePool
from hfa.inference.row import Row

log = logging.getLogger(__name__)

Miss = Literal["", "off", "short", "new", "evicted", "other model", "other tokenizer", "no room"]
_GHOSTS = 65536  # checkpoints that are gone, or never were, of which it is remembered why


class Keys:
    """The hashes of the prefixes of a list of tokens that only grows, each computed once.

    Args:
        tokens: the list itself.
        every: tokens of a block.
        salt: what is hashed before the first block.
    """

    def __init__(self, tokens: list[int], every: int, salt: str = "") -> None:
        self._tokens, self._every = tokens, every
        self._known = [hashlib.blake2b(salt.encode(), digest_size=16).digest()]

    def __getitem__(self, blocks: int) -> bytes:
        """That of the first so many blocks."""
        while len(self._known) <= blocks:
            end = len(self._known) * self._every
            part = np.asarray(self._tokens[end - self._every : end], np.int64).tobytes()
            self._known.append(hashlib.blake2b(self._known[-1] + part, digest_size=16).digest())
        return self._known[blocks]


@dataclass(eq=False)
class Node:
    """The state after a prefix.

    Args:
        key: hash of the prefix.
        position: its length in tokens.
        parent: the checkpoint before it; None at the first.
        recurrent: the tensors of constant size.
        pages: those after the parent's, all full.
        used: when it was, last.
    """

    key: bytes
    position: int
    parent: Node | None
    recurrent: list[Tensor]
    pages: list[int]
    used: int
    num_bytes: int
    children: int = 0
    path: list[Node] = field(init=False)

    def __post_init__(self) -> None:
        self.path = [*(self.parent.path if self.parent else ()), self]


class Found(NamedTuple):
    """The deepest checkpoint of a prompt, and why there is none deeper."""

    node: Node | None
    miss: Miss


class PrefixTree:
    """The checkpoints of one model.

        tokens    0 ........ every ....... 2 every ....... 3 every
                  `- hash -'`--- hash ---'`--- hash ---'           each of the hash before and the tokens between
        node                1             2             3          pages: its own part alone; those before: its parent's

    The pages are those of the streams that made them: a checkpoint keeps them from being given away.

    Args:
        pool: the states.
        every: tokens between two checkpoints; whole pages; 0 for none.
        budget_bytes: for all checkpoints.
        folder: where checkpoints are written too, and found after a restart; None for nowhere.
    """

    def __init__(self, pool: StatePool, every: int, budget_bytes: int, folder: CheckpointFolder | None) -> None:
        self.every, self.num_bytes = every, 0
        self._pool, self._budget, self._folder = pool, budget_bytes, folder
        self._nodes: dict[bytes, Node] = {}
        self._ghosts: OrderedDict[bytes, Miss] = OrderedDict()
        self._clock = itertools.count(1)

    def __len__(self) -> int:
        return len(self._nodes)

    def find(self, keys: Keys, length: int) -> Found:
        """The deepest checkpoint of the first `length` tokens that leaves at least one of them to read."""
        if not self.every:
            return Found(None, "off")
        if length <= self.every:
            return Found(None, "short")
        node: Node | None = None
        for blocks in range(1, (length - 1) // self.every + 1):
            key = keys[blocks]
            deeper = self._nodes.get(key)
            miss: Miss = ""
            if deeper is None:
                deeper, miss = self._load(key, node)
            if deeper is None:
                return self._use(Found(node, miss))
            node = deeper
        return self._use(Found(node, ""))

    def start(self, node: Node) -> Row:
        """A row that goes on from a checkpoint."""
        row = Row(pages=[page for one in node.path for page in one.pages], length=node.position)
        self._pool.adopt(row, [x.to(self._pool.device) for x in node.recurrent])  # which may have moved since
        self._pool.pages.hold(row.pages)
        return row

    def put(self, keys: Keys, row: Row, recurrent: Sequence[Tensor]) -> None:
        """Keep the state of a row that has read a whole number of blocks, unless it is not finite."""
        blocks = row.length // self.every
        key = keys[blocks]
        if key in self._nodes:
            return
        parent = self._nodes.get(keys[blocks - 1])
        if blocks > 1 and parent is None:
            return  # its own was evicted meanwhile: a branch without a stem would be found by nobody
        size = self._pool.page_size
        first = parent.position // size if parent and size else 0
        pages = row.pages[first : row.length // size] if size else []
        if not self._pool.is_finite(recurrent, pages):
            return  # nobody who begins like this one is to fail with it
        node = self._add(key, row.length, parent, [x.clone() for x in recurrent], pages)
        if self._folder is not None and node is not None:
            self._folder.use([one.key for one in node.path[:-1]])
            self._folder.write(key, parent.key if parent else b"", row.length, recurrent, self._pool.copy(pages))

    def drop(self, node: Node) -> None:
        """Forget a checkpoint that cannot be trusted, those before it, and all that follow from them; on disk too."""
        stem = node.path[0]
        grown = [one for one in self._nodes.values() if one.path[0] is stem]
        for one in grown:
            self._remove(one)
        if self._folder is not None:
            for one in {*node.path, *grown}:
                self._folder.remove(one.key)

    def evict(self) -> bool:
        """Drop the leaf that was unused for longest; whether there was one."""
        leaf = min((node for node in self._nodes.values() if not node.children), key=lambda n: n.used, default=None)
        if leaf is None:
            return False
        self._remove(leaf)
        return True

    @property
    def oldest(self) -> float:
        """When the next one to be evicted was used; infinity without any."""
        return min((node.used for node in self._nodes.values() if not node.children), default=float("inf"))

    def tick(self) -> int:
        """A moment on the clock of `used`."""
        return next(self._clock)

    def _add(
        self, key: bytes, position: int, parent: Node | None, recurrent: list[Tensor], pages: list[int]
    ) -> Node | None:
        own = sum(x.numel() * x.element_size() for x in recurrent)
        num_bytes = own + len(pages) * self._pool.page_bytes
        while self.num_bytes + num_bytes > self._budget:
            if parent is not None:
                parent.used = self.tick()
            if not self._nodes or num_bytes > self._budget or not self._evict_but(parent):
                self._remember(key, "no room")
                return None
        node = Node(key, position, parent, recurrent, list(pages), self.tick(), num_bytes)
        self._nodes[key] = node
        self._pool.pages.keep(pages)
        self.num_bytes += num_bytes
        if parent:
            parent.children += 1
        self._ghosts.pop(key, None)
        return node

    def _remove(self, node: Node) -> None:
        del self._nodes[node.key]
        self._pool.pages.forget(node.pages)
        self.num_bytes -= node.num_bytes
        if node.parent:
            node.parent.children -= 1
        self._remember(node.key, "evicted")

    def _remember(self, key: bytes, miss: Miss) -> None:
        self._ghosts[key] = miss
        if len(self._ghosts) > _GHOSTS:
            self._ghosts.popitem(last=False)

    def _evict_but(self, kept: Node | None) -> bool:
        if kept is None:
            return self.evict()
        kept.children += 1  # a leaf no longer, as far as eviction goes
        try:
            return self.evict()
        finally:
            kept.children -= 1

    def _use(self, found: Found) -> Found:
        for node in found.node.path if found.node else ():
            node.used = self.tick()
        if self._folder is not None and found.node:
            self._folder.use([one.key for one in found.node.path])
        return found

    def _load(self, key: bytes, parent: Node | None) -> tuple[Node | None, Miss]:
        """A checkpoint from the folder, or why there is none."""
        miss = self._ghosts.get(key, "new")
        if self._folder is None:
            return None, miss
        stored = self._folder.read(key)
        if isinstance(stored, str):
            return None, stored or miss
        size = self._pool.page_size
        count = self.every // size if size else 0
        if count > self._pool.pages.num_free:
            return None, "no room"
        position = parent.position + self.every if parent else self.every
        try:
            self._pool.check(stored.recurrent, stored.pages, count, position)
        except ValueError as error:
            log.warning("A checkpoint in %s does not fit and is removed: %s", self._folder.path, error)
            self._folder.remove(key)
            return None, miss
        pages = self._pool.pages.take(count)
        try:
            self._pool.paste(pages, stored.pages)
            recurrent = [x.to(self._pool.device) for x in stored.recurrent]
            node = self._add(key, position, parent, recurrent, pages)
        finally:
            self._pool.pages.drop(pages)
        return node, "" if node else "no room"
