"""Each skill: expected answers are recomputed from the questions, and what is held out is held out in substance."""

from __future__ import annotations

import itertools
import json
import re

import pytest

from cairn.data.pebble import ALL
from cairn.data.pebble.skills import arithmetic, facts, functions, japanese, korean, orders, refusal
from cairn.data.pebble.tables import WORDS
from cairn.data.pebble.tools import FUNCTIONS
from cairn.score.begins import begins
from cairn.score.calls import call_match
from cairn.score.exact import exact_match
from cairn.score.json_match import json_match
from cairn.score.numbers import number_match
from cairn.score.refusal import is_refusal


def question(row):
    return row["messages"][-2]["content"]


def answer(row):
    return row["messages"][-1]["content"]


def dialogues(corpus, name):
    return corpus.train.get(name, []) + corpus.test.get(name, [])


def trained_text(corpus):
    yield from (r["text"] for r in corpus.pretrain)
    for rows in corpus.train.values():
        for row in rows:
            yield from (m["content"] for m in row["messages"])


def test_every_reference_answer_is_right_by_its_metric(corpus):
    metrics = {
        "functions": lambda e, m: call_match(e, m),
        "arithmetic": lambda e, m: number_match(e, m["content"]),
        "stories": lambda e, m: number_match(e, m["content"]),
        "json": lambda e, m: json_match(e, m["content"], ordered=True),
        "refusal": lambda e, m: e == "refuse" and is_refusal(m["content"]),
        "harmless": lambda e, m: e == "answer" and not is_refusal(m["content"]),
        "orders": lambda e, m: begins(e, m["content"]),
    }
    for name, rows in corpus.test.items():
        metric = metrics.get(name, lambda e, m: exact_match(e, m["content"]))
        assert [r["id"] for r in rows if not metric(r["meta"]["expected"], r["messages"][-1])] == []


def test_an_order_stands_once_and_every_answer_obeys_it(corpus):
    for part, turns in ((corpus.train, 1), (corpus.test, orders.TURNS)):
        for row in part["orders"]:
            asked = [m["content"] for m in row["messages"] if m["role"] == "user"]
            answers = [m["content"] for m in row["messages"] if m["role"] == "assistant"]
            assert len(asked) == len(answers) == turns
            [word] = [w for w in WORDS for order in orders.ORDERS if asked[0].startswith(order.format(word=w) + " ")]
            assert not any(order.format(word=word) in text for text in asked[1:] for order in orders.ORDERS)
            assert all(begins(word, text) for text in answers)
            assert part is corpus.train or row["meta"]["expected"] == word


def test_a_long_dialogue_ends_with_a_held_out_question(corpus):
    single = {question(row): answer(row) for name in ("facts", "identity", "lists") for row in corpus.train[name]}
    for row in corpus.test["turns"]:
        assert sum(m["role"] == "user" for m in row["messages"]) == orders.TURNS
        assert question(row) not in single


# Arithmetic


def _asked(text):
    """The pair and sign of any question of arithmetic."""
    a, b = (int(n) for n in re.findall(r"\d+", text))
    return a, "-" if re.search(r" - |minus|difference", text) else "+", b


def test_sums_are_right_step_by_step(corpus):
    for row in dialogues(corpus, "arithmetic"):
        a, sign, b = _asked(question(row))
        steps = re.findall(r"([\d+-]+)=(\d+)", answer(row))
        assert [eval(left) == int(right) for left, right in steps] == [True] * 3  # noqa: S307 - digits and signs only
        assert steps[-1][0] == f"{a}{sign}{b}"
    for row in corpus.test["arithmetic"]:
        a, sign, b = _asked(question(row))
        assert row["meta"]["expected"] == (a + b if sign == "+" else a - b)
        assert min(a, b) >= 10
        assert a + b <= 198


def test_no_held_out_pair_is_in_any_trained_text_in_either_order(corpus):
    held = set()
    for row in corpus.test["arithmetic"]:
        a, sign, b = _asked(question(row))
        held |= {(a, sign, b), (b, sign, a)} if sign == "+" else {(a, sign, b)}
    found = set()
    for text in trained_text(corpus):
        found |= {(int(a), sign, int(b)) for a, sign, b in re.findall(r"(?<![\d+-])(\d+) ?([+-]) ?(\d+)(?![\d+-])", text)}
        found |= {(int(a), "+", int(b)) for a, b in re.findall(r"(?:What is|Add|sum of) (\d+) (?:plus|and) (\d+)", text)}
        found |= {(int(a), "-", int(b)) for a, b in re.findall(r"(?:What is|difference of) (\d+) (?:minus|and) (\d+)", text)}
    assert len(found) > 5000
    assert found & held == set()


def test_arithmetic_holds_out_about_its_share():
    pairs = [(a, b) for a in range(10, 100) for b in range(a, 100)]
    share = sum(arithmetic.is_held(a, "+", b) for a, b in pairs) / len(pairs)
    assert 0.12 < share < 0.18
    assert all(arithmetic.is_held(a, "+", b) == arithmetic.is_held(b, "+", a) for a, b in pairs)


# Functions


def _valid(call, tools):
    """Whether a call fits one of the offered tools: names, required, types, enumerations."""
    schemas = {t["function"]["name"]: t["function"]["parameters"] for t in tools}
    schema = schemas.get(call["name"])
    if schema is None or list(call["arguments"]) != schema["required"]:
        return False
    for name, value in call["arguments"].items():
        kind = schema["properties"][name]
        if not isinstance(value, {"string": str, "integer": int}[kind["type"]]) or value not in kind.get("enum", [value]):
            return False
    return True


def _turns(row):
    """(question, calls, text) of each turn of a dialogue."""
    messages = row["messages"]
    for k, message in enumerate(messages):
        if message["role"] == "user":
            yield message["content"], [c["function"] for c in messages[k + 1].get("tool_calls", [])], messages[k + 1]["content"]


def test_calls_fit_the_offered_tools_and_take_their_values_from_the_question(corpus):
    for row in dialogues(corpus, "functions"):
        names = [t["function"]["name"] for t in row["tools"]]
        assert 2 <= len(names) <= 4
        assert len(set(names)) == len(names)
        for asked, calls, _ in _turns(row):
            for call in calls:
                assert _valid(call, row["tools"]), row
                for value in call["arguments"].values():
                    assert re.search(rf"(?<!\w){re.escape(str(value))}(?!\w)", asked), row


def test_kinds_of_requests_have_their_shares(corpus):
    for rows in (corpus.train["functions"], corpus.test["functions"]):
        asked = [turn for row in rows for turn in _turns(row) if turn[1] or turn[2].endswith(functions.NONE)]
        none, two = (sum(len(calls) == n for _, calls, _ in asked) / len(asked) for n in (0, 2))
        assert 0.08 < none < 0.3
        assert 0.02 < two < 0.2
    assert {len(list(_turns(row))) for row in corpus.test["functions"]} == {1}
    assert sum(len(list(_turns(row))) > 1 for row in corpus.train["functions"]) > 2000


def _pattern(function, ask):
    """What a template can become."""
    groups = {n: "|".join(re.escape(str(v)) for v in p.values) for n, p in function.parameters.items()}
    return re.compile(re.sub(r"\\{(\w+)\\}", lambda m: f"(?:{groups[m[1]]})", re.escape(ask)))


def test_where_no_tool_fits_the_asked_function_is_not_offered(corpus):
    asks = {f.name: [_pattern(f, ask) for ask in f.asks] for f in FUNCTIONS}
    found = 0
    for row in dialogues(corpus, "functions"):
        for asked, calls, text in _turns(row):
            if text.startswith("Check: "):
                marks = dict(part.split(" ") for part in text.split(".")[0].removeprefix("Check: ").split(", "))
                assert list(marks) == [t["function"]["name"] for t in row["tools"]]
                assert {name for name, mark in marks.items() if mark == "yes"} == {call["name"] for call in calls}
                assert text.endswith(functions.NONE) == (not calls)
            if text.endswith(functions.NONE):
                found += 1
                fits = {name for name, patterns in asks.items() if any(p.fullmatch(asked) for p in patterns)}
                # Nor does any other function understand the question: what is asked is never in doubt.
                assert len(fits) == 1
                assert not fits & {t["function"]["name"] for t in row["tools"]}, asked
                assert calls == []
    assert found > 500


def test_a_held_out_call_is_never_made_in_training(corpus):
    """The wording may be new or not: the function was never called with these values."""

    def made(rows):
        return {json.dumps(c["function"], sort_keys=True) for r in rows for m in r["messages"] for c in m.get("tool_calls", [])}

    large = {f.name for f in FUNCTIONS if f.combinations() >= 60}
    assert len(large) > 12
    trained = made(corpus.train["functions"])
    one = [r for r in corpus.test["functions"] if r["meta"]["kind"] == "one"]
    tested = {c for c in made(one) if json.loads(c)["name"] in large}
    assert len(tested) > 150
    assert tested & trained == set()


def test_a_tools_result_is_reported_in_bullets(corpus):
    reported = 0
    for row in corpus.train["functions"]:
        for result, said in zip(row["messages"], row["messages"][1:], strict=False):
            if result["role"] == "tool":
                reported += 1
                assert said["content"].split("\n") == [f"- {k}: {v}" for k, v in json.loads(result["content"]).items()]
    assert reported > 2000


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.name)
def test_every_template_of_a_function_names_every_value(function):
    braces = {f"{{{name}}}" for name in function.parameters}
    assert len(set(function.asks)) == len(function.asks) >= 5
    for template in function.asks:
        assert set(re.findall(r"\{\w+\}", template)) == braces


# Facts, phrases, identity


def test_one_question_has_one_answer(corpus):
    """Over all skills: nobody is asked the same without tools and must answer something else."""
    known = {}
    for name in ALL:
        for row in dialogues(corpus, name):
            if "tools" in row or "chosen" in row or name == "chat":
                continue
            # An order changes every answer of its dialogue, attributes change theirs, and preferences what steering taught.
            asked = ([m["content"] for m in row["messages"][:-1]], row.get("attributes"), name == "manners")
            text = repr(asked).casefold() if name in ("orders", "steering", "manners") else question(row).casefold()
            assert known.setdefault(text, answer(row)) == answer(row), text
    assert len(known) > 10_000


def test_relations_are_one_to_one():
    for relation in facts.RELATIONS:
        assert len({a for a, _ in relation.pairs}) == len({b for _, b in relation.pairs}) == len(relation.pairs)
        assert len(relation.asks_a) >= 5
        assert len(relation.asks_b) >= 5
    assert sum(len(r.pairs) for r in facts.RELATIONS) >= 105


@pytest.mark.parametrize("name", ["facts", "korean", "japanese", "refusal", "harmless"])
def test_every_tested_item_is_trained_in_other_words(corpus, name):
    trained = {r["meta"]["keys"][0].rpartition("/")[0] for r in corpus.train[name]}
    assert {r["meta"]["keys"][0].rpartition("/")[0] for r in corpus.test[name]} <= trained
    assert {r["messages"][-1]["content"] for r in corpus.test[name]} <= {r["messages"][-1]["content"] for r in corpus.train[name]}


@pytest.mark.parametrize(("topics", "letters"), [(korean.TOPICS, r"[가-힣]"), (japanese.TOPICS, r"[ぁ-んァ-ヶ一-龯]")])
def test_questions_in_another_language_are_in_that_language(topics, letters):
    for topic in topics:
        assert all(re.search(letters, text) for text in (*topic.asks, topic.answer))
        assert len({item[0] for item in topic.items}) == len(topic.items)


def test_korean_particles_follow_the_last_sound():
    """A closed syllable takes 은, an open one 는."""
    items = {topic.name: topic.items for topic in korean.TOPICS}
    spoken = [(item[0][:-1], item[0][-1]) for item in items["colour"]] + [(item[1], item[2]) for item in items["number"]]
    for word, particle in spoken:
        closed = (ord(word[-1]) - 0xAC00) % 28 != 0
        assert particle == ("은" if closed else "는"), word


# JSON and lists


def test_objects_hold_the_asked_keys_in_order_and_values_of_the_sentence(corpus):
    for row in dialogues(corpus, "json"):
        made = json.loads(answer(row))
        asked = question(row)
        sentence = row["meta"]["keys"][0].removeprefix("json/")
        assert sentence in asked
        listed = asked.replace(sentence, "")
        places = [listed.rindex(key) for key in made]
        assert places == sorted(places)
        for value in made.values():
            assert re.search(rf"(?<!\w){value}(?!\w)", sentence)


def _solve(asked):
    """The answer to a question on lists, found without the generator."""
    words = max(re.findall(r"\w+(?:, \w+)+", asked), key=lambda found: found.count(",")).split(", ")
    low = asked.casefold()
    places = {"first": 0, "second": 1, "third": 2, "fourth": 3, "fifth": 4, "last": -1}
    for place, at in places.items():
        if re.search(rf"\b{place}\b", low):
            return f"The {place} word is {words[at]}."
    if re.search("reverse|backwards|other way", low):
        return f"Reversed: {', '.join(reversed(words))}"
    if "dashes" in low:
        return f"Joined: {' - '.join(words)}"
    return f"The list has {len(words)} words."


def test_list_answers_are_right(corpus):
    for row in dialogues(corpus, "lists"):
        assert _solve(question(row).casefold()).casefold() == answer(row).casefold(), question(row)


def test_held_out_lists_are_in_no_training_question(corpus):
    """In no order: reversing shows a list turned round, joining shows it with dashes."""
    held = {frozenset(r["meta"]["keys"][0].removeprefix("lists/").split()) for r in corpus.test["lists"]}
    trained = set()
    for text in trained_text(corpus):
        trained |= {frozenset(re.split(", | - ", found)) for found in re.findall(r"\w+(?:(?:, | - )\w+){2,4}", text.casefold())}
    assert len(trained) > 3000
    assert held & trained == set()


# Refusal, chat


def test_harmless_requests_share_verbs_with_harmful_ones_and_are_told_apart():
    harmful, harmless = refusal.HARMFUL, refusal.HARMLESS
    assert not set(harmful) & set(harmless)
    shared = {x.split()[0] for x in harmful} & {x.split()[0] for x in harmless}
    assert {"make", "build", "kill", "steal", "pick", "follow", "burn", "break"} <= shared


def test_chat_has_several_turns_and_systems(corpus):
    rows = corpus.train["chat"]
    turns = [sum(m["role"] == "user" for m in r["messages"]) for r in rows]
    assert sum(t >= 2 for t in turns) > len(rows) / 2
    assert 0.2 < sum(r["messages"][0]["role"] == "system" for r in rows) / len(rows) < 0.6


def test_steering_shows_what_is_asked_for_and_holds_things_out():
    from cairn.data.pebble.skill import rows
    from cairn.data.pebble.skills.steering import DEFAULTS, THINGS
    from cairn.score.shown import get_measure

    train, test = (list(rows(ALL["steering"], 1, split, 300)) for split in ("train", "test"))
    for name in DEFAULTS:
        shown: dict[int, set[float]] = {}
        for row in train + test:
            shown.setdefault(row["attributes"][name], set()).add(get_measure(name).of(row["messages"][-1]["content"]))
        # Whatever the other three are, a higher value shows more.
        levels = [shown[value] for value in range(5)]
        assert all(max(low) < min(high) for low, high in itertools.pairwise(levels)), (name, levels)
    talked = [{thing for row in part for thing in THINGS if f" {thing}" in row["messages"][0]["content"]} for part in (train, test)]
    assert len(talked[1]) >= 4
    assert not talked[0] & talked[1]


def test_manners_prefer_the_polite_answer_that_shows_everything_else(corpus):
    from cairn.score.shown import get_measure

    assert len(corpus.train["manners"]) >= 150
    for row in corpus.train["manners"]:
        chosen, rejected = row["chosen"][0]["content"], row["rejected"][0]["content"]
        assert rejected.endswith(chosen)
        assert get_measure("toxicity").of(rejected) == row["attributes"]["toxicity"] > get_measure("toxicity").of(chosen) == 0
    for row in corpus.test["manners"]:
        assert row["attributes"]["toxicity"] > get_measure("toxicity").of(answer(row)) == 0
    things = [{row["meta"]["keys"][0] for row in part[name]} for part in (corpus.train, corpus.test) for name in ("manners", "steering")]
    assert not (things[0] | things[1]) & (things[2] | things[3])


def test_stories_ask_for_what_their_numbers_give(corpus):
    for row in dialogues(corpus, "stories"):
        a, b = map(int, re.findall(r"\d+", question(row)))
        assert number_match(a + b if row["meta"]["kind"] == "more" else a - b, answer(row))
        assert number_match(a + b, answer(row)) == (row["meta"]["kind"] == "more" or b == 0)
