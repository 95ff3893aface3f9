"""What must hold for every conversation in every format, whatever anybody wrote into it."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cairn.chat.compare import border_differences, hf_ids
from cairn.chat.format import format_names, load_format
from cairn.chat.parse import parse, parse_answer
from cairn.chat.render import Renderer
from cairn.tokenizer.load import Tokenizer
from cairn.tokenizer.train import byte_tokenizer

sys.path.insert(0, str(Path(__file__).parent))
from chat_strategies import MARKERS, SPECIALS, conversations, supervised_text, texts

FORMATS = tuple(format_names())
EXAMPLES = int(os.environ.get("CAIRN_EXAMPLES", "20"))
"""How many conversations for each format and property; more for a deep search."""

every_format = pytest.mark.parametrize("name", FORMATS)
few = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])

plain = texts.map(lambda text: _without(text, SPECIALS))
"""Any text without the names of special tokens."""


def _without(text: str, parts: list[str]) -> str:
    while any(part in text for part in parts):
        for part in parts:
            text = text.replace(part, "")
    return text


def _rendered(renderer: Renderer, row: dict[str, Any], messages: list[dict[str, Any]] | None = None, *, prompt: bool = False) -> Any:
    return renderer.render(
        messages or row["messages"], tools=row.get("tools"), attributes=row.get("attributes"), add_generation_prompt=prompt
    )


@every_format
@few
@given(data=st.data())
def test_parsing_undoes_rendering(name: str, renderers: dict[str, Renderer], data: st.DataObject) -> None:
    renderer = renderers[name]
    row = data.draw(conversations())
    if renderer.format.attributes:
        row["attributes"] = {key: data.draw(st.integers(a.minimum, a.maximum)) for key, a in renderer.format.attributes.items()}
    rendered = _rendered(renderer, row)
    assert renderer.tokenizer.decode(rendered.ids) == rendered.text
    assert parse(renderer, renderer.tokenizer, rendered.ids) == row


@every_format
@few
@given(data=st.data())
def test_nobodys_text_becomes_a_special_token(name: str, renderers: dict[str, Renderer], data: st.DataObject) -> None:
    renderer = renderers[name]
    row = data.draw(conversations())
    harmless = {**row, "messages": [{**m, "content": "x" if m["content"] else ""} for m in row["messages"]]}
    special = renderer.tokenizer.special_ids
    found = [i for i in _rendered(renderer, row).ids if i in special]
    assert found == [i for i in _rendered(renderer, harmless).ids if i in special]


@every_format
@few
@given(data=st.data())
def test_the_mask_covers_the_answers_and_their_stop_tokens(name: str, renderers: dict[str, Renderer], data: st.DataObject) -> None:
    renderer = renderers[name]
    row = data.draw(conversations())
    messages = row["messages"]
    silent = {i for i, m in enumerate(messages) if m["role"] == "assistant" and data.draw(st.integers(0, 3)) == 0}
    weighted = [{**m, "weight": 0} if i in silent else m for i, m in enumerate(messages)]
    rendered = _rendered(renderer, row, weighted)
    assert len(rendered.mask) == len(rendered.ids)
    assert set(rendered.mask) <= {0, 1}
    for i, (message, turn) in enumerate(zip(messages, rendered.turns, strict=True)):
        ours = renderer.tokenizer.decode([rendered.ids[k] for k in range(turn.start, turn.end) if rendered.mask[k]])
        expected = supervised_text(renderer.format, messages, i) if message["role"] == "assistant" and i not in silent else ""
        assert ours == expected
    assert rendered.turns[0].start == 0
    assert rendered.turns[-1].end == len(rendered.ids)
    assert all(a.end == b.start for a, b in zip(rendered.turns, rendered.turns[1:], strict=False))


@every_format
@few
@given(data=st.data())
def test_a_prompt_is_the_beginning_of_the_whole(name: str, renderers: dict[str, Renderer], data: st.DataObject) -> None:
    renderer = renderers[name]
    row = data.draw(conversations())
    messages = row["messages"]
    whole = _rendered(renderer, row)
    first = next(k for k, m in enumerate(whole.mask) if m)
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        prompt = _rendered(renderer, row, messages[:i], prompt=True)
        assert whole.ids[: len(prompt.ids)] == prompt.ids
        assert not any(prompt.mask[first:]) or any(m["role"] == "assistant" for m in messages[:i])
        # The same row cut after this answer differs at most by the stop token that then ends it.
        cut = _rendered(renderer, row, messages[: i + 1])
        supervised = max(k for k, m in enumerate(cut.mask) if m)
        assert cut.ids[:supervised] == whole.ids[:supervised]
        # What the model would have to generate after the prompt reads back as the answer.
        answer = parse_answer(renderer.format, renderer.tokenizer, cut.ids[len(prompt.ids) :])
        assert answer == {k: v for k, v in message.items() if k != "weight"}


@every_format
@few
@given(data=st.data())
def test_hugging_faces_tokenizer_gives_the_same_ids_and_mask(
    name: str, renderers: dict[str, Renderer], hf_tokenizers: dict[str, Any], data: st.DataObject
) -> None:
    renderer, theirs = renderers[name], hf_tokenizers[name]
    row = data.draw(conversations(plain, with_tools=False))
    rendered = _rendered(renderer, row)
    assert hf_ids(theirs, renderer, row["messages"]) == rendered.ids
    prompt = list(row["messages"])[:-1]
    assert hf_ids(theirs, renderer, prompt, prompt=True) == _rendered(renderer, row, prompt, prompt=True).ids
    if all(m["content"] and m["content"].isascii() for m in row["messages"]):
        # Otherwise transformers misses bytes: it marks one token for a character that has several.
        masked = theirs.apply_chat_template(row["messages"], return_dict=True, return_assistant_tokens_mask=True)
        assert masked["assistant_masks"] == rendered.mask


@every_format
def test_hugging_faces_tokenizer_agrees_on_tools(name: str, renderers: dict[str, Renderer], hf_tokenizers: dict[str, Any]) -> None:
    renderer = renderers[name]
    calls = [
        {"type": "function", "function": {"name": "f", "arguments": {"a": "b\n"}}},
        {"type": "function", "function": {"name": "g", "arguments": {}}},
    ]
    messages = [
        {"role": "user", "content": "hi "},
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "content": "1"},
        {"role": "tool", "content": "2\n"},
        {"role": "assistant", "content": " done"},
    ]
    markers = " ".join(renderer.format.escapes)
    row = {"messages": messages, "tools": [{"type": "function", "function": {"name": "f", "description": f'{markers} "x"\n'}}]}
    lookalike = {"messages": [{"role": "user", "content": renderer.eos}, {"role": "assistant", "content": "no"}]}
    found = border_differences(renderer, hf_tokenizers[name], [row, row, lookalike])
    assert found == {"rows": 3, "differ": 1, "lookalikes": 1, "first": None}


@every_format
@few
@given(text=texts)
def test_escaping_is_undone_and_leaves_no_marker(name: str, text: str) -> None:
    format = load_format(name)
    escaped = format.escape(text)
    assert format.unescape(escaped) == text
    for marker in format.escapes:
        assert all(escaped.startswith("\u2060", at + len(marker)) for at in range(len(escaped)) if escaped.startswith(marker, at))
    if not any(marker in text for marker in MARKERS):
        assert escaped == text


@every_format
def test_padding_is_nobodys_business(name: str, renderers: dict[str, Renderer], folders: dict[str, Path]) -> None:
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    expected = renderers[name].render(messages)
    for pad in (renderers[name].eos, None, "<|pad|>"):
        tokenizer = Tokenizer.load(folders[name])
        tokenizer.pad = pad
        rendered = Renderer(load_format(folders[name]), tokenizer).render(messages)
        assert (rendered.ids, rendered.mask) == (expected.ids, expected.mask)
        last = max(k for k, m in enumerate(rendered.mask) if m)
        assert rendered.ids[last] == tokenizer.token_id(str(renderers[name].eos))
    padded = [*expected.ids, *[renderers[name].tokenizer.pad_id] * 3]
    assert parse(renderers[name], renderers[name].tokenizer, padded)["messages"] == messages


@every_format
@few
@given(data=st.data())
def test_single_bytes_do_as_well(name: str, data: st.DataObject) -> None:
    format = load_format(name)
    tokenizer = _byte_tokenizers.setdefault(name, byte_tokenizer(format))
    row = data.draw(conversations())
    if format.attributes:
        row["attributes"] = {key: a.default for key, a in format.attributes.items()}
    renderer = Renderer(format, tokenizer)
    assert parse(renderer, tokenizer, _rendered(renderer, row).ids) == row


_byte_tokenizers: dict[str, Tokenizer] = {}


@few
@given(data=st.data())
def test_without_attributes_k2_steerable_is_k2_to_the_letter(data: st.DataObject, renderers: dict[str, Renderer]) -> None:
    # The one text that it escapes and k2 does not.
    row = json.loads(json.dumps(data.draw(conversations())).replace("[ATTR", "ATTR").replace("[/ATTR", "/ATTR"))
    tokenizer = renderers["k2_steerable"].tokenizer
    k2, ours = Renderer(load_format("k2"), tokenizer), renderers["k2_steerable"]
    assert _rendered(ours, row) == _rendered(k2, row)
    assert parse(ours, tokenizer, _rendered(ours, row).ids) == row


@few
@given(data=st.data())
def test_k2_steerable_marks_only_the_turns_that_ask(data: st.DataObject, renderers: dict[str, Renderer]) -> None:
    row = data.draw(conversations())
    users = [i for i, message in enumerate(row["messages"]) if message["role"] == "user"]
    asking = data.draw(st.sets(st.sampled_from(users))) if users else set()
    for i in asking:
        row["messages"][i]["attributes"] = {"humor": data.draw(st.integers(0, 4))}
    renderer = renderers["k2_steerable"]
    rendered = _rendered(renderer, row)
    if "ATTR]" not in json.dumps(row):
        assert rendered.text.count(" [ATTR] ") == rendered.text.count(" [/ATTR]") == len(asking)
    defaults = {name: one.default for name, one in (renderer.format.attributes or {}).items()}
    for i in asking:
        row["messages"][i]["attributes"] = defaults | row["messages"][i]["attributes"]
    found = parse(renderer, renderer.tokenizer, rendered.ids)
    shared = found.pop("attributes", None)
    for message in found["messages"]:
        if shared and message["role"] == "user":
            message["attributes"] = shared
    assert found == row
