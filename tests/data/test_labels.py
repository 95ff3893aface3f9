"""Labelled answers: which they are, what a predictor may see of them, and labels put in."""

from __future__ import annotations

import pytest

from cairn.chat.format import Attribute
from cairn.data.labels import Answer, answers, bare, labelled
from cairn.errors import UserError

SCHEMA = {"humor": Attribute(default=0), "length": Attribute(default=5, minimum=1, maximum=9)}


def say(role, text, **more):
    return {"role": role, "content": text, **more}


ROW = {
    "messages": [
        say("system", "S"), say("user", "Q1", attributes={"humor": 2}), say("assistant", "", tool_calls=[]), say("tool", "T"),
        say("assistant", "A1"), say("user", "Q2"), say("assistant", "A2", weight=0), say("user", "Q3"), say("assistant", "A3"),
    ],
    "attributes": {"length": 9}, "id": "r",
}  # fmt: skip


def test_an_answer_ends_where_the_user_speaks_again():
    assert list(answers(ROW, SCHEMA)) == [Answer(1, 5, {"length": 9, "humor": 2}), Answer(7, 9, {"length": 9})]


def test_a_predictor_reads_no_attributes():
    one, two = answers(ROW, SCHEMA)
    assert [m["content"] for m in bare(ROW, one)] == ["S", "Q1", "", "T", "A1"]
    assert len(bare(ROW, two)) == 9
    assert not any("attributes" in m or "weight" in m for m in bare(ROW, two))
    assert "attributes" in ROW["messages"][1]


def test_labels_that_are_there_stay():
    found = labelled(ROW, {1: {"humor": 4, "length": 1}, 7: {"humor": 3, "length": 1}}, SCHEMA)
    assert found["messages"][1]["attributes"] == {"humor": 2, "length": 9}
    assert found["messages"][7]["attributes"] == {"humor": 3, "length": 9}
    assert list(found["messages"][7]["attributes"]) == list(SCHEMA)
    assert "attributes" not in found["messages"][5]
    assert "attributes" not in ROW["messages"][7]


@pytest.mark.parametrize(("row", "what", "where"), [
    ({"text": "T", "id": "1"}, "no answer to label", "row 1"),
    ({"messages": [say("user", "Q")], "id": "1"}, "no answer to label", "row 1"),
    ({**ROW, "attributes": {"length": 10}}, "'length' is 10", "row r, attributes.length"),
    ({"messages": [say("user", "Q", attributes={"humour": 1}), say("assistant", "A")], "id": "r"}, "unknown attribute 'humour'",
     "row r, messages[0].attributes.humour"),
])  # fmt: skip
def test_what_is_wrong_is_told(row, what, where):
    with pytest.raises(UserError, match=what) as error:
        list(answers(row, SCHEMA))
    assert error.value.where == where
    assert error.value.remedy
