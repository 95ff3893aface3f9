"""Sessions: what is streamed, what the message says, and why an answer ended."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cairn.chat.format import load_format
from cairn.errors import UserError
from cairn.generate.engine import Engine
from cairn.generate.sampling import Sampling
from cairn.generate.session import Final, Piece, Session
from cairn.tokenizer.train import byte_tokenizer

from .scripted import Scripted

ASK = [{"role": "user", "content": "Hello?"}]
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]


def session(answer: str, stop: str | None = "<|endoftext|>", format: str = "k2", context: int = 4096) -> Session:
    """A session whose model says `answer` and then the token `stop`."""
    chat_format = load_format(format)
    tokenizer = byte_tokenizer(chat_format)
    ids = tokenizer.encode(answer) + ([tokenizer.token_id(stop)] if stop else tokenizer.encode("." * 50))
    return Session(Engine(Scripted(ids, tokenizer.vocab_size, context)), tokenizer, chat_format)


def reply(given: Session, **options: Any) -> tuple[list[str], Final]:
    *pieces, final = given.reply(ASK, **options)
    assert isinstance(final, Final)
    texts = [piece.text for piece in pieces if isinstance(piece, Piece)]
    assert len(texts) == len(pieces)
    assert "".join(texts) == final.text
    return texts, final


@pytest.mark.parametrize("stop", ["<|endoftext|>", "<|beginofuser|>"])
def test_an_answer_in_pieces_and_as_a_message(stop: str) -> None:
    given = session("안녕, hi.", stop)
    texts, final = reply(given)
    assert texts == ["안", "녕", ",", " ", "h", "i", "."]
    assert final.message == {"role": "assistant", "content": "안녕, hi."}
    assert (final.reason, final.stop_string) == ("stop", None)
    assert final.ids == [*given.tokenizer.encode("안녕, hi."), given.tokenizer.token_id(stop)]
    assert final.prompt_tokens == len(given.renderer.render(ASK, add_generation_prompt=True).ids)
    assert 0 < final.first_seconds <= final.seconds
    assert final.tokens_per_second == pytest.approx(len(final.ids) / final.seconds)


def test_a_call_is_read_out_of_the_text() -> None:
    call = {"arguments": {"city": "Oslo"}, "name": "weather"}
    _, final = reply(session(f"<tool_call>\n{json.dumps(call)}\n</tool_call>"), tools=TOOLS)
    assert [c["function"] for c in final.message["tool_calls"]] == [call]


def test_the_answer_can_be_given_back_as_history() -> None:
    given = session("Fine.")
    _, final = reply(given)
    again = [*ASK, final.message, {"role": "user", "content": "Good"}]
    *_, second = given.reply(again)
    assert isinstance(second, Final)
    assert second.prompt_tokens > final.prompt_tokens


@pytest.mark.parametrize(("stops", "text"), [(["END"], "one "), (["zzz", "e END t"], "on"), (["two"], "one END ")])
def test_stop_strings_end_the_answer_before_them(stops: list[str], text: str) -> None:
    texts, final = reply(session("one END two"), stop_strings=stops)
    assert (final.text, final.reason, final.message["content"]) == (text, "stop", text)
    assert final.stop_string in stops
    assert not any("END" in piece for piece in texts if "two" not in stops)


def test_the_beginning_of_a_stop_string_that_never_comes_is_not_lost() -> None:
    texts, final = reply(session("one EN"), stop_strings=["END"])
    assert final.message["content"] == "one EN"
    assert texts == ["o", "n", "e", " ", "EN"]


def test_a_half_character_at_the_limit_is_shown_as_such() -> None:
    _, final = reply(session("한국"), sampling=Sampling(max_new_tokens=4))
    assert (final.text, final.reason) == ("한\ufffd", "length")


def test_cancelling_keeps_the_text_so_far() -> None:
    asked = iter([False, False, False, True])
    _, final = reply(session("one two"), cancelled=lambda: next(asked))
    assert (final.text, final.reason, final.message["content"]) == ("one", "cancelled", "one")


def test_a_dialogue_longer_than_the_context_is_told() -> None:
    with pytest.raises(UserError, match="context holds 4"):
        list(session("one", context=4).reply(ASK))


def test_bad_messages_are_told() -> None:
    with pytest.raises(UserError) as error:
        list(session("one").reply([{"role": "assistant", "content": "I begin"}]))
    assert error.value.where == "messages[0].role"
