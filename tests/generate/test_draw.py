"""The arithmetic of sampling: each filter against a slow definition, draws against the distribution that they come from."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cairn.config import build
from cairn.errors import UserError
from cairn.generate.draw import NOT_FINITE, Chooser, draw, likeliest, penalise, truncate
from cairn.generate.sampling import Sampling
from cairn.ledger import seeds

LOGITS = st.lists(st.integers(-4, 4), min_size=1, max_size=12).map(lambda v: torch.tensor([v], dtype=torch.float64))


def kept(logits: torch.Tensor, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> set[int]:
    out = truncate(logits, torch.tensor([[top_k]]), torch.tensor([[top_p]]).double(), torch.tensor([[min_p]]).double())
    assert torch.equal(out[out.isfinite()], logits[out.isfinite()]), "what stays keeps its logit"
    return set(out[0].isfinite().nonzero()[:, 0].tolist())


def by_rank(logits: torch.Tensor) -> list[int]:
    values = logits[0].tolist()
    return sorted(range(len(values)), key=lambda i: (-values[i], i))


@given(LOGITS, st.integers(0, 14))
def test_top_k_keeps_exactly_the_first_k(logits: torch.Tensor, k: int) -> None:
    assert kept(logits, top_k=k) == set(by_rank(logits)[: k or None])


@given(LOGITS, st.floats(0.01, 0.99))
def test_top_p_keeps_the_shortest_list_that_reaches_p(logits: torch.Tensor, p: float) -> None:
    probabilities = logits.softmax(-1)[0].tolist()
    want, total = set(), 0.0
    for i in by_rank(logits):
        if want and total >= p - 1e-12:
            break
        want.add(i)
        total += probabilities[i]
    if not any(math.isclose(sum(probabilities[i] for i in by_rank(logits)[:n]), p, abs_tol=1e-9) for n in range(len(probabilities))):
        assert kept(logits, top_p=p) == want


@given(LOGITS, st.floats(0.01, 1.0))
def test_min_p_keeps_a_share_of_the_best(logits: torch.Tensor, share: float) -> None:
    probabilities = logits.softmax(-1)[0].tolist()
    want = {i for i, p in enumerate(probabilities) if p >= share * max(probabilities)}
    edge = {i for i, p in enumerate(probabilities) if math.isclose(p, share * max(probabilities), rel_tol=1e-9)}
    assert kept(logits, min_p=share) - edge == want - edge


def test_each_filter_sees_what_the_one_before_left() -> None:
    logits = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).double().log()
    assert kept(logits, top_p=0.5) == {0, 1}
    assert kept(logits, top_k=2, top_p=0.5) == {0}  # 0.4 of 0.7 is past a half
    assert kept(logits, top_k=3, min_p=0.7) == {0, 1}


@given(LOGITS, st.floats(0, 1, exclude_max=True))
def test_a_draw_is_the_first_id_whose_sum_passes_the_number(logits: torch.Tensor, u: float) -> None:
    cumulative = logits.softmax(-1)[0].cumsum(0).tolist()
    target = u * cumulative[-1]
    want = next((i for i, total in enumerate(cumulative) if total > target), len(cumulative) - 1)
    assert draw(logits, torch.tensor([u], dtype=torch.float64)).tolist() == [want]


def test_the_ends_of_the_range_draw_a_token_that_is_possible() -> None:
    last = torch.tensor([math.nextafter(1.0, 0.0)], dtype=torch.float64)
    logits = torch.tensor([[0.3, 1.1, 0.7, -math.inf, -math.inf]], dtype=torch.float64)
    assert draw(logits, last).tolist() == [2]
    assert draw(logits.flip(-1), torch.zeros(1, dtype=torch.float64)).tolist() == [2]


@given(st.lists(st.floats(-30, 30), min_size=1, max_size=300))
def test_the_largest_number_below_one_never_falls_off_the_end(values: list[float]) -> None:
    last = torch.tensor([math.nextafter(1.0, 0.0)], dtype=torch.float64)
    assert draw(torch.tensor([values]), last).item() < len(values)


def test_draws_follow_the_distribution() -> None:
    count = 20000
    probabilities = torch.tensor([0.5, 0.0, 0.25, 0.15, 0.1], dtype=torch.float64)
    uniforms = torch.tensor([seeds.uniform(5, "sample/0", i) for i in range(count)], dtype=torch.float64)
    found = torch.bincount(draw(probabilities.log().expand(count, -1), uniforms), minlength=5).double() / count
    # Five standard deviations: a right sampler fails once in a million changes of the seed.
    assert ((found - probabilities).abs() <= 5 * (probabilities * (1 - probabilities) / count).sqrt()).all(), found


def test_temperature_sharpens_and_flattens() -> None:
    logits = torch.tensor([0.6, 0.4]).log()
    uniforms = torch.tensor([seeds.uniform(6, "sample/0", i) for i in range(4000)], dtype=torch.float64)

    def share(temperature: float) -> float:
        chooser = Chooser([Sampling(temperature=temperature)] * 4000)
        return (chooser.choose(logits.expand(4000, -1), uniforms) == 0).double().mean().item()

    assert share(1.0) == pytest.approx(0.6, abs=0.04)
    assert share(0.2) == pytest.approx(0.6**5 / (0.6**5 + 0.4**5), abs=0.04)
    assert share(100.0) == pytest.approx(0.5, abs=0.04)


def test_penalty_moves_seen_tokens_away_from_likely() -> None:
    logits = torch.tensor([[2.0, 2.0, -2.0, -2.0]])
    seen = torch.tensor([[True, False, True, False]])
    assert penalise(logits, seen, torch.tensor([[2.0]])).tolist() == [[1.0, 2.0, -4.0, -2.0]]


def test_rows_of_one_batch_keep_their_own_samplings() -> None:
    samplings = [Sampling(temperature=1.0, top_k=1), Sampling(temperature=1.0), Sampling(temperature=1.0, min_p=0.9)]
    logits = torch.tensor([[0.5, 0.4, 0.1]]).log().expand(3, -1)
    high = torch.full((3,), 0.95, dtype=torch.float64)
    assert Chooser(samplings).choose(logits, high).tolist() == [0, 2, 0]
    assert Chooser(samplings[1:]).choose(logits[:2], high[:2]).tolist() == [2, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_equals_are_broken_by_the_lowest_id_and_nonsense_is_told(dtype: torch.dtype) -> None:
    logits = torch.tensor([[1.0, 3.0, 3.0], [0.0, float("nan"), 1.0], [-math.inf] * 3, [0.0, math.inf, 1.0]], dtype=dtype)
    assert likeliest(list(logits)) == [1, NOT_FINITE, NOT_FINITE, NOT_FINITE]
    numbers = torch.full((3,), 0.5, dtype=torch.float64)
    assert Chooser([Sampling(temperature=1.0)] * 3).choose(logits[1:], numbers).tolist() == [NOT_FINITE] * 3


@pytest.mark.parametrize(
    ("name", "value"),
    [("temperature", -1), ("top_p", 0), ("top_p", 1.1), ("min_p", -0.1), ("top_k", -1), ("max_new_tokens", 0), ("repetition_penalty", 0)],
)
def test_samplings_out_of_range_are_refused(name: str, value: float) -> None:
    with pytest.raises(UserError) as error:
        build(Sampling, {name: value}, where="options")
    assert name in error.value.where
