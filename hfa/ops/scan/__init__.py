"""Gated linear recurrences: a matrix-valued state that decays, is corrected and is read, token by token."""

from hfa.ops.scan.chunked import chunked_scan, scan, step_scan
from hfa.ops.scan.naive import naive_scan

__all__ = ["chunked_scan", "naive_scan", "scan", "step_scan"]
