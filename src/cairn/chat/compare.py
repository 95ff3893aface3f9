"""Where our ids differ from those of Hugging Face's `apply_chat_template`. Knows both sides; changes neither.

They differ on purpose in two cases: text that looks like a special token (ours keeps it text), and a tokenizer that was
made elsewhere and merges over the border between a prompt and its answer (ours cuts there).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from cairn.chat.render import Renderer, plain_variables


def border_differences(renderer: Renderer, hf_tokenizer: Any, rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Compare row by row.

    Args:
        renderer: ours.
        hf_tokenizer: transformers' tokenizer of the same folder.
        rows: dialogues with "messages", and "tools" and "attributes" where they have them.

    Returns:
        {"rows", "differ", "lookalikes", "first"}: how many were compared, how many differ, how many of those hold the name of a
        special token in their text, and the 1-based number of the first that differs without one (None if there is none).
    """
    count = differ = lookalikes = 0
    first: int | None = None
    names = list(renderer.tokenizer.special)
    for number, row in enumerate(rows, 1):
        count += 1
        tools, attributes = row.get("tools"), row.get("attributes")
        ours = renderer.render(row["messages"], tools=tools, attributes=attributes)
        theirs = hf_ids(hf_tokenizer, renderer, row["messages"], tools, attributes)
        if ours.ids == theirs:
            continue
        differ += 1
        if any(name in str(plain_variables(row["messages"], tools, attributes, renderer.format)) for name in names):
            lookalikes += 1
        elif first is None:
            first = number
    return {"rows": count, "differ": differ, "lookalikes": lookalikes, "first": first}


def hf_ids(
    hf_tokenizer: Any,
    renderer: Renderer,
    messages: Any,
    tools: Any = None,
    attributes: Any = None,
    *,
    prompt: bool = False,
) -> list[int]:
    """The ids that `apply_chat_template` gives for the same conversation."""
    variables = plain_variables(messages, tools, attributes, renderer.format)
    extra = {"attributes": variables["attributes"]} if "attributes" in variables else {}
    ids = hf_tokenizer.apply_chat_template(
        variables["messages"],
        tools=variables["tools"],
        add_generation_prompt=prompt,
        tokenize=True,
        return_dict=False,
        **extra,
    )
    return list(ids)
