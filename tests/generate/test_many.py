"""Samples, the best of more, and beam search against transformers' own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers

from cairn.errors import UserError
from cairn.generate.engine import Engine, Request
from cairn.generate.many import beam_search, expand, likeliest, samples
from cairn.generate.matcher import Matcher
from cairn.generate.sampling import Sampling

from .conftest import VOCAB, build, prompts

WARM = Sampling(max_new_tokens=9, temperature=1.2, seed=3)


def test_samples_are_those_of_single_requests(llama: Any) -> None:
    request = Request(prompts(1, seed=1)[0], WARM)
    got = samples(Engine(llama), request, 5)
    assert [c.ids for c in got] == [Engine(llama).generate([r])[0].ids for r in expand(request, 5)]
    assert got[0].ids == Engine(llama).generate([request])[0].ids
    assert len({tuple(c.ids) for c in got}) == 5


def test_samples_compute_their_prompt_once(llama: Any) -> None:
    engine = Engine(llama)
    ids = prompts(1, seed=2, low=40, high=40)[0]
    got = samples(engine, Request(ids, WARM), 5)
    assert sorted(c.cached for c in got) == [0, 40, 40, 40, 40]


def test_the_best_are_the_likeliest_in_the_mean(llama: Any) -> None:
    request = Request(prompts(1, seed=3)[0], WARM)
    everything = samples(Engine(llama), request, 8, best_of=8)
    means = [sum(e.logprob for e in c.logprobs or []) / len(c.ids) for c in everything]
    assert means == sorted(means, reverse=True)
    assert means[0] > means[-1]
    assert [c.ids for c in samples(Engine(llama), request, 2, best_of=8)] == [c.ids for c in everything[:2]]
    with pytest.raises(ValueError, match="log-probabilities"):
        likeliest(samples(Engine(llama), request, 2))
    with pytest.raises(UserError, match="3 of 2"):
        samples(Engine(llama), request, 3, best_of=2)


def reference(
    model: Any, ids: list[int], new: int, beams: int, n: int, penalty: float, stop: list[int], **more: Any
) -> tuple[list[list[int]], list[float]]:
    config = transformers.GenerationConfig(
        max_new_tokens=new, do_sample=False, num_beams=beams, num_return_sequences=n, length_penalty=penalty, early_stopping=False,
        eos_token_id=stop, pad_token_id=0, return_dict_in_generate=True, output_scores=True,
    )  # fmt: skip
    given = torch.tensor([ids])
    out = model.generate(given, attention_mask=torch.ones_like(given), generation_config=config, **more)
    rows = [row[len(ids) :].tolist() for row in out.sequences]
    ends = [next((i + 1 for i, id in enumerate(row) if id in stop), len(row)) for row in rows]
    scores = out.sequences_scores.tolist() if beams > 1 else []
    return [row[:end] for row, end in zip(rows, ends, strict=True)], scores


@pytest.mark.parametrize("family", ["llama", "gemma2"])
@pytest.mark.parametrize(("beams", "n", "penalty"), [(1, 1, 1.0), (3, 3, 1.0), (4, 2, 0.0), (4, 4, 2.0)])
def test_beam_search_equals_transformers(family: str, beams: int, n: int, penalty: float) -> None:
    model = build(family)
    # Logits nearer to each other: else the first beam wins everywhere and nothing is searched.
    (model.lm_head.weight if family == "llama" else model.model.norm.weight).data /= 8 if family == "llama" else 1
    stop = [20, 21, 22, 23, 24, 25, 26, 27]
    for ids in prompts(6, seed=4):
        got = beam_search(Engine(model), Request(ids, Sampling(max_new_tokens=12), frozenset(stop)), beams, n=n, length_penalty=penalty)
        want_ids, want_scores = reference(model, ids, 12, beams, n, penalty, stop)
        assert [c.ids for c, _ in got] == want_ids
        if beams > 1:
            assert [s for _, s in got] == pytest.approx(want_scores, abs=1e-3)
        assert [c.reason for c, _ in got] == ["stop" if set(row) & set(stop) else "length" for row in want_ids]


def test_beams_that_do_not_fit_are_refused(llama: Any) -> None:
    request = Request([5, 6, 7], WARM)
    with pytest.raises(UserError, match="do not fit"):
        beam_search(Engine(llama, max_batch=4), request, 3)
    with pytest.raises(UserError, match="token budget"):
        beam_search(Engine(llama, max_batch_tokens=300), request, 3)


def test_a_search_leaves_the_engine_as_it_was(llama: Any) -> None:
    engine = Engine(llama, max_batch=8)
    before = engine.generate([Request([5, 6, 7], WARM)])
    beam_search(engine, Request([5, 6, 7], WARM), 4)
    assert engine.generate([Request([5, 6, 7], WARM)]) == before


class Thirds(Matcher):
    """The n-th id leaves the rest n by 3, and never is `never`: that is refused when it is chosen."""

    finished = False

    def __init__(self, never: int) -> None:
        self.never, self.taken, self.refused = never, 0, False

    def allowed(self, left: int) -> torch.Tensor:
        mask_V = torch.arange(VOCAB - 3) % 3 == self.taken % 3  # shorter than the vocabulary
        mask_V[self.never] &= not self.refused
        return mask_V

    def accept(self, id: int, left: int) -> bool:
        self.refused |= id == self.never
        if id % 3 != self.taken % 3 or id == self.never:
            return False
        self.taken, self.refused = self.taken + 1, False
        return True


@pytest.mark.parametrize(("beams", "n"), [(1, 1), (4, 4)])
@pytest.mark.parametrize("seed", range(5))
def test_beams_keep_to_a_constraint_as_transformers_do(beams: int, n: int, seed: int) -> None:
    model, stop = build("llama"), [20, 21, 22, 23]
    model.lm_head.weight.data /= 8
    [ids] = prompts(1, seed)
    request = Request(ids, Sampling(max_new_tokens=12), frozenset(stop), constraint=lambda: Thirds(1))
    never = beam_search(Engine(model), request, 1)[0][0].ids[0]
    got = beam_search(Engine(model), replace(request, constraint=lambda: Thirds(never)), beams, n=n)

    def allowed(_: int, given: torch.Tensor) -> list[int]:
        return [id for id in range(VOCAB - 3) if id % 3 == (len(given) - len(ids)) % 3 and id != never]

    want_ids, want_scores = reference(model, ids, 12, beams, n, 1.0, stop, prefix_allowed_tokens_fn=allowed)
    assert [c.ids for c, _ in got] == want_ids
    if beams > 1:
        assert [s for _, s in got] == pytest.approx(want_scores, abs=1e-3)
