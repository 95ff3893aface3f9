"""Ghost Attention's rows through the command line: who is told what, what is learnt from, and that a row can be trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cairn.cli.main import main
from cairn.ledger.store import Store
from cairn.pipeline.resolve import resolve_artifact

RECIPE = """\
recipe: small
seed: 1
stages:
  tok: {kind: tokenizer, vocab_size: 300, format: k2, data: [{name: a, path: talk.jsonl}]}
  chat:
    kind: train
    objective: supervised
    tokenizer: tok
    model: {hidden_size: 32, layers: 2, heads: 4, kv_heads: 2, intermediate_size: 64, context: 256}
    data: [{name: a, path: talk.jsonl}]
    steps: 120
    sequence_length: 128
    batch_sequences: 4
    optimizer: {kind: adamw, lr: 0.01}
  ghost:
    kind: ghost
    model: chat
    data: [{name: a, path: talk.jsonl}]
    instructions: ["Say {word} first.", Be brief.]
    words: [hat, pen]
    dialogues: 12
    turns: [2, 3]
    sampling: {max_new_tokens: 12}
  more:
    kind: train
    objective: supervised
    init: chat
    data: [{name: g, stage: ghost, file: dialogues.jsonl}]
    steps: 2
    sequence_length: 256
    batch_sequences: 2
"""


@pytest.fixture(autouse=True)
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    talk = [{"messages": [{"role": "user", "content": f"Ask {i}"}, {"role": "assistant", "content": "yes"}]} for i in range(40)]
    (tmp_path / "talk.jsonl").write_text("".join(json.dumps(row) + "\n" for row in talk))
    monkeypatch.chdir(tmp_path)


def run(text: str, *words: str) -> int:
    Path("r.yaml").write_text(text)
    return main(["run", "r.yaml", "--store", "one", *words])


def made() -> list[dict[str, Any]]:
    file = resolve_artifact("small/ghost", Store(Path("one"))).path("dialogues.jsonl")
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("history", ["dialogue", "alone"])
def test_the_order_stands_once_and_only_the_last_answer_is_learnt_from(history: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(RECIPE.replace("turns: [2, 3]", f"turns: [2, 3]\n    history: {history}")) == 0
    dialogues = made()
    assert len(dialogues) == 12
    assert {row["meta"]["turns"] for row in dialogues} == {2, 3}
    assert {row["meta"]["instruction"] for row in dialogues} == {"Say hat first.", "Say pen first.", "Be brief."}
    for row in dialogues:
        asked = [m["content"] for m in row["messages"] if m["role"] == "user"]
        answers = [m for m in row["messages"] if m["role"] == "assistant"]
        assert len(asked) == len(answers) == row["meta"]["turns"]
        assert asked[0].startswith(row["meta"]["instruction"] + " Ask ")
        assert all(text.startswith("Ask ") for text in asked[1:])
        assert len({text.removeprefix(row["meta"]["instruction"] + " ") for text in asked}) == len(asked)
        assert [m.get("weight", 1) for m in answers] == [0] * (len(answers) - 1) + [1]
        assert all(m["content"] for m in answers)
    file = resolve_artifact("small/ghost", Store(Path("one"))).path("dialogues.jsonl")
    capsys.readouterr()
    assert main(["tokens", "small/more", str(file), "--row", "1", "--store", "one", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    learnt = "".join(piece for piece, mask in zip(told["pieces"], told["mask"], strict=True) if mask)
    assert learnt.startswith(dialogues[0]["messages"][-1]["content"])
    assert "Ask" not in learnt


def test_a_folder_may_answer_and_rows_may_only_ask() -> None:
    assert run(RECIPE, "--until", "ghost") == 0
    first = made()
    folder = resolve_artifact("small/chat", Store(Path("one"))).path("model")
    asked = [json.loads(line) for line in Path("talk.jsonl").read_text().splitlines()]
    Path("asked.jsonl").write_text("".join(json.dumps({"messages": row["messages"][:1]}) + "\n" for row in asked))
    head, _, tail = RECIPE.partition("    model: chat\n")
    assert run(f"{head}    checkpoint: {folder}\n{tail.replace('talk.jsonl', 'asked.jsonl', 1)}", "--until", "ghost") == 0
    assert made() == first


def test_another_seed_another_choice_and_the_same_seed_the_same_bytes() -> None:
    assert run(RECIPE, "--until", "ghost") == 0
    first = made()
    assert main(["run", "r.yaml", "--store", "two", "--until", "ghost"]) == 0
    again = resolve_artifact("small/ghost", Store(Path("two"))).path("dialogues.jsonl").read_bytes()
    assert again == resolve_artifact("small/ghost", Store(Path("one"))).path("dialogues.jsonl").read_bytes()
    assert run(RECIPE, "--until", "ghost", "--set", "seed=2") == 0
    assert made() != first


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("words: [hat, pen]", "words: []", "go together"),
        ("    model: chat\n", "", "either model or checkpoint"),
        ("    model: chat\n", "    model: chat\n    checkpoint: talk.jsonl\n", "either model or checkpoint"),
        ("turns: [2, 3]", "turns: [3, 2]", "the fewest and the most"),
        ("turns: [2, 3]", "turns: [2, 50]", "40 different questions"),
        ("max_new_tokens: 12", "max_new_tokens: 1", "no dialogue got all of its answers"),
    ],
)
def test_what_cannot_work_is_told(old: str, new: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(RECIPE.replace(old, new), "--until", "ghost") == 2
    assert words in " ".join(capsys.readouterr().err.split())
