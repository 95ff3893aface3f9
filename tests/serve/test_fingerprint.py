"""The fingerprint: the same for the same, another for whatever may change an answer's bytes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cairn.generate.load import load
from cairn.serve.fingerprint import fingerprint


def test_it_names_what_runs(checkpoints: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    first = load(checkpoints("neox"))
    name = fingerprint(first)
    assert fingerprint(load(checkpoints("neox"))) == name
    options: list[Any] = [{"deterministic": True}, {"dtype": "bfloat16"}, {"drafts": "lookup"}, {"format": "chatml"}]
    others = [fingerprint(load(checkpoints("neox"), **words)) for words in options]
    with torch.no_grad():
        weight = first.engine.model.get_input_embeddings().weight
        weight[0, 0] += 1e-3
        others.append(fingerprint(first))
        weight[0, 0] -= 1e-3
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    others.append(fingerprint(first))
    assert len({name, *others}) == 7
    assert all(one.startswith("fp_") and len(one) == 15 for one in others)
