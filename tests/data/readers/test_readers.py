"""Each reader on small files of its kind: rows in, or the problem with its row, field and remedy."""

from __future__ import annotations

import gzip
import json

import pytest

from cairn.data.readers import detect_reader, read_outcomes, read_rows, readers
from cairn.errors import UserError


def said(row):
    return [(m["role"], m["content"]) for m in row["messages"]]


def put(tmp_path, name, content):
    path = tmp_path / name
    if isinstance(content, list) and name.endswith(".jsonl"):
        content = "".join(json.dumps(v) + "\n" for v in content)
    path.write_bytes(
        content.encode() if isinstance(content, str) else json.dumps(content).encode() if not isinstance(content, bytes) else content
    )
    return path


def problem(path, reader="auto"):
    found = [o.problem for o in read_outcomes(path, reader) if o.problem]
    assert len(found) == 1, found
    return found[0]


PAIR = [("user", "Q"), ("assistant", "A")]

SAMPLES = {
    "messages": {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]},
    "alpaca": {"instruction": "Q", "input": "", "output": "A"},
    "dolly": {"instruction": "Q", "context": "", "response": "A", "category": "open_qa"},
    "sharegpt": {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]},
    "oasst": {"message_tree_id": "t", "prompt": {"message_id": "t", "role": "prompter", "text": "Q", "replies": [
        {"message_id": "u", "role": "assistant", "text": "A", "replies": []}]}},
    "prompt_response": {"question": "Q", "answer": "A"},
    "helpsteer": {"prompt": "Q", "response": "A", "helpfulness": 3, "correctness": 4, "coherence": 4, "complexity": 2, "verbosity": 0},
}  # fmt: skip


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("kind", ["jsonl", "json"])
def test_auto_knows_each_kind(tmp_path, name, kind):
    path = put(tmp_path, f"x.{kind}", [SAMPLES[name]])
    assert detect_reader(path) == name
    (row,) = read_rows(path)
    assert said(row) == PAIR
    assert row["source"] == "x"
    assert row["id"]
    assert list(read_rows(path, name)) == [row]


def test_every_reader_says_what_it_reads():
    assert set(SAMPLES) | {"text", "text_rows", "aozora", "oasst_all", "oasst_labelled", "preference"} == set(readers())
    assert all(readers().values())


def test_a_given_source_language_and_id_stay(tmp_path):
    path = put(tmp_path, "x.jsonl", [{**SAMPLES["messages"], "source": "mine", "language": "ko", "id": "7"}, SAMPLES["messages"]])
    one, two = read_rows(path, source="theirs", language="en")
    assert (one["source"], one["language"], one["id"]) == ("mine", "ko", "7")
    assert (two["source"], two["language"], two["id"]) == ("theirs", "en", "x.jsonl:2")


def test_openai_rows(tmp_path):
    path = put(tmp_path, "x.jsonl", [{
        "messages": [
            {"role": "developer", "content": [{"type": "text", "text": "be "}, {"type": "text", "text": "kind"}]},
            {"role": "user", "content": "weather?", "name": None},
            {"role": "assistant", "content": None, "refusal": None, "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{\"city\": \"Seoul\", \"days\": null}"}}]},
            {"role": "tool", "tool_call_id": "c1", "content": "{}"},
            {"role": "assistant", "content": "sunny", "weight": 1},
        ],
        "functions": [{"name": "look", "parameters": {"default": None}}], "parallel_tool_calls": False,
    }])  # fmt: skip
    (row,) = read_rows(path)
    assert said(row)[0] == ("system", "be kind")
    assert row["messages"][2] == {"role": "assistant", "content": "", "tool_calls": [
        {"id": "c1", "type": "function", "function": {"name": "look", "arguments": {"city": "Seoul", "days": None}}}]}  # fmt: skip
    assert row["tools"] == [{"type": "function", "function": {"name": "look", "parameters": {"default": None}}}]


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{bad"}}]},
            "messages[1].tool_calls[0].function.arguments",
        ),
        (
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]},
            "messages[1].tool_calls[0].function.arguments",
        ),
        ({"role": "assistant", "tool_calls": [{"function": {"arguments": "{}"}}]}, "messages[1].tool_calls[0].function.name"),
        ({"role": "assistant", "content": [{"type": "image_url"}]}, "messages[1].content[0]"),
        ({"role": "robot", "content": "x"}, "messages[1].role"),
        ({"content": "x"}, "messages[1].role"),
        ({"role": "assistant", "content": ""}, "messages[1].content"),
        ("x", "messages[1]"),
    ],
)
def test_bad_openai_messages_are_named(tmp_path, message, field):
    path = put(tmp_path, "x.jsonl", [{"messages": [{"role": "user", "content": "Q"}, message]}])
    found = problem(path)
    assert (found.row, found.field) == (1, field)
    assert found.remedy


def test_parquet_of_structs_gives_no_nulls(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [
        {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}], "tools": None},
        {"messages": [{"role": "user", "content": "Q", "name": "bob"}, {"role": "assistant", "content": "A"}],
         "tools": [{"type": "function", "function": {"name": "f", "parameters": {"a": 1}}},
                   {"type": "function", "function": {"name": "g", "strict": True}}]},
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet")
    one, two = read_rows(tmp_path / "x.parquet")
    assert said(one) == PAIR
    assert "tools" not in one
    assert "name" not in two["messages"][1]
    assert two["tools"] == rows[1]["tools"]


def test_alpaca_with_input_system_and_history(tmp_path):
    path = put(
        tmp_path,
        "x.json",
        [{"instruction": "Add", "input": "1 2", "output": "3", "system": "S", "history": [["q", "a"]], "n": 4, "long": "x" * 999}],
    )
    (row,) = read_rows(path)
    assert said(row) == [("system", "S"), ("user", "q"), ("assistant", "a"), ("user", "Add\n\n1 2"), ("assistant", "3")]
    assert row["meta"] == {"n": 4}, "short facts are kept, long ones are not"


def test_dolly_keeps_its_category(tmp_path):
    path = put(tmp_path, "x.jsonl", [{"instruction": "Q", "category": "qa", "input": "C", "output": "A"}])
    assert detect_reader(path) == "dolly"
    (row,) = read_rows(path)
    assert said(row) == [("user", "Q\n\nC"), ("assistant", "A")]
    assert row["meta"] == {"category": "qa"}


@pytest.mark.parametrize(
    ("sample", "key"), [("alpaca", "output"), ("dolly", "response"), ("prompt_response", "answer"), ("alpaca", "instruction")]
)
def test_an_empty_or_missing_text_is_named(tmp_path, sample, key):
    for value in ("", "  ", None, 5):
        found = problem(put(tmp_path, "x.json", [{**SAMPLES[sample], key: value}]), sample)
        assert (found.row, found.field) == (1, key)


def test_sharegpt_with_tools(tmp_path):
    path = put(tmp_path, "x.json", [{
        "system": "S", "tools": json.dumps([{"type": "function", "function": {"name": "f"}}]),
        "conversations": [
            {"from": "human", "value": "Q"}, {"from": "function_call", "value": "{\"name\": \"f\", \"arguments\": {\"x\": 1}}"},
            {"from": "observation", "value": "42"}, {"from": "gpt", "value": "A"},
        ],
    }])  # fmt: skip
    (row,) = read_rows(path)
    assert [m["role"] for m in row["messages"]] == ["system", "user", "assistant", "tool", "assistant"]
    assert row["messages"][2]["tool_calls"][0]["function"] == {"name": "f", "arguments": {"x": 1}}
    assert row["tools"][0]["function"]["name"] == "f"


def test_sharegpt_problems(tmp_path):
    turns = [{"from": "human", "value": "Q"}, {"from": "alien", "value": "A"}]
    assert problem(put(tmp_path, "x.json", [{"conversations": turns}])).field == "conversations[1].from"
    turns[1] = {"from": "gpt", "value": None}
    assert problem(put(tmp_path, "x.json", [{"conversations": turns}])).field == "conversations[1].value"
    assert problem(put(tmp_path, "x.json", [{"conversations": [{"from": "gpt", "value": "A"}]}])).field == "messages[0].role"


def node(name, role, text, *replies, **more):
    return {
        "message_id": name,
        "role": role,
        "text": text,
        "replies": list(replies),
        "deleted": False,
        "review_result": True,
        "lang": "en",
        **more,
    }


TREE = node(
    "r", "prompter", "Q",
    node("a", "assistant", "second", rank=1),
    node("b", "assistant", "first",
         node("c", "prompter", "more?", node("d", "assistant", "more", rank=0)), node("e", "prompter", "bye"), rank=0),
    node("f", "assistant", "rude", rank=None, review_result=False),
    node("g", "assistant", "gone", rank=None, deleted=True),
)  # fmt: skip


def flat(tree, parent=None):
    yield {
        **{k: v for k, v in tree.items() if k != "replies"},
        "parent_id": parent,
        "message_tree_id": "r",
        "tree_state": "ready_for_export",
    }
    for reply in tree["replies"]:
        yield from flat(reply, tree["message_id"])


@pytest.mark.parametrize("shape", ["tree", "nested message", "flat"])
def test_oasst_takes_the_best_ranked_path(tmp_path, shape):
    records = {
        "tree": [{"message_tree_id": "r", "tree_state": "ready_for_export", "prompt": TREE}],
        "nested message": [{**TREE, "parent_id": None}],
    }
    path = put(tmp_path, "x.jsonl", records.get(shape) or list(flat(TREE)))
    assert detect_reader(path) == "oasst"
    (row,) = read_rows(path)
    assert said(row) == [("user", "Q"), ("assistant", "first"), ("user", "more?"), ("assistant", "more")]
    assert (row["id"], row["language"]) == ("d", "en")
    assert [said(r)[-1][1] for r in read_rows(path, "oasst_all")] == ["more", "second"]


def test_oasst_tells_what_it_skips(tmp_path):
    lonely = {**next(flat(node("x", "prompter", "Q"))), "message_tree_id": "x"}
    orphan = {**next(flat(node("y", "assistant", "A"))), "message_tree_id": "x", "parent_id": "nobody"}
    aborted = {"message_tree_id": "z", "tree_state": "aborted_low_grade", "prompt": TREE}
    outcomes = list(read_outcomes(put(tmp_path, "x.jsonl", [lonely, orphan, aborted, *flat(TREE)])))
    assert [o.skipped for o in outcomes if o.skipped] == [
        "its parent is not in the file",
        "no accepted answer in the tree",
        "the tree's state is aborted_low_grade",
    ]
    assert [o.number for o in outcomes if o.row] == [4]
    with pytest.raises(UserError) as caught:
        list(read_rows(put(tmp_path, "y.jsonl", [lonely])))
    assert "no rows" in caught.value.what


def test_oasst_wants_a_tree_together(tmp_path):
    other = {**next(flat(node("x", "prompter", "Q"))), "message_tree_id": "x"}
    messages = list(flat(TREE))
    found = problem(put(tmp_path, "x.jsonl", [*messages[:2], other, *messages[2:]]))
    assert (found.row, found.field) == (4, "message_tree_id")


def test_answers_of_a_preference_may_be_text(tmp_path):
    """As those of a ranking may: beside `messages` it was told to be bad JSON."""
    question = [{"role": "user", "content": "Q"}]
    as_json = json.dumps([{"role": "assistant", "content": "good"}])
    pairs = [{"messages": question, "chosen": "good", "rejected": "bad"}, {"messages": question, "chosen": as_json, "rejected": "b"}]
    for row in read_rows(put(tmp_path, "x.jsonl", pairs)):
        assert [row["chosen"], row["rejected"][0]["content"][:1]] == [[{"role": "assistant", "content": "good"}], "b"]
    empty = put(tmp_path, "y.jsonl", [{"messages": question, "chosen": "good", "rejected": ""}])
    with pytest.raises(UserError, match="the assistant turn is empty") as told:
        list(read_rows(empty))
    assert "rejected[0].content" in told.value.where


def test_preferences_of_each_shape(tmp_path):
    good, bad = {"role": "assistant", "content": "good"}, {"role": "assistant", "content": "bad"}
    question = {"role": "user", "content": "Q"}
    start, rest = "\n\nHuman: Q\n\nAssistant: A\n\nHuman: and?", "\n\nAssistant: "
    records = [
        {"prompt": "Q", "chosen": "good", "rejected": "bad", "score": 2},
        {"prompt": [question], "chosen": [good], "rejected": [bad]},
        {"prompt": "Q", "chosen": [question, good], "rejected": [question, bad]},
        {"chosen": start + rest + "good", "rejected": start + rest + "bad"},
        {"prompt": start, "chosen": "good", "rejected": "bad"},
    ]
    path = put(tmp_path, "x.jsonl", records)
    assert detect_reader(path) == "preference"
    rows = list(read_rows(path))
    assert [said(r) for r in rows[:3]] == [[("user", "Q")]] * 3
    assert [said(r) for r in rows[3:]] == [[*PAIR, ("user", "and?")]] * 2
    assert all((r["chosen"], r["rejected"]) == ([good], [bad]) for r in rows)
    assert rows[0]["meta"] == {"score": 2}


@pytest.mark.parametrize(
    ("record", "field"),
    [
        ({"prompt": "Q", "chosen": "same", "rejected": "same"}, "rejected"),
        ({"chosen": "\n\nHuman: Q\n\nAssistant: A", "rejected": "\n\nHuman: Q\n\nAssistant: A"}, "rejected"),
        ({"chosen": "\n\nHuman: Q\n\nAssistant:", "rejected": "\n\nHuman: Q\n\nAssistant: A"}, "chosen, turn 2"),
        ({"chosen": "\n\nHuman: Q\n\nAssistant: A", "rejected": "\n\nHuman: Q\n\nAssistant: A\n\nHuman: more"}, "chosen"),
        ({"chosen": "just text", "rejected": "other"}, "prompt"),
        ({"prompt": "Q", "chosen": "", "rejected": "other"}, "chosen"),
    ],
)
def test_bad_preferences_are_named(tmp_path, record, field):
    assert problem(put(tmp_path, "x.jsonl", [record]), "preference").field == field


def test_rankings_of_each_shape(tmp_path):
    question, a, b, c = {"role": "user", "content": "Q"}, *({"role": "assistant", "content": t} for t in "ABC")
    rankings = [
        ["A", "B", "C"],
        [a, b, c],
        [[a], [b], [c]],
        [{**c, "rank": 3}, {**a, "rank": 1}, {"messages": [b], "rank": 2}],
        json.dumps(["A", "B", "C"]),
    ]
    path = put(tmp_path, "x.jsonl", [{"messages": [question], "ranked": ranked} for ranked in rankings])
    assert detect_reader(path) == "messages"
    assert [row["ranked"] for row in read_rows(path)] == [[[a], [b], [c]]] * len(rankings)


@pytest.mark.parametrize(
    ("ranked", "field", "word"),
    [
        ([{"role": "assistant", "content": "A", "rank": 1}, {"role": "assistant", "content": "B", "rank": 1}], "ranked[1].rank", "tie"),
        (["A", [["B"], ["C"]]], "ranked[1]", "tie"),
        ([{"role": "assistant", "content": "A", "rank": 1}, "B"], "ranked[1].rank", "no rank"),
        (["A", "B", "A"], "ranked[2]", "same"),
        (["A", ""], "ranked[1][0].content", "empty"),
        (["A", [{"role": "boss", "content": "B"}]], "ranked[1][0].role", "role"),
        ({"best": "A"}, "ranked", "list of answers"),
    ],
)
def test_bad_rankings_are_named(tmp_path, ranked, field, word):
    found = problem(put(tmp_path, "x.jsonl", [{"messages": [{"role": "user", "content": "Q"}], "ranked": ranked}]))
    assert (found.row, found.field) == (1, field)
    assert word in found.problem


def test_rows_to_be_answered(tmp_path):
    path = put(tmp_path, "x.jsonl", [{"messages": [{"role": "user", "content": "Q"}]}, SAMPLES["messages"]])
    assert [len(row["messages"]) for row in read_rows(path, prompts=True)] == [1, 2]
    with pytest.raises(UserError, match="no assistant turn"):
        list(read_rows(path))


def test_packed_preferences(tmp_path):
    line = json.dumps({"chosen": "\n\nHuman: Q\n\nAssistant: A", "rejected": "\n\nHuman: Q\n\nAssistant: B"})
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(line.encode()))
    (row,) = read_rows(tmp_path / "x.jsonl.gz")
    assert row["source"] == "x"
    (tmp_path / "y.jsonl.gz").write_bytes(gzip.compress(line.encode() * 999)[:-9])
    with pytest.raises(UserError, match="unpack"):
        list(read_rows(tmp_path / "y.jsonl.gz", "preference"))


def test_tables_and_utterances(tmp_path):
    path = put(tmp_path, "x.csv", '\ufeffQ,A,label\n안녕,"네, ""반가워요""\n두 줄",0\n\nhi,hello,1\n')
    assert detect_reader(path) == "prompt_response"
    one, two = read_rows(path)
    assert said(one) == [("user", "안녕"), ("assistant", '네, "반가워요"\n두 줄')]
    assert (two["id"], two["meta"]) == ("x.csv:2", {"label": "1"})
    path = put(
        tmp_path, "y.jsonl", [{"id": "u1", "utterances": [{"name": "user", "text": "Q"}, {"name": "agent", "text": "A"}], "meta": {}}]
    )
    (row,) = read_rows(path)
    assert said(row) == PAIR
    assert row["id"] == "u1"
    assert problem(put(tmp_path, "z.jsonl", [{"utterances": []}])).field == "utterances"


def test_a_bad_table_row_is_named(tmp_path):
    path = put(tmp_path, "x.csv", "prompt,response\na,b\nc\nd,e\n")
    assert [(o.number, o.problem and o.problem.problem) for o in read_outcomes(path)] == [
        (1, None),
        (2, "1 cells where the header names 2 columns"),
        (3, None),
    ]
    assert "table" in problem(put(tmp_path, "y.csv", 'prompt,response\n"a,b\n'), "prompt_response").problem


def test_text_files_and_separators(tmp_path):
    path = put(tmp_path, "x.txt", "one\r\ntwo\r\n\r\n\r\nthree\n\n")
    assert [r["text"] for r in read_rows(path)] == ["one\ntwo\n\n\nthree"]
    assert [r["text"] for r in read_rows(path, separator="\n\n")] == ["one\ntwo", "three"]
    assert [r["text"] for r in read_rows(path, "text", separator="\n")] == ["one", "two", "three"]
    path = put(tmp_path, "y.txt", "a<|endoftext|>b\n<|endoftext|>\n")
    assert [r["text"] for r in read_rows(path, separator="<|endoftext|>")] == ["a", "b"]


def test_text_rows_keep_facts(tmp_path):
    path = put(tmp_path, "x.jsonl", [{"text": "words", "url": "http://a", "meta": {"k": [1]}, "timestamp": None}])
    assert detect_reader(path) == "text_rows"
    (row,) = read_rows(path)
    assert (row["text"], row["meta"]) == ("words", {"url": "http://a", "k": [1]})


def test_aozora_leaves_the_book_alone(tmp_path):
    book = (
        "題\n作者\n\n-------------------------------------------------------\n【テキスト中に現れる記号について】\n\n《》：ルビ\n"
        "-------------------------------------------------------\n\n　｜大《おお》きな※［＃「魚＋師のつくり」、第4水準2-93-37］と"
        "※［＃「木＋吶のつくり」、U+67EE、10-3］［＃「と」に傍点］の※［＃「さんずい＋嚢」、8-2］※［＃小書き平仮名な、105-1］話《はなし》。"
        "\n\n\n\n底本：「全集」\n　　1950年\n"
    )
    path = tmp_path / "x.txt"
    path.write_bytes(book.encode("cp932"))
    assert detect_reader(path) == "aozora"
    (row,) = read_rows(path)
    assert row["text"] == "題\n作者\n\n　大きな魳と\u67eeのな話。"


def test_shift_jis_needs_its_name(tmp_path):
    path = tmp_path / "x.txt"
    path.write_bytes("日本語".encode("shift_jis"))
    found = problem(path)
    assert "0x93 at 0 is not utf-8" in found.problem
    assert "--encoding" in found.remedy
    assert [r["text"] for r in read_rows(path, encoding="shift_jis")] == ["日本語"]
    with pytest.raises(UserError, match="no encoding is named"):
        list(read_rows(path, encoding="shift-jiss"))


HELPSTEER = SAMPLES["helpsteer"]
NAMES = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")


def test_helpsteer_rows_carry_their_five_attributes(tmp_path):
    turns = "Q<extra_id_1>"  # inside a line the marker is text
    prompt = f"{turns}\n<extra_id_1>Assistant\nA1\nmore\n<extra_id_1>User\nQ2"
    one, two = read_rows(put(tmp_path, "x.jsonl", [HELPSTEER, {**HELPSTEER, "prompt": prompt, "verbosity": 1.0}]))
    assert one["messages"][0]["attributes"] == dict(zip(NAMES, (3, 4, 4, 2, 0), strict=True))
    assert "meta" not in one
    assert said(two) == [("user", turns), ("assistant", "A1\nmore"), ("user", "Q2"), ("assistant", "A")]
    assert [message.get("weight", 1) for message in two["messages"]] == [1, 0, 1, 1]
    assert "attributes" not in two["messages"][0]
    assert two["messages"][2]["attributes"]["verbosity"] == 1


@pytest.mark.parametrize(("change", "field", "told"), [
    ({"coherence": None}, "coherence", "is missing"), ({"coherence": 5}, "coherence", "out of range"),
    ({"coherence": -1}, "coherence", "out of range"), ({"coherence": 2.5}, "coherence", "is 2.5"),
    ({"coherence": "4"}, "coherence", "is '4'"),    ({"coherence": True}, "coherence", "is True"),
    ({"prompt": "Q\n<extra_id_1>Assistant\nA"}, "prompt", "ends with the assistant"),
    ({"prompt": "Q\n<extra_id_1>User\nA"}, "prompt", "turn 2 is the user's again"),
    ({"prompt": "Q\n<extra_id_1>Assistant\n \n<extra_id_1>User\nQ"}, "prompt", "Assistant says nothing in turn 2"),
    ({"response": ""}, "response", "is empty"),
])  # fmt: skip
def test_helpsteer_tells_what_is_wrong(tmp_path, change, field, told):
    found = problem(put(tmp_path, "x.jsonl", [HELPSTEER | change]))
    assert (found.row, found.field) == (1, field)
    assert told in found.problem
    assert found.remedy


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_ratings_of_tables_may_be_no_numbers(value):
    from cairn.data.readers.helpsteer import helpsteer

    with pytest.raises(UserError, match=r"the attribute 'coherence' is (inf|nan)"):
        helpsteer(HELPSTEER | {"coherence": value})


def test_a_row_that_lacks_an_attribute_is_still_helpsteers(tmp_path):
    row = {key: value for key, value in HELPSTEER.items() if key != "complexity"}
    assert problem(put(tmp_path, "x.jsonl", [row])).problem == "the attribute 'complexity' is missing"


def votes(shape, **values):
    if shape == "tree":
        return {name: {"value": value, "count": 3} for name, value in values.items()}
    return {"name": [*values], "value": [*values.values()], "count": [3] * len(values)}


FOUR = {"spam": 0.0, "quality": 0.75, "toxicity": 0.125, "humor": 1 / 3, "creativity": 1.0}


@pytest.mark.parametrize("shape", ["tree", "table"])
def test_oasst_labels_become_attributes(tmp_path, shape):
    def node(name, role, text, replies=(), **more):
        return {"message_id": name, "role": role, "text": text, "replies": list(replies), **more}

    labels = votes(shape, **FOUR)
    end = node("e", "assistant", "A2", labels=votes(shape, **FOUR | {"quality": 0.0}))
    answered = node("b", "assistant", "A1", [node("c", "prompter", "Q2", [end])], labels=labels)
    partly = node("d", "assistant", "A3", labels=votes(shape, quality=1.0))
    gone = node("f", "assistant", "A4", labels=labels, deleted=True)
    tree = {"message_tree_id": "a", "prompt": node("a", "prompter", "Q1", [answered, partly, gone], labels=labels)}
    one, two = read_rows(put(tmp_path, "x.jsonl", [tree]), "oasst_labelled")
    level = {"quality": 3, "toxicity": 1, "humor": 1, "creativity": 4}
    assert (one["id"], one["messages"]) == ("b", [
        {"role": "user", "content": "Q1", "attributes": level}, {"role": "assistant", "content": "A1"},
    ])  # fmt: skip
    assert (two["id"], two["messages"]) == ("e", [
        {"role": "user", "content": "Q1", "attributes": level}, {"role": "assistant", "content": "A1", "weight": 0},
        {"role": "user", "content": "Q2", "attributes": {**level, "quality": 0}}, {"role": "assistant", "content": "A2"},
    ])  # fmt: skip


@pytest.mark.parametrize("value", [1.5, -0.1, "0.5", True])
def test_an_oasst_label_that_is_no_fraction_is_told(tmp_path, value):
    answer = {"message_id": "b", "role": "assistant", "text": "A", "replies": [], "labels": votes("tree", **FOUR | {"humor": value})}
    path = put(tmp_path, "x.jsonl", [{"prompt": {"message_id": "a", "role": "prompter", "text": "Q", "replies": [answer]}}])
    found = problem(path, "oasst_labelled")
    assert found.field == "messages[1].labels.humor"
    assert "from 0 to 1" in found.remedy


def test_oasst_without_labels_is_skipped_with_the_reason(tmp_path):
    (outcome,) = read_outcomes(put(tmp_path, "x.jsonl", [SAMPLES["oasst"]]), "oasst_labelled")
    assert outcome.skipped == "no accepted answer with labels in the tree"
