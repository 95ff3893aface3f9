"""Rows with answers: which message is answered, what is kept, and that windows and resuming change nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cairn.chat.format import load_format
from cairn.errors import UserError
from cairn.generate.engine import Engine
from cairn.generate.load import Loaded
from cairn.generate.rows import TOO_LONG, answer_rows
from cairn.generate.sampling import Sampling
from cairn.tokenizer.train import byte_tokenizer

from .scripted import Scripted

FORMAT = load_format("k2")
TOKENIZER = byte_tokenizer(FORMAT)


def loaded(answer: str = "Fine.", context: int = 4096) -> Loaded:
    script = [*TOKENIZER.encode(answer), TOKENIZER.token_id("<|endoftext|>"), 0]
    made = Loaded(Path("nowhere"), Engine(Scripted(script, TOKENIZER.vocab_size, TOKENIZER.special_ids, context)), TOKENIZER)
    made.format = FORMAT
    return made


def dialogue(*texts: str, **more: Any) -> dict[str, Any]:
    turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    return {"messages": turns, "id": "a", **more}


def answers(rows: list[dict[str, Any]], answer: str = "Fine.", context: int = 4096, **options: Any) -> list[dict[str, Any]]:
    return list(answer_rows(loaded(answer, context), rows, Sampling(max_new_tokens=40), **options))


def test_a_dialogue_gets_its_next_message() -> None:
    row = dialogue("Hi", "Hello", "How are you?", tools=[{"name": "f"}], attributes={}, source="s")
    [got] = answers([row])
    assert got["messages"] == [*row["messages"], {"role": "assistant", "content": "Fine."}]
    assert (got["id"], got["source"], got["tools"], got["reason"]) == ("a", "s", [{"name": "f"}], "stop")
    assert TOKENIZER.decode(got["ids"]) == "Fine.<|endoftext|>"
    assert "reference" not in got


def test_a_last_answer_is_given_anew_and_kept_as_reference() -> None:
    [got] = answers([dialogue("Hi", "Hello")])
    assert [m["content"] for m in got["messages"]] == ["Hi", "Fine."]
    assert got["reference"] == {"role": "assistant", "content": "Hello"}


def test_plain_text_is_continued() -> None:
    [got] = answers([{"text": "Once", "id": "t"}], " upon")
    assert (got["text"], got["answer"], got["reason"]) == ("Once upon", " upon", "stop")


@pytest.mark.parametrize("row", [dialogue("Hi"), {"text": "Hi", "id": "t"}])
def test_stop_strings_are_not_part_of_answers(row: dict[str, Any]) -> None:
    [got] = answers([row], "one. two. three.", stop_strings=[". t"])
    assert got["messages"][-1]["content"] == "one" if "messages" in got else got["answer"] == "one"
    assert got["reason"] == "stop"


def test_a_prompt_beyond_the_context_gets_no_answer_and_the_rest_do() -> None:
    rows = [dialogue("x" * 50), dialogue("Hi"), {"text": "y" * 50, "id": "t"}]
    got = answers(rows, context=30)
    assert [r["reason"] for r in got] == [TOO_LONG, "stop", TOO_LONG]
    assert [len(r["ids"]) for r in got] == [0, 6, 0]
    assert got[0]["messages"] == rows[0]["messages"]


def test_progress_counts_rows_and_tokens_over_windows() -> None:
    seen: list[tuple[int, int]] = []
    got = answers([dialogue("Hi")] * 5, window=2, on_progress=lambda rows, tokens: seen.append((rows, tokens)))
    assert len(got) == 5
    assert seen == sorted(seen)
    assert seen[-1] == (5, 30)


def test_a_row_that_cannot_be_rendered_is_named() -> None:
    with pytest.raises(UserError, match="cannot stand") as error:
        answers([dialogue("Hi"), {"messages": [{"role": "tool", "content": "x"}], "id": "bad"}])
    assert error.value.where == "row 2 (id bad), messages[0].role"
