"""Bits per byte of real text, every model on equal terms."""
