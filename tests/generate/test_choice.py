"""What penalties, bias and constraints do to logits, and what log-probabilities say."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from cairn.errors import UserError
from cairn.generate.choice import Choice, logprob
from cairn.generate.engine import Engine, Request
from cairn.generate.matcher import Matcher
from cairn.generate.sampling import Sampling

from .conftest import VOCAB, prompts


def adjusted(sampling: Sampling, logits: list[float], prompt: list[int], answer: list[int]) -> list[float]:
    choice = Choice(Request(prompt, sampling), len(logits))
    for id in answer:
        assert choice.accept(id, 9)
    return choice.adjust(torch.tensor(logits), 9).tolist()


def test_penalties_and_bias() -> None:
    logits = [2.0, -2.0, 1.0, 0.5]
    assert adjusted(Sampling(repetition_penalty=2.0), logits, [0], [1]) == [1.0, -4.0, 1.0, 0.5]
    assert adjusted(Sampling(presence_penalty=0.5), logits, [0], [1, 1, 3]) == [2.0, -2.5, 1.0, 0.0]
    assert adjusted(Sampling(frequency_penalty=0.5), logits, [0], [1, 1, 3]) == [2.0, -3.0, 1.0, 0.0]
    assert adjusted(Sampling(logit_bias={2: -100.0, 3: 2.0, 99: 1.0}), logits, [0], []) == [2.0, -2.0, -99.0, 2.5]
    assert adjusted(Sampling(presence_penalty=1.0, logit_bias={1: 4.0}), logits, [0], [1]) == [2.0, 1.0, 1.0, 0.5]


def test_bias_and_penalties_reach_the_answer(llama: Any) -> None:
    ids = prompts(1, seed=1)[0]
    engine = Engine(llama)
    forced = engine.generate([Request(ids, Sampling(max_new_tokens=5, logit_bias={33: 1e6}))])[0]
    assert forced.ids == [33] * 5
    varied = engine.generate([Request(ids, Sampling(max_new_tokens=40, frequency_penalty=1e6))])[0]
    assert len(set(varied.ids)) == 40


class Counts(Matcher):
    """Allows 40 and 41 by turns, as often as is asked."""

    def __init__(self, most: int) -> None:
        self.most, self.taken, self.lefts = most, 0, list[int]()

    @property
    def finished(self) -> bool:
        return self.taken == self.most

    @finished.setter
    def finished(self, value: bool) -> None: ...

    def allowed(self, left: int) -> Tensor | None:
        self.lefts.append(left)
        mask = torch.zeros(50, dtype=torch.bool)  # shorter than the vocabulary
        mask[40 + self.taken % 2] = True
        return mask

    def accept(self, id: int, left: int) -> bool:
        if id != 40 + self.taken % 2:
            return False
        self.taken += 1
        return True


@pytest.mark.parametrize("temperature", [0.0, 3.0])
def test_a_constraint_says_what_may_come_and_when_it_is_complete(llama: Any, temperature: float) -> None:
    made: list[Counts] = []

    def constraint() -> Counts:
        made.append(Counts(7))
        return made[-1]

    sampling = Sampling(max_new_tokens=10, temperature=temperature)
    requests = [Request(ids, sampling, constraint=constraint if i % 2 else None, index=i) for i, ids in enumerate(prompts(6, seed=2))]
    got = Engine(llama).generate(requests)
    free = Engine(llama).generate([Request(r.ids, sampling, index=r.index) for r in requests])
    for i, completion in enumerate(got):
        if i % 2:
            assert (completion.ids, completion.reason) == ([40, 41, 40, 41, 40, 41, 40], "stop")
        else:
            assert completion == free[i]
    assert [m.lefts for m in made] == [list(range(10, 3, -1))] * 3


def test_a_constraint_that_allows_nothing_is_told(llama: Any) -> None:
    class Nothing(Counts):
        def allowed(self, left: int) -> Tensor | None:
            return torch.zeros(VOCAB, dtype=torch.bool)

    with pytest.raises(UserError, match="allows no token") as error:
        Engine(llama).generate([Request([5, 6], Sampling(), constraint=lambda: Nothing(3), index=4)])
    assert error.value.where == "request 4"


def test_a_constraint_that_refuses_what_it_allows_ends_its_request_alone(llama: Any) -> None:
    class Stubborn(Counts):
        def accept(self, id: int, left: int) -> bool:
            return False

    engine = Engine(llama)
    requests = [Request([5, 6], Sampling(max_new_tokens=3), constraint=lambda: Stubborn(3), index=4)]
    with pytest.raises(RuntimeError, match="request 4 refuses id 40 and allows it again"):
        engine.generate(requests)
    [after] = engine.generate([Request([5, 6], Sampling(max_new_tokens=3))])
    assert len(after.ids) == 3


def test_log_probabilities_are_the_models_own(llama: Any) -> None:
    [ids] = prompts(1, seed=3)
    sampling = Sampling(max_new_tokens=6, temperature=2.0, top_k=5, repetition_penalty=1.3)
    [got] = Engine(llama).generate([Request(ids, sampling, logprobs=3)])
    assert got.logprobs is not None
    with torch.inference_mode():
        whole_TV = llama(input_ids=torch.tensor([ids + got.ids]), use_cache=False).logits[0].double().log_softmax(-1)
    for step, (id, entry) in enumerate(zip(got.ids, got.logprobs, strict=True)):
        want_V = whole_TV[len(ids) + step - 1]
        assert (entry.id, entry.logprob) == (id, pytest.approx(want_V[id].item(), abs=1e-3))
        values, top = want_V.topk(3)
        assert [i for i, _ in entry.top] == top.tolist()
        assert [p for _, p in entry.top] == pytest.approx(values.tolist(), abs=1e-3)
    [chosen] = Engine(llama).generate([Request(ids, sampling, logprobs=0)])
    assert [(e.logprob, e.top) for e in chosen.logprobs or []] == [(pytest.approx(e.logprob, abs=1e-3), []) for e in got.logprobs]
    assert Engine(llama).generate([Request(ids, sampling)])[0].logprobs is None


def test_more_alternatives_than_ids() -> None:
    assert [i for i, _ in logprob(torch.tensor([0.0, 2.0, 1.0]), 0, 20).top] == [1, 2, 0]
