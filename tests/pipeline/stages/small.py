"""The beginning of a recipe for tests: a tokenizer, and a small model that has read `talk.jsonl`. Knows no rows."""

from __future__ import annotations


def head(*, steps: int = 40, context: int = 128) -> str:
    """The recipe `small` up to its stage `base`; further stages follow it."""
    return f"""\
recipe: small
seed: 1
stages:
  tok: {{kind: tokenizer, vocab_size: 300, format: k2, data: [{{name: a, path: talk.jsonl}}]}}
  base:
    kind: train
    tokenizer: tok
    model: {{hidden_size: 32, layers: 2, heads: 4, kv_heads: 2, intermediate_size: 64, context: {context}}}
    data: [{{name: a, path: talk.jsonl}}]
    steps: {steps}
    sequence_length: 64
    batch_sequences: 8
"""
