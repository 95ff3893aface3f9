"""The runner against plain forwards of whole sequences: whatever is appended, copied and cut in whatever order, the logits are those."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from cairn.generate.hf_runner import FEW, HfRunner, find_way
from cairn.generate.runner import Piece

from .conftest import FAMILIES, VOCAB, build

PLAIN = {"mamba", "rwkv", "jamba"}
SLOTS = 7


def plain_logits(model: Any, ids: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=torch.tensor([ids]), use_cache=False, return_dict=True).logits[0]


def exercise(model: Any, runner: HfRunner, steps: int, seed: int, most: int = 120) -> int:
    """Random work on all slots; gives how many pieces were compared."""
    rng = random.Random(seed)
    held: dict[int, list[int]] = {s: [] for s in range(runner.slots)}
    compared = 0
    for _ in range(steps):
        deed = rng.random()
        if deed < 0.15:
            slot = rng.randrange(SLOTS)
            length = rng.choice([0, rng.randint(0, len(held[slot]))])
            runner.truncate(slot, length)
            held[slot] = held[slot][:length]
        elif deed < 0.3:
            source, target = rng.sample(range(SLOTS), 2)
            length = rng.randint(0, len(held[source]))
            runner.copy(source, target, length)
            held[target] = held[source][:length]
        else:
            pieces = []
            for slot in rng.sample(range(SLOTS), rng.randint(1, SLOTS)):
                start = len(held[slot]) - (rng.random() < 0.2 and len(held[slot]) > 3) * rng.randint(1, 3)
                new = min(rng.choice([1, 1, 1, 2, FEW, 20, 60]), most - start)
                if new > 0:
                    ids = [rng.randrange(4, VOCAB) for _ in range(new)]
                    pieces.append(Piece(slot, ids, start, rng.choice([0, 1, new])))
                    held[slot] = held[slot][:start] + ids
            for piece, got_TV in zip(pieces, runner.forward(pieces) if pieces else [], strict=True):
                assert len(got_TV) == piece.wanted
                if piece.wanted:
                    want_TV = plain_logits(model, held[piece.slot])[-piece.wanted :]
                    assert (got_TV - want_TV).abs().max() <= 2e-3 * want_TV.abs().max(), piece
                    compared += 1
    return compared


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_plain_forwards(family: str) -> None:
    model = build(family)
    runner = HfRunner(model, SLOTS)
    assert runner.way == ("plain" if family in PLAIN else "batched")
    few = family in PLAIN
    assert exercise(model, runner, 12 if few else 40, seed=1, most=40 if few else 120) > (8 if few else 40)


@pytest.mark.parametrize("way", ["single", "plain"])
def test_the_plainer_ways_give_the_same(llama: Any, way: Any) -> None:
    assert exercise(llama, HfRunner(llama, SLOTS, way=way), 20, seed=2) > 15
    assert exercise(llama, HfRunner(llama, SLOTS, way=way, alone=True), 20, seed=3) > 15


def test_sequences_move_to_wider_shelves_and_back_out_of_them() -> None:
    model = build("llama", positions=2400)
    runner = HfRunner(model, SLOTS)
    assert (runner.cost(10), runner.cost(409), runner.cost(410), runner.cost(1638), runner.cost(2400)) == (512, 512, 2048, 2048, 3001)
    assert exercise(model, runner, 40, seed=4, most=900) > 40
    rng = random.Random(5)
    ids = [rng.randrange(4, VOCAB) for _ in range(2000)]
    want_TV = plain_logits(model, ids)
    for start in range(0, 2000, 250):
        [got_TV] = runner.forward([Piece(0, ids[start : start + 250], start, 250)])
        assert (got_TV - want_TV[start : start + 250]).abs().max() <= 2e-3 * want_TV.abs().max()


def test_rows_run_in_place_for_many_steps(llama: Any) -> None:
    """Rows of several lengths, until they have to be moved back to the first columns more than once."""
    model = build("llama", positions=400)
    runner, rng = HfRunner(model, SLOTS), random.Random(6)
    held = {s: [rng.randrange(4, VOCAB) for _ in range(3 + 20 * s)] for s in range(4)}
    runner.forward([Piece(s, ids, 0, 0) for s, ids in held.items()])
    for step in range(600):
        for slot, ids in held.items():
            if len(ids) > 300:
                runner.truncate(slot, 10)
                del ids[10:]
            ids.append(rng.randrange(4, VOCAB))
            assert slot in runner._home
        rows = runner.forward([Piece(s, ids[-1:], len(ids) - 1, 1) for s, ids in held.items()])
        if step % 23 == 0:
            for ids, got_TV in zip(held.values(), rows, strict=True):
                want_V = plain_logits(model, ids)[-1]
                assert (got_TV[0] - want_V).abs().max() <= 2e-3 * want_V.abs().max()


def test_empty_shelves_give_their_memory_back(llama: Any) -> None:
    runner = HfRunner(llama, SLOTS)
    runner.forward([Piece(s, [5, 6, 7], 0, 1) for s in range(SLOTS)])
    [shelf] = runner._shelves.values()
    assert len(shelf._tensors()) == 4
    for slot in range(SLOTS):
        runner.truncate(slot, 0)
    assert shelf._tensors() == []


def test_a_model_whose_padding_is_wrong_runs_one_by_one(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = type(llama).forward

    def ignores_the_mask(self: Any, input_ids: Any = None, past_key_values: Any = None, position_ids: Any = None, **given: Any) -> Any:
        given.pop("attention_mask", None)
        return forward(self, input_ids=input_ids, past_key_values=past_key_values, position_ids=position_ids, **given)

    monkeypatch.setattr(type(llama), "forward", ignores_the_mask)
    assert find_way(llama) == "single"


def test_a_model_whose_cache_is_wrong_runs_without_one(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = type(llama).forward

    def ignores_positions(self: Any, input_ids: Any = None, past_key_values: Any = None, position_ids: Any = None, **given: Any) -> Any:
        position_ids = None if position_ids is None else position_ids * 0
        return forward(self, input_ids=input_ids, past_key_values=past_key_values, position_ids=position_ids, **given)

    monkeypatch.setattr(type(llama), "forward", ignores_positions)
    assert find_way(llama) == "plain"


def test_alone_a_sequence_has_the_same_bits_in_any_company(llama: Any) -> None:
    rng = random.Random(7)
    given = [[rng.randrange(4, VOCAB) for _ in range(n)] for n in (30, 5, 70, 31)]

    def run(company: bool) -> list[torch.Tensor]:
        runner = HfRunner(llama, SLOTS, alone=True)
        others = [1, 2, 3] if company else []
        out = []
        for step in range(10):
            pieces = [Piece(s, given[s] if step == 0 else [step + 7], len(given[s]) + step - 1 if step else 0, 1) for s in (*others, 0)]
            out.append(runner.forward(pieces)[-1].clone())
            if company and step == 4:
                runner.truncate(2, 0)
                others.remove(2)
        return out

    assert all(torch.equal(a, b) for a, b in zip(run(False), run(True), strict=True))
