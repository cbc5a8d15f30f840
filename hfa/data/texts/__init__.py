"""Text sources: where documents come from, and what they all do with them."""
