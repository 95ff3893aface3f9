"""Sessions: what is streamed, what the message says, and why an answer ended."""

from __future__ import annotations

import json
import time
from collections.abc import Collection
from typing import Any

import pytest

from cairn.chat.format import load_format
from cairn.errors import UserError
from cairn.generate import grammar
from cairn.generate.engine import Engine
from cairn.generate.sampling import Sampling
from cairn.generate.session import Final, Outcome, Piece, Session
from cairn.generate.tools import Called, Tools
from cairn.tokenizer.train import byte_tokenizer

from .scripted import Scripted

ASK = [{"role": "user", "content": "Hello?"}]
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]


def session(answer: str, stop: str | None = "<|endoftext|>", format: str = "k2", context: int = 4096) -> Session:
    """A session whose model says `answer` and then the token `stop`."""
    chat_format = load_format(format)
    tokenizer = byte_tokenizer(chat_format)
    ids = tokenizer.encode(answer) + ([tokenizer.token_id(stop)] if stop else tokenizer.encode("." * 50))
    return Session(Engine(Scripted(ids, tokenizer.vocab_size, tokenizer.special_ids, context)), tokenizer, chat_format)


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


# --- held answers and the tool loop


class Dialogue(Scripted):
    """Says another script at each new prompt."""

    def __init__(self, scripts: list[list[int]], vocab: int, special: Collection[int]) -> None:
        super().__init__([], vocab, special)
        self.scripts = iter(scripts)

    def forward(self, input_ids: Any, use_cache: bool, return_dict: bool) -> Any:
        if self.is_new(input_ids[0].tolist()):
            self.script = next(self.scripts)
        return super().forward(input_ids, use_cache, return_dict)


def talk(*answers: str) -> Session:
    """A session whose model gives these answers one after another."""
    chat_format = load_format("k2")
    tokenizer = byte_tokenizer(chat_format)
    end = [tokenizer.token_id("<|endoftext|>")]
    scripts = [tokenizer.encode(answer) + end for answer in answers]
    return Session(Engine(Dialogue(scripts, tokenizer.vocab_size, tokenizer.special_ids)), tokenizer, chat_format)


def call(name: str, **arguments: Any) -> str:
    return f"<tool_call>\n{json.dumps({'arguments': arguments, 'name': name})}\n</tool_call>"


def weather(city: str) -> dict[str, Any]:
    """The weather of a city."""
    if city == "Atlantis":
        raise LookupError("no such city")
    return {"city": city, "degrees": 7}


def converse(given: Session, *functions: Any, **options: Any) -> tuple[list[Any], Outcome]:
    *events, last = given.converse(ASK, Tools(*(functions or (weather,))), **options)
    assert isinstance(last, Outcome)
    return [event for event in events if not isinstance(event, Piece)], last


def test_calls_are_run_and_answered() -> None:
    events, outcome = converse(talk(call("weather", city="Oslo"), "- 7 degrees"))
    assert [type(event) for event in events] == [Final, Called, Final]
    assert (outcome.reason, outcome.rounds) == ("answer", 1)
    assert [m["role"] for m in outcome.messages] == ["assistant", "tool", "assistant"]
    assert json.loads(outcome.messages[1]["content"]) == {"city": "Oslo", "degrees": 7}
    assert outcome.messages[2]["content"] == "- 7 degrees"


def test_several_calls_in_one_answer() -> None:
    two = [{"arguments": {"city": city}, "name": "weather"} for city in ("Oslo", "Rome")]
    both = f"<tool_call>\n{json.dumps(two)}\n</tool_call>"
    _, outcome = converse(talk(both, "ok"))
    assert [m["role"] for m in outcome.messages] == ["assistant", "tool", "tool", "assistant"]


def test_errors_go_back_to_the_model() -> None:
    events, outcome = converse(talk(call("weather", city="Atlantis"), call("weather", city="Oslo"), "ok"))
    assert [event.failed for event in events if isinstance(event, Called)] == [True, False]
    assert json.loads(outcome.messages[1]["content"]) == {"error": "LookupError: no such city"}
    assert (outcome.reason, outcome.rounds) == ("answer", 2)


def test_what_a_free_model_makes_up_is_an_error_too() -> None:
    _, outcome = converse(talk(call("wether", city="Oslo"), call("weather", town="Oslo"), "ok"), tool_choice=None)
    errors = [json.loads(m["content"])["error"] for m in outcome.messages if m["role"] == "tool"]
    assert "did you mean 'weather'" in errors[0]
    assert "town" in errors[1]


def test_rounds_and_time_are_limited() -> None:
    events, outcome = converse(talk(*[call("weather", city="Oslo")] * 9), rounds=2)
    assert (outcome.reason, outcome.rounds) == ("rounds", 2)
    assert sum(isinstance(event, Called) for event in events) == 2

    def slow() -> None:
        """Sleeps."""
        time.sleep(1.0)

    begun = time.perf_counter()
    _, outcome = converse(talk(call("slow"), call("slow"), "ok"), slow, seconds=30.0, tool_seconds=0.05, rounds=1)
    assert "TimeoutError" in outcome.messages[1]["content"]
    _, outcome = converse(talk("never said"), seconds=1e-9)
    assert outcome.reason == "time"
    assert time.perf_counter() - begun < 29


def test_a_conversation_that_is_cut_says_so() -> None:
    _, outcome = converse(talk("one two three"), sampling=Sampling(max_new_tokens=3))
    assert outcome.reason == "length"
    _, outcome = converse(talk("one two three"), cancelled=lambda: True)
    assert outcome.reason == "cancelled"
    with pytest.raises(UserError, match="rounds and time"):
        converse(talk("x"), rounds=0)


def test_a_held_answer_is_a_call_whatever_the_model_says() -> None:
    _, final = reply(talk("I would rather talk about the sea. " * 9), tools=Tools(weather).schemas, tool_choice="required")
    made, *_ = final.message["tool_calls"]
    assert made["function"]["name"] == "weather"
    assert isinstance(made["function"]["arguments"]["city"], str)
    assert final.reason == "stop"


def test_tools_that_may_not_be_called_are_not_shown() -> None:
    """A model that saw them began to speak of a call, and was cut off in front of it."""
    given = session("Fine.")
    shown = [given.request(ASK, tools=TOOLS, tool_choice=choice).ids for choice in (None, "auto", "required")]
    assert len(set(map(tuple, shown))) == 1
    assert given.request(ASK, tools=TOOLS, tool_choice="none").ids == given.request(ASK).ids != shown[0]


def test_a_held_answer_fits_its_schema() -> None:
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"], "additionalProperties": False}
    _, final = reply(talk("Sure! Here it is:"), constraint=grammar.json_schema(schema), sampling=Sampling(max_new_tokens=40))
    assert json.loads(final.message["content"]) in ({"ok": True}, {"ok": False})
    with pytest.raises(UserError, match="needs at least"):
        reply(talk("x"), constraint=grammar.json_schema(schema), sampling=Sampling(max_new_tokens=3))
    with pytest.raises(UserError, match="constraint and to function calls"):
        reply(talk("x"), constraint=grammar.json_schema(schema), tools=TOOLS, tool_choice="auto")
