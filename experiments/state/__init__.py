"""Recall against the number of floats a model may carry."""
