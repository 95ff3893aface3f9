"""A conversation that goes on: what was said, which calls wait for a result, what is kept. Knows sessions; no terminal, loads no model."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cairn.chat.messages import check_messages
from cairn.config import canonical_bytes
from cairn.errors import UserError
from cairn.ledger.store import write_atomically

if TYPE_CHECKING:
    from cairn.chat.format import Format
    from cairn.generate.grammar import Hold
    from cairn.generate.sampling import Sampling
    from cairn.generate.session import Final, Piece, Session

Message = dict[str, Any]


def read_tools(path: Path) -> list[dict[str, Any]]:
    """The function schemas of a file: a JSON list of them or one alone, in OpenAI's wrapper or bare.

    Raises:
        UserError: no such file, no JSON, or no function schemas.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError("no such file", where=str(path), remedy="check the path") from None
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the functions: {error}", where=str(path), remedy="give a JSON list of function schemas") from None
    tools = [value] if isinstance(value, dict) else value
    try:
        check_messages([{"role": "user", "content": "-"}], tools=tools)
    except UserError as error:
        raise UserError(error.what, where=f"{path}, {error.where}", remedy=error.remedy) from None
    return list(tools)


@dataclass
class Dialogue:
    """What a conversation holds so far. Saved as it is, it is a row of data."""

    system: str | None = None
    tools: list[dict[str, Any]] | None = None
    attributes: dict[str, int] = field(default_factory=dict)
    turns: list[Message] = field(default_factory=list)

    @property
    def messages(self) -> list[Message]:
        """The system message, where there is one (an empty one is none), and the turns."""
        return ([{"role": "system", "content": self.system}] if self.system else []) + self.turns

    def pending(self) -> list[dict[str, Any]]:
        """The functions that were called in the last answer and whose results are not there yet."""
        results = next((n for n, message in enumerate(reversed(self.turns)) if message["role"] != "tool"), 0)
        last = self.turns[-1 - results] if self.turns else {}
        return [call["function"] for call in last.get("tool_calls") or []][results:]

    def set_attribute(self, format: Format, text: str) -> None:
        """Take `name=value`; `name=` removes the attribute.

        Raises:
            UserError: the format has no such attribute, or the value is out of its range.
        """
        name, equals, value = (part.strip() for part in text.partition("="))
        if not equals or not name:
            raise UserError(f"'{text}' is no attribute", where="--attr", remedy="write name=value, such as helpfulness=4")
        if not value:
            self.attributes.pop(name, None)
            return
        try:
            number: Any = int(value)
        except ValueError:
            number = value
        format.check_attributes({name: number})
        self.attributes[name] = number

    def attribute_values(self, format: Format) -> dict[str, int]:
        """Every attribute of the format with the value that the next answer is asked for with."""
        return {**{name: attribute.default for name, attribute in (format.attributes or {}).items()}, **self.attributes}

    def row(self) -> dict[str, Any]:
        """The conversation as a row."""
        kept = {"tools": self.tools, "attributes": self.attributes}
        return {"messages": self.messages, **{key: value for key, value in kept.items() if value}, "source": "chat"}

    def save(self, path: Path) -> None:
        """Append the conversation as a row to a JSON Lines file.

        Raises:
            UserError: nothing was said yet, or the file cannot be written.
        """
        if not self.turns:
            raise UserError("there is nothing to save yet", where=str(path), remedy="ask something first")
        try:
            before = path.read_bytes() if path.exists() else b""
            write_atomically(path, before + canonical_bytes(self.row()) + b"\n")
        except OSError as error:
            raise UserError(f"cannot write the file: {error}", where=str(path), remedy="name another one") from None


class Conversation:
    """A dialogue with a model: messages go in, answers come out and are kept.

    Args:
        session: the model.
        dialogue: what was said so far.
        sampling: how tokens are chosen.
        stop_strings: texts that end an answer; they are not part of it.
        cancelled: asked before every token; once true the answer ends, and what there is of it is kept.
        hold: what its answers are held to.
    """

    def __init__(
        self,
        session: Session,
        dialogue: Dialogue,
        sampling: Sampling,
        stop_strings: Sequence[str] = (),
        cancelled: Callable[[], bool] | None = None,
        hold: Hold | None = None,
    ) -> None:
        self.session, self.dialogue, self.sampling = session, dialogue, sampling
        self.stop_strings, self.cancelled, self.hold = tuple(stop_strings), cancelled, hold
        self._answers = 0

    def ask(self, text: str) -> Iterator[Piece | Final]:
        """The answer to a message of the user."""
        return self._answer([{"role": "user", "content": text}])

    def result(self, text: str | None = None) -> Iterator[Piece | Final] | None:
        """Take the result of the next pending call; the answer, once the last result is there.

        Args:
            text: the result, JSON; None gives the call itself as its result.

        Raises:
            UserError: nothing was called, or the result is not JSON.
        """
        pending = self.dialogue.pending()
        if not pending:
            remedy = "ask something that needs one of the functions (/tools FILE offers some)"
            raise UserError("no function call waits for a result", remedy=remedy)
        if text is None:
            text = json.dumps({"arguments": pending[0]["arguments"], "name": pending[0]["name"]}, ensure_ascii=False)
        else:
            try:
                json.loads(text)
            except ValueError as error:
                remedy = 'write it as JSON, such as {"temperature": 7}'
                raise UserError(f"the result is not JSON: {error}", where="/tool", remedy=remedy) from None
        message = {"role": "tool", "name": pending[0]["name"], "content": text}
        if len(pending) > 1:
            self.dialogue.turns.append(message)
            return None
        return self._answer([message])

    def _answer(self, added: list[Message]) -> Iterator[Piece | Final]:
        """Answer the dialogue with `added`, and keep both. Nothing is kept of a turn that failed or stayed empty."""
        from cairn.generate.session import Final

        dialogue = self.dialogue
        choice, constraint = (self.hold.tool_choice, self.hold.constraint) if self.hold is not None else (None, None)
        if added[-1]["role"] == "tool" and choice not in (None, "none"):
            choice = "auto"  # a result is to be answered: a call that is asked for every time would never end
        events = self.session.reply(
            dialogue.messages + added,
            tools=dialogue.tools,
            tool_choice=choice,
            constraint=constraint,
            attributes=dialogue.attributes,
            sampling=self.sampling,
            stop_strings=self.stop_strings,
            cancelled=self.cancelled,
            index=self._answers,
        )
        for event in events:
            if isinstance(event, Final) and (event.message.get("tool_calls") or event.message["content"].strip()):
                dialogue.turns += [*added, event.message]
                self._answers += 1
            yield event
