"""Page numbers with reference counts: who may write where in the exact memory, and what may be taken back."""

from __future__ import annotations

from collections.abc import Sequence


def pages_of(length: int, page_size: int) -> int:
    """Pages that `length` tokens take; none where a state does not grow, whose page size is 0."""
    return -(-length // page_size) if page_size else 0


class PagePool:
    """Numbers of pages, each free, held by streams, or kept by checkpoints alone (*idle*).

    A page that more than one refers to is full, and never written again; whoever goes on from it starts the next one.

    Args:
        num_pages: how many there are.
    """

    def __init__(self, num_pages: int) -> None:
        self.num_pages = num_pages
        self._free = list(range(num_pages - 1, -1, -1))
        self._held = [0] * num_pages
        self._kept = [0] * num_pages
        self.num_idle = 0

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_held(self) -> int:
        """Pages that some stream refers to."""
        return self.num_pages - self.num_free - self.num_idle

    def take(self, count: int) -> list[int]:
        """Free pages for one stream; the caller has made sure that there are so many."""
        pages = [self._free.pop() for _ in range(count)]
        for page in pages:
            self._held[page] = 1
        return pages

    def hold(self, pages: Sequence[int]) -> None:
        """One more stream refers to pages that are held or kept already."""
        for page in pages:
            self.num_idle -= self._held[page] == 0
            self._held[page] += 1

    def drop(self, pages: Sequence[int]) -> None:
        """A stream no longer refers to them."""
        for page in pages:
            self._held[page] -= 1
            if not self._held[page]:
                self._settle(page)

    def keep(self, pages: Sequence[int]) -> None:
        """A checkpoint refers to pages that are held or kept already."""
        for page in pages:
            self._kept[page] += 1

    def forget(self, pages: Sequence[int]) -> None:
        """A checkpoint no longer refers to them."""
        for page in pages:
            self._kept[page] -= 1
            if not self._kept[page] and not self._held[page]:
                self.num_idle -= 1
                self._free.append(page)

    def _settle(self, page: int) -> None:
        if self._kept[page]:
            self.num_idle += 1
        else:
            self._free.append(page)
