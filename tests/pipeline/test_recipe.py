"""Recipes are checked whole before anything runs, and every error names its place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cairn.errors import UserError
from cairn.pipeline.recipe import built_in, load_recipe

Write = Callable[..., str]

TWO = """  one: {kind: lines, lines: 3}
  two:
    kind: lines
    after: one
    parts:
      - {name: first, stage: one}
      - {name: second}
"""


def _error(ref: str, *overrides: str) -> UserError:
    with pytest.raises(UserError) as caught:
        load_recipe(ref, overrides)
    return caught.value


def test_a_recipe_is_loaded_with_defaults(write_recipe: Write) -> None:
    recipe = load_recipe(write_recipe(TWO))
    assert (recipe.name, recipe.seed, list(recipe.stages)) == ("small", 1, ["one", "two"])
    assert recipe.stages["one"].config.model_dump()["word"] == "word"
    assert recipe.spot("stages", "two", "after").endswith("small.yaml, line 7")


@pytest.mark.parametrize(
    ("yaml", "what", "line", "remedy"),
    [
        ("  one: {kind: lines}\n  two:\n    kind: lines\n    wrod: x\n", "unknown key 'wrod'", "line 7, stages.two.wrod", "'word'"),
        ("  one:\n    kind: lines\n    parts: [{nmae: x}]\n", "unknown key 'nmae'", "line 6, stages.one.parts.0.nmae", "'name'"),
        ("  one:\n    kind: linse\n", "unknown kind of stage 'linse'", "line 5, stages.one.kind", "'lines'"),
        ("  one:\n    lines: 3\n", "does not say its kind", "line 4, stages.one", "kind:"),
        ("  one:\n    kind: lines\n    lines: many\n", "integer", "line 6, stages.one.lines", "correct"),
        ("  one: 3\n", "dictionary", "line 4, stages.one", "correct"),
        ("  seed: {kind: lines}\n", "'seed' cannot name a stage", "line 4", "letters"),
        ("  a.b: {kind: lines}\n", "'a.b' cannot name a stage", "line 4", "letters"),
        ("  one: {kind: lines}\n  one: {kind: lines}\n", "stands twice", "line 5", ""),
        ("  {}\n", "no stages", "small.yaml", "add one"),
    ],
)
def test_mistakes_in_a_recipe_name_line_and_remedy(write_recipe: Write, yaml: str, what: str, line: str, remedy: str) -> None:
    error = _error(write_recipe(yaml))
    assert what in error.what
    assert line in error.where
    assert remedy in error.remedy


def test_top_level_mistakes(write_recipe: Write) -> None:
    error = _error(write_recipe("  one: {kind: lines}\n", head="recipe: small\nsede: 1\n"))
    assert "unknown key 'sede'" in error.what
    assert "line 2" in error.where
    assert "'seed'" in error.remedy
    assert "cannot name a recipe" in _error(write_recipe("  one: {kind: lines}\n", head="recipe: a/b\n")).what


def test_missing_empty_and_unreadable_files(tmp_path: Path) -> None:
    assert "no such recipe file" in _error(str(tmp_path / "none.yaml")).what
    assert "no built-in recipe" in _error("peble").what
    (tmp_path / "empty.yaml").write_text("")
    assert "empty" in _error(str(tmp_path / "empty.yaml")).what
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    assert "cannot read" in _error(str(tmp_path / "bytes.yaml")).what
    assert "is a folder" in _error(str(tmp_path)).what


def test_overrides_by_stage_by_full_path_and_in_lists(write_recipe: Write) -> None:
    overrides = ["one.lines=7", "stages.two.word=many words", "two.parts.second.stage=one", "two.parts.0.name=zero", "seed=5"]
    recipe = load_recipe(write_recipe(TWO), overrides)
    one, two = (recipe.stages[name].config.model_dump() for name in ("one", "two"))
    assert (recipe.seed, one["lines"], two["word"]) == (5, 7, "many words")
    assert [p["name"] for p in two["parts"]] == ["zero", "second"]
    assert two["parts"][1]["stage"] == "one"
    assert recipe.command.startswith("cairn run ")
    assert "--set 'stages.two.word=many words' --set two.parts.second.stage=one" in recipe.command


@pytest.mark.parametrize(
    ("override", "what", "remedy"),
    [
        ("one.lnies=3", "unknown key 'lnies'", "'lines'"),
        ("oen.lines=3", "knows no 'oen'", "'one'"),
        ("seeed=3", "knows no 'seeed'", "'seed'"),
        ("seed=many", "integer", "correct"),
        ("stages.twoo.lines=3", "no stage 'twoo'", "'two'"),
        ("one.lines=many", "integer", "correct"),
        ("one.lines", "written a.b=c", "for example"),
        ("one..lines=1", "written a.b=c", "for example"),
        ("two.parts.thrid.name=x", "no item 'thrid'", "first"),
        ("two.parts.9.name=x", "no item '9'", "first"),
        ("one.kind.x=1", "'stages.one.kind' holds no keys", "lines"),
        ("one.word=[1", "not valid YAML", "quotes"),
        ("one.kind=lisne", "unknown kind of stage 'lisne'", "lines"),
    ],
)
def test_mistakes_in_overrides_name_the_override(write_recipe: Write, override: str, what: str, remedy: str) -> None:
    error = _error(write_recipe(TWO), override)
    assert what in error.what
    assert error.where == f"--set {override}"
    assert remedy in error.remedy


def test_variables_stand_in_strings_and_are_set_by_name(write_recipe: Write) -> None:
    head = "recipe: small\nvariables: {data: ./d, count: 4}\n"
    path = write_recipe("  one: {kind: lines, lines: '${count}', word: 'at ${data}/x'}\n", head=head)
    assert load_recipe(path).stages["one"].config.model_dump()["lines"] == 4
    assert load_recipe(path, ["data=/abs"]).stages["one"].config.model_dump()["word"] == "at /abs/x"
    assert "no variable 'dta'" in _error(path, "variables.dta=1").what
    assert "no single value" in _error(path, "data=[1]").what


def test_a_variable_without_value_must_be_given(write_recipe: Write) -> None:
    path = write_recipe("  one: {kind: lines, word: '${data}'}\n", head="recipe: small\nvariables:\n  data:\n")
    error = _error(path)
    assert "'data' has no value" in error.what
    assert "line 3" in error.where
    assert "--set data=" in error.remedy
    unknown = _error(write_recipe("  one: {kind: lines, word: '${dtaa}'}\n", head="recipe: small\nvariables: {data: x}\n"))
    assert "unknown variable" in unknown.what
    assert "'data'" in unknown.remedy


@given(st.text(max_size=30))
def test_any_override_is_taken_or_refused_as_the_users_mistake(text: str) -> None:
    from cairn.pipeline.recipe import _apply

    raw = {"recipe": "r", "stages": {"one": {"kind": "lines", "parts": [{"name": "a"}]}}}
    refused: UserError | None = None
    try:
        _apply(raw, [f"one.{text}"])
    except UserError as error:
        refused = error
    if refused is None:
        assert "=" in text
    else:
        assert refused.where == f"--set one.{text}"


def test_every_built_in_recipe_is_valid() -> None:
    for name, file in built_in().items():
        recipe = load_recipe(name, [f"{variable}=x" for variable in _empty_variables(file.read_text(encoding="utf-8"))])
        assert recipe.name == name
        assert recipe.stages
        assert recipe.description


def _empty_variables(text: str) -> list[str]:
    import yaml

    return [name for name, value in (yaml.safe_load(text).get("variables") or {}).items() if value is None]


def test_the_command_for_readers_holds_no_path(write_recipe: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("x")
    head = "recipe: small\nvariables: {data: null, word: w}\n"
    path = write_recipe("  one: {kind: lines, word: '${word}', file: '${data}/a.txt', parts: [{name: p}]}\n", head=head)
    part = f"one.parts=[{{name: p, path: {tmp_path}/in/a.txt}}]"
    command = load_recipe(path, [f"data={tmp_path}/in", "word=in", f"one.parts.p.path={tmp_path}/in/a.txt", "seed=3"]).command
    assert command == "cairn run small.yaml --set data=FOLDER --set word=in --set one.parts.p.path=FILE --set seed=3"
    assert "--set 'one.parts=[{name: p, path: FILE}]'" in load_recipe(path, [f"data={tmp_path}/in", part]).command
    monkeypatch.setenv("HOME", str(tmp_path))
    assert "--set data=FOLDER" in load_recipe(path, ["data=~/in"]).command
    monkeypatch.chdir(tmp_path)
    assert "--set data=FOLDER" in load_recipe("small.yaml", ["data=in"]).command
