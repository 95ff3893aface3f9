"""Conversations made to break rendering: texts put together from pieces of special tokens, markers and white space."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

from cairn.chat.format import JOINER, Format, format_names, load_format

SPECIALS = sorted({name for f in map(load_format, format_names()) for name in (*f.special_tokens, f.bos, f.eos) if name} | {"<|pad|>"})
MARKERS = sorted({marker for f in map(load_format, format_names()) for marker in f.escapes})
PIECES = [
    *SPECIALS,
    *(name[:-1] for name in SPECIALS),
    *MARKERS,
    *(marker[:-1] for marker in MARKERS),
    *(
        "]",
        ">",
        ">>",
        ":",
        ": ",
        ">\n",
        "]\n",
        "</",
        "<",
        "[",
        "### ",
        "\n\n",
        "\n",
        " ",
        "  ",
        "\t",
        "\r\n",
        "\u3000",
        "\u200b",
        JOINER,
        JOINER * 2,
    ),
    *(
        "<tool_call>",
        "</tool_call>",
        "<tool_response>\n",
        "\n</tool_response>",
        "<tools>\n[",
        "]\n</tools>",
        '{"arguments": {}, "name": "f"}',
    ),
    *("system\n", "user\n", "assistant\n", "tool\n", "### Response: ", "\n\n### Response:\n", "### instruction: ", "[/INST] ", " [/INST]"),
    *(
        "[ATTR] helpfulness: 4",
        " [/ATTR]",
        "<<SYS>>\n",
        "\n<</SYS>>\n\n",
        "{% generation %}",
        "{{ messages }}",
        "{#",
        "\\",
        "'",
        '"',
        "\\u2060",
    ),
    *(
        "\U000f0000",
        "\U000f0001",
        "\U000f0002\U000f0003",
        "\ue000",
        "안녕",
        "東京",
        "é",
        "🙂",
        "👩‍👩‍👧",
        "12",
        "a",
        " word",
        "Word",
        "\x00",
        "\x7f",
    ),
    *("USER: ", " ASSISTANT: ", " USER", "ASSISTANT"),
    "A chat between a curious user and an artificial intelligence assistant.",
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.",
]

texts = st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=4)), max_size=6).map("".join)
"""Any text, with a bias to trouble."""

names = st.one_of(st.sampled_from(["f", "get_news", "<tool_call>", "<|endoftext|>"]), st.text(min_size=1, max_size=6))
values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(10**9), 10**9), st.floats(allow_nan=False, allow_infinity=False), texts),
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(texts, inner, max_size=2)),
    max_leaves=4,
)
calls = st.builds(
    lambda name, arguments: {"type": "function", "function": {"name": name, "arguments": arguments}},
    names,
    st.dictionaries(texts, values, max_size=3),
)
tools = st.lists(
    st.builds(
        lambda name, text, parameters: {"type": "function", "function": {"name": name, "description": text, "parameters": parameters}},
        names,
        texts,
        st.dictionaries(texts, values, max_size=2),
    ),
    min_size=1,
    max_size=2,
)


@st.composite
def conversations(draw: st.DrawFn, text: st.SearchStrategy[str] = texts, *, with_tools: bool = True) -> dict[str, Any]:
    """A row: messages that end with an assistant turn, and tools now and then."""
    messages: list[dict[str, Any]] = []
    if draw(st.booleans()):
        messages.append({"role": "system", "content": draw(text)})
    for _ in range(draw(st.integers(1, 3))):
        messages.append({"role": "user", "content": draw(text)})
        if with_tools and draw(st.integers(0, 2)) == 0:
            messages.append({"role": "assistant", "content": draw(text), "tool_calls": draw(st.lists(calls, min_size=1, max_size=2))})
            for _ in range(draw(st.integers(1, 2))):
                messages.append({"role": "tool", "content": draw(text)})
        messages.append({"role": "assistant", "content": draw(text)})
    row: dict[str, Any] = {"messages": messages}
    if with_tools and draw(st.booleans()):
        row["tools"] = draw(tools)
    return row


def answer_text(format: Format, message: dict[str, Any]) -> str:
    """What the assistant says in a message, written down without the template."""
    text = message["content"]
    if message.get("tool_calls"):
        made = [{"arguments": c["function"]["arguments"], "name": c["function"]["name"]} for c in message["tool_calls"]]
        body = json.dumps(made if len(made) > 1 else made[0], ensure_ascii=False)
        return format.escape(text) + ("\n" if text else "") + "<tool_call>\n" + format.escape(body) + "\n</tool_call>"
    return format.escape(text)


def supervised_text(format: Format, messages: list[dict[str, Any]], i: int) -> str:
    """What is supervised of message `i`: its text and, where the format writes one there, its stop token."""
    ends_inside = format.name not in ("k2", "k2_attributes", "k2_steerable", "crystal")
    stop = ends_inside or i == len(messages) - 1 or bool(messages[i].get("tool_calls"))
    return answer_text(format, messages[i]) + format.closing + ((format.eos or "") if stop else "")
