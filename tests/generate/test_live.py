"""An engine over a model in training: every round answers with the weights of that moment, and what is stale is found."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cairn.errors import UserError
from cairn.generate.engine import Request
from cairn.generate.fast import FastRunner
from cairn.generate.live import Live, Stale
from cairn.generate.runner import Piece
from cairn.generate.sampling import Sampling

from .conftest import VOCAB, build, prompts


def live(model: Any, **more: Any) -> Live:
    return Live(model, attention="sdpa", max_batch=4, longest=64, vocab_size=VOCAB, **more)


def move(model: Any, by: float = 0.3) -> None:
    """An optimiser's step, in place."""
    with torch.no_grad():
        for number, p in enumerate(model.parameters()):
            p.add_(by * p.abs().mean() * torch.sin(torch.arange(p.numel()) + number).view(p.shape).to(p.dtype))


def asked(count: int = 3) -> list[Request]:
    how = Sampling(max_new_tokens=12, temperature=1.0, seed=5)
    return [Request(ids, how, index=i, sample=k) for i, ids in enumerate(prompts(count, 1)) for k in range(2)]


def ids_of(engine: Live) -> list[list[int]]:
    return [completion.ids for completion in engine.generate(asked())[0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_renewed_copies_compute_what_new_ones_would(dtype: torch.dtype) -> None:
    model = build("llama").to(dtype)
    runner = FastRunner(model, 1, 64)
    assert runner.checksum() == runner.weights_checksum()
    move(model)
    assert runner.checksum() != runner.weights_checksum()
    runner.renew()
    assert runner.checksum() == runner.weights_checksum()
    ids = prompts(1, 3, 20, 20)[0]
    got, want = (r.forward([Piece(0, ids, 0, 20)])[0].clone() for r in (runner, FastRunner(model, 1, 64)))
    assert torch.equal(got, want)


def test_weights_that_were_laid_out_anew_are_renewed_too() -> None:
    model = build("llama")
    runner = FastRunner(model, 1, 64)
    for p in model.parameters():
        p.data = p.data.clone()
    move(model)
    runner.renew()
    assert runner.checksum() == runner.weights_checksum()


def test_both_forwards_give_the_same_answers_in_every_round() -> None:
    model = build("llama")
    compiled, own = live(model), live(model, forward="own")
    assert (compiled.compiled, own.compiled) == (True, False)
    rounds = []
    for _ in range(3):
        rounds.append(ids_of(compiled))
        assert rounds[-1] == ids_of(own)
        move(model, 1.0)
    assert rounds[0] != rounds[1] != rounds[2]
    assert model.config._attn_implementation == "sdpa"


def test_the_checksum_is_that_of_the_weights() -> None:
    model = build("llama")
    engine = live(model)
    first = engine.generate(asked())[1]
    assert engine.generate(asked())[1] == first
    move(model)
    assert engine.generate(asked())[1] != first


def test_stale_copies_stop_the_round(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("llama")
    engine = live(model)
    monkeypatch.setattr(FastRunner, "renew", lambda self: None)
    engine.generate(asked())
    move(model, 1e-4)
    with pytest.raises(Stale, match="checksum"):
        engine.generate(asked())


def test_a_forward_that_is_not_the_models_stops_the_round() -> None:
    model = build("llama")
    engine = live(model)
    # The same weights, used otherwise: no checksum sees that.
    model.model.layers[0].self_attn.scaling *= 3.0
    with pytest.raises(Stale, match="logits"):
        engine.generate(asked())


def test_a_model_of_another_structure_runs_by_its_own_forward() -> None:
    model, told = build("gpt2"), list[str]()
    engine = live(model, say=told.append)
    assert not engine.compiled
    assert "own, slower forward" in told[0]
    assert ids_of(engine) == ids_of(live(model, forward="own"))
    with pytest.raises(UserError, match="no compiled forward"):
        live(model, forward="compiled")
