"""Recall tasks, made on the fly from a seed at any length."""
