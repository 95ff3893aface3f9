"""The mix table against counts made by hand, and by another way."""

from __future__ import annotations

import pytest

from cairn.data.encode import Counters, encode_rows
from cairn.data.stats import MixTable

CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}


def turn(role, content, **more):
    return {"role": role, "content": content, **more}


ROWS = [
    {
        "source": "chat",
        "messages": [turn("system", "s s s"), turn("user", "a b"), turn("assistant", "c"), turn("user", "d"), turn("assistant", "e f g")],
    },
    {
        "source": "chat",
        "messages": [turn("user", "a"), turn("assistant", "", tool_calls=[CALL]), turn("tool", "9 9"), turn("assistant", "b")],
    },
    {"source": "books", "text": "one two three"},
    {"source": "likes", "messages": [turn("user", "a b c d")], "chosen": [turn("assistant", "x y")], "rejected": [turn("assistant", "z")]},
]


def test_counts_by_hand():
    table = MixTable()
    for row in ROWS:
        table.add(row)
    found = table.as_dict()
    call = len(['{"arguments":', '{"x":', '1},', '"name":', '"f"}'])
    assert found["unit"] == "words"
    assert found["subsets"] == [
        {
            "subset": "chat",
            "tokens": 10 + 1 + call + 2 + 1,
            "rows": 2,
            "avg_queries": 1.5,
            "avg_query_length": 4 / 3,
            "avg_replies": 2.0,
            "avg_reply_length": (5 + call) / 4,
        },
        {
            "subset": "books",
            "tokens": 3,
            "rows": 1,
            "avg_queries": None,
            "avg_query_length": None,
            "avg_replies": None,
            "avg_reply_length": None,
        },
        {
            "subset": "likes",
            "tokens": 6,
            "rows": 1,
            "avg_queries": 1.0,
            "avg_query_length": 4.0,
            "avg_replies": 1.0,
            "avg_reply_length": 2.0,
        },
    ]
    total = found["total"]
    assert (total["subset"], total["rows"], total["tokens"]) == ("Total", 4, 23 + call)
    assert total["avg_queries"] == pytest.approx(4 / 3), "plain text has no questions and does not count among dialogues"


def test_tokens_are_those_of_the_rendered_row(words, renderer):
    table = MixTable(words, renderer)
    for row in ROWS:
        table.add(row, "all")
    # Two dialogues and a preference with bos, marks and stop; the text with bos and eos.
    assert table.as_dict()["subsets"][0]["tokens"] == (1 + 5 + 10 + 1) + (1 + 4 + 4 + 1) + (3 + 2) + (1 + 2 + 6 + 1)
    assert table.as_dict()["unit"] == "tokens"
    assert MixTable(words).as_dict()["total"]["tokens"] == 0


def test_a_table_filled_by_encoding_is_the_same(words, renderer):
    one, other = MixTable(words, renderer), MixTable(words, renderer)
    for row in ROWS:
        one.add(row)
    # Even where rows are cut: the table tells what the data is, the counters what was learned from.
    list(
        encode_rows(
            ROWS, renderer, words, max_length=8, overlong="split", counters=Counters(), on_row=lambda row, n: other.add(row, tokens=n)
        )
    )
    assert other.as_dict() == one.as_dict()
