"""A key changes with what an artifact depends on and with nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cairn.errors import UserError
from cairn.ledger.store import Store
from cairn.pipeline.keys import Node, nodes
from cairn.pipeline.recipe import load_recipe
from cairn.pipeline.run import run_recipe
from cairn.pipeline.verify import replay

Write = Callable[..., str]


def _keys(store: Store, path: str, *overrides: str) -> dict[str, Node]:
    return {node.name: node for node in nodes(load_recipe(path, overrides), store)}


def test_a_change_reaches_all_that_stands_on_it_and_nothing_else(write_recipe: Write, store: Store) -> None:
    path = write_recipe("  a: {kind: lines}\n  b: {kind: lines, after: a}\n  c: {kind: lines, lines: 3}\n  d: {kind: lines, after: c}\n")
    before, after = _keys(store, path), _keys(store, path, "a.word=other")
    assert {n for n in before if before[n].key != after[n].key} == {"a", "b"}
    reseeded = _keys(store, path, "seed=2")
    assert all(before[n].key != reseeded[n].key for n in before)


def test_names_and_written_out_defaults_do_not_count(write_recipe: Write, store: Store) -> None:
    one = _keys(store, write_recipe("  a: {kind: lines}\n  b: {kind: lines, after: a}\n"))
    other = "  x: {kind: lines, lines: 5, word: word}\n  y: {kind: lines, after: x}\n"
    two = _keys(store, write_recipe(other, head="recipe: else\nseed: 1\n"))
    assert (one["a"].key, one["b"].key) == (two["x"].key, two["y"].key)


def test_of_a_file_the_content_counts_and_not_the_path(write_recipe: Write, store: Store, tmp_path: Path) -> None:
    for name, text in (("one.txt", "same"), ("two.txt", "same"), ("three.txt", "other")):
        (tmp_path / name).write_text(text)
    path = write_recipe("  a:\n    kind: lines\n    parts: [{name: p, path: none}]\n")
    one, two, three = (_keys(store, path, f"a.parts.p.path={tmp_path / name}")["a"] for name in ("one.txt", "two.txt", "three.txt"))
    assert one.key == two.key != three.key
    assert one.files["parts.0.path"].path == str(tmp_path / "one.txt")


def test_a_missing_file_is_told_with_the_recipes_line(write_recipe: Write, store: Store, tmp_path: Path) -> None:
    path = write_recipe("  a:\n    kind: lines\n    file: gone.txt\n")
    with pytest.raises(UserError, match=r"gone\.txt") as caught:
        nodes(load_recipe(path), store)
    assert caught.value.where.endswith("line 6")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty"):
        nodes(load_recipe(path, [f"a.file={tmp_path / 'empty'}"]), store)


def test_circle_and_unknown_stage_are_told_with_the_line(write_recipe: Write, store: Store) -> None:
    path = write_recipe("  a: {kind: lines, after: b}\n  b: {kind: lines, after: a}\n")
    with pytest.raises(UserError, match="circle: a -> b -> a") as caught:
        nodes(load_recipe(path), store)
    assert "small.yaml, line 4" in caught.value.where
    with pytest.raises(UserError, match="'c', which is no stage"):
        nodes(load_recipe(path, ["a.after=c"]), store)


def test_until_leaves_out_what_is_not_needed(write_recipe: Write, store: Store) -> None:
    path = write_recipe("  a: {kind: lines}\n  b: {kind: lines, after: a}\n  c: {kind: lines}\n")
    assert [n.name for n in nodes(load_recipe(path), store, "b")] == ["a", "b"]
    with pytest.raises(UserError, match="no stage 'd'"):
        nodes(load_recipe(path), store, "d")


def test_home_is_meant_by_a_tilde_everywhere(write_recipe: Write, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir("/")
    (tmp_path / "in.txt").write_text("x\n")
    path = write_recipe("  a:\n    kind: lines\n    file: ~/in.txt\n    parts: [{path: ~/in.txt}]\n")
    result = run_recipe(load_recipe(path), store)
    artifact = result.stages[0].artifact
    assert artifact.path("out/lines.txt").read_text().endswith("x\nx\n")
    assert replay(artifact, store).ok
