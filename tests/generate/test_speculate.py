"""Drafts: the answers of plain decoding, token by token and draw by draw, in fewer calls of the model."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from cairn.generate.engine import Engine, Request
from cairn.generate.fast import FastRunner
from cairn.generate.hf_runner import HfRunner
from cairn.generate.runner import Piece, Runner
from cairn.generate.sampling import Sampling
from cairn.generate.speculate import BEYOND, Ask, Drafter, DraftModel, PromptLookup, Speculative, _Sequence

from .conftest import VOCAB, build, prompts


class Guesses:
    """Drafts random tokens, mostly those that a model would choose."""

    def __init__(self, model: Any, wrong: float) -> None:
        self.plain, self.wrong, self.rng = FastRunner(model, 1, 128), wrong, random.Random(0)

    def propose(self, asks: Sequence[Ask]) -> list[list[int]]:
        drafts = []
        for ask in asks:
            draft: list[int] = []
            while len(draft) < ask.most:
                best = int(self.plain.forward([Piece(0, ask.ids + draft, 0, 1)])[0].argmax())
                draft.append(self.rng.randrange(VOCAB) if self.rng.random() < self.wrong else best)
            drafts.append(draft)
        return drafts

    def free(self, slot: int) -> None:
        pass


def plainly(model: Any, requests: list[Request], **options: Any) -> list[list[int]]:
    engine = Engine(model, runner=lambda model, slots, alone: FastRunner(model, slots, 128), **options)
    return [c.ids for c in engine.generate(requests)]


def drafted(
    model: Any, requests: list[Request], drafter: Drafter, rows: int = 24, **options: Any
) -> tuple[list[list[int]], dict[str, int]]:
    """The answers, and what became of the drafts."""
    made: list[Speculative] = []

    def runner(model: Any, slots: int, alone: bool) -> Runner:
        made.append(Speculative(FastRunner(model, slots, 128), drafter, rows=rows))
        return made[0]

    got = [c.ids for c in Engine(model, runner=runner, **options).generate(requests)]
    return got, made[0].counts


def copying(count: int, seed: int, **sampling: Any) -> list[Request]:
    """Prompts that repeat themselves."""
    given = [(ids * 3)[:50] for ids in prompts(count, seed, 8, 20)]
    return [Request(ids, Sampling(max_new_tokens=60, **sampling), index=i) for i, ids in enumerate(given)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.0, "top_p": 0.95, "repetition_penalty": 1.1}], ids=["greedy", "drawn"])
def test_thousands_of_tokens_equal_plain_decoding(dtype: torch.dtype, sampling: dict[str, Any]) -> None:
    model = build("llama").to(dtype)
    requests = copying(40, 1, **sampling)
    plain = plainly(model, requests, max_batch=8)
    assert sum(map(len, plain)) == 2400
    other = DraftModel(FastRunner(build("llama", seed=1), 8, 128), VOCAB, 0.0)
    for drafter in (PromptLookup(longest=2, shortest=1), Guesses(model, 0.3), other):
        got, counts = drafted(model, requests, drafter, max_batch=8)
        assert got == plain
        assert counts["drafted"] > 300, "or nothing was tried"
        assert counts["drafted"] > counts["accepted"] > 0


def test_a_right_draft_spares_calls_of_the_model(llama: Any) -> None:
    request = copying(1, 2)
    got, counts = drafted(llama, request, DraftModel(FastRunner(llama, 1, 128), VOCAB, 0.0), max_batch=1)
    assert got == plainly(llama, request, max_batch=1)
    assert counts["accepted"] >= 50
    assert counts["calls"] <= 9  # of 60 tokens: drafts of 4, 8, 16, 16, …


def test_wrong_drafts_become_rare(llama: Any) -> None:
    assert drafted(llama, copying(1, 3), Guesses(llama, 1.0), max_batch=1)[1]["drafted"] < 40


def test_on_the_models_own_forward_too(llama: Any) -> None:
    requests = copying(10, 4)
    plain = [c.ids for c in Engine(llama).generate(requests)]
    made: list[Speculative] = []

    def runner(model: Any, slots: int, alone: bool) -> Runner:
        made.append(Speculative(HfRunner(model, slots, alone=alone), Guesses(model, 0.3)))
        return made[0]

    assert [c.ids for c in Engine(llama, runner=runner).generate(requests)] == plain
    assert made[0].counts["accepted"] > 50


def test_drawn_tokens_are_distributed_as_the_model_says() -> None:
    """Against the exact distribution of the second token, so that a wrong plain decoding would be seen as well (chi-squared, 1 in 10^4)."""
    model = build("llama")
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.data *= 0.5
    prompt, count = prompts(1, 5, 12, 12)[0], 3000
    with torch.inference_mode():
        first_V = model(input_ids=torch.tensor([prompt])).logits[0, -1].double().softmax(-1)
        follow_VV = model(input_ids=torch.tensor([[*prompt, i] for i in range(VOCAB)])).logits[:, -1].double().softmax(-1)
    expected_V = first_V @ follow_VV * count
    requests = [Request(prompt, Sampling(max_new_tokens=2, temperature=1.0, seed=7), index=i) for i in range(count)]
    got, counts = drafted(model, requests, Guesses(model, 0.2), rows=200)
    found = Counter(ids[1] for ids in got)
    often = [i for i in range(VOCAB) if expected_V[i] >= 5]
    rest = count - sum(found[i] for i in often)
    rest_expected = count - float(sum(expected_V[i] for i in often))
    statistic = sum((found[i] - float(expected_V[i])) ** 2 / float(expected_V[i]) for i in often)
    statistic += (rest - rest_expected) ** 2 / max(rest_expected, 1)
    degrees = len(often)
    assert degrees > 10
    assert counts["accepted"] > 50
    assert statistic < degrees + 4 * (2 * degrees) ** 0.5, f"chi-squared {statistic:.0f} at {degrees} degrees of freedom"


@pytest.mark.parametrize("right", [1, 4, 8, 12, 15])
def test_drafts_are_as_long_as_they_pay(right: int) -> None:
    """Of every length up to 16: tokens that come of a call, by what the call costs."""
    sequence, p = _Sequence(tried=16.0, true=float(right)), right / 16
    for cost in (0.05, 0.1, 0.18, 0.45, 1.0):
        worth = [sum(p**i for i in range(n + 1)) / (1 + cost * n) for n in range(1, 17)]
        assert sequence.length(16, cost) == worth.index(max(worth)) + 1
        assert sequence.length(3, cost) <= 3


# -- drafters ---------------------------------------------------------------------------------------------------------


def test_lookup_gives_what_followed_last_and_longest() -> None:
    lookup = PromptLookup(longest=3, shortest=2)
    ids = [1, 2, 3, 4, 9, 2, 3, 5, 1, 2, 3]
    assert lookup.propose([Ask(0, ids, 3)]) == [[4, 9, 2]]  # after 1 2 3, not after the later 2 3
    ids += [5, 1]
    assert lookup.propose([Ask(0, ids, 4)]) == [[2, 3, 5, 1]]  # goes round in what follows
    assert lookup.propose([Ask(0, ids, 1), Ask(1, [1, 2, 3], 4)]) == [[2], []]
    lookup.free(0)
    assert lookup.propose([Ask(0, [5, 6, 5], 4)]) == [[]]


def test_lookup_goes_on_behind_an_altered_token() -> None:
    lookup, source = PromptLookup(), list(range(10, 60))
    ids = [*source, 12, 13, 14]
    assert lookup.propose([Ask(0, ids, 3)]) == [[15, 16, 17]]
    ids += [15, 99]
    assert lookup.propose([Ask(0, ids, 3)]) == [[17, 18, 19]]
    ids += list(range(200, 200 + BEYOND))
    assert lookup.propose([Ask(0, ids, 3)]) == [[]]


def test_lookup_forgets_what_was_rewound(llama: Any) -> None:
    lookup = PromptLookup(longest=2, shortest=2)
    runner = Speculative(FastRunner(llama, 1, 128), lookup)
    runner.forward([Piece(0, [5, 6, 7, 8], 0, 1)])
    runner.forward([Piece(0, [5], 4, 1)])
    runner.forward([Piece(0, [9, 9, 9, 9], 0, 1)])
    runner.forward([Piece(0, [5], 4, 1)])
    runner.forward([Piece(0, [6], 5, 1)])
    assert runner.counts["drafted"] == 0


def test_an_unsure_draft_model_says_nothing(llama: Any) -> None:
    flat = build("llama")
    flat.lm_head.weight.data.zero_()
    asks = [Ask(0, [5, 6], 4), Ask(1, [7], 4)]
    assert DraftModel(FastRunner(flat, 2, 64), VOCAB, 0.4).propose(asks) == [[], []]
    assert [len(d) for d in DraftModel(FastRunner(flat, 2, 64), VOCAB, 0.0).propose(asks)] == [4, 4]


def test_a_sequence_beyond_the_draft_models_context_goes_on_without(llama: Any) -> None:
    assert DraftModel(FastRunner(llama, 1, 16), VOCAB, 0.0).propose([Ask(0, [5] * 15, 4)]) == [[]]
