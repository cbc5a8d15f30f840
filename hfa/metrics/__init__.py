"""Measures: small accumulators that are fed batch by batch, merge across processes, and keep as JSON."""
