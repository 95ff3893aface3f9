"""Merging by every method: what the papers' formulas give, and folders that transformers loads."""

from __future__ import annotations

import json
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from cairn.errors import UserError
from cairn.model import merging as room
from cairn.model.adapter import probe_logits
from cairn.model.load import load_model, save_model
from cairn.model.merge_config import MergeConfig
from cairn.model.merging import Source, merge_models, merge_tensors


def tensors(*rows):
    return [torch.tensor(row) for row in rows]


def merged(method, models, base=None, weights=None, *, seed=0, name="", **more):
    return merge_tensors(MergeConfig(method=method, **more), models, weights or [1.0] * len(models), base, seed=seed, name=name)


def test_linear_is_the_weighted_mean():
    a, b = tensors([1.0, 2.0], [5.0, -2.0])
    torch.testing.assert_close(merged("linear", [a, b]), torch.tensor([3.0, 0.0]))
    torch.testing.assert_close(merged("linear", [a, b], weights=[3, 1]), torch.tensor([2.0, 1.0]))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.05, 0.95))
def test_slerp_keeps_to_the_arc(seed, share):
    draw = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(6, 5, generator=draw) for _ in range(2))
    b = b * (a.norm() / b.norm())
    found = merged("slerp", [a, b], weights=[1 - share, share])
    torch.testing.assert_close(found.norm(), a.norm())
    angle = torch.acos((a * b).sum() / a.norm() ** 2)
    torch.testing.assert_close(torch.acos(((a * found).sum() / a.norm() ** 2).clamp(-1, 1)), share * angle, atol=1e-3, rtol=1e-3)


def test_slerp_at_its_ends_and_on_lines():
    a, b = tensors([1.0, 0.0], [0.0, 2.0])
    torch.testing.assert_close(merged("slerp", [a, b], weights=[1, 0]), a)
    torch.testing.assert_close(merged("slerp", [a, b], weights=[0, 1]), b)
    torch.testing.assert_close(merged("slerp", [a, 3 * a]), 2 * a)
    torch.testing.assert_close(merged("slerp", [a, 0 * a]), 0.5 * a)
    # With a base the changes turn, and the base is added again.
    base = torch.tensor([10.0, 10.0])
    torch.testing.assert_close(merged("slerp", [base + a, base + b / 2], base), base + (a + b / 2) / 2**0.5)


def test_changes_are_added_and_scaled():
    base, a, b = tensors([1.0, 1.0], [2.0, 1.0], [1.0, 4.0])
    torch.testing.assert_close(merged("task_arithmetic", [a, b], base), torch.tensor([2.0, 4.0]))
    torch.testing.assert_close(merged("task_arithmetic", [a, b], base, [1.0, -1.0], scale=0.5), torch.tensor([1.5, -0.5]))
    torch.testing.assert_close(merged("liti", [b], base), torch.tensor([1.0, 2.5]))
    torch.testing.assert_close(merged("liti", [b], base, scale=0.2), torch.tensor([1.0, 1.6]))


def test_ties_trims_settles_on_signs_and_takes_the_mean_of_those_that_agree():
    base = torch.full((5,), 10.0)
    changes = tensors([4.0, 3.0, -2.0, 0.1, 0.2], [2.0, -5.0, 0.1, -6.0, 0.0])
    models = [base + change for change in changes]
    # The largest three of five stay: [4, 3, -2, 0, 0] and [2, -5, 0, -6, 0].
    wanted = torch.tensor([3.0, -5.0, -2.0, -6.0, 0.0])
    torch.testing.assert_close(merged("ties", models, base, density=0.6) - base, wanted)
    torch.testing.assert_close(merged("ties", models, base, density=0.6, scale=0.5) - base, 0.5 * wanted)
    # A heavier model decides the second place.
    torch.testing.assert_close(merged("ties", models, base, [3.0, 1.0], density=0.6)[1], torch.tensor(13.0))
    torch.testing.assert_close(merged("ties", models[:1], base, density=1.0), models[0])


def test_dare_drops_by_seed_name_and_model_and_keeps_the_mean():
    base = torch.zeros(200, 100)
    models = [base + 1.0, base + 1.0]
    one = merged("dare", models, base, [1.0, 0.0], density=0.25, seed=3, name="w")
    assert set(one.unique().tolist()) == {0.0, 4.0}
    assert one.mean() == pytest.approx(1.0, abs=0.05)
    assert torch.equal(one, merged("dare", models, base, [1.0, 0.0], density=0.25, seed=3, name="w"))
    others = [{"seed": 4, "name": "w"}, {"seed": 3, "name": "v"}, {"seed": 3, "name": "w", "weights": [0.0, 1.0]}]
    for told in others:
        other = merged("dare", models, base, **{"weights": [1.0, 0.0], "density": 0.25, **told})
        assert 0.3 < float((one != other).float().mean()) < 0.45  # 2 · 1/4 · 3/4 of the places
    torch.testing.assert_close(merged("dare", models, base, density=1.0), base + 2.0)
    both = merged("dare_ties", [base + 1.0, base - 2.0], base, density=0.5, seed=3, name="w")
    assert set(both.unique().tolist()) == {0.0, 2.0, -4.0}


def test_a_global_generator_changes_nothing():
    base, model = torch.zeros(50), torch.ones(50)
    torch.manual_seed(1)
    one, state = merged("dare", [model], base, density=0.5), torch.get_rng_state()
    torch.manual_seed(2)
    assert torch.equal(one, merged("dare", [model], base, density=0.5))
    torch.manual_seed(1)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    ("told", "what"),
    [
        ({"method": "linear", "density": 0.5}, "has no density"), ({"method": "slerp", "scale": 0.5}, "has no scale"),
        ({"method": "ties", "density": 1.5}, "less than or equal to 1"), ({"method": "mean"}, "Input should be"),
    ],
)  # fmt: skip
def test_options_that_a_method_has_not(told, what):
    with pytest.raises(ValidationError, match=what):
        MergeConfig(**told)


@pytest.mark.parametrize(
    ("method", "weights", "base", "what"),
    [
        ("slerp", [1.0] * 3, False, "takes 2 models, not 3"), ("liti", [1.0, 1.0], True, "takes 1 model, not 2"),
        ("ties", [1.0, 1.0], False, "give the base"), ("linear", [1.0, 1.0], True, "knows no base"),
        ("linear", [1.0], False, "at least 2"), ("linear", [1.0, -0.5], False, "none below 0"), ("slerp", [0.0, 0.0], False, "not all 0"),
        ("liti", [0.5], True, "its scale, not a weight"), ("ties", [1.0, -0.5], True, "weights are above 0"),
        ("dare_ties", [1.0, 0.0], True, "weights are above 0"),
    ],
)  # fmt: skip
def test_models_that_a_method_does_not_take(method, weights, base, what):
    with pytest.raises(ValueError, match=what):
        MergeConfig(method=method).check_models(weights, base=base)


# -- folders --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def folders(tmp_path, tiny):
    """A base and two models that were moved away from it."""
    model, places = tiny("qwen3"), []
    for number in range(3):
        draw = torch.Generator().manual_seed(number)
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn(p.shape, generator=draw) * 0.02 * bool(number))
        places.append(tmp_path / f"model-{number}")
        save_model(model, places[-1], stop_ids=[0, 7])
    return places


METHODS = {
    "linear": {}, "slerp": {}, "task_arithmetic": {"scale": 0.5}, "ties": {"density": 0.5}, "dare": {"density": 0.5},
    "dare_ties": {"density": 0.5},
}  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_a_merged_folder_loads_and_repeats_bit_for_bit(tmp_path, folders, method):
    from transformers import AutoModelForCausalLM

    config = MergeConfig(method=method, **METHODS[method])
    base = Source(folders[0]) if method not in ("linear", "slerp") else None
    sources = [Source(folders[1], 1.0), Source(folders[2], 2.0)]
    for out in ("one", "two"):
        figures = merge_models(config, sources, base, tmp_path / out, 5)
    assert (tmp_path / "one" / room.WEIGHTS).read_bytes() == (tmp_path / "two" / room.WEIGHTS).read_bytes()
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "one", dtype="auto")
    assert figures["parameters"] == sum(p.numel() for p in model.parameters())
    assert model.generation_config.eos_token_id == [0, 7]
    name = "model.layers.1.mlp.up_proj.weight"
    own = [load_file(folder / room.WEIGHTS)[name] for folder in folders]
    wanted = merge_tensors(config, own[1:], [1.0, 2.0], own[0] if base else None, seed=5, name=name)
    torch.testing.assert_close(dict(model.named_parameters())[name].detach(), wanted)


def test_half_of_the_way_between_a_model_and_itself_is_the_model(tmp_path, folders):
    merge_models(MergeConfig(method="linear"), [Source(folders[1])] * 2, None, tmp_path / "out", 0)
    torch.testing.assert_close(probe_logits(load_model(tmp_path / "out")), probe_logits(load_model(folders[1])))


def test_shards_and_types_are_read_as_they_are(tmp_path, folders):
    model = load_model(folders[1]).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    merge_models(MergeConfig(method="linear"), [Source(tmp_path / "shards")] * 2, None, tmp_path / "half", 0)
    assert {t.dtype for t in load_file(tmp_path / "half" / room.WEIGHTS).values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "bfloat16"
    merge_models(MergeConfig(method="linear"), [Source(tmp_path / "shards"), Source(folders[1])], None, tmp_path / "mixed", 0)
    assert {t.dtype for t in load_file(tmp_path / "mixed" / room.WEIGHTS).values()} == {torch.float32}
    assert json.loads((tmp_path / "mixed" / "config.json").read_text())["dtype"] == "float32"


def test_one_tensor_of_each_model_is_in_memory(tmp_path, folders, monkeypatch):
    alive: weakref.WeakSet = weakref.WeakSet()
    most, real = [0], room.Reader.tensor

    def tensor(self, name):
        found = real(self, name)
        alive.add(found)
        most[0] = max(most[0], len(alive))
        return found

    monkeypatch.setattr(room.Reader, "tensor", tensor)
    merge_models(MergeConfig(method="ties"), [Source(f) for f in folders[1:]], Source(folders[0]), tmp_path / "out", 0)
    # Those of one name, and while the next are read at most those of the name before.
    assert 3 <= most[0] <= 6


def edited(folder, change):
    """The folder with its weights changed."""
    path = folder / room.WEIGHTS
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})


@pytest.mark.parametrize("what", ["shape", "name", "finite", "config", "quantised", "adapter", "step"])
def test_models_that_do_not_fit_are_refused(tmp_path, folders, what):
    one, other = Source(folders[1]), Source(folders[2])
    if what == "shape":
        edited(folders[2], lambda w: w.update({"model.norm.weight": torch.ones(31)}))
        wanted = r"'model.norm.weight' has the shape \(32,\) in one model and \(31,\)"
    elif what == "name":
        edited(folders[2], lambda w: w.pop("model.norm.weight"))
        wanted = "1 weights are in one model only, such as 'model.norm.weight'"
    elif what == "finite":
        edited(folders[2], lambda w: w["model.norm.weight"].fill_(float("nan")))
        wanted = "'model.norm.weight' has values that are not finite"
    elif what in ("config", "quantised"):
        told = {"config": {"rms_norm_eps": 0.5}, "quantised": {"quantization_config": {"bits": 4}}}[what]
        path = folders[2] / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | told))
        wanted = {"config": "rms_norm_eps is 1e-06 in one and 0.5 in the other", "quantised": "quantised"}[what]
    elif what == "adapter":
        (folders[2] / "adapter_config.json").write_text("{}")
        wanted = "this is an adapter"
    else:
        other = Source(folders[2], step=folders[2] / "checkpoints" / "step-000100")
        wanted = "no checkpoint of this step"
    with pytest.raises(UserError, match=wanted):
        merge_models(MergeConfig(method="linear"), [one, other], None, tmp_path / "out", 0)
