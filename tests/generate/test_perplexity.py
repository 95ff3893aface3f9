"""Perplexity over runners: against the models' own loss, and what it says of rounding."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from cairn.generate.fast import FastRunner
from cairn.generate.hf_runner import HfRunner
from cairn.generate.perplexity import compare, logprobs, own_text, perplexity

from .conftest import VOCAB, build, prompts


def test_it_is_the_exponential_of_the_models_own_loss(llama: Any) -> None:
    ids = prompts(1, seed=1, low=50, high=50)[0]
    with torch.inference_mode():
        given = torch.tensor([ids])
        want = math.exp(float(llama(input_ids=given, labels=given).loss))
    for runner in (FastRunner(llama, 2, 64), HfRunner(llama, 2)):
        assert perplexity(logprobs(runner, ids), ids) == pytest.approx(want, rel=1e-4)


def test_an_indifferent_model_has_the_perplexity_of_its_vocabulary() -> None:
    model = build("llama")
    model.lm_head.weight.data.zero_()
    runner = FastRunner(model, 1, 64)
    text = own_text(runner, 5, 60)
    assert perplexity(logprobs(runner, text), text) == pytest.approx(VOCAB)
    assert len(set(text)) > 30
    assert text == own_text(runner, 5, 60)
    assert text != own_text(runner, 5, 60, seed=1)


def test_coarser_weights_cost_more() -> None:
    model = build("llama")
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.data *= 0.3
    full = FastRunner(model, 1, 128)
    found = {kind: compare(full, FastRunner(model, 1, 128, weights=kind), tokens=120) for kind in ("float32", "int8", "int4")}
    assert found["float32"]["difference"] == found["float32"]["divergence"] == 0
    assert 0 < 10 * found["int8"]["divergence"] < found["int4"]["divergence"] < 1
    assert found["int8"]["rounded"] == pytest.approx(found["int8"]["full"] * (1 + found["int8"]["difference"]))
