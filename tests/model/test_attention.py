"""Soft caps are kept by every model that is made or loaded, also where transformers' choice of attention would drop them."""

from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from cairn.model.attention import keep_caps
from cairn.model.load import load_model, save_model
from cairn.model.packing.check import narrowed, states_alone
from cairn.model.pruning import _fresh
from cairn.model.reward import load_reward, reward_from

GEMMA = {"query_pre_attn_scalar": 8, "sliding_window": 6}
IDS = torch.arange(12) * 7 % 50


def drops(monkeypatch):
    """transformers as some of its releases are: torch's attention for every family, the cap swallowed."""
    function = ALL_ATTENTION_FUNCTIONS["sdpa"]
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "sdpa", lambda *tensors, softcap=None, **rules: function(*tensors, **rules))
    for family in PreTrainedModel.__subclasses__():
        monkeypatch.setattr(family, "_supports_sdpa", True)


def same_as_eager(model):
    with torch.no_grad(), narrowed(model):
        found = states_alone(model, IDS)
        model.set_attn_implementation("eager")
        return torch.allclose(found, states_alone(model, IDS), atol=1e-4)


def test_a_new_model_keeps_its_cap(tiny):
    assert same_as_eager(tiny("gemma2", GEMMA))


def test_where_the_cap_would_be_dropped_plain_attention_serves(tiny, tmp_path, monkeypatch):
    drops(monkeypatch)
    made = tiny("gemma2", GEMMA)
    assert made.config._attn_implementation == "eager"
    assert _fresh(made, made.config.to_dict()).config._attn_implementation == "eager"
    save_model(made, tmp_path / "model")
    loaded = load_model(tmp_path / "model", eval_mode=False)
    assert loaded.training
    assert loaded.config._attn_implementation == "eager"
    reward = reward_from(tmp_path / "model", seed=1, pad_id=0)
    save_model(reward, tmp_path / "reward")
    for model in (loaded, reward, load_reward(tmp_path / "reward")):
        assert same_as_eager(model.eval())
    made.set_attn_implementation("sdpa")
    assert not same_as_eager(made), "the stand-in drops nothing"


def test_where_the_cap_is_refused_plain_attention_serves(tiny, monkeypatch):
    def refuses(*_, softcap=None, **__):
        raise ValueError("`sdpa` attention does not support `softcap`")

    model = tiny("gemma2", GEMMA)
    drops(monkeypatch)
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "sdpa", refuses)
    model.set_attn_implementation("sdpa")
    assert keep_caps(model).config._attn_implementation == "eager"


@pytest.mark.parametrize("named", [False, True])
def test_a_model_whose_layers_have_no_cap_keeps_its_attention(tiny, named):
    """Also where its configuration names one: what its layers do not ask for is not dropped."""
    model = tiny()
    if named:
        model.config.attn_logit_softcapping = 30.0
    assert keep_caps(model).config._attn_implementation == "sdpa"
