"""Stages are ordered after what they need; circles and unknown names are told."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cairn.errors import UserError
from cairn.pipeline.graph import ancestors, order


@given(st.integers(1, 8).flatmap(lambda n: st.tuples(st.permutations(range(n)), st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7))))))
def test_any_graph_without_a_circle_is_ordered(case: tuple[list[int], list[tuple[int, int]]]) -> None:
    listed, edges = case
    references = {str(i): [str(b) for a, b in edges if a == i and b < a] for i in listed}
    found = order(references)
    assert sorted(found) == sorted(references)
    assert all(found.index(ref) < found.index(name) for name, refs in references.items() for ref in refs)


def test_the_order_of_the_recipe_is_kept_where_it_can_be() -> None:
    assert order({"c": [], "a": ["b"], "b": []}) == ["c", "b", "a"]


@given(st.integers(1, 6))
def test_a_circle_is_named_whole(length: int) -> None:
    names = [f"s{i}" for i in range(length)]
    references = {"free": [], "tail": [names[0], "free"], **{n: [names[(i + 1) % length]] for i, n in enumerate(names)}}
    with pytest.raises(UserError, match="circle") as caught:
        order(references, lambda name: f"line of {name}")
    assert " -> ".join([*names, names[0]]) in caught.value.what
    assert caught.value.where == "line of s0"


def test_an_unknown_reference_is_told_with_the_nearest_name() -> None:
    with pytest.raises(UserError, match="'bass', which is no stage") as caught:
        order({"base": [], "chat": ["bass"]}, lambda name, ref: f"{ref} in {name}")
    assert "'base'" in caught.value.remedy
    assert caught.value.where == "bass in chat"


def test_ancestors_are_all_that_is_needed() -> None:
    assert ancestors({"a": [], "b": ["a"], "c": [], "d": ["b", "b"]}, "d") == {"a", "b", "d"}
