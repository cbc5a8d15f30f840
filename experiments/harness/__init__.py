"""The language-model evaluation harness on a checkpoint of ours, with local data."""
