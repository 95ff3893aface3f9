"""Which runner a model gets, what is said about it, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cairn.errors import UserError
from cairn.generate.choose import Choose
from cairn.generate.engine import Engine, Request
from cairn.generate.fast import FastRunner
from cairn.generate.hf_runner import HfRunner
from cairn.generate.native import build as native
from cairn.generate.sampling import Sampling
from cairn.generate.speculate import Speculative

from .conftest import build, prompts


def test_a_known_structure_runs_compiled_and_another_says_why_not(llama: Any) -> None:
    said: list[str] = []
    assert isinstance(Choose(say=said.append)(llama, 2, False), FastRunner)
    assert said == []
    assert isinstance(Choose(say=said.append)(build("gpt2"), 2, False), HfRunner)
    assert len(said) == 1
    assert "own, slower forward" in said[0]


def test_without_a_compiler_the_models_own_forward_runs_and_that_is_said(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(weights: str) -> Any:
        raise native.Unavailable("no C++ compiler is installed")

    monkeypatch.setattr(native, "library", none)
    said: list[str] = []
    engine = Engine(llama, runner=Choose(say=said.append))
    request = Request([5, 6, 7], Sampling(max_new_tokens=5))
    assert engine.generate([request]) == Engine(llama).generate([request])
    assert "no C++ compiler" in said[0]
    with pytest.raises(UserError, match="no int8 weights: no C"):
        Choose("int8")(llama, 2, False)


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_the_price_of_rounding_is_told(llama: Any, kind: str) -> None:
    said: list[str] = []
    runner = Choose(kind, say=said.append)(llama, 2, False)
    assert isinstance(runner, FastRunner)
    assert runner.weights == kind
    assert f"with {kind} weights" in said[0]
    assert "127 tokens of the model's own" in said[0]


@pytest.mark.parametrize("alone", [False, True])
def test_drafts_give_the_same_answers(llama: Any, alone: bool) -> None:
    requests = [Request((ids * 3)[:40], Sampling(max_new_tokens=30), index=i) for i, ids in enumerate(prompts(6, seed=1))]
    plain = Engine(llama, runner=Choose(), deterministic=alone).generate(requests)
    for drafts in ("lookup", build("llama", seed=3), build("gpt_neox")):
        engine = Engine(llama, runner=Choose(drafts=drafts), deterministic=alone)
        assert engine.generate(requests) == plain
        assert isinstance(engine.scheduler.runner, Speculative)
        assert engine.scheduler.runner.counts["drafted"] > 0 or drafts != "lookup"


def test_a_draft_model_of_another_vocabulary_is_refused(llama: Any) -> None:
    small = build("llama")
    small.resize_token_embeddings(90)
    with torch.inference_mode(), pytest.raises(UserError, match="knows 90 ids, the model 96"):
        Choose(drafts=small)(llama, 2, False)
