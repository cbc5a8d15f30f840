"""The mathematics: pure functions on tensors, each with an obvious naive form beside the fast one."""
