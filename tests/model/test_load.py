"""Models in and out of folders."""

from __future__ import annotations

import pytest
import torch

from cairn.errors import UserError
from cairn.model.config import ModelConfig, count_parameters, training_flops
from cairn.model.load import load_model, new_model, save_model

SHAPE = ModelConfig(hidden_size=32, layers=2, heads=4, kv_heads=2, intermediate_size=64, context=64)
IDS = {"vocab_size": 50, "bos_id": None, "eos_id": 0, "pad_id": 3}


def test_weights_are_a_function_of_the_seed_and_leave_the_global_state_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    a, b, c = (new_model(SHAPE, **IDS, seed=s) for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))
    assert any(not torch.equal(x, y) for x, y in zip(a.state_dict().values(), c.state_dict().values(), strict=True))


def test_the_embedding_may_start_at_a_scale_of_its_own():
    wide = SHAPE.model_copy(update={"tied": False, "embedding_range": 1.0})
    model, usual = (new_model(shape, **IDS, seed=1) for shape in (wide, SHAPE.model_copy(update={"tied": False})))
    assert float(model.get_input_embeddings().weight.detach().std()) == pytest.approx(1.0, rel=0.1)
    assert torch.equal(model.get_output_embeddings().weight, usual.get_output_embeddings().weight)
    with pytest.raises(ValueError, match="tied: false"):
        ModelConfig(tied=True, embedding_range=1.0)


def test_saved_and_loaded_gives_the_same_logits_to_the_bit(tmp_path):
    model = new_model(SHAPE, **IDS, seed=1).eval()
    save_model(model, tmp_path, stop_ids=[0, 2])
    again = load_model(tmp_path)
    ids = torch.arange(10)[None]
    assert torch.equal(model(ids).logits, again(ids).logits)
    assert again.generation_config.eos_token_id == [0, 2]
    save_model(again, tmp_path / "twice", stop_ids=[0, 2])
    for name in ("model.safetensors", "config.json", "generation_config.json"):
        assert (tmp_path / name).read_bytes() == (tmp_path / "twice" / name).read_bytes()


def test_pickled_weights_are_refused(tmp_path):
    model = new_model(SHAPE, **IDS, seed=1)
    save_model(model, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pickled \(pytorch_model.bin\)"):
        load_model(tmp_path)


def test_folders_that_are_none(tmp_path):
    with pytest.raises(UserError, match=r"no config\.json"):
        load_model(tmp_path)
    save_model(new_model(SHAPE, **IDS, seed=1), tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").write_bytes(b"not a tensor file at all")
    with pytest.raises(UserError, match="cannot load the model"):
        load_model(tmp_path / "m")


def test_missing_weights_are_not_filled_with_random_numbers(tmp_path):
    from safetensors.torch import load_file, save_file

    save_model(new_model(SHAPE, **IDS, seed=1), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="up_proj"):
        load_model(tmp_path)


def test_unknown_family_and_key_are_told_with_a_guess():
    with pytest.raises(UserError, match="did you mean 'llama"):
        new_model(ModelConfig(family="lama"), **IDS, seed=1)
    with pytest.raises(UserError, match="rope_parameters"):
        new_model(ModelConfig(extra={"rope_parameter": {}}), **IDS, seed=1)


@pytest.mark.parametrize("tied", [True, False])
def test_counts_are_those_of_a_real_model(tied):
    shape = SHAPE.model_copy(update={"tied": tied})
    total, matrices = count_parameters(shape, 50)
    model = new_model(shape, **IDS, seed=1)
    assert total == sum(p.numel() for p in model.parameters())
    assert matrices == total - (0 if tied else 50 * 32)
    assert training_flops(100, 10, layers=0, hidden_size=1, mean_length=1) == 6000


def test_loading_and_saving_are_silent_and_leave_transformers_as_it_was(tmp_path, capfd):
    from transformers.utils import logging

    logging.enable_progress_bar()
    save_model(new_model(SHAPE, **IDS, seed=1), tmp_path)
    load_model(tmp_path)
    assert capfd.readouterr().err == ""
    assert logging.is_progress_bar_enabled()
