"""Distillation: divergences, what a teacher says online and from its kept numbers, and trainings that end where they should."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from cairn.data.batches import make_batch
from cairn.errors import UserError
from cairn.model.config import ModelConfig
from cairn.model.load import new_model
from cairn.model.packing import try_packing
from cairn.train.config import Training
from cairn.train.distillation import DistillationConfig
from cairn.train.forward import TorchBatch
from cairn.train.loop import read_metrics
from cairn.train.objectives import load_objective
from cairn.train.objectives.distillation import divergence
from cairn.train.reference import documents_digest
from cairn.train.teacher import LEAST, Online, Said, load, measure, save

from .conftest import SHAPE, documents

KINDS = ["forward", "reverse", "jsd"]


def model_of(seed, **sizes):
    shape = ModelConfig.model_validate({**SHAPE.model_dump(), "initializer_range": 0.3, **sizes})
    return new_model(shape, vocab_size=50, bos_id=None, eos_id=0, pad_id=None, seed=seed).eval()


def training(**distillation):
    told = {"checkpoint": "somewhere", **distillation}
    return Training.model_validate({"steps": 1, "objective": "distillation", "distillation": told})


def batch_of(rows):
    return TorchBatch.of(make_batch(rows, [0] * len(rows), list(range(len(rows)))), "cpu", packed=False)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(KINDS), st.integers(1, 8))
def test_a_divergence_is_nought_for_equals_and_no_smaller_for_finer_outcomes(seed, kind, k):
    draw = torch.Generator().manual_seed(seed)
    logp, z = (3 * torch.randn(5, 9, generator=draw) for _ in range(2))
    logp = logp.log_softmax(-1)
    full = divergence(logp, Said(logp).of_student(z), kind)
    assert (full > 0).all()
    torch.testing.assert_close(divergence(logp, logp, kind), torch.zeros(5), atol=1e-5, rtol=0)
    top = logp.topk(k, -1)
    rest = logp.scatter(1, top.indices, -torch.inf).logsumexp(-1, keepdim=True)
    said = Said(torch.cat([top.values, rest], -1), top.indices)
    coarse = divergence(said.logp_nO, said.of_student(z), kind)
    assert (coarse <= full + 1e-4).all()
    if k == 8:
        torch.testing.assert_close(coarse, full, atol=1e-5, rtol=1e-4)


def test_divergences_are_the_formulas():
    logp, logq = torch.tensor([[0.9, 0.1]]).log(), torch.tensor([[0.5, 0.5]]).log()
    assert float(divergence(logp, logq, "forward")) == pytest.approx(0.9 * torch.tensor(1.8).log() + 0.1 * torch.tensor(0.2).log())
    assert float(divergence(logp, logq, "reverse")) == pytest.approx(-0.5 * torch.tensor(4 * 0.9 * 0.1).log())
    one, other = (float(divergence(a, b, "jsd", 0.5)) for a, b in ((logp, logq), (logq, logp)))
    assert one == pytest.approx(other)
    # Beside its ends a generalised Jensen-Shannon divergence is one side's KL, scaled.
    assert float(divergence(logp, logq, "jsd", 1e-4)) / 1e-4 == pytest.approx(float(divergence(logp, logq, "forward")), rel=1e-2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_loss_and_gradient_are_those_of_whole_logits(kind, temperature):
    student, teacher, rows = model_of(1), model_of(2, layers=3), documents(6)
    objective = load_objective("distillation", training(loss=kind, temperature=temperature, hard=0.25))
    objective.teacher = Online(teacher, packed=False)
    batch = batch_of(rows)
    mine = objective.loss(student, batch)
    mine.total.backward()
    found = {name: p.grad.clone() for name, p in student.named_parameters()}
    student.zero_grad()
    total = torch.zeros(())
    for row in rows:
        ids = torch.as_tensor(row.ids, dtype=torch.long)
        at = torch.as_tensor(row.mask[1:]).nonzero()[:, 0]
        with torch.no_grad():
            logp = (teacher(ids[None]).logits[0, at] / temperature).log_softmax(-1)
        z = student(ids[None]).logits[0, at]
        apart = divergence(logp, (z / temperature).log_softmax(-1), kind).sum()
        nll = torch.nn.functional.cross_entropy(z, ids[1:][at], reduction="sum")
        total = total + 0.75 * temperature**2 * apart + 0.25 * nll
    torch.testing.assert_close(mine.total, total, rtol=1e-4, atol=1e-4)
    total.backward()
    for name, p in student.named_parameters():
        torch.testing.assert_close(found[name], p.grad, rtol=1e-3, atol=1e-4, msg=name)
    figures = objective.figures(mine.metrics)
    assert set(figures) == {"nll", "divergence", "agreement"}
    assert figures["nll"] == pytest.approx(float(mine.nll_N.mean()))


@pytest.mark.parametrize("packed", [True, False])
def test_hidden_states_add_their_relative_distance(packed):
    student, teacher, rows = model_of(1), model_of(2, layers=3), documents(6)
    alone = copy.deepcopy(student), copy.deepcopy(teacher)
    if packed:
        assert try_packing(student, longest=64).packs
        assert try_packing(teacher, longest=64).packs
    batch = TorchBatch.of(make_batch(rows, [0] * 6, list(range(6))), "cpu", packed=packed)
    plain, both = (load_objective("distillation", training(**told)) for told in ({}, {"hidden": 0.5}))
    plain.teacher = both.teacher = Online(teacher, packed=packed)
    apart = 0.0
    for row in rows:
        ids = torch.as_tensor(row.ids, dtype=torch.long)
        at = torch.as_tensor(row.mask[1:]).nonzero()[:, 0]
        h, wanted = (model.base_model(ids[None], use_cache=False).last_hidden_state[0, at] for model in alone)
        apart += float(((h - wanted).square().sum(-1) / wanted.square().sum(-1)).sum().detach())
    loss = both.loss(student, batch)
    assert float((loss.total - plain.loss(student, batch).total).detach()) == pytest.approx(0.5 * apart, rel=1e-3)
    assert both.figures(loss.metrics)["hidden"] == pytest.approx(apart / len(batch.targets_N), rel=1e-4)
    loss.total.backward()
    assert student.base_model.layers[0].self_attn.q_proj.weight.grad.abs().sum() > 0
    # One that already is its teacher has nothing to learn.
    both.teacher = Online(copy.deepcopy(student), packed=packed)
    assert both.figures(both.loss(student, batch).metrics)["hidden"] == pytest.approx(0, abs=1e-8)


def test_what_is_kept_says_what_the_teacher_says(tmp_path):
    teacher, rows = model_of(2), [documents(9), documents(5, seed=1)]
    seen = []
    stored, inside = measure(teacher, rows, 4, 2.0, 64, packed=False, on_progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (14, 14)
    assert 4 / 50 < inside < 1
    save(stored, documents_digest(rows), tmp_path / "t.safetensors")
    again = load(tmp_path / "t.safetensors", rows, 2.0)
    # Documents of two sources, out of order.
    arrays = make_batch([rows[1][3], rows[0][7], rows[0][0]], [1, 0, 0], [3, 7, 0])
    batch = TorchBatch.of(arrays, "cpu", packed=False)
    every = slice(0, len(batch.targets_N))
    kept, whole = again.hear(batch, 2.0)(every), Online(teacher, packed=False).hear(batch, 2.0)(every)
    top = whole.logp_nO.topk(4, -1)
    assert torch.equal(kept.ids_nK, top.indices)
    torch.testing.assert_close(kept.logp_nO[:, :4], top.values, atol=4e-3, rtol=4e-3)
    torch.testing.assert_close(kept.logp_nO.exp().sum(-1), torch.ones(len(batch.targets_N)))
    with pytest.raises(UserError, match=r"heard at temperature 2\.0, and the training asks for 1.0"):
        load(tmp_path / "t.safetensors", rows, 1.0)
    with pytest.raises(UserError, match="on other documents"):
        load(tmp_path / "t.safetensors", [rows[0], documents(5, seed=2)], 2.0)
    (tmp_path / "t.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match="cannot read"):
        load(tmp_path / "t.safetensors", rows, 2.0)


def test_a_certain_teacher_makes_no_nan():
    rows, teacher = [documents(4)], model_of(2)
    with torch.no_grad():
        teacher.get_output_embeddings().weight.mul_(1000)
    stored, _ = measure(teacher, rows, 4, 1.0, 64, packed=False)
    assert (stored.logps[0] >= LEAST).all()
    for kind in KINDS:
        objective = load_objective("distillation", training(loss=kind))
        for objective.teacher in (stored, Online(copy.deepcopy(teacher), packed=False)):
            student = model_of(1)
            loss = objective.loss(student, batch_of(rows[0])).total
            loss.backward()
            assert torch.isfinite(loss)
            assert all(torch.isfinite(p.grad).all() for p in student.parameters())


def test_a_teacher_that_is_not_finite_is_refused():
    teacher = model_of(2)
    with torch.no_grad():
        teacher.get_output_embeddings().weight[3] = float("nan")
    with pytest.raises(UserError, match="not finite"):
        measure(teacher, [documents(4)], 4, 1.0, 64, packed=False)


def run(make_trainer, folder, teacher, rows, *, until=None, **settings):
    told = {"objective": "distillation", "distillation": {"checkpoint": "somewhere", **settings.pop("distillation", {})}}
    trainer = make_trainer(folder, sources=[rows], compile="off", **told | settings)
    trainer.objective.teacher = teacher
    trainer.resume()
    trainer.run(until)
    return trainer, list(read_metrics(folder / "metrics.jsonl"))


def test_kept_and_online_train_alike_and_towards_the_teacher(make_trainer, tmp_path):
    rows, teacher = documents(), model_of(2)
    stored, _ = measure(teacher, [rows], 49, 1.0, 64, packed=False)
    more = {"steps": 30, "optimizer": {"kind": "adamw", "lr": 0.01}}
    _, kept = run(make_trainer, tmp_path / "kept", stored, rows, **more)
    _, online = run(make_trainer, tmp_path / "online", Online(teacher, packed=False), rows, **more)
    assert [line["loss"] for line in kept[:10]] == pytest.approx([line["loss"] for line in online[:10]], rel=5e-3)
    first, last = kept[0]["objective"], kept[-1]["objective"]
    assert last["divergence"] < 0.5 * first["divergence"]
    assert last["agreement"] > first["agreement"]
    # Passes of a step change nothing but rounding.
    _, cut = run(make_trainer, tmp_path / "cut", stored, rows, accumulate=2, batch_sequences=2, **more)
    assert [line["loss"] for line in cut[:5]] == pytest.approx([line["loss"] for line in kept[:5]], rel=1e-4)


def test_a_student_that_is_its_teacher_learns_nothing(make_trainer, tmp_path):
    rows = documents()
    trainer = make_trainer(tmp_path / "x", sources=[rows], objective="distillation", distillation={"checkpoint": "x", "hard": 0.0})
    trainer.objective.teacher = Online(copy.deepcopy(trainer.model).eval(), packed=trainer.packed)
    line = trainer.one_step()
    assert line["loss"] == pytest.approx(0, abs=1e-5)
    assert line["objective"]["agreement"] == 1.0


def test_a_run_that_goes_on_is_the_run_that_was_not_cut(make_trainer, tmp_path):
    rows, teacher = documents(), model_of(2)
    stored, _ = measure(teacher, [rows], 8, 1.0, 64, packed=False)
    whole, _ = run(make_trainer, tmp_path / "whole", stored, rows, checkpoints={"every": 6})
    run(make_trainer, tmp_path / "cut", stored, rows, until=7, checkpoints={"every": 6})
    again, _ = run(make_trainer, tmp_path / "cut", stored, rows, checkpoints={"every": 6})
    for name, weight in whole.masters.named.items():
        assert torch.equal(weight, again.masters.named[name]), name


def test_before_the_teacher_is_there_it_can_be_rehearsed_but_not_trained():
    rows, student = documents(3), model_of(1)
    objective = load_objective("distillation", training())
    with objective.rehearsing(rows):
        assert torch.isfinite(objective.loss(student, batch_of(rows)).total)
    with pytest.raises(AssertionError, match="teacher"):
        objective.loss(student, batch_of(rows))


@pytest.mark.parametrize(
    ("told", "what"),
    [
        ({}, "who is learnt from"), ({"teacher": "a", "checkpoint": "b"}, "either teacher or checkpoint"),
        ({"checkpoint": "b", "beta": 0.3}, "forward has no beta"), ({"checkpoint": "b", "temperature": 0}, "greater than 0"),
    ],
)  # fmt: skip
def test_options_that_contradict(told, what):
    with pytest.raises(ValidationError, match=what):
        DistillationConfig(**told)


def test_objective_and_block_belong_together():
    with pytest.raises(ValidationError, match="needs a teacher"):
        Training(steps=1, objective="distillation")
    with pytest.raises(ValidationError, match="belongs to the objective distillation"):
        Training.model_validate({"steps": 1, "distillation": {"checkpoint": "x"}})
