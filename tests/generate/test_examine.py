"""What cannot be done is refused with a reason, what is hard hangs nobody, and real schemas are one or the other."""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path
from typing import Any

import pytest

from cairn.chat.calls import call_layout
from cairn.chat.format import load_format
from cairn.errors import UserError
from cairn.generate import closing, grammar
from cairn.generate.constrain import Constrainer
from cairn.tokenizer.load import Tokenizer

from .constrained import PERSON, answer, anything, text_of, walk


def _deep(levels: int) -> Any:
    schema: Any = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "array", "items": schema}
    return schema


BAD: dict[str, Any] = {
    "contradictory types": lambda: grammar.json_schema({"allOf": [{"type": "string"}, {"type": "integer"}]}),
    "contradictory bounds": lambda: grammar.json_schema({"type": "integer", "minimum": 5, "maximum": 3}),
    "a required member that is false": lambda: grammar.json_schema({"required": ["a"], "properties": {"a": False}, "type": "object"}),
    "an empty enum": lambda: grammar.json_schema({"enum": []}),
    "false": lambda: grammar.json_schema(False),
    "recursion without end": lambda: grammar.json_schema({"type": "object", "required": ["a"], "properties": {"a": {"$ref": "#"}}}),
    "a reference to itself": lambda: grammar.json_schema({"$ref": "#"}),
    "a reference to nothing": lambda: grammar.json_schema({"$ref": "#/$defs/no"}),
    "a remote reference": lambda: grammar.json_schema({"$ref": "http://example.org/schema.json"}),
    "an unknown type": lambda: grammar.json_schema({"type": "strin"}),
    "properties that are none": lambda: grammar.json_schema({"properties": [1]}),
    "not": lambda: grammar.json_schema({"not": {"type": "string"}}),
    "nested too deep": lambda: grammar.json_schema(_deep(5000)),
    "a list": lambda: grammar.json_schema([1]),
    "not a number": lambda: grammar.json_schema({"const": float("nan")}),
    "many members": lambda: grammar.json_schema({"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(20000)}}),
    "too many bytes": lambda: grammar.json_schema({"enum": ["x" * 2_000_000]}),
    "an endless minimum": lambda: grammar.json_schema({"type": "array", "items": {"type": "string"}, "minItems": 1_000_000}),
    "alternatives of alternatives": lambda: grammar.json_schema(
        {"allOf": [{"anyOf": [{"properties": {f"p{i}{j}": {"type": "string"}}} for j in range(2)]} for i in range(20)]}
    ),
    "an open group": lambda: grammar.regex("(a"),
    "look-ahead": lambda: grammar.regex("(?=a)b"),
    "a back-reference": lambda: grammar.regex(r"(a)\1"),
    "nothing matches": lambda: grammar.regex(r"[^\s\S]"),
    "an expression of a million": lambda: grammar.regex("a" * 1_000_000),
    "repetitions of repetitions": lambda: grammar.regex("(a{1000}){1000}"),
    "brackets": lambda: grammar.regex("(" * 9000 + "a" + ")" * 9000),
    "an empty expression": lambda: grammar.regex(""),
    "a lone surrogate": lambda: grammar.regex("\ud800"),
    "no choices": lambda: grammar.choice([]),
    "an empty choice": lambda: grammar.choice(["a", ""]),
    "too many choices": lambda: grammar.choice([str(i) for i in range(5000)]),
    "left recursion without end": lambda: grammar.grammar('start: start "a"'),
    "a grammar without start": lambda: grammar.grammar("foo: /a/"),
    "an unknown rule": lambda: grammar.grammar("start: foo"),
    "an unknown special token": lambda: grammar.grammar("start: <|nothing|>"),
    "tools of one name": lambda: grammar.calls(call_layout(load_format("k2")), [{"name": "a"}, {"name": "a"}], "auto"),
    "an unknown tool": lambda: grammar.calls(call_layout(load_format("k2")), [{"name": "a"}], "b"),
    "no tools": lambda: grammar.calls(call_layout(load_format("k2")), [], "required"),
    "arguments that are a list": lambda: grammar.calls(
        call_layout(load_format("k2")), [{"name": "a", "parameters": {"type": "array"}}], "auto"
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_done_is_refused(constrainer: Constrainer, name: str) -> None:
    begun = time.process_time()
    with pytest.raises(UserError) as refused:
        constrainer.compile(BAD[name]())
    assert refused.value.remedy
    assert len(str(refused.value)) < 1500
    assert time.process_time() - begun < 3
    constrainer.compile(grammar.choice(["the next one is served"]))


def test_a_catastrophic_schema_costs_its_own_process(tokenizer: Tokenizer) -> None:
    """Thirty patterns that must all match: minutes, gigabytes or both. It is tried where it can be ended."""
    constrainer = Constrainer(tokenizer, [3], cpu_seconds=1.0)
    bad = grammar.json_schema({"allOf": [{"type": "string", "pattern": f".*a.{{{i}}}b.*"} for i in range(30)]})
    try:
        for _ in range(2):
            with pytest.raises(UserError, match="processor time"):
                constrainer.compile(bad)
        assert constrainer.compile(grammar.json_schema(PERSON)).shortest > 0
    finally:
        constrainer.close()


def test_files_in_the_folder_where_the_user_stands_are_not_run(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    for name in ("llguidance", "json", "cairn"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w'); raise SystemExit('a stranger')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    constrainer = Constrainer(tokenizer, [3])
    try:
        assert constrainer.compile(grammar.choice(["yes", "no"])).shortest > 0
    finally:
        constrainer.close()
    assert not (tmp_path / "ran").exists()


TREE = {"type": "object", "properties": {"v": {"type": "integer"}, "of": {"type": "array", "items": {"$ref": "#"}}}, "required": ["of"]}
HARD: dict[str, Any] = {
    "a tree of trees": lambda: grammar.json_schema(TREE),
    "two that name each other": lambda: grammar.json_schema(
        {
            "$ref": "#/$defs/a",
            "$defs": {
                "a": {"type": "object", "properties": {"b": {"$ref": "#/$defs/b"}}, "additionalProperties": False},
                "b": {"type": "array", "items": {"$ref": "#/$defs/a"}, "maxItems": 3},
            },
        }
    ),
    "alternatives that begin alike": lambda: grammar.json_schema(
        {"anyOf": [{"type": "array", "items": {"type": "string", "minLength": i}, "minItems": 2} for i in range(20)]}
    ),
    "an ambiguous grammar": lambda: grammar.grammar('start: s\ns: s s | "a" | "(" s ")"'),
    "a grammar of nothing but empties": lambda: grammar.grammar('start: a a a a a a "x"\na: b b b b |\nb: "y" |'),
    "palindromes": lambda: grammar.grammar('start: "a" start "a" | "b" start "b" | "c"'),
}
HARD_PATTERNS = {
    "repeated repetitions": "(a*)*b",
    "nested plus": "(x+x+)+y",
    "the same twice": "(a|a|ab|ba)*c",
    "anything, often": ".*.*.*=.*.*.*;",
    "counted overlaps": "(.{0,20}a){12}z",
}


def _compiled(constrainer: Constrainer, made: Any) -> Any:
    """The constraint, or None where it is refused with a reason."""
    try:
        return constrainer.compile(made)
    except UserError:
        return None


@pytest.mark.parametrize("name", [*HARD, *HARD_PATTERNS])
def test_what_is_hard_to_parse_hangs_nobody(constrainer: Constrainer, tokenizer: Tokenizer, name: str) -> None:
    """Each ends, within its budget, in an answer that is complete, or is refused with a reason before its first token."""
    begun = time.process_time()
    pattern = HARD_PATTERNS.get(name)
    compiled = _compiled(constrainer, grammar.regex(pattern) if pattern else HARD[name]())
    marks = [tokenizer.encode(text)[0] for text in ("a", "[", "(", "x")]
    for seed, spare in enumerate((0, 7, 150) if compiled is not None else ()):
        choose = [anything, lambda ids, rng: next((id for id in marks if id in ids), ids[0])][seed % 2]
        ids, _ = walk(compiled, compiled.shortest + spare, seed, choose)
        text = text_of(constrainer, tokenizer, ids)
        assert pattern is None or re.fullmatch(pattern, text), text
        assert compiled.grammar.json_after is None or json.loads(text) is not None
    assert time.process_time() - begun < 10
    constrainer.compile(grammar.choice(["the next one is served"]))


def test_an_answer_whose_way_out_takes_too_long_ends_alone(
    constrainer: Constrainer, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """A grammar that reads one text in very many ways: one token's search took half a minute of the thread that all answers share."""
    monkeypatch.setattr(closing, "SECONDS", 0.5)
    compiled = constrainer.compile(grammar.grammar('start: e\ne: e e | "a" | "b" e "c" | '))
    begun = time.process_time()
    with pytest.raises(UserError, match="takes too long") as refused:
        walk(compiled, 300, 1, lambda ids, rng: rng.choice([id for id in ids if id != tokenizer.eos_id] or ids))
    assert refused.value.remedy
    assert time.process_time() - begun < 3


# --- real schemas


def _maskbench() -> list[Path]:
    folder = Path(os.environ.get("CAIRN_SHARED") or Path(__file__).parents[2].parent / "shared" / "data")
    return sorted((folder / "maskbench").glob("*.json"))


def _try_all(files: list[Path], constrainer: Constrainer, tokenizer: Tokenizer, budgets: list[int]) -> tuple[int, int]:
    """(compiled, refused)"""
    compiled = refused = 0
    for file in files:
        schema = json.loads(file.read_text())["schema"]
        try:
            made = constrainer.compile(grammar.json_schema(schema))
        except UserError as error:
            refused += "cannot be used: " in error.what
            continue
        compiled += 1
        for seed, spare in enumerate(budgets):
            text = answer(constrainer, tokenizer, made, made.shortest + spare, seed)
            json.loads(text)
    return compiled, refused


@pytest.mark.shared
def test_a_sample_of_maskbench(constrainer: Constrainer, tokenizer: Tokenizer) -> None:
    files = _maskbench()[::12]
    if not files:
        pytest.skip("no shared data (set CAIRN_SHARED)")
    compiled, refused = _try_all(files, constrainer, tokenizer, [0, 20])
    assert compiled + refused == len(files)
    assert compiled >= 10


@pytest.mark.shared
@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_all_of_maskbench(constrainer: Constrainer, tokenizer: Tokenizer) -> None:
    files = _maskbench()
    if not files:
        pytest.skip("no shared data (set CAIRN_SHARED)")
    assert _try_all(files, constrainer, tokenizer, [0, 3, 20, 100]) == (177, 167)
