"""Gated linear recurrences: a matrix-valued state that decays, is corrected and is read, token by token."""

from hfa.ops.scan.chunked import chunked_scan, step_scan
from hfa.ops.scan.dispatch import scan
from hfa.ops.scan.naive import naive_scan
from hfa.ops.scan.operator import scan_operator
from hfa.ops.scan.recurrent import recurrent_scan

__all__ = ["chunked_scan", "naive_scan", "recurrent_scan", "scan", "scan_operator", "step_scan"]
