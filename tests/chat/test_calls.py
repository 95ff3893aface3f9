"""The layout of function calls is the template's own, and what is written by it is read back."""

from __future__ import annotations

from typing import Any

import pytest

from cairn.chat.calls import call_layout
from cairn.chat.format import Format, format_names, load_format
from cairn.chat.parse import answer_of_text
from cairn.chat.render import render_text
from cairn.errors import UserError

QUESTION = {"role": "user", "content": "?"}
CALLS: list[tuple[str, dict[str, Any]]] = [("날씨", {"city": "오슬로", "days": 3}), ("now", {}), ("say", {"text": 'a "b"\n</tool_call>'})]


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("name", format_names())
def test_calls_are_written_as_the_template_writes_them(name: str, count: int) -> None:
    format = load_format(name)
    calls = [{"type": "function", "function": {"name": n, "arguments": a}} for n, a in CALLS[:count]]
    text = call_layout(format).write(CALLS[:count])
    answer = {"role": "assistant", "content": "", "tool_calls": calls}
    assert text in render_text(format, [QUESTION, answer], tools=[{"name": n, "parameters": {}} for n, _ in CALLS])
    assert answer_of_text(format, text) == answer


HERMES = (
    "{% for m in messages %}{{ '<' ~ m['role'] ~ '>' ~ (m['content'] or '') }}"
    "{% for c in m['tool_calls'] or [] %}{{ '\n<tool_call>\n{\"name\": ' ~ (c['function']['name'] | tojson) ~ ', \"arguments\": '"
    " ~ (c['function']['arguments'] | tojson) ~ '}\n</tool_call>' }}{% endfor %}{{ '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def test_a_block_for_every_call() -> None:
    layout = call_layout(Format(name="hermes", template=HERMES, eos="</s>", stop=("</s>",), shipped=False))
    assert layout.name_first
    assert layout.write([("a", {}), ("b", {"x": 1})]) == (
        '\n<tool_call>\n{"name": "a", "arguments": {}}\n</tool_call>\n<tool_call>\n{"name": "b", "arguments": {"x": 1}}\n</tool_call>'
    )


@pytest.mark.parametrize("marks", [("<tool_call>", "<function>"), ("c in m['tool_calls'] or []", "c in []")])
def test_calls_that_cannot_be_read_back_are_refused(marks: tuple[str, str]) -> None:
    with pytest.raises(UserError, match="no function calls that can be read back"):
        call_layout(Format(name="other", template=HERMES.replace(*marks), eos="</s>", stop=("</s>",), shipped=False))
