"""The mathematics: pure functions on tensors, each with an obvious naive form beside the fast one."""

from hfa.ops.compiled import keep_by_source

keep_by_source()  # before any kernel is declared
