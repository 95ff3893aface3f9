"""Adapters on models of several families: what is adapted, what is trained, what is written, and what merging makes of it."""

from __future__ import annotations

import json
import warnings

import pytest
import torch

from cairn.errors import UserError
from cairn.ledger.digest import folder_digest
from cairn.model import adapter
from cairn.model.adapter_config import AdapterConfig
from cairn.model.load import load_model, save_model

KINDS = ["lora", "rslora", "dora", "ia3"]


def config(kind="lora", **more):
    return AdapterConfig(kind=kind, **({} if kind == "ia3" else {"rank": 3}), **more)


def stirred(model, told, seed=1):
    """The adapter on `model` with weights that do something, as training would have left them."""
    one = adapter.attach(model, told, seed)
    weights = {n: p for n, p in one.model.named_parameters() if p.requires_grad}
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in weights.values():
            p.add_(torch.randn(p.shape, generator=draw) * 0.05)
    return one, weights


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt_neox", "gpt2", "phi"])
def test_saved_loaded_and_merged_it_is_one_function(tmp_path, tiny, family, kind):
    base, held = tmp_path / "base", "nf4" if family == "phi" else "full"
    save_model(tiny(family), base)
    told = config(kind, base=held, train=["embeddings", "head"])
    model = adapter.load_base(base, held)
    adapter.grow_vocabulary(model, 53)
    one, weights = stirred(model, told)
    before = adapter.probe_logits(one.model.eval())
    assert before.shape[-1] == 53
    assert one.trained == sum(p.numel() for p in weights.values())
    adapter.save_adapter(one, weights, tmp_path / "adapter", {"digest": folder_digest(base), "held": held, "vocabulary": 53})
    assert torch.equal(adapter.probe_logits(adapter.load_on_base(tmp_path / "adapter", base).model), before)
    assert adapter.merge_folder(tmp_path / "adapter", base, tmp_path / "merged") < 2e-5
    names = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["target_modules"]
    assert names == sorted(names)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_plan_counts_what_is_trained(tiny, family, kind):
    model = tiny(family)
    told = config(kind, train=["head", "embeddings"])
    count = sum(p.numel() for p in model.parameters())
    planned = adapter.plan_adapter(model.config, told)
    attached = adapter.attach(model, told, 0)
    assert planned == (count, adapter.adapter_of(model))
    assert planned[1].trained == attached.trained
    assert planned[1].low_rank == (0 if kind == "ia3" else 3 * len(adapter.matrices(tiny(family))) / model.config.num_hidden_layers)


def test_a_plan_knows_what_memory_depends_on(tiny):
    held = tiny()
    adapter.quantise_linears(held.base_model)
    for model, more, wanted in (
        (tiny(), {"targets": ["q_proj"]}, {"feed_forward": False, "low_rank": 3, "head": False, "four_bits": False}),
        (tiny(), {"targets": ["down_proj"], "train": ["head"]}, {"feed_forward": True, "low_rank": 3, "head": True, "four_bits": False}),
        (held, {"base": "nf4"}, {"feed_forward": True, "low_rank": 21, "head": False, "four_bits": True}),
    ):
        told = config(**more)
        planned = adapter.plan_adapter(model.config, told)[1]
        adapter.attach(model, told, 0)
        assert planned == adapter.adapter_of(model)
        assert {name: getattr(planned, name) for name in wanted} == wanted


def test_random_weights_are_a_function_of_the_seed_and_leave_the_generator_alone(tiny):
    state = torch.random.get_rng_state()
    a, b, c = ({n: p for n, p in adapter.attach(tiny(), config(), s).model.named_parameters() if p.requires_grad} for s in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(a[n], b[n]) for n in a)
    assert not all(torch.equal(a[n], c[n]) for n in a)


def test_new_rows_are_the_mean_of_the_old_ones(tiny):
    model = tiny()
    old = model.get_input_embeddings().weight.detach().clone()
    adapter.grow_vocabulary(model, 55)
    new = model.get_input_embeddings().weight
    assert torch.equal(new[:50], old)
    assert all(torch.equal(row, old.mean(0)) for row in new[50:])
    assert model.config.vocab_size == 55


@pytest.mark.parametrize(
    ("targets", "says"),
    [
        (["q_porj"], "did you mean 'q_proj'"), (["lm_head"], "train it whole"), (["embed_tokens"], "known: "), (["proj"], "did you mean"),
        (["v_proj", "norm"], "no matrix 'norm'"),
    ],
)  # fmt: skip
def test_what_is_no_matrix_is_refused(tiny, targets, says):
    with pytest.raises(UserError, match=says):
        adapter.find_targets(tiny(), config(targets=targets))


def test_names_may_be_long_and_a_shared_end_adapts_matrices_alone(tiny):
    assert adapter.find_targets(tiny(), config(targets=["layers.1.mlp.up_proj"])) == ["layers.1.mlp.up_proj"]
    model = tiny()
    model.model.extra = torch.nn.ModuleDict({"q_proj": torch.nn.Embedding(2, 2)})
    found = adapter.find_targets(model, config(targets=["q_proj"]))
    assert found == [f"model.layers.{i}.self_attn.q_proj" for i in (0, 1)]


def test_4_bits_are_refused_where_the_weights_do_not_lie_in_linear_layers(tmp_path, tiny):
    save_model(tiny("gpt2"), tmp_path)
    with pytest.raises(UserError, match="set base: full"):
        adapter.load_base(tmp_path, "nf4")


def test_an_adapter_that_does_not_fit_is_refused(tmp_path, tiny):
    for name in ("base", "same"):
        save_model(tiny(), tmp_path / name)
    one, weights = stirred(tiny(), config())
    adapter.save_adapter(one, weights, tmp_path / "adapter", {"digest": folder_digest(tmp_path / "base"), "held": "full", "vocabulary": 50})
    adapter.load_on_base(tmp_path / "adapter", tmp_path / "same")
    save_model(tiny("qwen3"), tmp_path / "other")
    with pytest.raises(UserError, match="another base"):
        adapter.load_on_base(tmp_path / "adapter", tmp_path / "other")
    (tmp_path / "adapter" / "base.json").unlink()
    save_model(tiny("gpt2"), tmp_path / "far")
    with pytest.raises(UserError, match="does not fit the base"):
        adapter.load_on_base(tmp_path / "adapter", tmp_path / "far")
    (tmp_path / "adapter" / "adapter_model.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(UserError, match="cannot read the adapter"):
        adapter.load_on_base(tmp_path / "adapter", tmp_path / "base")


def test_a_base_that_lies_elsewhere_is_no_cause_for_a_warning(tmp_path, tiny):
    """peft tells of its new place on the screen of whoever chats with the model."""
    for name in ("base", "same"):
        save_model(tiny(), tmp_path / name)
    one, weights = stirred(load_model(tmp_path / "base"), config())
    adapter.save_adapter(one, weights, tmp_path / "adapter", {"digest": folder_digest(tmp_path / "base"), "held": "full", "vocabulary": 50})
    settings = tmp_path / "adapter" / "adapter_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"base_model_name_or_path": "base"}))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        adapter.load_on_base(tmp_path / "adapter", tmp_path / "same")


def test_a_merge_that_gives_other_logits_is_refused():
    logits = torch.ones(2, 3)
    assert adapter.check_parity(logits, logits + 1e-5, "x") == pytest.approx(1e-5, rel=0.1)
    for bad in (logits + 1e-3, logits * float("nan")):
        with pytest.raises(UserError, match="not the adapter on its base"):
            adapter.check_parity(logits, bad, "x")
