"""`cairn check`: the report, its JSON, and the exit status."""

from __future__ import annotations

import json

import pytest

from cairn.cli.main import main

GOOD = {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]}


@pytest.fixture
def bad(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(GOOD) + "\n{\n" + json.dumps({"messages": GOOD["messages"][::-1]}) + "\n")
    return path


def test_a_good_file(tmp_path, capsys):
    (tmp_path / "x.jsonl").write_text(json.dumps(GOOD))
    assert main(["check", str(tmp_path / "x.jsonl")]) == 0
    assert "1 rows" in capsys.readouterr().out
    assert main(["check", str(tmp_path / "x.jsonl"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"rows": 1, "ok": True, "problems": []}


def test_problems_end_with_status_2(bad, capsys):
    assert main(["check", str(bad)]) == 2
    shown = capsys.readouterr().out
    assert "messages[0].role" in shown
    assert "2 problems in 2 of 3 rows" in shown


def test_json_names_row_field_and_remedy(bad, capsys):
    assert main(["check", str(bad), "--json"]) == 2
    report = json.loads(capsys.readouterr().out)
    assert list(report) == ["rows", "ok", "problems"]
    assert (report["rows"], report["ok"]) == (3, False)
    assert [(p["row"], p["field"]) for p in report["problems"]] == [(2, "(whole row)"), (3, "messages[0].role")]


@pytest.mark.parametrize("content", ["", '{"a": 1}\n'])
def test_empty_and_unknown_files(tmp_path, capsys, content):
    (tmp_path / "x.jsonl").write_text(content)
    assert main(["check", str(tmp_path / "x.jsonl")]) == 2
    told = capsys.readouterr()
    assert "empty" in told.out or "--reader" in told.err


def test_missing_file_and_misspelt_reader(tmp_path, bad, capsys):
    assert main(["check", str(tmp_path / "no")]) == 2
    assert "no such file" in capsys.readouterr().err
    assert main(["check", str(bad), "--reader", "alpacca"]) == 2
    assert "did you mean 'alpaca'" in capsys.readouterr().err


def test_ill_text_in_a_key_reaches_the_screen_as_escapes(tmp_path, capsys):
    row = {**GOOD, "\x1b[31mred\ud800": 1, "[bold]": 2}
    (tmp_path / "x.jsonl").write_text(json.dumps(row))
    assert main(["check", str(tmp_path / "x.jsonl")]) == 2
    shown = capsys.readouterr().out
    assert "\\u001b[31mred\\ud800" in shown
    assert "[bold]" in shown
    assert main(["check", str(tmp_path / "x.jsonl"), "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["problems"]


def test_preferences_and_rankings_are_checked(tmp_path, capsys):
    question, say = GOOD["messages"][:1], (lambda text: [{"role": "assistant", "content": text}])
    rows = [
        {"messages": question, "chosen": say("A"), "rejected": say("B")},
        {"messages": question, "ranked": [say("A"), say("B"), say("C")]},
        {"messages": question, "chosen": say("A"), "rejected": say("A ")},
        {"messages": question, "chosen": say(""), "rejected": say("A")},
        {"messages": question, "ranked": [{**say("A")[0], "rank": 1}, {**say("B")[0], "rank": 1}]},
    ]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["check", str(tmp_path / "x.jsonl"), "--json"]) == 2
    found = [(p["row"], p["field"]) for p in json.loads(capsys.readouterr().out)["problems"]]
    assert found == [(3, "rejected"), (4, "chosen[0].content"), (5, "ranked[1].rank")]
