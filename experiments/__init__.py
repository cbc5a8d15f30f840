"""Studies: one folder each, with its claim, its command, its results and their provenance."""
