"""Reads rendered ids back into the conversation that they stand for. Knows formats and tokenizers; renders nothing.

The ids tell a special token from text that looks like one; a format's grammar tells the turns apart; word joiners that
rendering put behind look-alike markers are taken out again. What a model generated is read tolerantly: white space and the
order of keys do not matter, one call or a list of them is taken, and whatever is no proper call stays text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cairn.chat.format import Format, Grammar
from cairn.chat.render import Renderer, special_roles
from cairn.errors import UserError
from cairn.tokenizer.load import Tokenizer

CALL_OPEN = "<tool_call>"
"""What begins a call in an answer's text, in every format."""

_OPEN, _CLOSE = CALL_OPEN, "</tool_call>"
_RESPONSE = re.compile(r"<tool_response>\n(.*?)\n</tool_response>(?:\n|\Z)", re.DOTALL)
_SPACE = re.compile(r"\s*")
_CALL_KEYS = {"name", "arguments", "id", "type"}


def parse(what: Renderer | Format, tokenizer: Tokenizer, ids: Sequence[int]) -> dict[str, Any]:
    """The conversation that ids stand for: {"messages": […], "tools"?: […], "attributes"?: {…}}.

    A prompt for generation reads as the conversation before the answer. Trailing padding is left out. Weights and call ids
    are not in the text, hence not in the result; tools come in OpenAI's shape; every attribute is named, defaults too.

    Raises:
        UserError: the format has no grammar, or the ids are no conversation in it.
    """
    format = what.format if isinstance(what, Renderer) else what
    if format.grammar is None:
        raise UserError(
            f"the template of '{format.name}' comes without a grammar, so only answers can be read back",
            remedy="use a shipped format, or parse_answer",
        )
    ids = list(ids)
    while ids and tokenizer.pad != tokenizer.eos and ids[-1] == tokenizer.pad_id:
        ids.pop()
    text, signs = _signed_text(tokenizer, ids)
    scanner = _Scanner(format, format.grammar, tokenizer, signs)
    system, turns = scanner.scan(text)
    out: dict[str, Any] = {"messages": []}
    if system is not None:
        tools, system = _split_system(format, system)
        if system is not None:
            out["messages"].append({"role": "system", "content": format.unescape(system)})
        if tools:
            out["tools"] = tools
    for turn in turns:
        out["messages"] += _messages(format, turn)
    _lift_attributes(out)
    return out


def parse_answer(format: Format, tokenizer: Tokenizer, ids: Sequence[int]) -> dict[str, Any]:
    """One generated answer: {"role": "assistant", "content": text, "tool_calls"?: […]}. The stop token may be there or not."""
    stops = {tokenizer.special.get(name) for name in (*format.stop, format.eos, tokenizer.eos) if name}
    ids = list(ids)
    cut = next((k for k, i in enumerate(ids) if i in stops), len(ids))
    return answer_of_text(format, tokenizer.decode(ids[:cut]))


def answer_of_text(format: Format, text: str) -> dict[str, Any]:
    """Like `parse_answer`, of the decoded text without its stop token."""
    return _answer(format, text.removesuffix(format.closing) if format.closing else text)


@dataclass
class _Found:
    """A turn as the grammar found it."""

    role: str
    text: str
    attributes: str | None


class _Scanner:
    """Runs a grammar over text in which each special token is one private-use sign."""

    def __init__(self, format: Format, grammar: Grammar, tokenizer: Tokenizer, signs: dict[str, str]) -> None:
        bos, eos = special_roles(format, tokenizer)
        self.format, self.signs, never = format, signs, "(?!)"
        anything = "[^" + "".join(map(re.escape, signs.values())) + "]" if signs else r"[\s\S]"
        words = {"{bos}": signs.get(bos or "", never), "{eos}": signs.get(eos or "", never)}
        words |= {"{text}": f"(?P<text>{anything}*?)", "{run}": f"(?P<text>{anything}*)", "{body}": f"{anything}*?"}
        words |= {name: signs[name] for name in sorted(signs, key=len, reverse=True)}
        # A special token that the tokenizer lacks can match nothing.
        words |= {name: never for name in format.special_tokens if name not in signs}
        self.start = [re.compile(_filled(pattern, words)) for pattern in grammar.start]
        self.turns = [(turn.role, turn.after, re.compile(_filled(turn.pattern, words))) for turn in grammar.turns]

    def scan(self, text: str) -> tuple[str | None, list[_Found]]:
        """(the system's text or None, the turns)."""
        system: str | None = None
        position, before = 0, "start"
        for pattern in self.start:
            match = pattern.match(text)
            if match:
                system, position = match.groupdict().get("text"), match.end()
                break
        turns: list[_Found] = []
        while position < len(text):
            role, match = self._next(text, position, before)
            if match is None:
                raise UserError(
                    f"not a conversation in the format '{self.format.name}': no turn after '{before}' starts at character {position}",
                    where=self._shown(text[max(0, position - 20) : position + 40]),
                    remedy="use the format that the ids were rendered in",
                )
            groups = match.groupdict()
            position, before = match.end(), role
            if role == "assistant" and position == len(text) and not groups["text"] and not groups.get("stop"):
                break  # the prompt for an answer that is not there yet
            turns.append(_Found(role, groups.get("tools") or groups.get("text") or "", groups.get("attributes")))
        return system, turns

    def _next(self, text: str, position: int, before: str) -> tuple[str, re.Match[str] | None]:
        for role, after, pattern in self.turns:
            if before in after:
                match = pattern.match(text, position)
                # In k2 nothing at all stands for an empty answer to a tool's response.
                if match and (match.end() > position or role == "assistant"):
                    return role, match
        return "", None

    def _shown(self, text: str) -> str:
        for name, sign in self.signs.items():
            text = text.replace(sign, name)
        return repr(text)


def _filled(pattern: str, words: Mapping[str, str]) -> str:
    for word, value in words.items():
        pattern = pattern.replace(word, value)
    return pattern


def _signed_text(tokenizer: Tokenizer, ids: Sequence[int]) -> tuple[str, dict[str, str]]:
    """The text of ids with one private-use sign for each special token, and which sign stands for which token."""
    parts: list[str | int] = []
    run: list[int] = []
    for i in ids:
        if tokenizer.special_name(i) is None:
            run.append(i)
            continue
        if run:
            parts.append(tokenizer.decode(run))
            run = []
        parts.append(i)
    if run:
        parts.append(tokenizer.decode(run))
    used = {c for part in parts if isinstance(part, str) and not part.isascii() for c in part if c >= "\U000f0000"}
    free = (chr(code) for code in range(0xF0000, 0xFFFFE) if chr(code) not in used)
    signs = {name: next(free) for name in tokenizer.special}
    return "".join(part if isinstance(part, str) else signs[tokenizer.special_name(part) or ""] for part in parts), signs


def _split_system(format: Format, text: str) -> tuple[list[dict[str, Any]] | None, str | None]:
    """(tools, the system's own text or None) out of what stands in the system's place."""
    prompt = format.tool_prompt
    if prompt is None or not text.startswith(f"{prompt.before}<tools>\n["):
        return None, text
    # JSON never holds a raw line break: the first one ends it, whatever the schemas say.
    line, _, rest = text[len(prompt.before) + len("<tools>\n") :].partition("\n")
    closing = "</tools>" + prompt.after
    if not rest.startswith(closing):
        return None, text
    try:
        found = json.loads(format.unescape(line))
    except ValueError:
        return None, text
    tools = [tool if isinstance(tool, dict) and "function" in tool else {"type": "function", "function": tool} for tool in found]
    rest = rest[len(closing) :]
    return tools, rest[2:] if rest.startswith("\n\n") else None


def _messages(format: Format, turn: _Found) -> list[dict[str, Any]]:
    if turn.role == "assistant":
        return [_answer(format, turn.text)]
    if turn.role == "tool" and turn.text.startswith("<tool_response>\n"):
        return [{"role": "tool", "content": format.unescape(text)} for text in _RESPONSE.findall(turn.text)]
    message: dict[str, Any] = {"role": turn.role, "content": format.unescape(turn.text)}
    if turn.attributes:
        words = turn.attributes.split(" ")
        message["attributes"] = {name.removesuffix(":"): int(value) for name, value in zip(words[::2], words[1::2], strict=True)}
    return [message]


def _lift_attributes(out: dict[str, Any]) -> None:
    """Attributes that all user turns share belong to the conversation."""
    users = [message for message in out["messages"] if message["role"] == "user"]
    if users and "attributes" in users[0] and all(m.get("attributes") == users[0]["attributes"] for m in users):
        out["attributes"] = users[0]["attributes"]
        for message in users:
            del message["attributes"]


# Tool calls


def _answer(format: Format, text: str) -> dict[str, Any]:
    """An assistant message out of its text."""
    # The marker is searched before unescaping: one that somebody wrote as text still has its joiner.
    at = text.find(_OPEN)
    calls, rest = _calls(format.unescape(text[at:])) if at >= 0 else ([], "")
    if not calls:
        return {"role": "assistant", "content": format.unescape(text)}
    head = format.unescape(text[:at].removesuffix("\n"))
    return {"role": "assistant", "content": "\n".join(part for part in (head, rest) if part), "tool_calls": calls}


def _calls(text: str) -> tuple[list[dict[str, Any]], str]:
    """(calls, the text behind them) of text that starts with `<tool_call>`; no calls where one of them is malformed."""
    calls: list[dict[str, Any]] = []
    position = 0
    while text.startswith(_OPEN, position):
        found = _json_at(text, _skip(text, position + len(_OPEN)))
        if found is None:
            return [], text
        value, position = found
        read = [_call(item) for item in (value if isinstance(value, list) else [value])]
        good = [call for call in read if call is not None]
        end = _skip(text, position)
        if not good or len(good) != len(read) or not (text.startswith(_CLOSE, end) or end == len(text)):
            return [], text
        calls += good
        position = min(end + len(_CLOSE), len(text))
        following = _skip(text, position)
        if text.startswith(_OPEN, following) or following == len(text):
            position = following
    return calls, text[position:]


def _json_at(text: str, position: int) -> tuple[Any, int] | None:
    try:
        return _DECODER.raw_decode(text, position)
    except (ValueError, RecursionError):
        return None


def _call(value: Any) -> dict[str, Any] | None:
    """A call in OpenAI's shape, or None if `value` is none."""
    if isinstance(value, dict) and value.get("type") == "function" and isinstance(value.get("function"), dict):
        value = value["function"]
    if not isinstance(value, dict) or not set(value) <= _CALL_KEYS:
        return None
    name, arguments = value.get("name"), value.get("arguments")
    if isinstance(arguments, str):
        found = _json_at(arguments.strip(), 0)
        arguments = found[0] if found and found[1] == len(arguments.strip()) else None
    if not isinstance(name, str) or not name or not isinstance(arguments, dict):
        return None
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def _skip(text: str, position: int) -> int:
    match = _SPACE.match(text, position)
    return match.end() if match else position


def _refused(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_refused)
