"""The benchmark of distillation: what its rows are about, and the recipe that it runs."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest

from cairn.errors import UserError
from cairn.pipeline.bench import load_benchmark
from cairn.pipeline.recipe import load_recipe


@pytest.fixture
def bench() -> ModuleType:
    return load_benchmark("distill")


def test_the_gap_is_that_between_hard_labels_and_the_teacher(bench: ModuleType) -> None:
    assert bench.closed(2.0, 1.25, 1.0) == 0.75
    losses = {"teacher": {"texts": 1.0}, "half": {"texts": 5.0}, "hard": {"texts": 2.0}, "distilled": {"texts": 1.6}}
    last = bench.loss_rows(losses)[-1]
    assert (last["ours"], last["must"], last["ok"]) == (0.4, ">= 0.5", False)
    for one in losses.values():
        one |= {"facts": 2 * one["texts"], "lists": 0.0}
    rows = {row["measure"]: row for row in bench.loss_rows(losses)}
    assert rows["held-out loss on answers, nats a token: hard"]["ours"] == 2.0
    assert rows["share of the gap in held-out loss on answers that distillation closes: distilled"]["must"] == ""
    scores = {"teacher": {"facts": 1.0, "lists": 0.8}, "hard": {"facts": 0.5, "lists": 0.3}, "distilled": {"facts": 0.75, "lists": 0.55}}
    assert bench.score_rows(scores)[-1]["ours"] == 0.5
    # The bound is about the student that has all that the teacher gives.
    for one, more in zip(losses.values(), (1.0, 5.0, 2.0, 1.6), strict=True):
        one["texts"] = more
    losses["written"] = {"texts": 1.25, "facts": 2.5, "lists": 0.0}
    shares = [row for row in bench.loss_rows(losses) if "share" in row["measure"] and "texts" in row["measure"]]
    assert [(row["ours"], row["must"]) for row in shares] == [(0.4, ""), (0.75, ">= 0.5")]


@pytest.mark.parametrize("dialogues", [0, 5])
def test_both_students_differ_in_the_objective_alone(bench: ModuleType, tmp_path: Path, dialogues: int) -> None:
    import yaml

    for part in ("train", "test"):
        (tmp_path / part).mkdir()
        for skill in ("facts", "lists"):
            (tmp_path / part / f"{skill}.jsonl").write_text('{"messages": [{"role": "user", "content": "a"}]}\n')
    (tmp_path / "config.json").write_text(json.dumps({"num_hidden_layers": 4}))
    (tmp_path / "seen.jsonl").write_text('{"text": "a b c"}\n')
    stages = bench.recipe(bench.Options(dialogues=dialogues), tmp_path, tmp_path, tmp_path)
    assert stages["half"]["layers"] == 2
    assert len(stages["hard"]["data"]) == (3 if dialogues else 1)
    apart = {key for key in stages["hard"] | stages["distilled"] if stages["hard"].get(key) != stages["distilled"].get(key)}
    assert apart == {"objective", "distillation"}
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump({"recipe": "students", "seed": 1, "stages": stages}))
    assert set(load_recipe(str(path), []).stages) == {"half", "heard", "hard", "distilled", "written"}
    data = stages["written"]["data"]
    assert data[:-1] == stages["distilled"]["data"]
    assert data[-1]["weight"] == bench.Options().written * data[0]["weight"]
    assert {key for key in stages["written"] if stages["written"][key] != stages["distilled"][key]} == {"data", "distillation"}
    assert "written" not in bench.recipe(bench.Options(dialogues=dialogues, written=0), tmp_path, tmp_path, tmp_path)


def test_the_teacher_goes_on_from_first_words(bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "seen.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in ("one two", "red blue")))

    def answer(words: list[str]) -> None:
        rows = [json.loads(line) for line in (tmp_path / "begun.jsonl").read_text().splitlines()]
        assert [row["text"] for row in rows] == ["one", "red", "one", "red"]
        told = [{**row, "text": row["text"] + " more", "reason": "length" if n == 2 else "stop"} for n, row in enumerate(rows)]
        (tmp_path / "answered.jsonl").write_text("".join(json.dumps(row) + "\n" for row in told))

    monkeypatch.setattr(bench, "call_cairn", answer)
    bench.write_texts(bench.Options(written=2), tmp_path, tmp_path)
    written = [json.loads(line) for line in (tmp_path / "written.jsonl").read_text().splitlines()]
    assert [row["text"] for row in written] == ["one more", "red more", "red more"]
    assert len({row["id"] for row in written}) == 3


def test_held_out_texts_are_new(bench: ModuleType, tmp_path: Path) -> None:
    for name, numbers in (("own", range(30)), ("fresh", range(20, 60))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "pretrain.jsonl").write_text("".join(json.dumps({"text": f"text {i}"}) + "\n" for i in numbers))
    bench.prepare(bench.Options(texts=10, held_out=25), tmp_path / "own", tmp_path / "fresh", tmp_path)
    seen, held = ([json.loads(line)["text"] for line in (tmp_path / f"{n}.jsonl").read_text().splitlines()] for n in ("seen", "held-out"))
    assert (seen, held) == ([f"text {i}" for i in range(10)], [f"text {i}" for i in range(30, 55)])


def test_a_store_without_pebble_is_told(bench: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="this store has no pebble"):
        bench.find_pebble(bench.Options(pebble=tmp_path), tmp_path)
