"""The corpus as a whole: determinism, sizes, shape of the rows, disjointness."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cairn.config import build
from cairn.data.pebble import ALL, Corpus, Sizes, check_disjoint, generate, normalise
from cairn.data.rows import check_row
from cairn.errors import UserError

_DIGEST = (
    "import hashlib, json; from cairn.data.pebble import generate, Sizes; c = generate(3, Sizes(scale=0.02));"
    "print(hashlib.sha256(json.dumps([c.pretrain, c.train, c.test]).encode()).hexdigest())"
)


def all_rows(corpus: Corpus) -> list[dict]:
    return [*corpus.pretrain, *(r for part in (corpus.train, corpus.test) for rows in part.values() for r in rows)]


def test_same_bytes_in_every_process():
    digests = {
        subprocess.run(
            [sys.executable, "-c", _DIGEST], env={**os.environ, "PYTHONHASHSEED": str(k)}, capture_output=True, text=True, check=True
        ).stdout
        for k in range(2)
    }
    assert len(digests) == 1


def test_another_seed_gives_other_rows_but_no_test_question_of_the_first_in_training(corpus):
    other = generate(1, Sizes(scale=0.3))
    assert other.train["lists"] != corpus.train["lists"]
    trained = [*other.pretrain, *(r for rows in other.train.values() for r in rows)]
    check_disjoint(trained, [r for rows in corpus.test.values() for r in rows])


def test_every_row_is_well_formed_and_has_its_own_id(corpus):
    rows = all_rows(corpus)
    assert [p for row in rows for p in check_row(row)] == []
    assert len({row["id"] for row in rows}) == len(rows)
    for row in rows:
        if "messages" in row:
            assert row.get("chosen", row["messages"])[-1]["role"] == "assistant"
            assert row["meta"]["skill"] == row["source"]


def test_the_default_sizes_are_enough_to_measure_with(corpus):
    at_least = {"functions": 400, "arithmetic": 400, "facts": 200, "identity": 80, "json": 150, "lists": 200, "refusal": 100}
    at_least |= {"harmless": 100, "korean": 36, "japanese": 36, "orders": 100, "turns": 150}
    at_least |= {"steering": 150, "manners": 100, "stories": 120}
    assert {name: len(corpus.test[name]) for name, n in at_least.items() if len(corpus.test[name]) < n} == {}
    assert set(corpus.test) == set(at_least)
    assert set(corpus.train) == {name for name, skill in ALL.items() if skill.train}
    for name, rows in corpus.train.items():
        assert len(rows) <= ALL[name].train


def test_no_question_twice_within_a_test(corpus):
    for rows in corpus.test.values():
        asked = [(normalise(r["messages"][-2]["content"]), repr(r.get("attributes"))) for r in rows]
        assert len(set(asked)) == len(asked)


def test_sizes_scale_and_can_be_set_by_skill():
    small = generate(0, Sizes(scale=0.05, train={"lists": 40, "chat": 0}, test={"json": 0}, pretrain={"facts": 100}))
    assert len(small.train["lists"]) == 2
    assert "chat" not in small.train
    assert "json" not in small.test
    assert sum(r["source"] == "facts-text" for r in small.pretrain) == 5
    assert len(small.train["functions"]) == round(ALL["functions"].train * 0.05)


def test_a_smaller_corpus_is_the_beginning_of_a_larger_one(corpus):
    small = generate(0, Sizes(scale=0.1))
    for name, rows in small.train.items():
        assert corpus.train[name][: len(rows)] == rows


def test_an_unknown_skill_is_refused_with_a_suggestion():
    with pytest.raises(UserError, match="functions"):
        build(Sizes, {"train": {"function": 3}}, where="recipe.yaml")


# Disjointness


def test_the_corpus_is_disjoint_and_says_what_was_compared(corpus):
    checked = corpus.check()
    assert checked["test_rows"] == sum(len(rows) for rows in corpus.test.values())
    assert checked["train_texts"] > 20_000
    assert checked["shared"] == 0


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_leaked_test_row_is_found(corpus, data):
    tests = [r for rows in corpus.test.values() for r in rows]
    row = copy.deepcopy(data.draw(st.sampled_from(tests)))
    # Another key and other letters: the text alone must give it away.
    row["meta"]["keys"] = ["something else"]
    row["messages"][-2]["content"] = row["messages"][-2]["content"].upper().replace(" ", "  ") + " "
    train = [*corpus.train["facts"], row]
    with pytest.raises(UserError, match="in training"):
        check_disjoint(train, tests)


def test_a_question_in_a_text_or_an_earlier_turn_or_in_other_words_is_found():
    asked = [{"role": "user", "content": "What is 12 + 13?"}, {"role": "assistant", "content": "25"}]
    test = [{"messages": asked, "meta": {"keys": ["12 + 13"]}}]
    turns = [{"role": "user", "content": "what is 12 + 13"}, {"role": "assistant", "content": "25"}]
    later = [{"role": "user", "content": "Thanks"}, {"role": "assistant", "content": "!"}]
    for train in (
        {"text": "Sums.\nWhat is 12 + 13?\n25"},
        {"messages": turns + later},
        {"messages": later, "meta": {"keys": ["12 + 13"]}},
    ):
        with pytest.raises(UserError):
            check_disjoint([train], test)
    assert check_disjoint([{"text": "What is 12 + 14?"}, {"messages": later}], test)["shared"] == 0


def test_the_order_of_keys_in_a_row_survives_json(corpus):
    # Argument order is part of what is trained: the file must keep it.
    row = corpus.train["functions"][0]
    assert json.dumps(json.loads(json.dumps(row))) == json.dumps(row)
