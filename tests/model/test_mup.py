"""The maximal update parametrisation: what starts smaller and moves slower, and multipliers that vanish without a trace in the function."""

from __future__ import annotations

import pytest
import torch

from cairn.errors import UserError
from cairn.model.config import ModelConfig
from cairn.model.load import load_model, new_model, save_model
from cairn.model.mup import Scale, Weight, parametrise, rate_scales, scales_of, start_scale, weights_of
from cairn.train.config import OptimizerConfig
from cairn.train.optim import Optimizer, embedding_names

IDS = {"vocab_size": 50, "bos_id": None, "eos_id": 0, "pad_id": None}
MUP = {"base_width": 16, "base_head_size": 4, "input_multiplier": 3.0, "output_multiplier": 2.0}
IDS_T = torch.arange(9)[None] * 3 % 50


def shape(family="llama", mup=MUP, **values):
    sizes = {"hidden_size": 64, "layers": 2, "heads": 4, "intermediate_size": 128, "context": 64, "tied": False}
    return ModelConfig.model_validate({"family": family, "mup": mup, **sizes, **values})


def made(*words, **values):
    return new_model(shape(*words, **values), **IDS, seed=1).eval()


def test_the_table_of_the_paper():
    weights = {
        "hidden": Weight((256, 128), (True, True)),
        "router": Weight((8, 128), (False, True)),
        "into": Weight((128, 8), (True, False)),
        "embedding": Weight((50, 128), (False, True), table=True),
        "head": Weight((50, 128), (False, True), head=True),
        "gain": Weight((128,), (True,)),
    }
    found = rate_scales(4.0, weights, {"head": 0.25})
    adam = {"hidden": 0.25, "router": 0.25, "into": 1.0, "embedding": 1.0, "head": 0.25, "gain": 1.0}
    assert {n: s.adam for n, s in found.items()} == adam
    assert found["hidden"].muon == found["into"].muon == 1.0
    assert found["router"].muon == pytest.approx(0.5), "8 outputs of 128 inputs: the spectral norm wanted falls with the root of the width"
    starts = {n: start_scale(w, 4.0) for n, w in weights.items()}
    assert starts == {"hidden": 0.5, "router": 0.25, "into": 1.0, "embedding": 1.0, "head": 1.0, "gain": 1.0}


def test_muon_after_its_scale_has_the_wanted_spectral_norm_over_widths():
    """rate x sqrt(max(1, rows / columns)) x scale, over sqrt(rows / columns), is the same number at every width."""
    for rows, columns, grows in ((2, 1, (True, True)), (1, 2, (True, True)), (4, 64, (False, True)), (64, 4, (True, False))):
        found = set()
        for ratio in (1, 2, 4, 8):
            r, c = rows * 16 * (ratio if grows[0] else 1), columns * 16 * (ratio if grows[1] else 1)
            muon = rate_scales(ratio, {"w": Weight((r, c), grows)}, {})["w"].muon
            found.add(round(muon * max(1.0, r / c) ** 0.5 / (r / c) ** 0.5, 9))
        assert len(found) == 1


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3_moe"])
def test_sides_that_grow_are_read_off_a_wider_model(family):
    found = weights_of(made(family, mup=None))
    tables = [n for n, w in found.items() if w.table]
    assert len(tables) == (2 if family == "gpt2" else 1)
    assert [n for n, w in found.items() if w.head] == ["lm_head.weight"]
    for name, weight in found.items():
        # A gain of a head's own norm stays as long as heads do; the heads' number is what grows.
        if len(weight.shape) == 1 and "q_norm" not in name and "k_norm" not in name:
            assert weight.grows == (True,), name
        if name.endswith("mlp.gate.weight"):
            assert weight.grows == (False, True), "a router's outputs are its experts"
        elif len(weight.shape) >= 2 and not weight.table and not weight.head:
            assert all(weight.grows[-2:]), name


PLACES = {
    ("granite", True): (set(), {"logits_scaling": 2.0, "embedding_multiplier": 3.0, "attention_multiplier": 0.125}),
    ("gemma2", True): ({"model.embed_tokens.weight", "model.norm.weight"}, {"query_pre_attn_scalar": 64}),
    ("cohere", True): ({"model.embed_tokens.weight", "q_proj.weight"}, {"logit_scale": 0.0625 * 0.5 / 3}),
    ("llama", True): ({"model.embed_tokens.weight", "model.norm.weight", "q_proj.weight"}, {}),
    ("llama", False): ({"model.embed_tokens.weight", "lm_head.weight", "q_proj.weight"}, {}),
    ("qwen3", False): ({"model.embed_tokens.weight", "lm_head.weight", "q_norm.weight"}, {}),
    ("qwen2", False): ({"model.embed_tokens.weight", "lm_head.weight", "q_proj.weight", "q_proj.bias"}, {}),
}


@pytest.mark.parametrize(("family", "tied"), PLACES)
def test_multipliers_go_into_keys_where_the_family_has_them_and_the_folder_gives_the_same_logits(family, tied, tmp_path):
    from transformers import AutoModelForCausalLM

    model = made(family, tied=tied)
    names, keys = PLACES[family, tied]
    assert {n.partition("self_attn.")[2] or n for n in model.config.mup["folded"]} == names
    assert {k: getattr(model.config, k) for k in keys} == pytest.approx(keys)
    save_model(model, tmp_path)
    stock = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert torch.equal(stock(IDS_T).logits, model(IDS_T).logits)
    assert scales_of(load_model(tmp_path)) == scales_of(model), "a later training of the folder has the same rates"


@pytest.mark.parametrize("kind", ["adamw", "muon"])
@pytest.mark.parametrize("tied", [True, False])
def test_multipliers_in_weights_are_multipliers_all_through_a_training(tied, kind):
    """Llama, whose multipliers vanish in weights, against granite, the same model with keys for them: one function after each step."""
    granite, llama = made("granite", tied=tied), made("llama", tied=tied)
    folded = llama.config.mup["folded"]
    with torch.no_grad():
        for name, p in llama.named_parameters():
            p.copy_(granite.get_parameter(name) * folded.get(name, 1.0))
    torch.testing.assert_close(llama(IDS_T).logits, granite(IDS_T).logits, rtol=1e-4, atol=1e-6)
    config = OptimizerConfig(kind=kind, lr=0.02, adam_lr=0.02, weight_decay=0.1, eps=1e-12)
    optimizers = [Optimizer(config, dict(m.named_parameters()), *embedding_names(m), scales=scales_of(m)) for m in (granite, llama)]
    first = granite(IDS_T).logits.detach()
    for number in range(4):
        for model, optimizer in zip((granite, llama), optimizers, strict=True):
            model.zero_grad()
            model(IDS_T, labels=IDS_T).loss.backward()
            optimizer.step(1.0, number, {name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    # Muon's products run in bf16, which rounds a scaled matrix like an unscaled one only where the scale is a power of two.
    close = {"rtol": 1e-3, "atol": 1e-4} if kind == "adamw" else {"rtol": 5e-2, "atol": 2e-2}
    torch.testing.assert_close(llama(IDS_T).logits, granite(IDS_T).logits, **close)
    assert float((granite(IDS_T).logits - first).detach().abs().max()) > 0.5, "they have moved"


def test_at_the_base_width_nothing_changes():
    plain, same = made(mup=None), made(mup={"base_width": 64})
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), same.parameters(), strict=True))
    assert set(scales_of(same).values()) == {Scale()}
    assert scales_of(plain) == {}


def test_deviations_over_widths():
    def deviation(width, name):
        return float(made(hidden_size=width, intermediate_size=2 * width, mup={"base_width": 32}).get_parameter(name).detach().std())

    for name, power in (("model.layers.0.mlp.up_proj.weight", -0.5), ("lm_head.weight", -1.0), ("model.embed_tokens.weight", 0.0)):
        assert deviation(128, name) / deviation(32, name) == pytest.approx(4.0**power, rel=0.1)


def test_crystalchats_settings():
    """Scores are divided by the head's size itself; embeddings times 14.6, logits times 2.22 x 256 / width."""
    mup = {"base_width": 256, "base_head_size": 1, "input_multiplier": 14.6, "output_multiplier": 2.22}
    model = made("granite", hidden_size=512, heads=4, mup=mup, initializer_range=0.073)
    assert model.config.attention_multiplier == pytest.approx(1 / 128)
    assert model.config.embedding_multiplier == pytest.approx(14.6)
    assert 1 / model.config.logits_scaling == pytest.approx(2.22 / 2)
    assert float(model.model.layers[1].mlp.up_proj.weight.detach().std()) == pytest.approx(0.073 / 2**0.5, rel=0.05)


def test_a_family_without_a_place_for_the_scores_is_refused():
    with pytest.raises(UserError, match="'gpt_neox' has no place for the scores"):
        made("gpt_neox")
    assert made("gpt_neox", mup={"base_width": 16}).config.mup["folded"] == {"lm_head.weight": 0.25}


def test_a_family_with_deviations_of_its_own_is_refused():
    model = made(mup=None)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(2.0)
    with pytest.raises(UserError, match=r"deviation of 0\.04"):
        parametrise(model, shape().mup)
