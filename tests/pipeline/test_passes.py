"""How often a training goes through its data: what a plan says before and after the tokenizer is there, and what the training counts."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from cairn.cli.main import main

RECIPE = """\
recipe: small
stages:
  rows: {kind: data, sources: [{name: talk, path: talk.jsonl}]}
  tokenizer: {kind: tokenizer, vocab_size: 300, data: [{name: talk, path: talk.jsonl}, {name: texts, path: texts.jsonl}]}
  chat:
    kind: train
    tokenizer: tokenizer
    model: {hidden_size: 16, layers: 1, heads: 2, intermediate_size: 16}
    data: [{name: talk, stage: rows, file: talk.train.jsonl, weight: 3}, {name: texts, path: texts.jsonl}]
    steps: 40
    sequence_length: 64
    batch_sequences: 2
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CAIRN_STORE", str(tmp_path / "store"))
    (tmp_path / "small.yaml").write_text(RECIPE)
    talk = [[("user", f"What is {i} and {i}?"), ("assistant", f"It is {2 * i}, as all know.")] for i in range(200)]
    rows = [{"messages": [{"role": role, "content": text} for role, text in row]} for row in talk]
    (tmp_path / "talk.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    texts = [{"text": " ".join(f"stone {i * j % 7} lies on the trail" for j in range(1 + i % 9))} for i in range(100)]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in texts))
    return tmp_path


def planned(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, float] | None:
    capsys.readouterr()
    assert main(["plan", "small.yaml", "--json", *words]) == 0
    found: dict[str, float] | None = json.loads(capsys.readouterr().out)["stages"][-1]["passes"]
    return found


def test_a_plan_guesses_what_the_training_counts(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = planned(capsys)
    assert main(["run", "small.yaml", "--until", "tokenizer"]) == 0
    later = planned(capsys)
    assert main(["plan", "small.yaml"]) == 0
    assert "chat goes through its data about so often: talk" in capsys.readouterr().out
    assert main(["run", "small.yaml"]) == 0
    told = re.search(r"goes through its data: talk (\S+) times, texts (\S+) times", capsys.readouterr().err)
    assert told is not None
    counted = {"talk": float(told[1]), "texts": float(told[2])}
    assert first is not None
    assert later is not None
    for name, value in counted.items():
        assert later[name] == pytest.approx(value, rel=0.35)
        # These few words make long tokens, which no size of a vocabulary tells.
        assert value / 6 < first[name] < value * 6


def test_what_cannot_be_known_is_left_unsaid(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "texts.txt").write_text("A stone lies on the trail.\n" * 20)
    assert planned(capsys, "--set", "chat.data.texts.path=texts.txt") is None
    twice = planned(capsys, "--set", "chat.steps=80")
    once = planned(capsys)
    assert once is not None
    assert twice == pytest.approx({name: 2 * value for name, value in once.items()})
    few = planned(capsys, "--set", "chat.data.texts.limit=10")
    assert few is not None
    assert few["texts"] == pytest.approx(10 * once["texts"], rel=0.1)
