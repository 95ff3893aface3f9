"""`cairn tokens` and `cairn tokenizer`, as a user types them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cairn.cli.main import main

ROWS = [
    {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes é"}], "language": "en"},
    {
        "messages": [
            {"role": "user", "content": "<|endoftext|>"},
            {"role": "assistant", "content": "no", "weight": 0},
            {"role": "user", "content": "안녕"},
            {"role": "assistant", "content": "네"},
        ],
        "language": "ko",
    },
]


@pytest.fixture
def rows(tmp_path: Path) -> str:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS), encoding="utf-8")
    return str(file)


def as_json(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert main([*words, "--json"]) == 0
    value: dict[str, Any] = json.loads(capsys.readouterr().out)
    return value


def test_tokens_of_a_format(rows: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = as_json(capsys, "tokens", "k2", rows)
    assert list(found) == ["text", "ids", "pieces", "mask"]
    assert found["text"] == "<|beginofuser|>hi<|beginofsystem|>yes é<|endoftext|>"
    assert "".join(found["pieces"]) == found["text"]
    assert len(found["ids"]) == len(found["pieces"]) == len(found["mask"])
    assert "".join(p for p, m in zip(found["pieces"], found["mask"], strict=True) if m) == "yes é<|endoftext|>"
    second = as_json(capsys, "tokens", "k2", rows, "--row", "2")
    assert "".join(p for p, m in zip(second["pieces"], second["mask"], strict=True) if m) == "네<|endoftext|>"
    assert second["pieces"].count("<|endoftext|>") == 1


def test_tokens_for_people(rows: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tokens", "crystal", rows]) == 0
    printed = capsys.readouterr()
    assert "<|im_start|>" in printed.out
    assert "assistant" in printed.out
    assert "■" in printed.out
    assert "supervised" in printed.out
    assert "every byte is one token" in printed.err


def test_a_tokenizer_is_trained_and_used(rows: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(tmp_path / "tokenizer")
    made = as_json(capsys, "tokenizer", "train", rows, "--out", folder, "--format", "chatml", "--vocab-size", "280")
    assert (made["folder"], made["format"], made["documents"]) == (folder, "chatml", 2)
    found = as_json(capsys, "tokens", folder, rows)
    assert found["text"] == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nyes é<|im_end|>\n"
    assert max(found["ids"]) < made["vocab_size"] <= 280
    other = as_json(capsys, "tokens", folder, rows, "--format", "komt")
    assert other["text"] == "### instruction: hi\n\n### Response: yes é<|im_end|>"
    measured = as_json(capsys, "tokenizer", "fertility", folder, rows)
    assert [row["language"] for row in measured["rows"]] == ["en", "ko", "all"]
    assert main(["tokenizer", "fertility", folder, rows]) == 0
    assert "Tokens/word" in capsys.readouterr().out
    assert main(["tokenizer", "train", rows, "--out", folder]) == 2
    assert "not empty" in capsys.readouterr().err


def test_plain_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "plain.jsonl"
    file.write_text('{"text": "ab"}\n')
    found = as_json(capsys, "tokens", "k2", str(file))
    assert found["text"] == "ab<|endoftext|>"
    assert found["mask"] == [0, 1, 1]
    assert main(["tokens", "k2", str(file)]) == 0
    assert "3 tokens, 2 supervised" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["k2", "ROWS", "--row", "3"], "the file's last row is 2"),
        (["k2", "ROWS", "--format", "llama2"], "'k2' is a chat format itself"),
        (["k2", "FOLDER"], "name one file"),
        (["karakuru", "ROWS"], "did you mean 'karakuri'?"),
        (["k2", "nowhere.jsonl"], "nowhere.jsonl"),
        (["k2", "BAD"], "messages[1].content"),
    ],
)
def test_mistakes(words: list[str], said: str, rows: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": ""}]}\n')
    assert main(["tokens", *[{"ROWS": rows, "BAD": str(bad), "FOLDER": str(tmp_path)}.get(word, word) for word in words]]) == 2
    assert said in capsys.readouterr().err


def test_rows_are_counted_as_check_counts_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "rows.jsonl"
    good = [json.dumps(row, ensure_ascii=False) for row in ROWS]
    file.write_text("\n".join([good[0], "", "{bad", good[1]]) + "\n", encoding="utf-8")
    assert main(["check", str(file), "--json"]) == 2
    report = json.loads(capsys.readouterr().out)
    assert [problem["row"] for problem in report["problems"]] == [3]
    assert "안녕" in as_json(capsys, "tokens", "k2", str(file), "--row", "4")["text"]
    assert ">hi<" in as_json(capsys, "tokens", "k2", str(file))["text"]
    for number, said in (("2", "no row begins at 2"), ("3", "row 3"), ("5", "the file's last row is 4")):
        assert main(["tokens", "k2", str(file), "--row", number]) == 2
        assert said in capsys.readouterr().err


def test_a_row_that_its_file_marks_as_unused_is_not_the_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trees = [
        {"message_id": str(i), "parent_id": None, "text": f"q{i}", "role": "prompter", "tree_state": state, "replies": [
            {"message_id": f"a{i}", "parent_id": str(i), "text": f"a{i}", "role": "assistant", "replies": []}]}
        for i, state in ((1, "aborted"), (2, "ready_for_export"))
    ]  # fmt: skip
    file = tmp_path / "trees.jsonl"
    file.write_text("".join(json.dumps(tree) + "\n" for tree in trees))
    assert "q2" in as_json(capsys, "tokens", "k2", str(file))["text"]
    assert main(["tokens", "k2", str(file), "--row", "1"]) == 2
    assert "the tree's state is aborted" in capsys.readouterr().err
