"""Renders a conversation to ids and loss mask, through the very template that is exported. Knows no data file and no model.

Two rules make what is trained equal to what is served:

*Nobody's text becomes a special token.* Before rendering, every special token's name inside contents, tools and attributes
is replaced by a private-use sign; whatever special token the rendered text then shows was written by the template. After
splitting there, the look-alikes are put back and encoded as the text that they are.

*A prompt is the beginning of prompt and answer together.* Text between special tokens is encoded up to each border of a
generation block; a longer encoding is taken only if it continues the shorter one, otherwise the rest is encoded on its own.
Tokenizers that are trained here cut at those borders anyway, so for them this is what any Hugging Face tokenizer gives.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from cairn.chat.format import Format
from cairn.chat.messages import check_messages
from cairn.chat.sandbox import DATE, END, START, TemplateProblem, render_template
from cairn.errors import UserError
from cairn.tokenizer.load import Tokenizer

_PRIVATE = range(0xF0000, 0xFFFFE)
_FIRST_PRIVATE = chr(_PRIVATE.start)
_PROBE = ({"role": "user", "content": "one"}, {"role": "assistant", "content": "two"})


class TooLong(UserError):
    """A prompt that cannot fit, however its text is cut into tokens."""


class Turn(NamedTuple):
    """The ids of one message."""

    role: str
    start: int
    """The first id."""
    end: int
    """One past the last id. For the last turn this includes the stop token."""


@dataclass
class Rendered:
    """A rendered conversation."""

    ids: list[int]
    mask: list[int]
    """1 where an id is supervised: the assistant's text with its stop token; one for each id."""
    text: str
    _turns: Callable[[], list[Turn]] = field(repr=False, compare=False)

    @cached_property
    def turns(self) -> list[Turn]:
        """The id range of each message; computed when first asked for."""
        return self._turns()


class _Talk(NamedTuple):
    """What is rendered."""

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] | None
    attributes: Mapping[str, Any] | None

    def first(self, count: int) -> _Talk:
        """The same with the first messages only."""
        return self._replace(messages=self.messages[:count])


@dataclass
class _Encoded:
    """The ids of rendered text, and the id ranges of its generation blocks."""

    ids: list[int]
    blocks: list[tuple[int, int]]
    text: str


class Renderer:
    """Renders conversations in one format with one tokenizer.

    Args:
        format: the chat format.
        tokenizer: the tokenizer; it must hold the format's special tokens.
        now: the time that a checkpoint's template may print; fixed, so that the same row always gives the same ids.

    Raises:
        UserError: the tokenizer lacks a special token of the format, or the template marks nothing to learn from.
    """

    def __init__(self, format: Format, tokenizer: Tokenizer, *, now: datetime.datetime = DATE) -> None:
        self.format, self.tokenizer, self.now = format, tokenizer, now
        self.bos, self.eos = special_roles(format, tokenizer)
        missing = [name for name in format.special_tokens if name not in tokenizer.special]
        if missing:
            raise UserError(
                f"the tokenizer lacks special tokens of the format '{format.name}': {', '.join(missing)}",
                where=tokenizer.where,
                remedy="train a tokenizer for this format, or use the format that belongs to the checkpoint",
            )
        self._specials = re.compile("|".join(re.escape(name) for name in sorted(tokenizer.special, key=len, reverse=True)) or "(?!)")
        self._marked = "generation" in format.template and bool(re.search(r"\{%[-+]?\s*generation\b", format.template))
        self._check_probe()

    @cached_property
    def stop_ids(self) -> list[int]:
        """The ids at which generation stops."""
        names = [self.eos if name == self.format.eos else name for name in self.format.stop]
        found = [self.tokenizer.special[name] for name in names if name in self.tokenizer.special]
        if not self.format.shipped:
            found += self._probe_stops()
        return list(dict.fromkeys(found))

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        attributes: Mapping[str, Any] | None = None,
        add_generation_prompt: bool = False,
        most: int | None = None,
    ) -> Rendered:
        """The ids, mask and text of a conversation.

        Args:
            messages: the conversation; one that ends with a user or tool message is a prompt.
            tools: function schemas offered to the assistant.
            attributes: attribute values of the conversation; a user message's own ones go before.
            add_generation_prompt: end where the assistant's answer starts.
            most: refuse what surely has more tokens before it is encoded, which for megabytes takes many seconds.

        Raises:
            UserError: malformed messages or attributes, or a template that refuses them.
            TooLong: more than `most` tokens, where their number can be told from the text. Whoever needs a bound checks the ids too.
        """
        check_messages(messages, tools=tools, attributes=attributes, training=False)
        self._check_attributes(messages, attributes)
        talk = _Talk(messages, tools, attributes)
        encoded = self._encoded(talk, add_generation_prompt, most)
        mask = [0] * len(encoded.ids)
        for start, end in self._supervised(talk, encoded):
            mask[start:end] = [1] * (end - start)
        return Rendered(encoded.ids, mask, encoded.text, lambda: self._turns(talk, encoded))

    # Text

    def _text(
        self,
        talk: _Talk,
        prompt: bool,
        shield: _Shield,
    ) -> str:
        variables = {
            **plain_variables(*talk, self.format, shield.cover),
            "add_generation_prompt": prompt,
            "bos_token": self.bos or "",
            "eos_token": self.eos or "",
            "pad_token": self.tokenizer.pad or "",
            START: shield.start,
            END: shield.end,
        }
        return render_template(self.format.template, variables, where=f"chat template of '{self.format.name}'", now=self.now)

    def _encoded(
        self,
        talk: _Talk,
        prompt: bool,
        most: int | None = None,
    ) -> _Encoded:
        shield = _Shield(self._specials, talk)
        try:
            text = self._text(talk, prompt, shield)
        except TemplateProblem as error:
            raise UserError(
                f"the chat template refuses this conversation: {error}",
                where=self.format.name,
                remedy="change the messages, or use another format",
            ) from None
        if most is not None:
            characters = len(text) - text.count(shield.start) - text.count(shield.end)
            least = self.tokenizer.least_tokens(characters)
            if least > most:
                raise TooLong(f"the prompt has at least {least} tokens, and at most {most} fit", remedy="shorten it")
        return self._encode_text(text, shield)

    # Ids

    def _encode_text(self, text: str, shield: _Shield) -> _Encoded:
        """Split rendered text at special tokens, encode what lies between, and note where generation blocks begin and end."""
        out = _Encoded([], [], "")
        opened: list[int] = []
        special_before: str | None = None
        position = 0
        matches = [*self._specials.finditer(text), None]
        for match in matches:
            stretch = text[position : match.start() if match else len(text)]
            if special_before in self.tokenizer.swallows_right:
                stretch = _lstrip(stretch, shield)
            if match and match.group() in self.tokenizer.swallows_left:
                stretch = _rstrip(stretch, shield)
            out.text += self._encode_stretch(stretch, special_before, shield, out, opened)
            if match:
                out.ids.append(self.tokenizer.special[match.group()])
                out.text += match.group()
                special_before, position = match.group(), match.end()
        if opened:
            raise UserError(
                "the chat template opens a generation block and never closes it",
                where=self.format.name,
                remedy="use another template",
            )
        return out

    def _encode_stretch(self, stretch: str, after: str | None, shield: _Shield, out: _Encoded, opened: list[int]) -> str:
        """Append the ids of text without special tokens; give back that text as people wrote it."""
        pieces = re.split(f"([{shield.start}{shield.end}])", stretch)
        whole = ""
        ids: list[int] = []
        base = len(out.ids)
        for i, piece in enumerate(pieces):
            if i % 2:
                if piece == shield.start:
                    opened.append(base + len(ids))
                elif opened:
                    out.blocks.append((opened.pop(), base + len(ids)))
                continue
            if not piece:
                continue
            piece = shield.uncover(piece)
            whole += piece
            longer = self._encode(whole, after)
            # Where this tokenizer would merge over the border, a prompt could not be the beginning of the whole: cut there.
            ids = longer if longer[: len(ids)] == ids else ids + self.tokenizer.encode_continued(piece)
        out.ids += ids
        return whole

    def _encode(self, text: str, after: str | None) -> list[int]:
        return self.tokenizer.encode(text) if after is None else self.tokenizer.encode_after_special(text)

    # Mask

    def _supervised(
        self,
        talk: _Talk,
        encoded: _Encoded,
    ) -> list[tuple[int, int]]:
        """The id ranges to learn from: one for each assistant message whose weight is not 0."""
        answers = [i for i, message in enumerate(talk.messages) if message["role"] == "assistant"]
        if not answers:
            return []
        blocks = encoded.blocks if self._marked else self._blocks_by_prefix(talk, encoded)
        if len(blocks) != len(answers):
            if all(talk.messages[i].get("weight", 1) != 0 for i in answers):
                return blocks
            raise UserError(
                f"the template marks {len(blocks)} answers of {len(answers)}, so a weight of 0 cannot be honoured",
                where=self.format.name,
                remedy="use a shipped format, or remove the weights",
            )
        return [block for block, i in zip(blocks, answers, strict=True) if talk.messages[i].get("weight", 1) != 0]

    def _blocks_by_prefix(
        self,
        talk: _Talk,
        encoded: _Encoded,
    ) -> list[tuple[int, int]]:
        """The id ranges of answers under a template without generation marks: what follows the prompt, up to the stop token."""
        blocks = []
        stops = {self.tokenizer.special[name] for name in [*self.format.stop, self.eos] if name in self.tokenizer.special}
        for i, message in enumerate(talk.messages):
            if message["role"] != "assistant":
                continue
            prompt = self._encoded(talk.first(i), True).ids
            if encoded.ids[: len(prompt)] != prompt:
                raise UserError(
                    "the template has no generation marks, and the prompt before this answer is not how the conversation begins",
                    where=f"{self.format.name}, messages[{i}]",
                    remedy="use a shipped format, or a template with {% generation %} marks",
                )
            upto = encoded.ids if i + 1 == len(talk.messages) else self._encoded(talk.first(i + 1), False).ids
            start, end = len(prompt), max(common(upto, encoded.ids), len(prompt))
            closing = [k for k in range(start, end) if encoded.ids[k] in stops or encoded.ids[k] in self.tokenizer.special_ids]
            blocks.append((start, closing[0] + 1 if closing else end))
        return blocks

    # Turns

    def _turns(
        self,
        talk: _Talk,
        encoded: _Encoded,
    ) -> list[Turn]:
        turns: list[Turn] = []
        end = 0
        for i, message in enumerate(talk.messages):
            start = end
            if i + 1 == len(talk.messages):
                end = len(encoded.ids)
            else:
                try:
                    end = max(start, common(self._encoded(talk.first(i + 1), False).ids, encoded.ids))
                except UserError:  # some templates refuse a conversation of the system text alone: the border joins the next turn's
                    end = start
            turns.append(Turn(str(message["role"]), start, end))
        return turns

    # Checks

    def _check_attributes(self, messages: Sequence[Mapping[str, Any]], attributes: Mapping[str, Any] | None) -> None:
        if not self.format.shipped:
            return
        self.format.check_attributes(dict(attributes or {}))
        for i, message in enumerate(messages):
            if message.get("attributes"):
                self.format.check_attributes(dict(message["attributes"]), where=f"messages[{i}].attributes")

    def _check_probe(self) -> None:
        """Refuse a template under which nothing would be learned, before any long work starts."""
        rendered = self.render(_PROBE)
        learned = [i for i, m in zip(rendered.ids, rendered.mask, strict=True) if m]
        answer = self.tokenizer.decode(self.tokenizer.encode(_PROBE[1]["content"])).strip()
        if not learned or answer not in self.tokenizer.decode(learned):
            raise UserError(
                f"the template of '{self.format.name}' gives a mask that would train nothing",
                where="chat_template",
                remedy="use a shipped format, or a template whose {% generation %} marks stand around the assistant's text",
            )
        # Without it a model learns answers that go on until the longest length allowed. k2's plain answer in the middle of a dialogue
        # has none either, as its card wants it; the probe ends with its answer, where every format has one.
        if not set(learned) & set(self.stop_ids):
            raise UserError(
                f"the template of '{self.format.name}' never ends an answer: no stop token is among what would be learnt",
                where="chat_template",
                remedy="use a shipped format, or a template that writes a stop token (eos) behind the assistant's text, inside its marks",
            )

    def _probe_stops(self) -> list[int]:
        """The first special token behind an answer: what this template ends answers with."""
        rendered = self.render(_PROBE)
        last = max((i for i, m in enumerate(rendered.mask) if m), default=-1)
        return [i for i in rendered.ids[last : last + 1] if i in self.tokenizer.special_ids]


class _Shield:
    """Hides what looks like a special token inside a conversation while the template renders it.

    Each look-alike becomes one private-use sign that occurs nowhere in the conversation; so do the two generation marks.
    """

    def __init__(self, specials: re.Pattern[str], conversation: Any) -> None:
        names: dict[str, None] = {}
        used: set[str] = set()
        for text in _texts(conversation):
            names.update(dict.fromkeys(specials.findall(text)))
            if not text.isascii():
                used.update(c for c in text if c >= _FIRST_PRIVATE)
        free = (chr(code) for code in _PRIVATE if chr(code) not in used)
        self.start, self.end = next(free), next(free)
        self._cover = {name: next(free) for name in names}
        self._uncover = {sign: name for name, sign in self._cover.items()}
        self._specials = specials

    def cover(self, text: str) -> str:
        """Text with every look-alike hidden."""
        return self._specials.sub(lambda match: self._cover[match.group()], text) if self._cover else text

    def uncover(self, text: str) -> str:
        """Text with every look-alike back in place."""
        for sign, name in self._uncover.items():
            text = text.replace(sign, name)
        return text


def special_roles(format: Format, tokenizer: Tokenizer) -> tuple[str | None, str | None]:
    """The bos and eos tokens that a format uses with a tokenizer: its own, or the tokenizer's where that lacks them.

    Raises:
        UserError: the format ends answers with eos, and the tokenizer has none.
    """
    bos = format.bos if format.bos in tokenizer.special else tokenizer.bos if format.bos else None
    eos = format.eos if format.eos in tokenizer.special else tokenizer.eos
    if not format.shipped:
        bos = tokenizer.bos
    if format.shipped and (not eos or eos not in tokenizer.special):
        raise UserError(
            f"the tokenizer has no token to end an answer with (the format '{format.name}' has {format.eos})",
            where=tokenizer.where,
            remedy="train a tokenizer for this format, or name its eos_token in tokenizer_config.json",
        )
    return bos, eos


def plain_variables(
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None,
    attributes: Mapping[str, Any] | None,
    format: Format,
    change: Callable[[str], str] = lambda text: text,
) -> dict[str, Any]:
    """What a template reads of a conversation: plain values, every text passed through `change`; nothing that is null."""
    plain = [
        {key: value if key == "role" else _mapped(value, change) for key, value in message.items() if value is not None and key != "weight"}
        for message in messages
    ]
    for message in plain:
        message.setdefault("content", "")
    out: dict[str, Any] = {"messages": plain, "tools": _mapped(list(tools), change) if tools else None}
    if format.attributes or attributes:
        out["attributes"] = dict(attributes or {})
    return out


def render_text(
    format: Format,
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    attributes: Mapping[str, Any] | None = None,
    add_generation_prompt: bool = False,
) -> str:
    """The text of a conversation in a format, without a tokenizer: what to train a tokenizer on, or to look at."""
    check_messages(messages, tools=tools, attributes=attributes, training=False)
    variables = {
        **plain_variables(messages, tools, attributes, format),
        "add_generation_prompt": add_generation_prompt,
        "bos_token": format.bos or "",
        "eos_token": format.eos or "",
        "pad_token": "",
    }
    try:
        return render_template(format.template, variables, where=f"chat template of '{format.name}'")
    except TemplateProblem as error:
        raise UserError(f"the chat template refuses this conversation: {error}", where=format.name, remedy="change the messages") from None


def common(a: Sequence[int], b: Sequence[int]) -> int:
    """The length of the common beginning."""
    n = min(len(a), len(b))
    if a[:n] == b[:n]:
        return n
    return next(i for i in range(n) if a[i] != b[i])


def _texts(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _texts(key)
            yield from _texts(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _texts(inner)


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {change(key): _mapped(inner, change) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_mapped(inner, change) for inner in value]
    return value


def _lstrip(text: str, shield: _Shield) -> str:
    """Without white space in front, which may stand on either side of a generation mark."""
    return re.sub(
        rf"^(?:\s|([{shield.start}{shield.end}]))*",
        lambda m: "".join(c for c in m.group() if c in shield.start + shield.end),
        text,
    )


def _rstrip(text: str, shield: _Shield) -> str:
    return re.sub(
        rf"(?:\s|([{shield.start}{shield.end}]))*\Z",
        lambda m: "".join(c for c in m.group() if c in shield.start + shield.end),
        text,
    )
