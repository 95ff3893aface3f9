"""A conversation that goes on: what is kept of it, and what waits."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cairn.chat.format import load_format
from cairn.data.readers import read_rows
from cairn.errors import UserError
from cairn.generate.dialogue import Conversation, Dialogue, read_tools
from cairn.generate.sampling import Sampling
from cairn.generate.session import Final, Piece

ROUND = [{"type": "function", "function": {"name": name, "arguments": {"x": 1}}} for name in ("f", "g")]


class Session:
    """Says one message after another; keeps what it was asked."""

    def __init__(self, *messages: dict[str, Any]) -> None:
        self.messages, self.asked = iter(messages), []

    def reply(self, messages: list[Any], **options: Any) -> Iterator[Piece | Final]:
        self.asked.append((list(messages), options))
        message = next(self.messages)
        yield Piece(message["content"])
        yield Final({"role": "assistant", **message}, message["content"], [1], "stop", None, 1, 1.0, 1.0)


def conversation(*messages: dict[str, Any], **dialogue: Any) -> tuple[Conversation, Any]:
    session = Session(*messages)
    return Conversation(session, Dialogue(**dialogue), Sampling(), ["end"], lambda: False), session  # type: ignore[arg-type]


def test_turns_are_kept_and_each_answer_has_its_own_draws() -> None:
    talk, session = conversation({"content": "A"}, {"content": "B"}, system="S", attributes={"humor": 1})
    for question in ("Q", "R"):
        list(talk.ask(question))
    assert [m["content"] for m in talk.dialogue.messages] == ["S", "Q", "A", "R", "B"]
    (_, first), (given, second) = session.asked
    assert [m["content"] for m in given] == ["S", "Q", "A", "R"]
    assert (first["index"], second["index"]) == (0, 1)
    assert (second["attributes"], second["stop_strings"]) == ({"humor": 1}, ("end",))


def test_nothing_is_kept_of_an_empty_answer() -> None:
    talk, session = conversation({"content": "  "}, {"content": "A"}, system="")
    list(talk.ask("Q"))
    assert talk.dialogue.turns == []
    list(talk.ask("R"))
    assert [m["role"] for m in talk.dialogue.messages] == ["user", "assistant"], "an empty system message is none"
    assert [options["index"] for _, options in session.asked] == [0, 0]


def test_results_are_given_call_by_call() -> None:
    talk, session = conversation({"content": "", "tool_calls": ROUND}, {"content": "done"})
    with pytest.raises(UserError, match="no function call waits"):
        talk.result("1")
    list(talk.ask("Q"))
    assert [call["name"] for call in talk.dialogue.pending()] == ["f", "g"]
    with pytest.raises(UserError, match="not JSON"):
        talk.result("one")
    assert talk.result() is None
    assert [call["name"] for call in talk.dialogue.pending()] == ["g"]
    events = talk.result('{"y": 2}')
    assert events is not None
    list(events)
    assert talk.dialogue.pending() == []
    results = [m for m in session.asked[-1][0] if m["role"] == "tool"]
    assert [(m["name"], json.loads(m["content"])) for m in results] == [("f", {"arguments": {"x": 1}, "name": "f"}), ("g", {"y": 2})]


def test_attributes_are_those_of_the_format() -> None:
    dialogue, format = Dialogue(), load_format("karakuri")
    dialogue.set_attribute(format, "humor = 3")
    assert dialogue.attribute_values(format)["humor"] == 3
    assert dialogue.attribute_values(format)["quality"] == 4
    dialogue.set_attribute(format, "humor=")
    assert dialogue.attributes == {}
    for text in ("humor", "humor=9", "humour=1", "humor=much"):
        with pytest.raises(UserError):
            dialogue.set_attribute(format, text)


def test_a_saved_conversation_is_appended_as_a_row(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing to save"):
        Dialogue().save(tmp_path / "x.jsonl")
    for text in ("A", "B"):
        talk, _ = conversation({"content": text})
        list(talk.ask("Q"))
        talk.dialogue.save(tmp_path / "x.jsonl")
    assert [row["messages"][-1]["content"] for row in read_rows(tmp_path / "x.jsonl")] == ["A", "B"]
    with pytest.raises(UserError, match="cannot write"):
        talk.dialogue.save(tmp_path / "no" / "x.jsonl")


def test_functions_of_a_file(tmp_path: Path) -> None:
    tool = {"name": "f", "parameters": {"type": "object"}}
    for value in (tool, [tool]):
        (tmp_path / "t.json").write_text(json.dumps(value))
        assert read_tools(tmp_path / "t.json") == [tool]
    (tmp_path / "t.json").write_text('[{"name": ""}]')
    with pytest.raises(UserError, match="needs the function's name"):
        read_tools(tmp_path / "t.json")
