"""Encoding: which ids are targets, and what becomes of rows that are too long or teach nothing."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cairn.data.encode import Counters, encode_row, encode_rows
from cairn.errors import UserError


def talk(*texts, **more):
    """A dialogue of user and assistant in turn; texts are given as numbers of words."""
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[i % 2], "content": " ".join(["w"] * n)} for i, n in enumerate(texts)], "id": "r", **more}


def test_supervised_learns_what_the_renderer_marks(words, renderer):
    count = Counters()
    (doc,) = encode_row(talk(2, 3), renderer, words, max_length=64, counters=count)
    assert doc.ids.tolist() == [1, 4, 11, 11, 5, 11, 11, 11, 2]
    assert doc.mask.tolist() == [0, 0, 0, 0, 0, 1, 1, 1, 1]
    assert count.as_dict() | {"rows": 1, "kept": 1, "documents": 1, "tokens": 9, "supervised_tokens": 4} == count.as_dict()


def test_language_model_learns_every_id_but_the_first(words, renderer):
    (doc,) = encode_row(talk(2, 3), renderer, words, max_length=64, objective="language_model")
    assert doc.mask.tolist() == [0] + [1] * 8


def test_text_stands_between_bos_and_eos_and_is_learned_whole(words):
    for objective in ("supervised", "language_model"):
        (doc,) = encode_row({"text": "a bb"}, None, words, max_length=64, objective=objective)
        assert doc.ids.tolist() == [1, 11, 12, 2]
        assert doc.mask.tolist() == [0, 1, 1, 1]
    words.bos_id = None
    (doc,) = encode_row({"text": "a bb"}, None, words, max_length=64)
    assert doc.ids.tolist() == [11, 12, 2]


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 200), st.integers(2, 40))
def test_split_text_makes_every_id_a_target_once(kinds, n, limit):
    words = kinds[0]()
    text = " ".join("x" * (1 + i) for i in range(n))
    whole = [1, *words.encode(text), 2]
    count = Counters()
    docs = encode_row({"text": text}, None, words, max_length=limit, overlong="split", counters=count)
    learned = [int(t) for d in docs for t, m in zip(d.ids, d.mask, strict=True) if m]
    assert learned == whole[1:]
    assert all(2 <= len(d) <= limit for d in docs)
    assert count.split == (len(whole) > limit)
    assert count.kept == 1
    assert count.documents == len(docs)


def test_unless_told_otherwise_a_long_text_loses_nothing(words):
    whole = [1, *words.encode("a b c d e f g"), 2]
    docs = encode_row({"text": "a b c d e f g"}, None, words, max_length=4)
    assert [int(t) for d in docs for t, m in zip(d.ids, d.mask, strict=True) if m] == whole[1:]


def test_truncated_text_keeps_its_beginning(words):
    count = Counters()
    (doc,) = encode_row({"text": "a a a a a a"}, None, words, max_length=4, overlong="truncate", counters=count)
    assert doc.ids.tolist() == [1, 11, 11, 11]
    assert count.truncated == 1


def test_dropped_rows_are_counted(words, renderer):
    count = Counters()
    assert encode_row({"text": "a a a a a a"}, None, words, max_length=4, overlong="drop", counters=count) == []
    assert encode_row(talk(9, 9), renderer, words, max_length=8, overlong="drop", counters=count) == []
    assert (count.rows, count.kept, count.dropped_overlong) == (2, 0, 2)


@pytest.mark.parametrize("overlong", ["truncate", "split"])
def test_a_dialogue_is_cut_after_an_answer_with_its_stop(words, renderer, overlong):
    count = Counters()
    row = talk(2, 3, 2, 3, 5, 5)
    (doc,) = encode_row(row, renderer, words, max_length=16, overlong=overlong, counters=count)
    shorter = renderer.render(row["messages"][:4])
    assert doc.ids.tolist() == shorter.ids
    assert doc.mask.tolist() == shorter.mask
    assert doc.ids[-1] == 2
    assert doc.mask[-1] == 1, "the model must learn to stop"
    assert (count.truncated, count.split, count.dropped_overlong) == (1, 0, 0)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=2, max_size=12), st.integers(2, 40))
def test_truncation_keeps_as_many_answers_as_fit(kinds, turns, limit):
    words, renderer = (kind() for kind in kinds)
    row, count = talk(*turns), Counters()
    docs = encode_row(row, renderer, words, max_length=limit, overlong="truncate", counters=count)
    answered = {*range(2, len(turns) + 1, 2), len(turns)}  # a last question without an answer stays where all fits
    fitting = [n for n in sorted(answered) if len(renderer.render(row["messages"][:n]).ids) <= limit]
    assert fitting == [] or fitting[0] % 2 == 0
    if fitting:
        assert docs[0].ids.tolist() == renderer.render(row["messages"][: fitting[-1]]).ids
        assert count.truncated == (fitting[-1] < len(turns))
    else:
        assert docs == []
        assert count.dropped_overlong == 1


def test_a_last_question_without_an_answer_is_cut_first(words, renderer):
    (doc,) = encode_row(talk(1, 1, 9), renderer, words, max_length=10)
    assert doc.ids.tolist() == [1, 4, 11, 5, 11, 2]


def test_tools_stay_with_a_truncated_dialogue(words, renderer):
    (doc,) = encode_row(talk(1, 1, 9, 9, tools=[{"name": "f"}]), renderer, words, max_length=9)
    assert doc.ids.tolist() == [1, 7, 4, 11, 5, 11, 2]


def test_a_preference_learns_its_chosen_answer(words, renderer):
    row = {**talk(2), "chosen": [{"role": "assistant", "content": "yes yes"}], "rejected": [{"role": "assistant", "content": "no"}]}
    (doc,) = encode_row(row, renderer, words, max_length=64)
    assert doc.ids.tolist() == renderer.render([*row["messages"], *row["chosen"]]).ids


def test_rows_that_train_nothing_are_counted_and_left_out(words, renderer):
    renderer.learns = False
    count = Counters()
    assert encode_row(talk(2, 3), renderer, words, max_length=64, counters=count) == []
    assert (count.no_supervised, count.kept) == (1, 0)


def test_a_source_that_trains_nothing_at_all_is_refused(words, renderer):
    renderer.learns = False
    with pytest.raises(UserError) as caught:
        list(encode_rows([talk(2, 3), talk(1, 1)], renderer, words, max_length=64, counters=Counters(), where="source 'x'"))
    assert "2 of 2 rows" in caught.value.what
    assert "source 'x'" in caught.value.where
    assert caught.value.remedy


def test_a_source_of_which_nothing_fits_is_refused(words, renderer):
    with pytest.raises(UserError) as caught:
        list(encode_rows([talk(20, 30)], renderer, words, max_length=8, overlong="drop", counters=Counters(), where="source 'x'"))
    assert "8 tokens" in caught.value.what


def test_a_row_that_cannot_be_rendered_is_told_with_its_file(words):
    with pytest.raises(UserError, match="without a chat format") as caught:
        list(encode_rows([{**talk(2, 3), "id": "r7"}], None, words, max_length=64, counters=Counters(), where="rows.jsonl"))
    assert caught.value.where == "rows.jsonl, r7"


def test_one_good_row_is_enough(words, renderer):
    count = Counters()
    docs = list(encode_rows([talk(20, 30), talk(1, 1)], renderer, words, max_length=8, overlong="drop", counters=count))
    assert len(docs) == 1
    assert (count.rows, count.kept, count.dropped_overlong) == (2, 1, 1)


def test_a_dialogue_needs_a_format(words):
    with pytest.raises(UserError) as caught:
        encode_row(talk(1, 1), None, words, max_length=8)
    assert "format" in caught.value.what


@pytest.mark.parametrize("name", ["k2", "chatml", "llama2"])
def test_a_cut_dialogue_of_a_real_format_ends_with_its_stop(name):
    from cairn.chat.format import load_format
    from cairn.chat.render import Renderer
    from cairn.tokenizer.train import byte_tokenizer

    tokenizer = byte_tokenizer(load_format(name))
    renderer = Renderer(load_format(name), tokenizer)
    row, count = talk(2, 3, 2, 3, 30, 30), Counters()
    limit = len(renderer.render(row["messages"]).ids) - 1
    (doc,) = encode_row(row, renderer, tokenizer, max_length=limit, counters=count)
    shorter = renderer.render(row["messages"][:4])
    assert doc.ids.tolist() == shorter.ids
    assert count.truncated == 1
    learned = [int(i) for i, m in zip(doc.ids, doc.mask, strict=True) if m]
    assert learned[-1] in renderer.stop_ids
    assert tokenizer.decode(learned).count("w w w") == 2
