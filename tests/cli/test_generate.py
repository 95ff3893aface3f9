"""`cairn generate`: rows in, answers out, and nothing half-written whatever happens in between."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from cairn.cli.main import main
from cairn.generate import rows as generate_rows
from cairn.generate.engine import Engine

from .talker import endless


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")  # what loading a model sets them to
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(endless(tmp_path_factory.mktemp("endless")))


def ask(path: Path, count: int = 5) -> str:
    turns = [[{"role": "user", "content": "word " * (1 + i % 3) + str(i)}] for i in range(count)]
    path.write_text("".join(json.dumps({"messages": messages, "id": f"q{i}"}) + "\n" for i, messages in enumerate(turns)))
    return str(path)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def generate(model: str, source: str, target: Path, *words: str) -> int:
    return main(["generate", model, "--in", source, "--out", str(target), "--max-new-tokens", "6", *words])


def test_every_row_gets_an_answer_in_its_place(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "out.jsonl"
    assert generate(model, ask(tmp_path / "in.jsonl"), target, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    got = read(target)
    assert [row["id"] for row in got] == [f"q{i}" for i in range(5)]
    assert all(row["messages"][-1]["role"] == "assistant" and len(row["ids"]) == 6 and row["reason"] == "length" for row in got)
    assert (report["rows"], report["tokens"], report["reasons"]) == (5, 30, {"length": 5})
    assert report["tokens_per_second"] == pytest.approx(30 / report["seconds"])
    assert [p.name for p in tmp_path.iterdir() if "partial" in p.name] == []


def test_texts_are_continued(model: str, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("Once upon")
    assert generate(model, str(tmp_path / "in.txt"), tmp_path / "out.jsonl") == 0
    [row] = read(tmp_path / "out.jsonl")
    assert row["text"] == "Once upon" + row["answer"]


def test_limit_seed_and_company(model: str, tmp_path: Path) -> None:
    source = ask(tmp_path / "in.jsonl")

    def ids(*words: str) -> list[list[int]]:
        assert generate(model, source, tmp_path / "out.jsonl", *words) == 0
        return [row["ids"] for row in read(tmp_path / "out.jsonl")]

    drawn = ids("--temperature", "1.5", "--seed", "1")
    assert ids("--temperature", "1.5", "--seed", "1") == drawn
    assert ids("--temperature", "1.5", "--seed", "2") != drawn
    assert ids("--temperature", "1.5", "--seed", "1", "--limit", "2", "--deterministic") == drawn[:2]


def stop_after(monkeypatch: pytest.MonkeyPatch, windows: int) -> None:
    """Ctrl-C in the window after so many whole ones."""
    whole, calls = Engine.generate, iter(range(windows))

    def generate(*given: Any) -> Any:
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return whole(*given)

    monkeypatch.setattr(Engine, "generate", generate)


def test_an_interrupted_run_goes_on_and_ends_in_the_same_bytes(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(generate_rows, "WINDOW", 2)
    source, words = ask(tmp_path / "in.jsonl"), ("--temperature", "1")
    assert generate(model, source, tmp_path / "whole.jsonl", *words) == 0
    target = tmp_path / "out.jsonl"
    with monkeypatch.context() as patch:
        stop_after(patch, 1)
        assert generate(model, source, target, *words) == 130
    assert not target.exists()
    partial = tmp_path / "out.jsonl.partial"
    with partial.open("ab") as file:  # as if it had been killed while writing
        file.write(b'{"id": "q2", "mess')
    capsys.readouterr()
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        assert generate(model, source, target, *words, "--json") == 0
    assert json.loads(capsys.readouterr().out)["resumed"] == 2
    assert target.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert not partial.exists()


def test_other_work_does_not_go_on_from_what_was_begun(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate_rows, "WINDOW", 2)
    source = ask(tmp_path / "in.jsonl")
    with monkeypatch.context() as patch:
        stop_after(patch, 1)
        assert generate(model, source, tmp_path / "out.jsonl") == 130
    assert generate(model, source, tmp_path / "out.jsonl", "--temperature", "3") == 0
    assert generate(model, source, tmp_path / "fresh.jsonl", "--temperature", "3") == 0
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "fresh.jsonl").read_bytes()


def test_an_old_answer_stays_until_the_new_one_is_whole(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "out.jsonl"
    target.write_text("old\n")
    stop_after(monkeypatch, 0)
    assert generate(model, ask(tmp_path / "in.jsonl"), target) == 130
    assert target.read_text() == "old\n"


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "empty"),
        ('{"messages": [{"role": "user", "content": "Hi"}]}\nnonsense\n', "row 2"),
        ('{"messages": [{"role": "assistant", "content": "Hi"}]}\n', "row 1"),
    ],
)
def test_a_bad_row_is_named_before_any_work(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, text: str, word: str
) -> None:
    monkeypatch.setattr("cairn.generate.load.load_model", lambda *given: pytest.fail("the model was loaded"))
    (tmp_path / "in.jsonl").write_text(text)
    assert generate(model, str(tmp_path / "in.jsonl"), tmp_path / "out.jsonl") == 2
    assert word in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["in.jsonl"]


def test_files_that_cannot_be_are_told(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = ask(tmp_path / "in.jsonl")
    for target, word in ((tmp_path / "no" / "out.jsonl", "no such folder"), (Path(source), "the same file")):
        assert generate(model, source, target) == 2
        assert word in capsys.readouterr().err
    assert generate(model, str(tmp_path / "missing.jsonl"), tmp_path / "out.jsonl") == 2
    assert "missing.jsonl" in capsys.readouterr().err


def test_answers_are_held_to_a_schema_an_expression_or_choices(model: str, tmp_path: Path) -> None:
    """The model would babble on: every answer is held, and complete within its 6 or 40 tokens."""
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}')
    source, target = ask(tmp_path / "in.jsonl", 2), tmp_path / "out.jsonl"

    def answers(*words: str) -> list[str]:
        assert main(["generate", model, "--in", source, "--out", str(target), *words]) == 0
        return [row["messages"][-1]["content"] for row in read(target)]

    assert all(isinstance(json.loads(text)["n"], int) for text in answers("--schema", str(schema), "--max-new-tokens", "40"))
    assert all(text.strip("ab") == "" for text in answers("--regex", "[ab]+", "--max-new-tokens", "6"))
    lark = tmp_path / "number.lark"
    lark.write_text('start: SIGN? /[0-9]{1,3}/\nSIGN: "-"')
    assert all(text.removeprefix("-").isdigit() for text in answers("--grammar", str(lark), "--max-new-tokens", "6"))
    assert set(answers("--choice", "yes", "--choice", "no", "--max-new-tokens", "6")) <= {"yes", "no"}


@pytest.mark.parametrize("option", ["--presence-penalty", "--frequency-penalty"])
def test_a_penalty_forbids_what_stands_there_already(model: str, tmp_path: Path, option: str) -> None:
    target = tmp_path / "out.jsonl"
    assert generate(model, ask(tmp_path / "in.jsonl", 2), target, option, "1000", "--max-new-tokens", "40") == 0
    assert all(len(set(row["ids"])) == len(row["ids"]) == 40 for row in read(target))


def test_calls_are_held_to_the_tools_of_each_row(model: str, tmp_path: Path) -> None:
    tool = {"name": "rain", "parameters": {"type": "object", "properties": {"at": {"type": "string"}}, "required": ["at"]}}
    (tmp_path / "in.jsonl").write_text(json.dumps({"messages": [{"role": "user", "content": "?"}], "tools": [tool]}) + "\n")
    words = ["--max-new-tokens", "200", "--tool-choice", "required"]
    assert main(["generate", model, "--in", str(tmp_path / "in.jsonl"), "--out", str(tmp_path / "out.jsonl"), *words]) == 0
    (row,) = read(tmp_path / "out.jsonl")
    assert {call["function"]["name"] for call in row["messages"][-1]["tool_calls"]} == {"rain"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--schema", "{}/none.json"], "no such file"),
        (["--schema", "{}/bad.json"], "cannot read the schema"),
        (["--regex", "(a"], "unclosed group"),
        (["--regex", "a", "--choice", "b"], "exclude each other"),
        (["--grammar", "{}/bad.json", "--regex", "a"], "exclude each other"),
        (["--grammar", "{}/none.lark"], "no such file"),
        (["--grammar", "{}/bad.json"], "grammar cannot be used"),
        (["--drafts", "lokup"], "there are no drafts 'lokup'"),
        (["--weights", "int3"], "weights of kind 'int3' are not known"),
        (["--regex", "abcdefghijk"], "needs at least 11 tokens"),
        (["--tool-choice", "required"], "no tools to call"),
        (["--choice", ""], "not empty"),
        (["--tool-choice", ""], "no tools to call"),
    ],
)
def test_an_option_that_cannot_be_used_is_told(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    (tmp_path / "bad.json").write_text("{")
    target = tmp_path / "out.jsonl"
    assert generate(model, ask(tmp_path / "in.jsonl", 1), target, *(word.format(tmp_path) if "/" in word else word for word in words)) == 2
    assert said in " ".join(capsys.readouterr().err.split())
    assert not target.exists()


def test_a_healed_text_is_the_text_continued(model: str, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("Once upon")
    target = tmp_path / "out.jsonl"
    assert generate(model, str(tmp_path / "in.txt"), target, "--heal") == 0
    (row,) = read(target)
    assert row["text"] == "Once upon" + row["answer"]


def test_attributes_of_the_command_line_go_before_those_of_the_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(endless(tmp_path / "model", "k2_attributes"))
    rows = [
        {"messages": [{"role": "user", "content": "Hi", "attributes": {"humor": 1, "quality": 2}}, {"role": "assistant", "content": "Ha"}]},
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ha"}, {"role": "user", "content": "And?"}],
         "attributes": {"toxicity": 1}},
        {"text": "Once"},
    ]  # fmt: skip
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert generate(model, str(source), tmp_path / "plain.jsonl") == 0
    assert generate(model, str(source), tmp_path / "out.jsonl", "--attr", "humor=4", "--attr", "creativity=3") == 0
    plain, got = read(tmp_path / "plain.jsonl"), read(tmp_path / "out.jsonl")
    assert got[0]["messages"][0]["attributes"] == {"humor": 4, "quality": 2, "creativity": 3}
    assert "attributes" not in got[1]["messages"][0]
    assert got[1]["messages"][2]["attributes"] == {"humor": 4, "creativity": 3}
    assert got[1]["attributes"] == {"toxicity": 1}
    assert got[2] == plain[2]
    for wrong, told in (("humor=9", "from 0 to 4"), ("humour=1", "did you mean 'humor'?"), ("humor", "write name=value")):
        assert generate(model, str(source), tmp_path / "bad.jsonl", "--attr", wrong) == 2
        assert told in capsys.readouterr().err
