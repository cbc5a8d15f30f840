"""Errors written for people: which key, what came, what was expected, what to do."""

from __future__ import annotations

import errno

PASSING = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ENFILE)  # what a machine has at the moment


class HFAError(Exception):
    """Base of every error a user can cause; its text is one sentence, shown without a traceback."""


def first_line(error: BaseException) -> str:
    """What an error of a library says first, for a sentence of ours to quote; its kind where it says nothing."""
    lines = str(error).splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


class ConfigError(HFAError):
    """A configuration value that cannot work.

    Args:
        key: dotted path of the value as the user types it, e.g. ``model.num_heads``.
        got: the value that came.
        expected: what would have been accepted, in words.
        remedy: what to do about it; empty when `expected` already says so.
    """

    def __init__(self, key: str, got: object, expected: str, remedy: str = "") -> None:
        self.key, self.got, self.expected, self.remedy = key, got, expected, remedy
        super().__init__(f"{key}: got {got!r}, expected {expected}" + (f"; {remedy}" if remedy else "") + ".")

    def under(self, prefix: str) -> ConfigError:
        """The same error with its key seen from one level further out."""
        key = f"{prefix}.{self.key}" if prefix else self.key
        return ConfigError(key, self.got, self.expected, self.remedy)


class PassingError(HFAError):
    """What is nobody's mistake and passes: a service that is away, a disk that is full. Worth another try."""


class DataError(HFAError):
    """A text source or a recall task that cannot give examples."""


class CheckpointError(HFAError):
    """An artifact that is missing, torn or foreign."""


class NetworkError(HFAError):
    """A wallet, registration or chain that does not allow what was asked."""


class RequestError(HFAError):
    """A request that is refused, with the HTTP status that says so.

    Args:
        status: a 4xx or 503.
        sentence: what was wrong and what to do.
    """

    def __init__(self, status: int, sentence: str) -> None:
        self.status = status
        super().__init__(sentence)
