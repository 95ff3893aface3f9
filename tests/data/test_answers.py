"""Preferences to tokens: what is shared is shared once, what is not to be learnt is not, and bad rows are refused by name."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cairn.data.answers import with_mismatched
from cairn.data.batches import PackedStream, make_batch
from cairn.data.encode import Counters, encode_row, encode_rows
from cairn.data.shelf import put, take
from cairn.errors import UserError


@dataclass
class Rendered:
    ids: list
    mask: list


class Letters:
    """One id a character: a turn is its role's id, the text, and 2; the assistant's text and its 2 are targets unless of weight 0."""

    def render(self, messages, *, tools=None, attributes=None):
        ids, mask = [1], [0]
        for m in messages:
            said = [ord(c) for c in m["content"]] + [2]
            learnt = int(m["role"] == "assistant" and m.get("weight", 1) != 0)
            ids += [{"user": 3, "assistant": 4, "system": 5}[m["role"]], *said]
            mask += [0, *([learnt] * len(said))]
        return Rendered(ids, mask)


def row(prompt, *answers, **more):
    told = [[{"role": "assistant", "content": a}] for a in answers]
    parts = {"chosen": told[0], "rejected": told[1]} if len(told) == 2 else {"ranked": told}
    return {"messages": [{"role": "user", "content": prompt}], "id": "r", **parts, **more}


def encode(one, limit=100, overlong="truncate", counters=None):
    return encode_row(one, Letters(), None, max_length=limit, overlong=overlong, objective="answers", counters=counters)


words = st.text(alphabet="abcd", min_size=1, max_size=8)


@given(words, st.lists(words, min_size=2, max_size=5, unique=True))
def test_every_answer_and_its_targets_are_there_behind_one_prompt(prompt, answers):
    [found] = encode(row(prompt, *answers))
    at = start = len(found) - sum(found.answers)
    assert found.mask[:start].sum() == 0
    for answer, n in zip(answers, found.answers, strict=True):
        whole = Letters().render([{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}])
        assert [*found.ids[:start], *found.ids[at : at + n]] == whole.ids
        assert [*found.mask[:start], *found.mask[at : at + n]] == whole.mask
        at += n
    assert start >= 1 + 1 + len(prompt) + 1


def test_earlier_turns_of_the_assistant_are_context():
    one = row("a", "x", "y")
    one["messages"] = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "said"}, *one["messages"]]
    [found] = encode(one)
    assert found.targets == 4


def test_long_answers_lose_their_end_and_it_is_counted():
    counters = Counters()
    [found] = encode(row("ab", "x" * 50, "y"), limit=20, counters=counters)
    assert (found.longest, counters.truncated) == (20, 1)
    assert not encode(row("ab", "x" * 50, "y"), limit=20, overlong="drop", counters=counters)
    # Cut to what both begin with they would be one answer.
    assert not encode(row("ab", "x" * 50, "x" * 50 + "y"), limit=20, counters=counters)
    assert counters.dropped_overlong == 2


def test_a_prompt_longer_than_the_sequence_is_told():
    counters = Counters()
    with pytest.raises(UserError, match="no row fits into 20 tokens"):
        list(encode_rows([row("p" * 30, "x", "y")], Letters(), None, max_length=20, objective="answers", counters=counters, where="f"))
    assert counters.dropped_overlong == 1


@pytest.mark.parametrize(("bad", "words"), [
    (row("a", "x", "x"), "same in tokens"), (row("a", "x", "y", "x"), "same in tokens"),
    ({"messages": [{"role": "user", "content": "a"}], "id": "r"}, "no preference"),
    (row("a", "x", "y", meta={"margin": -1}), "margin"), (row("a", "x", "y", meta={"margin": float("nan")}), "margin"),
    (row("a", "x", "y", meta={"margin": "much"}), "margin"),
])  # fmt: skip
def test_bad_rows_are_refused_by_name(bad, words):
    with pytest.raises(UserError, match=words) as caught:
        encode(bad)
    assert "r" in caught.value.where


def test_an_answer_of_weight_0_is_nothing_to_learn():
    counters, one = Counters(), row("a", "x", "y")
    one["rejected"][0]["weight"] = 0
    assert not encode(one, counters=counters)
    assert counters.no_supervised == 1


def test_kto_needs_other_rows():
    with pytest.raises(UserError, match="one row"):
        with_mismatched(encode(row("a", "x", "y")), 50)


@given(st.lists(st.tuples(words, st.lists(words, min_size=2, max_size=4, unique=True)), min_size=1, max_size=8), st.integers(10, 40))
def test_passes_hold_every_document_once_with_its_answers(rows, capacity):
    documents = [encode(row(prompt, *answers, meta={"margin": 2}))[0] for prompt, answers in rows]
    batch = make_batch(documents, [0] * len(documents))
    for parts in (batch.split(capacity), [p for p in batch.divide(2) if p is not None]):
        found = {}
        for part in parts:
            at = 0
            for number, length, answers in zip(part.documents, part.doc_lengths, part.answers, strict=True):
                found[number] = (part.ids[at : at + length].tolist(), answers, part.position_ids[at : at + length].tolist())
                at += length
        assert sorted(found) == list(range(len(documents)))
        for number, one in enumerate(documents):
            start = len(one) - sum(one.answers)
            assert found[number] == (one.ids.tolist(), one.answers, [*range(start), *(start + i for n in one.answers for i in range(n))])


def test_answers_survive_the_shelf(tmp_path):
    documents = [encode(row("ab", "x", "yz", "w", meta={"margin": 1.5}))[0], encode(row("a", "x", "y"))[0]]
    put(tmp_path / "rows", [documents])
    [again] = take(tmp_path / "rows")
    assert [(d.ids.tolist(), d.answers, d.margin) for d in again] == [(d.ids.tolist(), d.answers, d.margin) for d in documents]


def test_answers_that_no_step_holds_are_told():
    documents = encode(row("a" * 10, *["x" * n for n in range(5, 12)]))
    with pytest.raises(UserError, match="a prompt and its answers have"):
        PackedStream([documents], [1.0], 1, 40, 1)
