"""RULER's tasks: models of one size trained on them in short contexts, and measured in longer ones."""
