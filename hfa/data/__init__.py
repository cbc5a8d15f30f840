"""Data: tokenizers, text sources, recall tasks, their mixture, and what hands them to a training loop.

text -> tokenizer -> corpus on disk -> windows of `seq_len` -> `Example` -> `Batch`
"""
