"""The loop: it learns, resumes to the same bytes, and what must change nothing changes nothing but rounding."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cairn.data.encode import document
from cairn.errors import UserError
from cairn.ledger.digest import file_digest
from cairn.ledger.progress import Silent
from cairn.model.adapter import adapter_of, attach
from cairn.model.adapter_config import AdapterConfig
from cairn.model.cost import memory
from cairn.model.recompute import blocks_of, dimensions_of
from cairn.train import checkpoint
from cairn.train.config import Training, memory_run
from cairn.train.loop import read_metrics
from cairn.train.ranks import ALONE
from cairn.train.sharding import fit

from .conftest import documents


def losses(folder):
    return [line["loss"] for line in read_metrics(folder / "metrics.jsonl")]


def weights(trainer):
    return {name: tensor.detach().clone() for name, tensor in trainer.masters.named.items()}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["muon", "adamw"])
@pytest.mark.parametrize("objective", ["supervised", "language_model"])
def test_it_learns(tmp_path, make_trainer, precision, kind, objective):
    rate = 0.02 if kind == "muon" else 0.01
    optimizer = {"kind": kind, "lr": rate, "adam_lr": 0.01}
    trainer = make_trainer(tmp_path, steps=40, precision=precision, objective=objective, optimizer=optimizer)
    trainer.resume()
    trainer.run()
    found = losses(tmp_path)
    assert found[-1] < 0.5 * found[0]


PLAIN: dict[str, dict] = {"float32": {}, "bfloat16": {"precision": "bfloat16"}}
STATEFUL: dict[str, dict] = {
    "int8": {"optimizer": {"state": "int8"}},
    "adamw, int8": {"optimizer": {"kind": "adamw", "state": "int8"}},
    "pure": {"precision": "bfloat16-pure"},
    "pure, int8, average": {"precision": "bfloat16-pure", "optimizer": {"state": "int8"}, "ema": {"decay": 0.9, "every": 2, "start": 4}},
    "average": {"precision": "bfloat16", "ema": {"decay": 0.9}},
}


@pytest.mark.parametrize(
    ("options", "stop"), [*((o, s) for o in PLAIN.values() for s in (3, 5, 8)), *((o, 5) for o in STATEFUL.values())], ids=str
)
def test_a_run_that_was_stopped_ends_with_the_same_bytes(tmp_path, make_trainer, options, stop):
    settings = {"checkpoints": {"every": 4, "keep": 2, "resume_seconds": 1e-9}, **options}
    whole = make_trainer(tmp_path / "whole", **settings)
    whole.resume()
    figures = whole.run()
    first = make_trainer(tmp_path / "cut", **settings)
    first.resume()
    first.run(until=stop)
    # What a kill leaves: half a line of metrics, and half a checkpoint aside.
    with open(tmp_path / "cut" / "metrics.jsonl", "a") as metrics:
        metrics.write('{"step": 99, "lo')
    (tmp_path / "cut" / "resume" / ".step-000099").mkdir()
    second = make_trainer(tmp_path / "cut", **settings)
    assert 0 < second.resume() <= stop
    assert second.run() == figures
    assert (tmp_path / "cut" / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()
    assert checkpoint.steps_in(tmp_path / "whole" / "checkpoints") == [4, 8]
    for step in (4, 8):
        for name in ("weights.safetensors", "optimizer.safetensors", "place.json"):
            path = f"checkpoints/{checkpoint.name_of(step)}/{name}"
            assert file_digest(tmp_path / "cut" / path) == file_digest(tmp_path / "whole" / path)
    assert all(torch.equal(a, b) for a, b in zip(weights(whole).values(), weights(second).values(), strict=True))
    finished = [trainer.finished_model().state_dict() for trainer in (whole, second)]
    assert all(torch.equal(value, finished[1][name]) for name, value in finished[0].items())


@pytest.mark.parametrize("kind", ["muon", "adamw"])
@pytest.mark.parametrize(
    ("options", "tolerance"), [({"optimizer": {"state": "int8"}}, 0.02), ({"precision": "bfloat16-pure"}, 0.05)], ids=str
)
def test_what_saves_memory_learns_as_well(tmp_path, make_trainer, kind, options, tolerance):
    """Against fp32 states, and against fp32 masters."""
    rate = {"kind": kind, "lr": 0.02 if kind == "muon" else 0.01, "adam_lr": 0.01}
    said, tails = [], []
    base = {"precision": "bfloat16"} if "precision" in options else {}
    for name, given in {"usual": base, "small": options}.items():
        trainer = make_trainer(tmp_path / name, steps=30, **{**given, "optimizer": rate | given.get("optimizer", {})})
        trainer.resume()
        trainer.run()
        said.append(sum(value.nbytes for value in {**trainer.state().optimizer, **trainer.state().weights}.values()))
        tails.append(sum(losses(tmp_path / name)[-10:]) / 10)
    assert tails[1] == pytest.approx(tails[0], rel=tolerance)
    assert said[1] < said[0]


def test_the_memory_of_8_bit_states_is_told(tmp_path, make_trainer):
    progress, said = Silent(), []
    progress.note = said.append
    make_trainer(tmp_path, optimizer={"state": "int8"}, progress=progress)
    assert said == ["optimiser states take 25.4 kB in int8, and would take 87.8 kB in float32"]


def test_the_finished_model_is_the_average(tmp_path, make_trainer):
    trainer = make_trainer(tmp_path, ema={"decay": 0.8, "use": "both"})
    trainer.resume()
    expected = None
    while trainer.step < trainer.total:
        trainer.one_step()
        now = weights(trainer)
        expected = now if expected is None else {n: 0.8 * expected[n] + 0.2 * w for n, w in now.items()}
    last = {name: p.clone() for name, p in trainer.finished_model(last=True).named_parameters()}
    assert all(torch.equal(last[name], w) for name, w in now.items())
    for name, p in trainer.finished_model().named_parameters():
        torch.testing.assert_close(p.detach(), expected[name], rtol=1e-5, atol=1e-6)
        assert not torch.equal(p, last[name])


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "bfloat16-pure"])
def test_frozen_weights_stay_and_the_rest_learns(tmp_path, make_trainer, precision):
    trainer = make_trainer(tmp_path, steps=2, precision=precision, frozen="layers.0")
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.resume()
    trainer.run()
    moved = {name for name, p in trainer.finished_model().named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name in before if "layers.0" not in name}
    assert set(trainer.state().weights) == moved


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_muP_scales_the_rates_of_a_run_and_survives_a_stop(tmp_path, make_trainer, kind):
    settings = {"optimizer": {"kind": kind, "lr": 0.02}, "mup": {"base_width": 8}}
    whole = make_trainer(tmp_path / "whole", **settings)
    peaks = {group["peak"] for part in whole.optimizer._parts for group in part.param_groups}
    # The head is tied: its multiplier is in the last norm's gain, which AdamW moves.
    assert peaks == ({0.02, 0.02 / 4} if kind == "adamw" else {0.02, 0.003, 0.003 / 4})
    whole.resume()
    whole.run()
    first = make_trainer(tmp_path / "cut", **settings)
    first.resume()
    first.run(until=5)
    checkpoint.save(tmp_path / "cut" / "resume", 5, first.state())
    second = make_trainer(tmp_path / "cut", **settings)
    assert second.resume() == 5
    second.run()
    assert all(torch.equal(a, b) for a, b in zip(weights(whole).values(), weights(second).values(), strict=True))


def test_accumulation_changes_nothing_but_rounding(tmp_path, make_trainer):
    """Rows with few and with many targets in one step: a mean of means would differ by far."""
    uneven = [document([i % 50 for i in range(20)], [int(i in (3, 9)) for i in range(20)]) for _ in range(20)]
    for name, (sequences, accumulate) in {"one": (8, 1), "two": (4, 2), "four": (2, 4)}.items():
        trainer = make_trainer(tmp_path / name, sources=[documents(), uneven], batch_sequences=sequences, accumulate=accumulate)
        trainer.resume()
        trainer.run()
    one = losses(tmp_path / "one")
    for other in ("two", "four"):
        np.testing.assert_allclose(losses(tmp_path / other), one, rtol=2e-4)


def test_packed_equals_unpacked(tmp_path, make_trainer):
    for name in ("packed", "alone"):
        trainer = make_trainer(tmp_path / name, steps=4)
        assert trainer.packed
        if name == "alone":
            trainer.packed = False
            trainer.model.set_attn_implementation(trainer.plain_attention)
        trainer.resume()
        trainer.run()
    np.testing.assert_allclose(losses(tmp_path / "packed"), losses(tmp_path / "alone"), rtol=1e-4)


@pytest.mark.parametrize("z_loss", [0.0, 0.01])
def test_the_loss_is_that_of_plain_cross_entropy(tmp_path, make_trainer, z_loss):
    """Against transformers' own forward, one document at a time, over the masked tokens of the first step."""
    trainer = make_trainer(tmp_path, steps=1, z_loss=z_loss)
    batch = trainer.stream.batch_at(0)
    trainer.stream.restore({"step": 0, "cursor": 0})
    trainer.model.set_attn_implementation("eager")
    total, plain, count, at = 0.0, 0.0, 0, 0
    with torch.no_grad():
        for n in batch.doc_lengths:
            ids, mask = torch.as_tensor(batch.ids[at : at + n]), batch.mask[at : at + n]
            logits = trainer.model(ids[None]).logits[0]
            logp, spread = logits.log_softmax(-1), logits.logsumexp(-1)
            for i in range(1, n):
                if mask[i]:
                    plain, count = plain - float(logp[i - 1, ids[i]]), count + 1
                    total += z_loss * float(spread[i - 1]) ** 2 - float(logp[i - 1, ids[i]])
            at += n
    from cairn.model.packing import enable

    enable(trainer.model)
    line = trainer.one_step()
    assert line["supervised_tokens"] == count
    assert line["loss"] == pytest.approx(total / count, rel=1e-5)
    assert line["sources"]["source 1"]["loss"] == pytest.approx(plain / count, rel=1e-5)


def test_a_family_that_leaks_trains_one_by_one_and_says_so(tmp_path, make_trainer):
    said = []
    trainer = make_trainer(tmp_path, family="stablelm", steps=2)
    assert not trainer.packed
    trainer.progress.note = said.append
    type(trainer).__init__(trainer, trainer.model.float(), trainer.stream, trainer.config, tmp_path, trainer.progress)
    assert "one by one" in said[0]
    trainer.resume()
    trainer.run()
    assert len(losses(tmp_path)) == 2


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, make_trainer):
    trainer = make_trainer(tmp_path)
    trainer.masters.named["model.norm.weight"].data.fill_(float("nan"))
    with pytest.raises(UserError, match="loss is nan"):
        trainer.one_step()


def test_a_step_without_targets_stops_the_run(tmp_path, make_trainer):
    trainer = make_trainer(tmp_path, sources=[[document([1, 2, 3], [0, 0, 0])]])
    with pytest.raises(UserError, match="no supervised token"):
        trainer.one_step()


def test_a_checkpoint_of_another_shape_is_refused(tmp_path, make_trainer):
    trainer = make_trainer(tmp_path)
    state = trainer.state()
    bad = checkpoint.State({**state.weights, "model.norm.weight": torch.zeros(7)}, state.optimizer, state.place)
    with pytest.raises(UserError, match=r"\(7,\)"):
        trainer.restore(bad)


def test_metrics_hold_no_clock(tmp_path, make_trainer):
    trainer = make_trainer(tmp_path, steps=2)
    trainer.resume()
    trainer.run()
    for line in read_metrics(tmp_path / "metrics.jsonl"):
        assert set(line) == {"step", "loss", "lr", "grad_norm", "tokens", "supervised_tokens", "sources"}
    assert json.loads((tmp_path / "logs" / "speed.jsonl").read_text().splitlines()[0])["seconds"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_compiled_runs_repeat_and_resume_to_the_same_bytes(tmp_path, precision):
    """Formulas by torch's compiler in fp32, and by our own kernels in bf16. Two processes, the second of which begins in the middle: what
    was seen first must not matter."""
    script = """
import sys
from pathlib import Path
import torch, torch._dynamo.utils as dynamo
from tests.train.conftest import make_trainer
folder, until = Path(sys.argv[1]), int(sys.argv[2])
make = make_trainer.__wrapped__() if hasattr(make_trainer, "__wrapped__") else make_trainer._get_wrapped_function()()
trainer = make(folder, family="qwen3", compile="on", precision=sys.argv[3], checkpoints={"every": 5, "keep": 1})
assert trainer.native != trainer.compiled == (sys.argv[3] == "float32")
before = dynamo.counters["stats"]["unique_graphs"]
trainer.resume()
trainer.run(until=until)
assert dynamo.counters["stats"]["unique_graphs"] == before, "a step was compiled anew, for sizes that another run would not see first"
"""
    root = Path(__file__).parents[2]
    for folder, until in (("whole", 12), ("cut", 5), ("cut", 12)):
        subprocess.run([sys.executable, "-c", script, str(tmp_path / folder), str(until), precision], cwd=root, check=True, timeout=250)
    assert (tmp_path / "whole" / "metrics.jsonl").read_bytes() == (tmp_path / "cut" / "metrics.jsonl").read_bytes()


def test_blocks_computed_again_change_no_bit(tmp_path, make_trainer):
    probe = make_trainer(tmp_path / "probe", precision="bfloat16", memory={"activation_checkpointing": "layers"})
    sizes = dimensions_of(probe.model)
    peaks = [memory(sizes, replace(memory_run(probe.config, sizes), recomputed=n)).peak for n in (1, 2)]
    budget = (peaks[0] + 1) / 1e9
    counts = []
    for name, told in {"kept": {}, "some": {"budget_gb": budget}, "all": {"activation_checkpointing": "layers"}}.items():
        trainer = make_trainer(tmp_path / name, steps=4, precision="bfloat16", memory=told)
        counts.append(sum("forward" in vars(block) for block in blocks_of(trainer.model)))
        trainer.resume()
        trainer.run()
    assert counts == [0, 1, 2]
    assert losses(tmp_path / "all") == losses(tmp_path / "some") == losses(tmp_path / "kept")


@pytest.mark.parametrize("held", ["full", "nf4"])
def test_a_budget_is_kept_beside_a_frozen_base_too(tmp_path, make_trainer, held):
    """It was overlooked there: a run on a GPU whose activations did not fit died at its first step."""
    told = {"adapter": AdapterConfig(base=held, rank=2), "precision": "bfloat16"}
    probe = make_trainer(tmp_path / "probe", **told, memory={"activation_checkpointing": "layers"})
    run = memory_run(probe.config, dimensions_of(probe.model), adapter=adapter_of(probe.model))
    budget = (memory(dimensions_of(probe.model), replace(run, recomputed=1)).step + 1) / 1e9
    trainer = make_trainer(tmp_path / "some", **told, memory={"budget_gb": budget})
    assert sum("forward" in vars(block) for block in blocks_of(trainer.model)) == 1


@pytest.mark.parametrize("adapted", [False, True])
def test_a_family_without_attention_trains_where_no_figures_are_asked_for(adapted):
    """Its configuration has no heads, and whoever looked for them fell over."""
    from transformers import AutoModelForCausalLM, MambaConfig

    shape = MambaConfig(hidden_size=16, state_size=4, num_hidden_layers=2, vocab_size=50)
    model = AutoModelForCausalLM.from_config(shape)
    if adapted:
        attach(model, AdapterConfig(targets=["in_proj"]), 1)
    given = {"steps": 1, "sequence_length": 32, "batch_sequences": 4, "objective": "supervised"}
    layers, budget = (
        Training.model_validate({**given, "memory": told}) for told in ({"activation_checkpointing": "layers"}, {"budget_gb": 1.0})
    )
    assert fit(layers, model, ALONE, fused=False).recomputed == 2
    with pytest.raises(UserError, match="'mamba' takes is not known"):
        fit(budget, model, ALONE, fused=False)


def test_a_budget_that_is_too_small_is_told_before_the_first_step(tmp_path, make_trainer):
    with pytest.raises(UserError, match=r"needs 0\.\d GB at least") as caught:
        make_trainer(tmp_path, memory={"budget_gb": 0.1})
    assert caught.value.where == "memory.budget_gb"
