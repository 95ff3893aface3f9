"""The forward pass over many families: no document sees another, and what comes out is what each gives alone through its own attention."""

from __future__ import annotations

import pytest
import torch

from cairn.data.batches import make_batch
from cairn.data.encode import document
from cairn.ledger.progress import Silent
from cairn.model.config import ModelConfig
from cairn.model.load import new_model
from cairn.model.packing import try_packing
from cairn.train.config import Training
from cairn.train.forward import TorchBatch, hidden_states, target_loss
from cairn.train.loop import Trainer

LENGTHS = (11, 9, 6)
MOE = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
MLA = {
    "kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 12, "n_routed_experts": 4,
    "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "n_shared_experts": 1, "num_experts_per_tok": 2,
}  # fmt: skip
MIXED = ["sliding_attention", "full_attention"]
PACKED = {
    "llama": {}, "mistral": {"sliding_window": 4}, "mixtral": {"num_local_experts": 4, "sliding_window": 4},
    "qwen2": {"use_sliding_window": True, "sliding_window": 4, "layer_types": MIXED}, "qwen3": {},
    "qwen3_moe": {"num_local_experts": 4, **MOE}, "gemma": {"num_key_value_heads": 1},
    "gemma2": {"sliding_window": 4, "attn_logit_softcapping": 0.3, "query_pre_attn_scalar": 8},
    "gemma3_text": {"sliding_window": 4, "layer_types": MIXED, "query_pre_attn_scalar": 8}, "phi": {}, "phi3": {"sliding_window": 4},
    "gpt2": {}, "gpt_neox": {}, "gpt_bigcode": {}, "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32}, "olmo2": {},
    "olmo3": {"sliding_window": 4},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2}, "cohere": {},
    "cohere2": {"sliding_window": 4, "layer_types": MIXED}, "granite": {},
    "granitemoe": {"num_local_experts": 4}, "starcoder2": {"sliding_window": 4}, "gpt_oss": {"num_local_experts": 4, "sliding_window": 4},
    "deepseek_v3": MLA, "smollm3": {"sliding_window": 4, "use_sliding_window": True, "layer_types": MIXED}, "glm4": {},
    "exaone4": {"sliding_window": 4, "layer_types": MIXED}, "helium": {}, "arcee": {},
}  # fmt: skip
"""Families that pack, with what makes them hard: windows shorter than the documents, caps that bite, sinks, experts, other value sizes."""
ALONE = {
    "bloom": {}, "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 64}, "falcon": {"alibi": True},
    "gptj": {"rotary_dim": 8},
    "stablelm": {}, "nemotron": {}, "mamba": {"state_size": 8}, "falcon_mamba": {"state_size": 8},
    "jamba": {"attn_layer_offset": 0, "attn_layer_period": 2, "num_experts": 2, "use_mamba_kernels": False, "mamba_d_state": 8},
}  # fmt: skip
"""Families that do not: ALiBi of their own making, attention that cannot be replaced, states that run on."""


def model_of(family, extra, seed=3):
    shape = ModelConfig(
        family=family, hidden_size=32, layers=2, heads=4, kv_heads=4 if "kv_lora_rank" in extra else 2, intermediate_size=64, context=64,
        extra=extra, initializer_range=0.1,
    )  # fmt: skip
    return new_model(shape, vocab_size=50, bos_id=None, eos_id=0, pad_id=None, seed=seed).eval()


def batch_of(packed, change=0):
    """Three documents; `change` alters every token of the first."""
    rows = [[(7 * d + 3 * i + (change if d == 0 else 0)) % 50 for i in range(n)] for d, n in enumerate(LENGTHS)]
    return TorchBatch.of(make_batch([document(r, [1] * len(r)) for r in rows], [0] * len(rows)), "cpu", packed=packed)


def alone(model, batch):
    """Each document through the family's own attention."""
    return [model.base_model(input_ids=ids[None], use_cache=False).last_hidden_state[0] for ids in batch.ids_T.split(list(LENGTHS))]


@pytest.mark.parametrize(("family", "extra", "packs"), [
    *((f, e, True) for f, e in PACKED.items()), *((f, e, False) for f, e in ALONE.items()),
])  # fmt: skip
def test_no_document_sees_another(family, extra, packs):
    model = model_of(family, extra)
    verdict = try_packing(model)
    assert verdict.packs == packs, verdict.why
    assert packs or "one by one" in verdict.note
    first = LENGTHS[0]
    with torch.no_grad():
        before, after = (hidden_states(model, batch_of(packs, change)) for change in (0, 1))
        assert not torch.equal(before[:first], after[:first])
        if "num_experts_per_tok" in model.config.to_dict() or "num_local_experts" in model.config.to_dict():
            # Which tokens share an expert's product, and so its rounding, depends on all of them.
            torch.testing.assert_close(before[first:], after[first:], atol=1e-6, rtol=1e-6)
        else:
            assert torch.equal(before[first:], after[first:])
        model.set_attn_implementation("eager")
        wanted = torch.cat(alone(model, batch_of(packs)))
    assert float((before - wanted).abs().max() / wanted.abs().max()) < 1e-5


GRADIENTS = {name: PACKED[name] for name in ("llama", "mistral", "gemma2", "gemma3_text", "gpt2", "gpt_oss", "deepseek_v3")} | {
    "gemma": PACKED["gemma"], "bloom": ALONE["bloom"],
}  # fmt: skip
"""Grouped heads, windows, a soft cap, plain heads, sinks, other value sizes, one key head (gemma), ALiBi (bloom)."""


@pytest.mark.parametrize(("family", "extra"), GRADIENTS.items())
def test_loss_and_gradients_are_those_of_each_example_alone(family, extra):
    """In fp32, against the family's own attention and torch's cross entropy, one example at a time."""
    model = model_of(family, extra)
    batch = batch_of(try_packing(model).packs)
    loss = target_loss(model, batch).total
    loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    model.set_attn_implementation("eager")
    total = 0.0
    for ids in batch.ids_T.split(list(LENGTHS)):
        one = torch.nn.functional.cross_entropy(model(input_ids=ids[None], use_cache=False).logits[0, :-1], ids[1:], reduction="sum")
        one.backward()
        total += float(one.detach())
    assert float(loss.detach()) == pytest.approx(total, rel=1e-5)
    wanted = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert found.keys() == wanted.keys()
    whole = torch.cat([g.flatten() for g in wanted.values()]).norm()
    for name, gradient in wanted.items():
        # A key's bias has no gradient but rounding: measured against the whole.
        assert float((found[name] - gradient).norm()) <= 1e-5 * float(gradient.norm()) + 1e-6 * float(whole), name


@pytest.mark.parametrize("family", ["bloom", "stablelm", "mamba"])
def test_the_trainer_says_that_documents_run_one_by_one(tmp_path, family):
    said = []
    progress = Silent()
    progress.note = said.append
    trainer = Trainer(model_of(family, ALONE[family]), None, Training(steps=1, sequence_length=32), tmp_path, progress)
    assert not trainer.packed
    assert [line for line in said if family in line and "one by one" in line]


def test_a_backend_that_cannot_serve_stops_the_trainer(tmp_path):
    from cairn.errors import UserError

    with pytest.raises(UserError, match="attention backend 'varlen' cannot serve"):
        Trainer(model_of("llama", {}), None, Training(steps=1, sequence_length=32, attention="varlen"), tmp_path, Silent())


def test_dropout_is_off_in_training(tmp_path):
    """GPT-2's own configuration has it: its draws come from a global generator, which a resumed run could not repeat."""
    said = []
    progress = Silent()
    progress.note = said.append
    trainer = Trainer(model_of("gpt2", {}), None, Training(steps=1, sequence_length=32), tmp_path, progress)
    assert trainer.packed
    assert trainer.model.training
    assert [line for line in said if "dropout" in line]
    batch = batch_of(True)
    assert torch.equal(hidden_states(trainer.model, batch), hidden_states(trainer.model, batch))
    assert trainer.model.config.attn_pdrop == 0.1


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt2", "mixtral"])
def test_filling_up_to_a_multiple_changes_neither_loss_nor_gradients(family):
    found = []
    for multiple in (1, 32):
        model = model_of(family, PACKED[family])
        assert try_packing(model).packs
        rows = [[(7 * d + 3 * i) % 50 for i in range(n)] for d, n in enumerate(LENGTHS)]
        made = make_batch([document(r, [1] * len(r)) for r in rows], [0] * len(rows))
        batch = TorchBatch.of(made, "cpu", packed=True, multiple=multiple)
        loss = target_loss(model, batch)
        loss.total.backward()
        found.append((len(batch.ids_T), loss.count, float(loss.total.detach()), [p.grad for p in model.parameters() if p.grad is not None]))
    (tokens, count, total, grads), (filled, same_count, same_total, same_grads) = found
    assert (tokens, filled, count) == (26, 32, same_count)
    assert same_total == pytest.approx(total, rel=1e-6)
    torch.testing.assert_close(same_grads, grads, atol=1e-5, rtol=1e-4)
