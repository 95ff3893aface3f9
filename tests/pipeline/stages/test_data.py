"""The stage `data`, through a recipe."""

from __future__ import annotations

import json

import pytest

from cairn.cli.main import main


@pytest.fixture
def recipe(tmp_path):
    """Write a recipe of one data stage over generated rows; give its path."""

    def write(more: str = "", rows: int = 60, extra: str = "") -> str:
        (tmp_path / "qa.jsonl").write_text(
            "".join(json.dumps({"question": f"q{i}", "answer": f"a{i}"}) + "\n" for i in range(rows)) + extra
        )
        (tmp_path / "book.txt").write_text("one\n\ntwo\n\nthree\n")
        path = tmp_path / "small.yaml"
        path.write_text(
            f"""recipe: small
seed: 3
stages:
  rows:
    kind: data
    holdout: 0.25
    sources:
      - {{name: qa, path: {tmp_path}/qa.jsonl}}
      - {{name: book, path: {tmp_path}/book.txt, separator: "\\n\\n", holdout: 0}}
{more}"""
        )
        return str(path)

    return write


def run(recipe, tmp_path, capsys, *words):
    status = main(["run", recipe, "--store", str(tmp_path / "store"), "--json", *words])
    told = capsys.readouterr()
    return status, json.loads(told.out) if status == 0 else told.err


def test_it_runs_once_and_replays(recipe, tmp_path, capsys):
    path = recipe()
    status, report = run(path, tmp_path, capsys)
    assert status == 0
    metrics = report["stages"][0]["metrics"]
    assert metrics["sources"]["qa"]["train"] + metrics["sources"]["qa"]["heldout"] == 60
    assert metrics["sources"]["qa"]["heldout"] > 5
    assert metrics["sources"]["book"]["train"] == 3
    assert metrics["overlap"]["questions_on_both_sides"] == 0
    folder = next((tmp_path / "store" / "artifacts").iterdir())
    record = json.loads((folder / "record.json").read_text())
    assert set(record["outputs"]) == {"qa.train.jsonl", "qa.heldout.jsonl", "book.train.jsonl", "dropped.jsonl", "summary.json"}
    assert run(path, tmp_path, capsys)[1]["stages"][0]["status"] == "in store"
    assert main(["verify", "small/rows", "--replay", "--store", str(tmp_path / "store")]) == 0
    capsys.readouterr()
    assert main(["run", path, "--store", str(tmp_path / "store")]) == 0


def test_a_later_stage_reads_what_it_wrote(recipe, tmp_path, capsys):
    path = recipe("  again:\n    kind: data\n    sources: [{name: held, stage: rows, file: qa.heldout.jsonl}]\n")
    status, report = run(path, tmp_path, capsys)
    assert status == 0
    first, second = (s["metrics"]["sources"] for s in report["stages"])
    assert second["held"]["train"] == first["qa"]["heldout"]


def test_a_changed_file_runs_it_again_and_a_moved_one_does_not(recipe, tmp_path, capsys):
    key = run(recipe(), tmp_path, capsys)[1]["stages"][0]["key"]
    assert run(recipe(rows=61), tmp_path, capsys)[1]["stages"][0]["key"] != key
    path = recipe()
    (tmp_path / "elsewhere.jsonl").write_bytes((tmp_path / "qa.jsonl").read_bytes())
    status, report = run(path, tmp_path, capsys, "--set", f"rows.sources.qa.path={tmp_path}/elsewhere.jsonl")
    assert status == 0
    assert (report["stages"][0]["key"], report["stages"][0]["status"]) == (key, "in store")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--set", "rows.holdout=2"], "less than or equal to 1"),
        (["--set", "rows.sources.qa.holdout=0.0001"], "holdout: 0 beside the source"),
        (["--set", "rows.bad_rows=maybe"], "bad_rows"),
        (["--set", "rows.sources.qa.weight=0"], "above zero"),
        (["--set", "rows.sources.qa.path=/nowhere.jsonl"], "/nowhere.jsonl"),
        (["--set", "rows.sources.book.name=qa"], "two sources of one name"),
    ],
)
def test_mistakes_in_the_recipe(recipe, tmp_path, capsys, words, told):
    status, error = run(recipe(), tmp_path, capsys, *words)
    assert status == 2
    assert told in error


def test_a_bad_row_stops_the_run_unless_dropped(recipe, tmp_path, capsys):
    path = recipe(extra="{\n")
    status, error = run(path, tmp_path, capsys)
    assert status == 2
    assert f"{tmp_path}/qa.jsonl, row 61" in error
    status, report = run(path, tmp_path, capsys, "--set", "rows.bad_rows=drop")
    assert status == 0
    assert report["stages"][0]["metrics"]["sources"]["qa"]["bad"] == 1
