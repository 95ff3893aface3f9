"""What a training tells: lines by source, the documents behind a stop, spikes, and a live view that draws."""

from __future__ import annotations

import io
import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cairn.data.encode import document
from cairn.errors import UserError
from cairn.ledger.progress import Live
from cairn.model.config import training_flops
from cairn.train import board
from cairn.train.config import Training, WatchConfig
from cairn.train.loop import read_metrics
from cairn.train.view import BARS, WIDTH, Curve, View
from cairn.train.watch import Origins, Spikes, Tally, Work

from .conftest import documents

NAMES = Origins(["counts", "steps"], [range(1, 41), range(101, 141)], lambda source, row: f"cairn tokens k2 {source}.jsonl --row {row}")


def two_sources():
    return [documents(seed=0), [document([(3 * i) % 50 for i in range(n)], [1] * n) for n in range(6, 26)]]


def lines(folder):
    return list(read_metrics(folder / "metrics.jsonl"))


def test_a_line_tells_loss_and_tokens_of_each_source_by_name(tmp_path, make_trainer):
    trainer = make_trainer(tmp_path, sources=two_sources(), steps=3, batch_sequences=2, accumulate=3)
    trainer.origins = NAMES
    batch = trainer.stream.batch_at(0)
    trainer.stream.restore({"step": 0, "cursor": 0})
    weights = {n: t.detach().clone() for n, t in trainer.masters.named.items()}
    trainer.resume()
    trainer.run()
    line = lines(tmp_path)[0]
    # By hand, one document at a time with the weights of the beginning.
    for name, tensor in trainer.masters.named.items():
        tensor.data.copy_(weights[name])
    trainer.model.set_attn_implementation("eager")
    at, found = 0, {name: [0.0, 0, 0] for name in NAMES.names}
    for source, n in zip(batch.sources, batch.doc_lengths, strict=True):
        ids, mask = torch.as_tensor(batch.ids[at : at + n]), batch.mask[at : at + n]
        with torch.no_grad():
            logp = trainer.model(ids[None]).logits[0].log_softmax(-1)
        one = found[NAMES.names[source]]
        for i in range(1, n):
            if mask[i]:
                one[0] -= float(logp[i - 1, ids[i]])
                one[1] += 1
        one[2] += n
        at += n
    assert set(line["sources"]) == set(found)
    for name, (nll, targets, tokens) in found.items():
        assert line["sources"][name] == {
            "loss": pytest.approx(nll / targets, rel=1e-4), "tokens": tokens, "supervised_tokens": targets,
        }  # fmt: skip
    total = sum(s["loss"] * s["supervised_tokens"] for s in line["sources"].values())
    assert total / line["supervised_tokens"] == pytest.approx(line["loss"])


def test_an_objectives_own_figures_are_summed_over_the_micro_batches(tmp_path, make_trainer):
    trainer = make_trainer(tmp_path, steps=2, batch_sequences=1, accumulate=4)
    real = trainer.objective.loss
    counts = []

    def loss(model, batch):
        found = real(model, batch)
        counts.append(len(batch.lengths))
        found.metrics["documents"] = len(batch.lengths)
        return found

    trainer.objective.loss = loss
    trainer.resume()
    trainer.run()
    assert len(counts) >= 8, "several micro-batches a step"
    assert sum(line["objective"]["documents"] for line in lines(tmp_path)) == sum(counts)


def test_speed_lies_beside_the_metrics_and_is_what_its_names_say(tmp_path, make_trainer):
    trainer = make_trainer(tmp_path, steps=4)
    trainer.resume()
    trainer.run()
    speeds = [json.loads(line) for line in (tmp_path / "logs" / "speed.jsonl").read_text().splitlines()]
    assert [s["step"] for s in speeds] == [1, 2, 3, 4]
    first, line = speeds[0], lines(tmp_path)[0]
    assert first["tokens_per_second"] == pytest.approx(line["tokens"] / first["seconds"], rel=0.05)
    share = line["supervised_tokens"] / line["tokens"]
    assert first["supervised_per_second"] / first["tokens_per_second"] == pytest.approx(share, rel=0.01)
    assert 0 < first["mfu"] < 1
    assert first["memory_bytes"] > 50e6
    assert first["eta_seconds"] == pytest.approx(3 * first["seconds"], rel=0.2, abs=0.1)
    assert speeds[-1]["eta_seconds"] == 0


def test_the_utilisation_is_the_6n_rule_over_the_measured_rate(tmp_path, make_trainer):
    model = make_trainer(tmp_path).model
    work = Work.of(model, "float32")
    assert work.matrices == sum(p.numel() for p in model.parameters()), "tied: the embedding is the head, and counts"
    flops = training_flops(work.matrices, 1000, layers=2, hidden_size=32, mean_length=12.5)
    assert work.utilisation(1000, 12.5, 0.5) == pytest.approx(flops / 0.5 / (work.rate * 1e9))


# Stops


def test_no_supervised_token_names_the_rows_and_the_command(tmp_path, make_trainer):
    trainer = make_trainer(tmp_path, sources=[[document([1, 2, 3], [0, 0, 0]) for _ in range(40)]])
    trainer.origins = NAMES
    with pytest.raises(UserError, match="step 1 has no supervised token in") as caught:
        trainer.one_step()
    rows = [part.split(", row ")[1] for part in caught.value.where.split("; ")[:3]]
    assert "counts" in caught.value.where
    for row in rows:
        assert f"cairn tokens k2 0.jsonl --row {row}\n" in caught.value.remedy + "\n"


def test_a_loss_that_is_not_finite_names_the_very_documents(tmp_path, make_trainer):
    """One embedding is spoilt in the copy that computes, so that only documents which hold this id are concerned."""
    trainer = make_trainer(tmp_path, precision="bfloat16")
    trainer.origins = NAMES
    batch = trainer.stream.batch_at(0)
    trainer.stream.restore({"step": 0, "cursor": 0})
    with torch.no_grad():
        trainer.model.get_input_embeddings().weight[45] = float("inf")
    at, concerned = 0, []
    for number, n in zip(batch.documents, batch.doc_lengths, strict=True):
        if 45 in batch.ids[at : at + n]:
            concerned.append(number)
        at += n
    # A head of its own: through the tied one the id would spoil every document's softmax.
    trainer.model.set_output_embeddings(torch.nn.Linear(32, 50, bias=False, dtype=torch.bfloat16))
    with pytest.raises(UserError, match="loss is nan") as caught:
        trainer.one_step()
    assert concerned
    assert f"{len(concerned)} of {len(batch.documents)} documents" in caught.value.where
    named = [int(part.split("row ")[1]) for part in caught.value.where.split("; ") if "row" in part]
    assert named == [number + 1 for number in concerned[:3]]
    assert f"--row {named[0]}" in caught.value.remedy


def test_a_weight_that_is_spoilt_is_named_instead_of_documents(tmp_path, make_trainer):
    trainer = make_trainer(tmp_path)
    trainer.masters.named["model.norm.weight"].data.fill_(float("nan"))
    with pytest.raises(UserError, match=r"loss is nan.*'model\.norm\.weight'"):
        trainer.one_step()


def test_a_gradient_that_is_not_finite_stops_too(tmp_path, make_trainer):
    trainer = make_trainer(tmp_path)
    trainer.origins = NAMES
    real = trainer.masters.collect

    def collect():
        real()
        trainer.masters.gradients["model.norm.weight"][0] = float("inf")

    trainer.masters.collect = collect
    before = {n: t.detach().clone() for n, t in trainer.masters.named.items()}
    with pytest.raises(UserError, match="gradient's norm inf") as caught:
        trainer.one_step()
    assert "those with the highest loss: counts, row" in caught.value.where
    assert all(torch.equal(before[n], t) for n, t in trainer.masters.named.items()), "nothing has moved"


# Spikes


@given(st.lists(st.floats(1.9, 2.1), min_size=20, max_size=60))
def test_noise_is_no_spike_and_a_jump_is(losses):
    spikes = Spikes(50, 8.0, losses)
    assert spikes.see(2.0) is None
    assert spikes.see(max(losses) + 2.0) is not None
    assert math.isinf(Spikes(50, 8.0, losses[:19]).bound())


def spiking(make_trainer, folder, at, **settings):
    """A trainer whose loss is a hundred times itself at step `at`."""
    trainer = make_trainer(folder, steps=26, **settings)
    trainer.origins = NAMES
    real, said = trainer.objective.loss, []

    def loss(model, batch):
        found = real(model, batch)
        return found if trainer.step + 1 != at else type(found)(found.total * 100, found.count, found.metrics, found.nll_N)

    trainer.objective.loss, trainer.progress.note = loss, said.append
    return trainer, said


@pytest.mark.parametrize("resumed", [False, True])
def test_a_spike_stops_before_the_weights_move_and_a_resumed_run_sees_it_as_well(tmp_path, make_trainer, resumed):
    settings = {"watch": {"spike": "stop"}, "checkpoints": {"every": 22}}
    if resumed:
        first, _ = spiking(make_trainer, tmp_path, 0, **settings)
        first.resume()
        first.run(until=22)
    trainer, _ = spiking(make_trainer, tmp_path, 24, **settings)
    assert trainer.resume() == (22 if resumed else 0)
    with pytest.raises(UserError, match=r"the loss of step 24 is .* far above") as caught:
        trainer.run()
    assert "counts, row" in caught.value.where
    assert "cairn tokens k2" in caught.value.remedy
    assert (trainer.step, len(lines(tmp_path))) == (23, 23)


def test_a_spike_is_told_by_default_and_off_is_silent(tmp_path, make_trainer):
    for name, watch in (("warn", {}), ("off", {"spike": False})):
        trainer, said = spiking(make_trainer, tmp_path / name, 24, watch=watch)
        trainer.resume()
        trainer.run()
        assert [text.startswith("the loss of step 24") for text in said] == ([True] if name == "warn" else [])
    assert (tmp_path / "warn" / "metrics.jsonl").read_bytes() == (tmp_path / "off" / "metrics.jsonl").read_bytes()


def test_what_is_watched_is_no_part_of_a_stages_key():
    plain, other = ({"steps": 2}, {"steps": 2, "watch": {"spike": "stop", "tensorboard": True}, "checkpoints": {"resume_seconds": 3}})
    assert Training.model_validate(plain).model_dump() == Training.model_validate(other).model_dump()
    assert WatchConfig.model_validate({"spike": False}).spike == "off", "YAML reads a bare off as false"


# Views


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=400))
def test_a_curve_of_any_length_fits_and_keeps_its_mean(values):
    curve = Curve()
    for value in values:
        curve.add(value)
    assert sum(curve.counts) == len(values)
    assert math.fsum(curve.sums) == pytest.approx(math.fsum(values), abs=1e-6)
    assert 1 <= len(curve.text()) <= WIDTH
    assert set(curve.text()) <= set(BARS)


def test_the_live_view_shows_the_figures_beneath_the_bar():
    from rich.console import Console

    stream = io.StringIO()
    progress = Live("chat", Console(file=stream, force_terminal=True, width=140))
    view = View([3.0, 2.5])
    progress.start(10, "steps", 2)
    progress.show(view)
    sources = {"counts": {"loss": 1.25, "tokens": 60, "supervised_tokens": 9}, "steps": {"tokens": 40, "supervised_tokens": 0}}
    line = {"step": 3, "loss": 2.125, "lr": 0.01, "grad_norm": 0.5, "tokens": 100, "supervised_tokens": 9, "sources": sources}
    speed = {"tokens_per_second": 12345.0, "mfu": 0.31, "memory_bytes": 1.5e9, "eta_seconds": 187}
    view.add(line, speed)
    progress.update(3, loss=2.125)
    progress.bar.refresh()
    shown = stream.getvalue()
    wanted = ["2.1250", "12,345 tokens/s", "9% supervised", "MFU 31%", "1.5 GB", "3:07 min left", "counts", "1.2500", "60% of tokens", "█"]
    assert [words for words in wanted if words not in shown] == []
    progress.show(None)
    progress.close()


def test_tensorboard_is_refused_where_it_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(board, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="tensorboard is not installed") as caught:
        board.require_tensorboard()
    assert "cairn-llm[tensorboard]" in caught.value.remedy


def test_tensorboard_events_hold_the_lines(tmp_path, make_trainer):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer = make_trainer(tmp_path, steps=3, watch={"tensorboard": True})
    trainer.resume()
    trainer.run()
    events = EventAccumulator(str(tmp_path / "logs" / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(x["step"], pytest.approx(x["loss"])) for x in lines(tmp_path)]
    assert {"speed/mfu", "loss of source 1"} <= set(events.Tags()["scalars"])


def test_one_document_is_one():
    tally = Tally(sources=[0], documents=[4], tokens=[9], targets=[3], nll=[2.0])
    assert tally.suspects(Origins(["talk"]))[0] == "1 document: talk, document 5"
