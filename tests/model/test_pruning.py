"""Pruned models of several families: the parts that matter stay, and the rest computes what it computed."""

from __future__ import annotations

import pytest
import torch

from cairn.errors import UserError
from cairn.model import pruning
from cairn.model.adapter import probe_logits
from cairn.model.config import ModelConfig
from cairn.model.load import load_model, new_model, save_model
from cairn.model.pruning import Influence, Sizes, kept_layers, measuring, prune
from cairn.model.recompute import blocks_of


def build(family="llama", extra=None, **sizes):
    told = {"hidden_size": 32, "layers": 4, "heads": 4, "kv_heads": 2, "intermediate_size": 48, "context": 64, "initializer_range": 0.1}
    shape = ModelConfig(family=family, extra=extra or {}, **told | sizes)
    return new_model(shape, vocab_size=50, bos_id=None, eos_id=0, pad_id=None, seed=3).eval()


def measured(model, width=True):
    with measuring(model, width=width) as influence, torch.no_grad():
        model(input_ids=torch.arange(48).view(2, 24), use_cache=False)
    return influence


def silence(model, block, heads=(), inner=()):
    """Make heads (of 8 channels) and inner channels of a block do nothing, by the weights that read them."""
    one = blocks_of(model)[block]
    with torch.no_grad():
        for head in heads:
            one.self_attn.o_proj.weight[:, head * 8 : head * 8 + 8] = 0
            one.self_attn.v_proj.weight[head // 2 * 8 : head // 2 * 8 + 8] = 0
        for channel in inner:
            one.mlp.up_proj.weight[channel] = 0


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "phi", "gpt_neox"])
def test_a_layer_that_changes_nothing_goes_and_the_model_stays_what_it_was(tmp_path, family):
    model = build(family, **({"kv_heads": None} if family in ("phi", "gpt_neox") else {}))
    idle = 2
    with torch.no_grad():
        for name, p in blocks_of(model)[idle].named_parameters():
            p.mul_(0.0 if p.dim() == 2 or name.endswith("bias") else 1.0)
    influence = measured(model, width=False)
    assert influence.blocks[idle] == pytest.approx(0, abs=1e-6)
    before = probe_logits(model)
    cut = prune(model, influence, Sizes(layers=3))
    assert len(blocks_of(cut)) == cut.config.num_hidden_layers == 3
    torch.testing.assert_close(probe_logits(cut), before, atol=1e-5, rtol=1e-4)
    save_model(cut, tmp_path / "cut")
    assert torch.equal(probe_logits(load_model(tmp_path / "cut")), probe_logits(cut))


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_heads_and_channels_that_do_nothing_go(family):
    model = build(family)
    for block in range(4):
        # Other ones in each block: a choice for all blocks alike would show.
        silence(model, block, heads=(2, 3) if block % 2 else (0, 1), inner=range(block % 2, 48, 2))
    before = probe_logits(model)
    cut = prune(model, measured(model), Sizes(heads=2, intermediate_size=24))
    assert (cut.config.num_attention_heads, cut.config.num_key_value_heads, cut.config.intermediate_size) == (2, 1, 24)
    assert blocks_of(cut)[0].mlp.down_proj.weight.shape == (32, 24)
    torch.testing.assert_close(probe_logits(cut), before, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("family", "tied"), [("llama", True), ("qwen3", False), ("gemma2", True)])
def test_all_sizes_at_once_leave_the_largest_hidden_channels(tmp_path, family, tied):
    model = build(family, tied=tied)
    loud = [1, 4, 9, 16, 25, 30, 31, 2, 3, 5, 7, 11, 13, 17, 19, 23]
    with torch.no_grad():
        # A channel that is nearly silent in the embedding and in all that is added to it.
        for name, p in model.named_parameters():
            quiet = [i for i in range(32) if i not in loud]
            if name.endswith(("embed_tokens.weight",)):
                p[:, quiet] *= 0.01
            elif name.endswith(("o_proj.weight", "down_proj.weight")):
                p[quiet] *= 0.01
    table = model.get_input_embeddings().weight.detach().clone()
    cut = prune(model, measured(model), Sizes(keep_layers=(0, 3), heads=2, intermediate_size=16, hidden_size=16))
    torch.testing.assert_close(cut.get_input_embeddings().weight.detach(), table[:, sorted(loud)])
    save_model(cut, tmp_path / "cut")
    again = load_model(tmp_path / "cut")
    assert again.config.hidden_size == 16
    assert torch.isfinite(probe_logits(again)).all()


def test_the_choice_of_layers():
    influence = Influence(blocks=[0.5, 0.1, 0.3, 0.2])
    assert kept_layers(influence, Sizes(layers=2)) == [0, 2]
    assert kept_layers(influence, Sizes(keep_layers=(3, 1))) == [1, 3]
    assert kept_layers(influence, Sizes(heads=2)) == [0, 1, 2, 3]
    for sizes in (Sizes(layers=5), Sizes(keep_layers=(0, 4))):
        with pytest.raises(UserError, match="has 4 layers"):
            kept_layers(influence, sizes)


@pytest.mark.parametrize(
    ("family", "sizes", "what"),
    [
        ("llama", Sizes(heads=3), "whole number of groups"),
        ("llama", Sizes(hidden_size=64), "makes nothing larger"),
        ("phi3", Sizes(intermediate_size=16), "several matrices in one"),
        ("gpt_neox", Sizes(hidden_size=16), "no head_dim"),
        ("olmo2", Sizes(heads=2), "no weight was found that goes by num_attention_heads"),
    ],
)
def test_what_cannot_be_cut_is_told(family, sizes, what):
    model = build(family, **({"kv_heads": None} if family == "gpt_neox" else {}))
    with pytest.raises(UserError, match=what):
        prune(model, measured(model), sizes)


def test_a_cut_that_is_not_the_silenced_model_is_refused(monkeypatch):
    """As for a family with norms over all heads: what is left out would change the rest."""
    model = build()
    monkeypatch.setattr(pruning, "_silence", lambda *_: None)
    with pytest.raises(UserError, match="logits differ"):
        prune(model, measured(model), Sizes(heads=2))


def test_without_rows_nothing_is_measured():
    with pytest.raises(UserError, match="no calibration rows"), measuring(build(), width=False):
        pass
