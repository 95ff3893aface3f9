"""What is wrong with a row: each problem names its field and a remedy."""

from __future__ import annotations

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cairn.data.rows import answers_of, check_row, content_key, messages_of, normalise, question_key, reply_text

USER = {"role": "user", "content": "hello"}
ANSWER = {"role": "assistant", "content": "hi"}
OTHER = {"role": "assistant", "content": "no"}
GOOD = {"messages": [USER, ANSWER], "source": "s", "id": "1"}


def only(row):
    problems = check_row(row, 7)
    assert len(problems) == 1, problems
    assert problems[0].row == 7
    assert problems[0].problem
    assert problems[0].remedy
    return problems[0]


@pytest.mark.parametrize(
    "row",
    [
        GOOD,
        {"text": "words"},
        {**GOOD, "tools": [{"type": "function", "function": {"name": "f", "parameters": {"default": None}}}], "meta": {"a": [None, 1.5]}},
        {**GOOD, "attributes": {"humor": 0}, "language": "en"},
        {"messages": [USER], "chosen": [ANSWER], "rejected": [OTHER]},
        {"messages": [USER], "ranked": [[ANSWER], [OTHER], [ANSWER, USER, OTHER]]},
        {"messages": [{"role": "system", "content": "be kind"}, USER, ANSWER]},
        {"messages": [USER, {**ANSWER, "weight": 0}, USER, ANSWER]},
    ],
)
def test_good_rows_have_no_problem(row):
    before = copy.deepcopy(row)
    assert check_row(row) == []
    assert row == before


@pytest.mark.parametrize(
    ("row", "field", "word"),
    [
        ([1], "(whole row)", "object"),
        ({"source": "s"}, "(whole row)", "neither"),
        ({**GOOD, "mesages": []}, "mesages", "unknown key"),
        ({**GOOD, "text": "both"}, "text", "not both"),
        ({"messages": [ANSWER]}, "messages[0].role", "assistant"),
        ({"messages": [USER, USER, ANSWER]}, "messages[1].role", "user"),
        ({"messages": [USER, {"role": "assistant", "content": " "}]}, "messages[1].content", "empty"),
        ({"messages": [USER, {"role": "assistant"}]}, "messages[1].content", "content"),
        ({"messages": [USER, {"role": "assistant", "content": "a\0b"}]}, "messages[1].content", "NUL"),
        ({"messages": [USER, {"role": "assistant", "content": "a\ud800b"}]}, "messages[1].content", "surrogate"),
        ({"messages": [USER]}, "messages", "nothing to learn"),
        ({"messages": [USER, {**ANSWER, "weight": 0}]}, "messages", "weight 0"),
        ({"messages": []}, "messages", "no messages"),
        ({"text": ""}, "text", "empty"),
        ({"text": 5}, "text", "must be text"),
        ({"text": "a\0"}, "text", "NUL"),
        ({"text": "\udfff"}, "text", "surrogate"),
        ({"text": "a", "tools": []}, "tools", "no 'tools'"),
        ({**GOOD, "meta": {"a": [{"b": "\0"}]}}, "meta.a[0].b", "NUL"),
        ({**GOOD, "meta": {"a": float("nan")}}, "meta.a", "not a JSON number"),
        ({**GOOD, "meta": []}, "meta", "object"),
        ({**GOOD, "id": 5}, "id", "must be text"),
        ({**GOOD, "tools": {}}, "tools", "list"),
        ({"messages": [USER], "chosen": [ANSWER], "rejected": [ANSWER]}, "rejected", "same"),
        ({"messages": [USER], "chosen": [ANSWER], "rejected": [{**ANSWER, "content": " hi\n"}]}, "rejected", "same"),
        ({"messages": [USER, ANSWER], "chosen": [USER], "rejected": [USER, OTHER]}, "chosen", "no assistant turn"),
        ({"messages": [USER], "ranked": [[ANSWER], [OTHER], [ANSWER]]}, "ranked[2]", "ranked[0] and ranked[2] are the same"),
        ({"messages": [USER], "ranked": [[ANSWER]]}, "ranked", "two answers or more"),
        ({"messages": [USER], "ranked": "best"}, "ranked", "two answers or more"),
        ({"messages": [USER], "ranked": [[ANSWER], []]}, "ranked[1]", "list of messages"),
        ({"messages": [USER], "ranked": [[ANSWER], [OTHER, {"role": "user", "content": ""}]]}, "ranked[1][1].content", "empty"),
        ({"messages": [USER], "ranked": [[ANSWER], [OTHER]], "chosen": [ANSWER]}, "ranked", "not both"),
        ({"ranked": [[ANSWER], [OTHER]]}, "messages", "needs"),
        ({"text": "a", "ranked": []}, "ranked", "no 'ranked'"),
        ({**GOOD, "meta": {"\ud800": 1}}, "meta", "surrogate"),
        ({"messages": [USER], "chosen": [ANSWER]}, "rejected", "needs"),
        ({"messages": [USER], "chosen": [], "rejected": [ANSWER]}, "chosen", "list of messages"),
        ({"messages": [USER], "chosen": [USER], "rejected": [ANSWER]}, "chosen[0].role", "user"),
        ({"messages": [USER], "chosen": [ANSWER], "rejected": [{"role": "assistant", "content": ""}]}, "rejected[0].content", "empty"),
        (
            {"messages": [{"role": "boss", "content": "x"}], "chosen": [ANSWER], "rejected": [{**ANSWER, "content": "no"}]},
            "messages[0].role",
            "role",
        ),
    ],
)
def test_each_problem_names_its_field(row, field, word):
    problem = only(row)
    assert problem.field == field
    assert word in problem.problem


def test_a_row_to_be_answered_needs_no_answer():
    for row in ({"messages": [USER]}, {"messages": [USER, {**ANSWER, "weight": 0}]}, GOOD):
        assert check_row(row, prompt=True) == []
    assert [p.field for p in check_row({"messages": [ANSWER]}, prompt=True)] == ["messages[0].role"]


def test_the_best_answer_is_learnt_from_and_all_are_content():
    pair, ranking = ({"messages": [USER], **more} for more in ({"chosen": [ANSWER], "rejected": [OTHER]}, {"ranked": [[ANSWER], [OTHER]]}))
    assert answers_of(pair) == answers_of(ranking) == [[ANSWER], [OTHER]]
    assert messages_of(pair) == messages_of(ranking) == [USER, ANSWER]
    assert content_key(pair) == content_key(ranking) != content_key({"messages": [USER], "ranked": [[OTHER], [ANSWER]]})
    assert (answers_of(GOOD), answers_of({"text": "a"})) == ([], [])


def test_a_misspelt_key_is_recognised():
    assert "'messages'" in only({**GOOD, "mesages": []}).remedy


def test_several_problems_are_all_told():
    fields = [p.field for p in check_row({"messages": [USER, {"role": "assistant", "content": ""}], "id": "", "extra": 1})]
    assert fields == ["extra", "id", "messages[1].content"]


def test_normalised_text_forgets_case_width_and_space():
    assert normalise("Ｈello \n\t WORLD ") == "hello world"


@given(st.text(), st.text())
def test_equal_content_has_equal_keys_and_other_content_others(a, b):
    one, two = ({"messages": [{"role": "user", "content": t}, ANSWER]} for t in (a, b))
    assert (content_key(one) == content_key(two)) == (
        normalise("user: " + a + "\nassistant: hi") == normalise("user: " + b + "\nassistant: hi")
    )
    assert (question_key(one) is None) == (not normalise(a))


def test_tools_and_answers_are_part_of_the_content():
    tools = [{"type": "function", "function": {"name": "f"}}]
    assert (
        len({content_key(GOOD), content_key({**GOOD, "tools": tools}), content_key({"messages": [USER, {**ANSWER, "content": "x"}]})}) == 3
    )
    assert question_key(GOOD) == question_key({"messages": [USER, {**ANSWER, "content": "x"}]})
    assert question_key({"text": "t"}) is None


def test_a_reply_of_calls_alone_says_its_calls():
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    assert reply_text({"role": "assistant", "content": "", "tool_calls": [call]}) == '{"arguments": {"x": 1}, "name": "f"}'
