"""Preparing data: sides that share no question, rows dropped with a reason, the same files each time."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cairn.data.prepare import HeldSource, prepare
from cairn.data.readers import read_rows
from cairn.data.rows import question_key
from cairn.errors import UserError


def row(question, answer):
    return {"prompt": question, "response": answer}


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def run(out, *sources, seed=0, holdout=0.3, dedup=True, bad_rows="refuse"):
    """Prepare (name, path, options) triples; give the summary."""
    out.mkdir(exist_ok=True)
    made = [(HeldSource(name=name, path=str(path), **more), path) for name, path, more in sources]
    return prepare(made, out, seed=seed, holdout=holdout, dedup=dedup, bad_rows=bad_rows)


def test_every_row_lands_on_one_side(write, tmp_path):
    path = write("x.jsonl", [row(f"q{i}", f"a{i}") for i in range(400)])
    summary = run(tmp_path / "out", ("x", path, {}))
    train, held = (list(read_rows(tmp_path / "out" / f"x.{side}.jsonl")) for side in ("train", "heldout"))
    assert sorted(r["id"] for r in train + held) == sorted(f"x.jsonl:{i + 1}" for i in range(400))
    assert 80 < len(held) < 160
    counts = summary["sources"]["x"]
    assert (counts["rows"], counts["train"], counts["heldout"]) == (400, len(train), len(held))
    assert summary["overlap"] == {"heldout_questions": len(held), "removed_from_train": 0, "questions_on_both_sides": 0}
    assert json.loads((tmp_path / "out" / "summary.json").read_text()) == summary
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["dropped.jsonl", "summary.json", "x.heldout.jsonl", "x.train.jsonl"]


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 3)), min_size=1, max_size=60),
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 3)), min_size=1, max_size=60),
    st.sampled_from([None, 0, 0.5, 1]),
    st.booleans(),
    st.integers(0, 9),
)
def test_no_question_stands_on_both_sides(tmp_path_factory, one, two, share, dedup, seed):
    folder = tmp_path_factory.mktemp("prepare")
    sources = []
    for name, pairs in (("one", one), ("two", two)):
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row(f"Question {'A' if a % 2 else 'a'} {q}", str(a))) + "\n" for q, a in pairs))
        sources.append((name, path, {"holdout": share} if name == "two" else {}))
    summary = run(folder / "out", *sources, dedup=dedup, seed=seed)
    sides = {"train": [], "heldout": []}
    for side, rows in sides.items():
        for path in (folder / "out").glob(f"*.{side}.jsonl"):
            rows += lines(path)
    assert not {question_key(r) for r in sides["train"]} & {question_key(r) for r in sides["heldout"]}
    for name, pairs in (("one", one), ("two", two)):
        counts = summary["sources"][name]
        assert counts["rows"] == len(pairs) == sum(counts[k] for k in ("train", "heldout", "bad", "skipped", "duplicates", "overlap"))
    assert sum(c["duplicates"] for c in summary["sources"].values()) == (
        len(one + two) - len({(q, a // 2 * 2 + a % 2) for q, a in one + two}) if dedup else 0
    )
    dropped = lines(folder / "out" / "dropped.jsonl")
    assert len(dropped) == sum(c["duplicates"] + c["overlap"] for c in summary["sources"].values())


def test_a_test_set_takes_its_questions_out_of_training(write, tmp_path):
    train = write("train.jsonl", [row("What is  TWO plus two?", "4"), row("And three?", "3")])
    test = write("test.jsonl", [row("what is two plus two?", "four")])
    summary = run(tmp_path / "out", ("train", train, {}), ("test", test, {"holdout": 1}), holdout=0)
    assert [r["messages"][1]["content"] for r in lines(tmp_path / "out" / "train.train.jsonl")] == ["3"]
    assert not (tmp_path / "out" / "test.train.jsonl").exists()
    assert not (tmp_path / "out" / "train.heldout.jsonl").exists()
    assert summary["overlap"]["removed_from_train"] == 1
    assert lines(tmp_path / "out" / "dropped.jsonl") == [{"source": "train", "id": "train.jsonl:1", "why": "its question is held out"}]


def test_plain_text_that_is_held_out_is_not_trained_on(write, tmp_path):
    path, same = write("a.txt", "Some words."), write("b.txt", "some  words.")
    summary = run(tmp_path / "out", ("a", path, {}), ("b", same, {"holdout": 1}), holdout=0, dedup=False)
    assert summary["sources"]["a"]["overlap"] == 1
    assert (tmp_path / "out" / "a.train.jsonl").read_text() == ""


def test_equal_questions_fall_on_one_side_whatever_the_source(write, tmp_path):
    rows = [row(f"q{i}", "a") for i in range(100)]
    one, two = write("one.jsonl", rows), write("two.jsonl", [{**r, "response": "b"} for r in rows[::-1]])
    run(tmp_path / "out", ("one", one, {}), ("two", two, {}))
    sides = [{r["messages"][0]["content"] for r in lines(tmp_path / "out" / f"{name}.heldout.jsonl")} for name in ("one", "two")]
    assert sides[0] == sides[1]
    run(tmp_path / "other", ("one", one, {}), seed=1)
    assert {r["messages"][0]["content"] for r in lines(tmp_path / "other" / "one.heldout.jsonl")} != sides[0]


def test_bad_rows_are_refused_or_dropped(write, tmp_path):
    path = write("x.jsonl", [row("q", "a"), "{", row("r", "")])
    with pytest.raises(UserError) as caught:
        run(tmp_path / "out", ("x", path, {}))
    assert caught.value.where == f"{path}, row 2"
    summary = run(tmp_path / "out", ("x", path, {}), bad_rows="drop", holdout=0)
    assert summary["sources"]["x"]["bad"] == 2
    assert [(d["row"], d["field"]) for d in lines(tmp_path / "out" / "dropped.jsonl")] == [(2, "(whole row)"), (3, "response")]


def test_a_source_without_a_good_row_is_refused(write, tmp_path):
    with pytest.raises(UserError, match="no row of the source"):
        run(tmp_path / "out", ("x", write("x.jsonl", [row("q", "")]), {"reader": "prompt_response"}), bad_rows="drop")
    with pytest.raises(UserError, match="empty"):
        run(tmp_path / "out", ("x", write("x.jsonl", ""), {}), bad_rows="drop")


def test_limit_and_reruns(write, tmp_path):
    path = write("x.jsonl", [row(f"q{i}", "a") for i in range(50)])
    out = tmp_path / "out"
    run(out, ("x", path, {}))
    assert run(out, ("x", path, {"limit": 20}))["sources"]["x"]["rows"] == 20
    first = {p.name: p.read_bytes() for p in out.iterdir()}
    (out / "x.train.part.jsonl").write_text("left by a killed run")
    run(out, ("x", path, {"limit": 20}))
    assert {p.name: p.read_bytes() for p in out.iterdir()} == first


def test_two_sources_of_one_name_are_refused(write, tmp_path):
    path = write("x.jsonl", [row("q", "a")])
    with pytest.raises(UserError, match="two sources"):
        run(tmp_path / "out", ("x", path, {}), ("x", path, {}))


def test_duplicates_that_carry_one_id_are_dropped_too(write, tmp_path):
    same = {"id": "one", "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    other = {"id": "one", "messages": [{"role": "user", "content": "q2"}, {"role": "assistant", "content": "a2"}]}
    summary = run(tmp_path / "out", ("x", write("x.jsonl", [same, same, other, same]), {}), holdout=0)
    assert (summary["sources"]["x"]["train"], summary["sources"]["x"]["duplicates"]) == (2, 2)
    assert len(list(read_rows(tmp_path / "out" / "x.train.jsonl"))) == 2
    assert [line["why"] for line in lines(tmp_path / "out" / "dropped.jsonl")] == ["the same as x one"] * 2
