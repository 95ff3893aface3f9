"""The check at training start can fail: each rule that is dropped, each border that is ignored, is seen in fresh and in strong weights."""

from __future__ import annotations

import pytest
import torch

from cairn.errors import UserError
from cairn.model.config import ModelConfig
from cairn.model.load import new_model
from cairn.model.packing import Layout, backends, check, enable, interface, packs_cleanly, try_packing

GEMMA2 = {"sliding_window": 16, "query_pre_attn_scalar": 8, "layer_types": ["sliding_attention", "full_attention"]}
DROPPED = {
    "window": ("mistral", {"sliding_window": 32}),
    "window of one layer": ("gemma2", GEMMA2),
    "softcap": ("gemma2", GEMMA2),
    "sinks_H": ("gpt_oss", {"num_local_experts": 2, "num_experts_per_tok": 1, "sliding_window": 16}),
}


def fresh(family, extra, spread):
    shape = ModelConfig(
        family=family, hidden_size=32, layers=2, heads=4, kv_heads=2, intermediate_size=32, context=64, extra=extra,
        initializer_range=spread,
    )  # fmt: skip
    return new_model(shape, vocab_size=50, bos_id=None, eos_id=0, pad_id=None, seed=3).eval()


@pytest.mark.parametrize("spread", [0.02, 0.2])
@pytest.mark.parametrize("rule", DROPPED)
def test_a_rule_that_is_dropped_is_seen(monkeypatch, rule, spread):
    model = fresh(*DROPPED[rule], spread)
    enable(model)
    assert packs_cleanly(model)
    right = backends.packed_attention

    def forgetful(q, k, v, layout, scale, window=None, **rest):
        if rule.startswith("window"):
            window = None
        else:
            rest[rule] = None
        return right(q, k, v, layout, scale, window, **rest)

    monkeypatch.setattr(interface, "packed_attention", forgetful)
    assert not packs_cleanly(model)


def test_a_leak_is_found(monkeypatch, tiny):
    """Attention over the whole row, borders ignored."""
    model = tiny()
    enable(model)
    with monkeypatch.context() as patch:
        patch.setattr(check, "Layout", lambda lengths, device, cases: Layout((sum(lengths),), device, cases))
        assert not packs_cleanly(model)
    assert packs_cleanly(model)


def test_the_model_is_left_as_it_was(tiny):
    model = tiny("mistral", {"sliding_window": 32})
    weights = {name: p.clone() for name, p in model.named_parameters()}
    verdict = try_packing(model)
    assert verdict.packs
    assert verdict.backends == {"buckets": ""}
    assert verdict.note == ""
    assert model.config.sliding_window == 32
    assert all(torch.equal(p, weights[name]) for name, p in model.named_parameters())


def test_a_refusal_leaves_the_model_its_own_attention_and_says_why(tiny):
    model = tiny("stablelm")
    before = model.config._attn_implementation
    verdict = try_packing(model)
    assert not verdict.packs
    assert "one by one" in verdict.note
    assert "layout" in verdict.why
    assert model.config._attn_implementation == before


def test_an_unknown_keyword_of_a_family_is_refused(tiny):
    model = tiny()
    enable(model)
    layout = Layout.of([5])
    settings = {"position_ids": torch.arange(5)[None], "use_cache": False, "packing": layout}
    model.base_model(input_ids=torch.arange(5)[None], **settings)
    with pytest.raises(NotImplementedError, match="position_bias"):
        model.base_model(input_ids=torch.arange(5)[None], position_bias=torch.zeros(1), **settings)


def test_rotary_embeddings_that_change_with_the_farthest_position_are_seen(tiny):
    """longrope takes other frequencies for a whole row as soon as one of its documents is long: its neighbours would move."""
    rope = {
        "rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4,
        "original_max_position_embeddings": 16, "factor": 4.0,
    }  # fmt: skip
    model = tiny("llama", {"rope_parameters": rope})
    assert try_packing(model, longest=16).packs
    assert not try_packing(model, longest=64).packs


def test_a_backend_by_name(tiny):
    assert try_packing(tiny(), "buckets").packs
    with pytest.raises(UserError, match="CUDA"):
        try_packing(tiny(), "flex")
    with pytest.raises(UserError, match="unknown attention backend 'flash'"):
        try_packing(tiny(), "flash")
