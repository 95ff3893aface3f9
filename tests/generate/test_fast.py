"""The compiled forward against the models' own: which models it takes, what it computes, and that company never shows in a bit."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
import transformers

from cairn.generate.engine import Engine, Request
from cairn.generate.fast import PAGE, FastRunner, NotFast
from cairn.generate.native import pack
from cairn.generate.runner import Piece
from cairn.generate.sampling import Sampling

from .conftest import FAMILIES, ROPE, VOCAB, build, prompts

KNOWN = ["llama", "qwen2", "qwen3", "mistral"]
KINDS: list[Any] = ["float32", "bfloat16", "int8", "int4"]


def own_logits(model: Any, ids: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].float()


def error(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got - want).abs().max() / want.abs().max())


def long_prompt(seed: int, length: int) -> list[int]:
    return prompts(1, seed, length, length)[0]


@pytest.fixture(scope="module")
def runners(llama: Any) -> dict[str, FastRunner]:
    return {kind: FastRunner(llama, 6, 128, weights=kind, check=False) for kind in KINDS}


@pytest.mark.parametrize("family", KNOWN)
def test_logits_are_the_models_own(family: str) -> None:
    model = build(family)
    ids = long_prompt(1, 100)  # three pages and a part; far more than the window of those that have one
    assert error(FastRunner(model, 1, 128).forward([Piece(0, ids, 0, 100)])[0], own_logits(model, ids)) < 2e-5


@pytest.mark.parametrize(
    "more",
    [
        {"attention_bias": True, "mlp_bias": True},
        {"tie_word_embeddings": True},
        {"hidden_size": 36, "intermediate_size": 50, "head_dim": 6, "vocab_size": 97},
        {"hidden_size": 48, "num_attention_heads": 6, "num_key_value_heads": 1, "head_dim": 20},
        {"rope_parameters": {"rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                             "original_max_position_embeddings": 32}},
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 32}},
    ],
    ids=["biases", "tied", "odd sizes", "one key head", "llama3 rotary", "yarn"],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_every_shape_that_the_structure_allows(more: dict[str, Any], kind: Any) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**ROPE, **more})).eval()
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                parameter.data *= 6
            elif "bias" in name:
                parameter.data.normal_()
    ids = long_prompt(2, 70)
    got = FastRunner(model, 1, 80, weights=kind).forward([Piece(0, ids, 0, 70)])[0]
    assert error(got, own_logits(model, ids)) < (2e-5 if kind == "float32" else 0.06)


def test_bf16_is_no_further_from_fp32_than_the_models_own_bf16() -> None:
    model, ids = build("llama"), long_prompt(3, 60)
    want = own_logits(model, ids)
    rounded = build("llama").bfloat16()
    got = FastRunner(rounded, 1, 64).forward([Piece(0, ids, 0, 60)])[0]
    assert (got - want).square().mean() < 1.5 * (own_logits(rounded, ids) - want).square().mean()


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_quantised_weights_compute_what_the_rounded_model_computes(kind: str) -> None:
    model, ids = build("llama"), long_prompt(4, 60)
    got = FastRunner(model, 1, 64, weights=kind).forward([Piece(0, ids, 0, 60)])[0]  # type: ignore[arg-type]
    apart = error(got, own_logits(model, ids))
    for module in model.modules():
        if type(module) is torch.nn.Linear:
            w = pack.padded(module.weight.data, pack.up(module.out_features, 32), pack.up(module.in_features, 32))
            codes, scale = pack.int8_codes(w) if kind == "int8" else pack.int4_codes(w)
            scale = scale[:, None] if kind == "int8" else scale.repeat_interleave(pack.GROUP, 1)
            module.weight.data = (codes * scale)[: module.out_features, : module.in_features]
    assert error(got, own_logits(model, ids)) < 0.06 < apart + (0.05 if kind == "int8" else 0)


@pytest.mark.parametrize("family", [f for f in FAMILIES if f not in KNOWN])
def test_other_structures_are_refused_with_a_reason(family: str) -> None:
    with pytest.raises(NotFast, match=r"\w{4}"):
        FastRunner(build(family), 1, 32)


def _louder(module: Any) -> None:
    plain = module.forward
    module.forward = lambda *args, **kwargs: plain(*args, **kwargs) * 1.01


@pytest.mark.parametrize(
    "alter",
    [
        lambda m: _louder(m.model.layers[0].mlp),
        lambda m: _louder(m.model.embed_tokens),
        lambda m: _louder(m.lm_head),
        lambda m: setattr(m.model.layers[1].mlp, "act_fn", torch.nn.GELU()),
        lambda m: _louder(m.model.norm),
    ],
    ids=["feed-forward", "embedding", "head", "activation", "norm"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_that_only_looks_alike_is_found_out(alter: Any, dtype: torch.dtype) -> None:
    model = build("llama").to(dtype)
    alter(model)
    with pytest.raises(NotFast, match="does not give"):
        FastRunner(model, 1, 32)


@pytest.mark.parametrize("rope_type", ["dynamic", "longrope"])
def test_rotary_positions_that_hang_on_the_length_are_refused(rope_type: str) -> None:
    model = build("llama")
    model.config.rope_parameters = {**model.config.rope_parameters, "rope_type": rope_type}
    with pytest.raises(NotFast, match=rope_type):
        FastRunner(model, 1, 32)


# -- company ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_tokens_logits_are_the_same_bits_in_any_company(runners: dict[str, FastRunner], kind: str) -> None:
    runner, ids = runners[kind], long_prompt(5, 90)
    others = prompts(5, 6, 20, 90)
    alone = torch.cat([runner.forward([Piece(0, [id], t, 1)])[0].clone() for t, id in enumerate(ids)])
    whole = runner.forward([Piece(0, ids, 0, 90)])[0].clone()
    cut = [runner.forward([Piece(0, ids[a:b], a, b - a), *(Piece(s + 1, o[:7], 0, 3) for s, o in enumerate(others[: a % 5]))])[0].clone()
           for a, b in ((0, 13), (13, 14), (14, 47), (47, 60), (60, 90))]  # fmt: skip
    assert torch.equal(alone, whole)
    assert torch.equal(torch.cat(cut), whole)
    assert len(alone.argmax(-1).unique()) > 10, "or nothing was compared"


@pytest.mark.parametrize("kind", KINDS)
def test_threads_and_cuts_of_long_calls_change_no_bit(llama: Any, runners: dict[str, FastRunner], kind: Any) -> None:
    ids = long_prompt(7, 120)
    want = runners[kind].forward([Piece(0, ids, 0, 120)])[0].clone()
    other = FastRunner(llama, 3, 128, weights=kind, threads=3, max_rows=17, check=False)
    short = long_prompt(8, 5)
    for _ in range(5):
        got = other.forward([Piece(2, short, 0, 5), Piece(1, ids, 0, 60), Piece(0, ids[:9], 0, 0)])
        assert [len(rows) for rows in got] == [5, 60, 0]
        assert torch.equal(got[1], want[60:])


def test_random_work_on_all_slots_equals_a_fresh_computation(llama: Any, runners: dict[str, FastRunner]) -> None:
    runner, rng = runners["float32"], random.Random(0)
    fresh = FastRunner(llama, 1, 128, check=False)
    held: list[list[int]] = [[] for _ in range(runner.slots)]
    for slot in range(runner.slots):
        runner.truncate(slot, 0)
    for _ in range(120):
        slot, other = rng.sample(range(runner.slots), 2)
        what = rng.random()
        if what < 0.15:
            length = rng.randint(0, len(held[slot]))
            runner.truncate(slot, length)
            del held[slot][length:]
        elif what < 0.3:
            length = rng.randint(0, len(held[slot]))
            runner.copy(slot, other, length)
            held[other] = held[slot][:length]
        else:
            start = rng.randint(max(0, len(held[slot]) - 3), len(held[slot]))
            ids = [rng.randrange(VOCAB) for _ in range(min(rng.randint(1, 40), 128 - start))]
            if not ids:
                continue
            held[slot] = held[slot][:start] + ids
            got = runner.forward([Piece(slot, ids, start, 1)])[0][0].clone()
            assert torch.equal(got, fresh.forward([Piece(0, held[slot], 0, 1)])[0][0])


def test_the_engine_answers_as_on_the_models_own_forward() -> None:
    for family in KNOWN:
        model = build(family)
        requests = [
            Request(ids, Sampling(max_new_tokens=25, temperature=t, top_p=0.9), frozenset({20, 21}), index=i)
            for t in (0.0, 0.8) for i, ids in enumerate(prompts(8, seed=9, high=90))
        ]  # fmt: skip
        fast = Engine(model, runner=lambda m, slots, alone: FastRunner(m, slots, 128))
        assert fast.generate(requests) == Engine(model).generate(requests)


# -- memory and misuse ------------------------------------------------------------------------------------------------


def test_memory_is_bounded_by_the_budget_and_comes_back(llama: Any) -> None:
    runner = FastRunner(llama, 4, 96, budget=96, check=False)
    pages = 96 // PAGE + 4
    ids = long_prompt(10, 96)
    runner.forward([Piece(0, ids, 0, 1)])
    runner.forward([Piece(1, ids, 0, 1)])
    with pytest.raises(MemoryError, match="budget"):
        runner.forward([Piece(2, ids, 0, 1)])
    for slot in range(4):
        runner.truncate(slot, 0)
    for round_ in range(3 * pages):
        runner.forward([Piece(round_ % 4, ids, 0, 1)])
        runner.truncate(round_ % 4, round_ % 2)
        runner.truncate(round_ % 4, 0)


def test_what_would_read_beyond_memory_is_refused(runners: dict[str, FastRunner]) -> None:
    runner = runners["float32"]
    runner.truncate(0, 0)
    runner.forward([Piece(0, [5, 6], 0, 1)])
    for piece in (
        Piece(0, [VOCAB], 2, 1), Piece(0, [-1], 2, 1), Piece(6, [5], 0, 1), Piece(-1, [5], 0, 1), Piece(0, [5], 3, 1),
        Piece(0, [5] * 127, 2, 1),
        Piece(0, [], 2, 0), Piece(0, [5], 2, 2), Piece(0, [5], 2, -1),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"slot|id"):
            runner.forward([piece])
    with pytest.raises(ValueError, match="two pieces"):
        runner.forward([Piece(0, [5], 2, 1), Piece(0, [5], 3, 1)])
    with pytest.raises(ValueError, match="holds"):
        runner.copy(0, 1, 5)


def test_broken_weights_give_no_finite_logits(llama: Any) -> None:
    model = build("llama", seed=1)
    model.lm_head.weight.data[7] = float("nan")
    for kind in KINDS[:2]:
        assert FastRunner(model, 1, 32, weights=kind, check=False).forward([Piece(0, [5, 6], 0, 1)])[0][0, 7].isnan()
    model = build("llama", seed=1)
    model.model.layers[0].mlp.down_proj.weight.data[3] = float("nan")
    for kind in KINDS[:2]:
        assert FastRunner(model, 1, 32, weights=kind, check=False).forward([Piece(0, [5, 6], 0, 1)])[0].isnan().all()
