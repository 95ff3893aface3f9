"""Rank correlations of what was asked for and what answers show."""

from __future__ import annotations

from typing import Any

import pytest

from cairn.errors import UserError
from cairn.evaluate.run import summarise
from cairn.evaluate.steered import asked_levels, shown_levels
from cairn.evaluate.suite import Suite, load_suite

SUITE = Suite(name="s", shown=["humor", "verbosity"])


def asking(**attributes: int) -> dict[str, Any]:
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "It is good."}]
    return {"messages": turns, "attributes": attributes, "id": "r1"}


def samples(*levels: tuple[int, float]) -> list[dict[str, Any]]:
    both = [({"humor": a, "verbosity": 2}, {"humor": b, "verbosity": 1.0}) for a, b in levels]
    return [{"skill": None, "score": 1.0, "asked": asked, "shown": shown} for asked, shown in both]


def test_each_attribute_has_a_number_behind_the_share() -> None:
    found = summarise(SUITE, samples((0, 0.0), (1, 3.0), (2, 5.0), (3, 4.0), (4, 9.0)), "p", "d", deterministic=True)
    assert [(r.suite, r.metric, r.n) for r in found] == [("s", "exact", 5), ("s/humor", "spearman", 5), ("s/verbosity", "spearman", 5)]
    assert found[1].value == pytest.approx(0.9)
    assert found[1].low < 0.9 < found[1].high < 1
    assert "jokes" in found[1].right
    # All were asked for the same: nothing is known.
    assert (found[2].value, found[2].low, found[2].high) == (0.0, -1.0, 1.0)
    assert {(r.samples, r.samples_sha256) for r in found} == {("p", "d")}


def test_a_suite_without_attributes_has_none() -> None:
    assert [r.metric for r in summarise(Suite(name="s"), samples((0, 1.0)), "p", "d", deterministic=True)] == ["exact"]


def test_a_row_that_does_not_ask_is_refused() -> None:
    assert asked_levels(SUITE, asking(humor=3, verbosity=0, toxicity=1)) == {"humor": 3, "verbosity": 0}
    own = asking(humor=3, verbosity=0)
    own["messages"][0]["attributes"] = {"humor": 1}
    assert asked_levels(SUITE, own)["humor"] == 1, "the turn goes before the row"
    with pytest.raises(UserError, match="does not say how much verbosity") as error:
        asked_levels(SUITE, asking(humor=3))
    assert "row r1" in error.value.where
    assert asked_levels(Suite(name="s"), asking()) == {}


def test_what_a_message_shows() -> None:
    assert shown_levels(SUITE, {"role": "assistant", "content": "It is good. Ha ha!"}) == {"humor": 1.0, "verbosity": 3.0}


def test_an_unknown_attribute_is_refused_where_the_suite_is_read() -> None:
    with pytest.raises(UserError, match="nothing is counted for the attribute 'wit'"):
        load_suite({"name": "s", "shown": ["wit"]})


def test_the_built_in_suites_of_steering() -> None:
    assert load_suite("pebble-steering").shown == ["verbosity", "complexity", "humor", "toxicity"]
    short, whole = load_suite("pebble-short"), load_suite("pebble")
    same = {"name", "description", "limit"}
    assert short.model_dump(exclude=same) == whole.model_dump(exclude=same)
    assert short.limit == 60
