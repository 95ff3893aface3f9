"""How a format writes function calls: read off its own template by rendering probes, and checked with its own parser.

Knows formats; no tokenizer and no grammar. What the parser cannot read back is refused, so that whoever lets a model write
only what this layout allows gets answers that are calls again when they are parsed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from cairn.chat.format import Format
from cairn.chat.parse import answer_of_text
from cairn.chat.render import render_text
from cairn.errors import UserError

_NAMES = ("cairn_probe_a", "cairn_probe_b", "cairn_probe_c")
_ARGUMENTS = {"p": 1, "q": 2}
_QUESTION = {"role": "user", "content": "?"}


@dataclass(frozen=True)
class CallLayout:
    """The text around calls.

    Attributes:
        one: what stands in front of and behind a single call.
        many: the same for several calls.
        between: what stands between two of several calls.
        call: the three texts around the arguments and the name (JSON both), in the order in which they come.
        name_first: the name stands in front of the arguments.
        item_separator, key_separator: what the format's JSON has between members, and behind a key.
        trigger: a text that begins every call, and that an answer without one never holds.
    """

    one: tuple[str, str]
    many: tuple[str, str] | None
    between: str
    call: tuple[str, str, str]
    name_first: bool
    item_separator: str
    key_separator: str
    trigger: str

    def write(self, calls: list[tuple[str, dict[str, Any]]]) -> str:
        """The text of calls (name, arguments), as the format writes them."""
        separators = (self.item_separator, self.key_separator)
        texts = []
        for name, arguments in calls:
            parts = [json.dumps(name, ensure_ascii=False), json.dumps(arguments, ensure_ascii=False, separators=separators)]
            first, second = parts if self.name_first else reversed(parts)
            texts.append(self.call[0] + first + self.call[1] + second + self.call[2])
        head, tail = self.one if len(texts) == 1 or self.many is None else self.many
        return head + self.between.join(texts) + tail


def call_layout(format: Format) -> CallLayout:
    """How a format writes calls.

    Raises:
        UserError: its template writes none, or writes them so that its parser does not find them again.
    """
    texts = [_rendered(format, count) for count in (1, 2, 3)]
    found = None if None in texts else _layout([text for text in texts if text is not None])
    if found is None or not _reads_back(format, found):
        raise UserError(
            f"the chat format '{format.name}' writes no function calls that can be read back",
            where="tools",
            remedy="use a model whose format has tool calls, or leave the tools out",
        )
    return found


def _calls(count: int) -> list[dict[str, Any]]:
    return [{"type": "function", "function": {"name": name, "arguments": dict(_ARGUMENTS)}} for name in _NAMES[:count]]


def _rendered(format: Format, count: int) -> str | None:
    """The assistant's text of a number of calls, its prompt and its end taken off; None where the template writes none."""
    tools = [{"type": "function", "function": {"name": name, "description": "", "parameters": {"type": "object"}}} for name in _NAMES]
    answer = {"role": "assistant", "content": "", "tool_calls": _calls(count)}
    try:
        prompt = render_text(format, [_QUESTION], tools=tools, add_generation_prompt=True)
        text = render_text(format, [_QUESTION, answer], tools=tools)
        # What follows an answer is what follows a plain word too: the stop token, a line break.
        plain = render_text(format, [_QUESTION, {"role": "assistant", "content": "word"}], tools=tools)
    except UserError:
        return None
    if not text.startswith(prompt) or not plain.startswith(prompt + "word"):
        return None
    end = plain[len(prompt) + len("word") :]
    # In k2 and crystal a call has a stop token of its own; the plain answer at the end of a dialogue has the same one.
    return text[len(prompt) :].removesuffix(end) if end else text[len(prompt) :]


def _layout(texts: list[str]) -> CallLayout | None:
    first = _first_call(texts[0])
    if first is None:
        return None
    call, name_first, separators, at, end = first
    one = (texts[0][:at], texts[0][end:])
    written = [call[0] + a + call[1] + b + call[2] for a, b in (_parts(name, name_first, separators) for name in _NAMES)]
    places = [texts[1].find(text) for text in written[:2]]
    many, between = None, ""
    if min(places) >= 0:
        many = (texts[1][: places[0]], texts[1][places[1] + len(written[1]) :])
        between = texts[1][places[0] + len(written[0]) : places[1]]
        if many[0] + between.join(written) + many[1] != texts[2]:
            many, between = None, ""
    trigger = one[0] if many is None else _common(one[0], many[0])
    if not trigger.strip():
        return None
    # White space at its end is the call's, so that text that merely mentions the marker counts as a call's beginning too.
    return CallLayout(one, many, between, call, name_first, *separators, trigger.rstrip())


def _first_call(text: str) -> tuple[tuple[str, str, str], bool, tuple[str, str], int, int] | None:
    """(texts around arguments and name, name first, separators, start, end) of the single call in a text."""
    for item in (", ", ","):
        for key in (": ", ":"):
            name, arguments = _parts(_NAMES[0], True, (item, key))
            a, b = text.find(name), text.find(arguments)
            if a < 0 or b < 0:
                continue
            start = text.rfind("{", 0, min(a, b))
            if start < 0:
                continue
            try:
                value, end = json.JSONDecoder().raw_decode(text, start)
            except ValueError:
                continue
            if not isinstance(value, dict):
                continue
            (p, first), (q, second) = sorted([(a, name), (b, arguments)])
            return (text[start:p], text[p + len(first) : q], text[q + len(second) : end]), a < b, (item, key), start, end
    return None


def _parts(name: str, name_first: bool, separators: tuple[str, str]) -> tuple[str, str]:
    pair = json.dumps(name), json.dumps(_ARGUMENTS, separators=separators)
    return pair if name_first else (pair[1], pair[0])


def _reads_back(format: Format, layout: CallLayout) -> bool:
    for count in (1, 2):
        if count == 2 and layout.many is None:
            break
        text = layout.write([(name, dict(_ARGUMENTS)) for name in _NAMES[:count]])
        if answer_of_text(format, text).get("tool_calls") != _calls(count):
            return False
    return True


def _common(a: str, b: str) -> str:
    n = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    return a[:n]
