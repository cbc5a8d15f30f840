"""Layers that every model shares."""
