"""Preferences: a prompt computed once gives what each answer gives alone, every loss is its formula, and a stop changes no byte."""

from __future__ import annotations

import json
import math
import os

import numpy as np
import pytest
import torch

from cairn.data.answers import with_mismatched
from cairn.data.batches import PackedStream, make_batch
from cairn.data.encode import Encoded
from cairn.errors import UserError
from cairn.ledger.digest import file_digest
from cairn.ledger.progress import Silent
from cairn.model.adapter import attach
from cairn.model.adapter_config import AdapterConfig
from cairn.model.config import ModelConfig
from cairn.model.determinism import deterministic
from cairn.model.load import new_model
from cairn.model.packing import answers_agree, try_packing
from cairn.train import reference
from cairn.train.config import Training
from cairn.train.forward import TorchBatch, answer_log_probabilities, hidden_states
from cairn.train.loop import Trainer, read_metrics
from cairn.train.preference import RULES, WINDOW, Adviser, PreferenceConfig

LOSSES = {
    "dpo": {}, "dpo smoothed": {"loss": "dpo", "smoothing": 0.1}, "dpo normalised": {"loss": "dpo", "length_normalised": True}, "ipo": {},
    "hinge": {}, "robust": {"loss": "robust", "smoothing": 0.2}, "kto": {}, "orpo": {}, "simpo": {},
    "kto normalised": {"loss": "kto", "length_normalised": True},
    "dpo with likelihood": {"loss": "dpo", "sft": 0.3}, "all pairs": {"loss": "dpo", "pairs": "all"},
}  # fmt: skip
FAMILIES = {
    "llama": ("llama", {}), "window": ("mistral", {"sliding_window": 4}),
    "softcap": ("gemma2", {"sliding_window": 6, "query_pre_attn_scalar": 8, "layer_types": ["sliding_attention", "full_attention"]}),
    "sinks": ("gpt_oss", {"num_local_experts": 2, "num_experts_per_tok": 1, "sliding_window": 6}),
}  # fmt: skip


def preferences(count=24, seed=0, answers=(2, 3), largest=9):
    """Prompts with a few answers; the first one counts up, the others count down."""
    draw = np.random.default_rng(seed)
    out = []
    for i in range(count):
        prompt = [int(x) for x in draw.integers(1, 40, int(draw.integers(2, largest)))]
        steps = [1, *range(-1, -int(draw.choice(answers)), -1)]
        pieces = [[(i + step * k + step) % 45 + 1 for k in range(int(draw.integers(1, largest)))] for step in steps]
        ids = np.array([*prompt, *(x for piece in pieces for x in piece)], np.int32)
        mask = np.array([0] * len(prompt) + [1] * sum(map(len, pieces)), np.uint8)
        out.append(Encoded(ids, mask, tuple(map(len, pieces)), margin=float(i % 3)))
    return out


def tiny(family="llama", extra=None, seed=1):
    shape = ModelConfig.model_validate({
        "family": family, "hidden_size": 32, "layers": 2, "heads": 4, "kv_heads": 2, "intermediate_size": 64, "context": 64,
        "initializer_range": 0.2, "extra": extra or {},
    })  # fmt: skip
    return new_model(shape, vocab_size=50, bos_id=None, eos_id=0, pad_id=None, seed=seed)


def make(folder, loss, *, sources=None, adapter=None, **settings):
    deterministic(1)
    values = {"steps": 8, "sequence_length": 24, "batch_sequences": 8, "objective": "preference", "preference": loss, "clip": 0.0}
    config = Training.model_validate(values | settings)
    rows = sources or [preferences()]
    if config.mismatched:
        rows = [with_mismatched(source, config.sequence_length) for source in rows]
    model = tiny()
    adapted = attach(model, adapter, 5) if adapter is not None else None
    folder.mkdir(parents=True, exist_ok=True)
    stream = PackedStream(rows, [1.0] * len(rows), 7, config.sequence_length, config.batch_sequences * config.accumulate)
    trainer = Trainer(model, stream, config, folder, Silent())
    if config.needs_reference:
        base = {} if adapted is None else {"base": adapted.peft.disable_adapter}
        trainer.take_reference(rows, folder / "reference.safetensors", **base)
    return trainer


def paths(document):
    """(prompt and answer, targets among them) of each answer."""
    prompt, at = len(document) - sum(document.answers), len(document) - sum(document.answers)
    for n in document.answers:
        places = np.r_[:prompt, at : at + n]
        yield document.ids[places], document.mask[places]
        at += n


def alone(model, ids, mask):
    """Σ log p of the targets of one sequence through the plain model."""
    ids = torch.as_tensor(ids).long()
    logp = model(input_ids=ids[None], use_cache=False).logits[0].log_softmax(-1)
    return sum((logp[i - 1, ids[i]] for i in range(1, len(ids)) if mask[i]), torch.zeros(()))


# -- the layout -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("name", FAMILIES)
def test_answers_behind_one_prompt_give_what_each_gives_alone(name, packed):
    """Log-probabilities and gradients in fp32."""
    deterministic(1)
    documents = preferences(8)
    plain, model = tiny(*FAMILIES[name]).eval(), tiny(*FAMILIES[name]).eval()
    if packed:
        assert try_packing(model).packs
        assert answers_agree(model)
    batch = TorchBatch.of(make_batch(documents, [0] * 8), "cpu", packed=packed)
    found, sizes = answer_log_probabilities(model, batch)
    wanted = torch.stack([alone(plain, ids, mask) for d in documents for ids, mask in paths(d)])
    assert sizes.tolist() == [int(mask.sum()) for d in documents for _, mask in paths(d)]
    assert torch.allclose(found, wanted, rtol=1e-5, atol=1e-5)
    weights = torch.linspace(-1, 1, len(found))
    (found * weights).sum().backward()
    (wanted * weights).sum().backward()
    for (which, p), q in zip(model.named_parameters(), plain.parameters(), strict=True):
        if q.grad is not None:
            assert torch.allclose(p.grad, q.grad, rtol=1e-4, atol=1e-5 * float(q.grad.abs().max())), which


def test_long_answers_too():
    """Beyond the length up to which scores are held, and beside plain documents."""
    deterministic(1)
    draw = np.random.default_rng(3)
    ids = draw.integers(1, 50, 1300).astype(np.int32)
    documents = [Encoded(ids, np.r_[np.zeros(100), np.ones(1200)].astype(np.uint8), (700, 500)), Encoded(ids[:9], np.ones(9, np.uint8))]
    model, plain = tiny().eval(), tiny().eval()
    assert try_packing(model).packs
    both = TorchBatch.of(make_batch(documents, [0, 0]), "cpu", packed=True)
    single = TorchBatch.of(make_batch(documents[:1], [0]), "cpu", packed=True)
    with torch.no_grad():
        found = answer_log_probabilities(model, single)[0]
        wanted = torch.stack([alone(plain, *path) for path in paths(documents[0])])
        apart = hidden_states(model, both)[1300:] - plain.base_model(input_ids=torch.as_tensor(ids[:9]).long()[None]).last_hidden_state[0]
    assert torch.allclose(found, wanted, rtol=1e-5)
    assert float(apart.abs().max()) < 1e-4


def test_a_family_that_counts_along_the_row_is_seen(monkeypatch):
    """Positions that are ignored: the second answer then stands behind the first."""
    model = tiny().eval()
    assert try_packing(model).packs
    body = model.base_model
    right = type(body).forward

    def along(self, input_ids=None, position_ids=None, **rest):
        starts = (position_ids == 0).long().cumsum(1)
        begin = torch.tensor([(starts[0] == s).nonzero()[0, 0] for s in starts[0]])
        return right(self, input_ids=input_ids, position_ids=(torch.arange(input_ids.shape[1]) - begin)[None], **rest)

    monkeypatch.setattr(type(body), "forward", along)
    assert not answers_agree(model)


# -- losses -----------------------------------------------------------------------------------------------------------


def by_hand(config, documents, policy, reference):
    """Mean loss over prompts, in plain floats."""
    sig = lambda x: 1.0 / (1.0 + math.exp(-x))  # noqa: E731
    beta, out = config.scale, []
    ratios = [[p - r for p, r in zip(a, b, strict=True)] for a, b in zip(policy, reference, strict=True)]
    if config.loss == "kto":
        if config.normalised:
            ratios = [[x / int(m.sum()) for x, (_, m) in zip(r, paths(d), strict=True)] for r, d in zip(ratios, documents, strict=True)]
        mean = max(0.0, sum(r[-1] for r in ratios) / len(ratios))
        for r in ratios:
            out.append(0.5 * (1 - sig(beta * (r[0] - mean))) + 0.5 * sum(1 - sig(beta * (mean - x)) for x in r[1:-1]) / len(r[1:-1]))
        return sum(out) / len(out)
    for document, logp, ratio in zip(documents, policy, ratios, strict=True):
        lengths = [int(mask.sum()) for _, mask in paths(document)]
        value = [x / n for x, n in zip(ratio, lengths, strict=True)] if config.normalised else list(ratio)
        mean_logp = [x / n for x, n in zip(logp, lengths, strict=True)]
        if config.loss == "simpo":
            value = mean_logp
        if config.loss == "orpo":
            value = [math.log(math.exp(m) / (1 - math.exp(m))) for m in mean_logp]
        n = len(value)
        pairs = [(i, j) for i in range(n if config.pairs == "all" else 1) for j in range(i + 1, n)]
        losses = []
        for i, j in pairs:
            h, e = value[i] - value[j], config.smoothing
            losses.append({
                "dpo": lambda h=h, e=e: -(1 - e) * math.log(sig(beta * h)) - e * math.log(sig(-beta * h)),
                "ipo": lambda h=h, e=e: (h - 1 / (2 * beta)) ** 2,
                "hinge": lambda h=h, e=e: max(0.0, 1 - beta * h),
                "robust": lambda h=h, e=e: (-(1 - e) * math.log(sig(beta * h)) + e * math.log(sig(-beta * h))) / (1 - 2 * e),
                "orpo": lambda h=h, e=e: -beta * math.log(sig(h)),
                "simpo": lambda h=h, e=e: -math.log(sig(beta * h - config.gap)),
            }[config.loss]())  # fmt: skip
        out.append(sum(losses) / len(losses) - config.likelihood * mean_logp[0])
    return sum(out) / len(out)


@pytest.mark.parametrize("name", LOSSES)
def test_each_loss_is_its_formula(tmp_path, name):
    """In a step of two passes, on a model that has moved away from its reference."""
    given = {"loss": name, **LOSSES[name]}
    trainer = make(tmp_path, given, accumulate=2, batch_sequences=4, optimizer={"kind": "adamw", "lr": 0.01})
    trainer.resume()
    trainer.run(until=4)
    batch = next(trainer.stream)
    trainer.stream.restore({"step": 4, "cursor": trainer.stream._cursor - len(batch.documents)})
    documents = [trainer.stream._sources[0][d] for d in batch.documents]
    model, origin = tiny(), tiny()
    model.load_state_dict(dict(trainer.masters.named), strict=False)
    with torch.no_grad():
        policy, reference = ([[float(alone(m, *path)) for path in paths(d)] for d in documents] for m in (model.eval(), origin.eval()))
    found = trainer.one_step()
    assert found["loss"] == pytest.approx(by_hand(PreferenceConfig(**given), documents, policy, reference), rel=2e-4)


@pytest.mark.parametrize("name", ["dpo", "kto", "simpo", "all pairs"])
def test_it_learns_and_tells_figures(tmp_path, name):
    trainer = make(tmp_path, {"loss": name, **LOSSES[name]}, steps=40, optimizer={"kind": "adamw", "lr": 0.003})
    trainer.resume()
    figures = trainer.run()
    lines = [line["objective"] for line in read_metrics(tmp_path / "metrics.jsonl")]
    first, last = lines[0], lines[-1]
    assert last["accuracy"] > 0.9
    assert last["margin"] > first["margin"] + 0.1
    assert {"logp_chosen", "logp_rejected", "reward_chosen", "reward_rejected", "length_chosen", "margin_length_correlation"} <= set(first)
    assert isinstance(figures["warnings"], list)
    if name != "simpo":
        assert first["kl"] == pytest.approx(0, abs=1e-6)
        assert last["kl"] > 0.01


def test_the_reference_of_an_adapter_is_its_base(tmp_path):
    """Also where the adapter has moved already: measured with the adapter off."""
    config = AdapterConfig.model_validate({"kind": "lora", "rank": 4, "alpha": 8})
    trainer = make(tmp_path / "a", {"loss": "dpo"}, adapter=config, optimizer={"kind": "adamw", "lr": 0.01})
    whole = make(tmp_path / "b", {"loss": "dpo"})
    for mine, other in zip(trainer.objective.reference.values, whole.objective.reference.values, strict=True):
        assert np.allclose(mine, other, atol=1e-5)
    trainer.resume()
    trainer.run()
    assert next(iter(read_metrics(tmp_path / "a" / "metrics.jsonl")))["objective"]["margin"] == pytest.approx(0, abs=1e-5)


# -- what must change nothing -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["dpo", "kto"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_run_that_was_stopped_ends_with_the_same_bytes(tmp_path, loss, precision):
    settings = {"checkpoints": {"every": 4, "resume_seconds": 1e-9}, "precision": precision}
    whole = make(tmp_path / "whole", {"loss": loss}, **settings)
    whole.resume()
    whole.run()
    first = make(tmp_path / "cut", {"loss": loss}, **settings)
    first.resume()
    first.run(until=5)
    before = file_digest(tmp_path / "cut" / "reference.safetensors")
    again = make(tmp_path / "cut", {"loss": loss}, **settings)
    assert again.resume() in (4, 5)
    again.run()
    assert file_digest(tmp_path / "cut" / "reference.safetensors") == before == file_digest(tmp_path / "whole" / "reference.safetensors")
    assert (tmp_path / "cut" / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()
    for name, tensor in whole.masters.named.items():
        assert torch.equal(tensor, again.masters.named[name]), name


@pytest.mark.parametrize("loss", ["dpo", "kto", "orpo"])
def test_accumulation_changes_nothing_but_rounding(tmp_path, loss):
    """The normaliser is the prompts of the whole step, and so is kto's reference point."""
    found = []
    for name, cut in (("one", {"batch_sequences": 8}), ("four", {"batch_sequences": 2, "accumulate": 4})):
        trainer = make(tmp_path / name, {"loss": loss}, optimizer={"kind": "adamw", "lr": 0.003}, **cut)
        trainer.resume()
        trainer.run()
        found.append([line["loss"] for line in read_metrics(tmp_path / name / "metrics.jsonl")])
    assert found[0] == pytest.approx(found[1], rel=1e-5)


@pytest.mark.parametrize("loss", ["dpo", "orpo", "simpo"])
def test_a_pass_that_keeps_others_company_counts_for_nothing(tmp_path, loss):
    trainer = make(tmp_path, {"loss": loss})
    batch = TorchBatch.of(next(trainer.stream).idle(), "cpu", packed=trainer.packed)
    out = trainer.sharding.loss(batch)
    out.total.backward()
    assert float(out.total.detach()) == 0
    assert out.count == 0
    assert not any(out.metrics.values())
    assert all(p.grad is None or not p.grad.any() for p in trainer.model.parameters())


def test_kto_sees_the_mismatched_answers_only_as_its_reference_point(tmp_path):
    documents = preferences(6, answers=(2,))
    more = with_mismatched(documents, 24)
    batch = make_batch(more, [0] * 6)
    shorter, last = batch.answer_range(None, -1), batch.answer_range(-1, None)
    plain = make_batch(documents, [0] * 6)
    for name in ("ids", "mask", "position_ids"):
        assert getattr(shorter, name).tolist() == getattr(plain, name).tolist()
    assert shorter.answers == plain.answers
    for i, one in enumerate(documents):
        prompt, other = len(one) - sum(one.answers), documents[(i + 1) % 6]
        begin = len(other) - sum(other.answers)
        start = sum(last.doc_lengths[:i])
        wanted = [*one.ids[:prompt], *other.ids[begin : begin + other.answers[0]]][: last.doc_lengths[i]]
        assert last.ids[start : start + last.doc_lengths[i]].tolist() == [int(x) for x in wanted]


def test_kto_measures_its_reference_point_without_dropout(tmp_path):
    """Whose draws would come from the process's own generator, which a resumed run does not have."""
    trainer = make(tmp_path, {"loss": "kto"}, adapter=AdapterConfig(rank=4, dropout=0.5))
    state = torch.get_rng_state()
    first = trainer.one_step()
    assert torch.equal(torch.get_rng_state(), state)
    # Nothing has moved yet, and the reference was measured without dropout too.
    assert first["objective"]["reference_point"] == pytest.approx(0.0, abs=1e-4)


# -- the reference's file -------------------------------------------------------------------------------------------------


def test_a_reference_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    """A name on half a file would be read, and refused, by every run that goes on."""
    order, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (order.append("fsync"), fsync(handle)))
    monkeypatch.setattr(os, "replace", lambda old, new: (order.append("replace"), replace(old, new)))
    reference.save(reference.zeros(preferences(3)), "digest", tmp_path / "reference.safetensors")
    assert order[:2] == ["fsync", "replace"]
    assert [len(values) for values in reference.load(tmp_path / "reference.safetensors", "digest").values] == [
        sum(len(one.answers) for one in preferences(3))
    ]


def test_a_reference_of_other_documents_is_refused(tmp_path):
    make(tmp_path, {"loss": "dpo"})
    with pytest.raises(UserError, match="other documents"):
        make(tmp_path, {"loss": "dpo"}, sources=[preferences(seed=2)])


# -- words ------------------------------------------------------------------------------------------------------------------

GOOD = {
    "logp_chosen": -50.0, "log_ratio_chosen": 1.0, "log_ratio_rejected": -2.0, "margin": 0.3, "margin_spread": 0.5, "accuracy": 0.8,
    "length_chosen": 40.0, "length_rejected": 40.0, "margin_length_correlation": 0.1, "kl": 1.0,
}  # fmt: skip
WRONG = {
    "chosen falls": ({"log_ratio_chosen": -4.0, "log_ratio_rejected": -9.0}, "less likely together"),
    "margin at zero": ({"margin": 0.001, "accuracy": 0.52}, "not told apart"),
    "length grows": ({"length_chosen": 60.0, "margin_length_correlation": 0.8}, "length"),
    "far from the reference": ({"kl": 80.0}, "far from its reference"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_goes_wrong_is_said_once_in_plain_words(name):
    figures, words = WRONG[name]
    adviser = Adviser(RULES)
    said = [text for _ in range(4 * WINDOW) for text in adviser.see({**GOOD, **figures})]
    assert len(said) == 1
    assert words in said[0]
    assert [one["what"] for one in adviser.told] == [name]


def test_nothing_is_said_where_all_is_well():
    adviser = Adviser(RULES)
    assert not [text for _ in range(4 * WINDOW) for text in adviser.see(GOOD)]


def test_a_margin_at_zero_is_told_by_a_run(tmp_path):
    trainer = make(tmp_path, {"loss": "dpo"}, steps=3 * WINDOW + 2, optimizer={"kind": "adamw", "lr": 1e-9})
    notes = []
    trainer.progress.note = notes.append
    trainer.resume()
    figures = trainer.run()
    assert [one["what"] for one in figures["warnings"]] == ["margin at zero"]
    assert any("not told apart" in text for text in notes)
    assert json.dumps(figures)
