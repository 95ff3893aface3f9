"""What the tests of this room share: a tokenizer and a renderer of their own, rows for hypothesis, and the shared data."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest


@dataclass
class Turn:
    role: str
    start: int
    end: int


@dataclass
class Rendered:
    ids: list[int]
    mask: list[int]
    text: str
    turns: list[Turn]


class Words:
    """A tokenizer whose ids are the lengths of words, plus 10; 1 begins a text and 2 ends it."""

    bos_id: int | None = 1
    eos_id: int | None = 2

    def encode(self, text: str) -> list[int]:
        return [10 + len(word) for word in text.split()]


class Renderer:
    """Role marks 3 to 6 in front of each turn; the assistant's words, and the stop 2 after the last one, are learned."""

    def __init__(self, learns: bool = True) -> None:
        self.learns, self.tokenizer = learns, Words()

    def render(self, messages: list[dict[str, Any]], *, tools: Any = None, attributes: Any = None) -> Rendered:
        ids, mask, turns = [1], [0], []
        for tool in tools or ():
            ids.append(7)
            mask.append(0)
            assert tool
        for i, message in enumerate(messages):
            start = len(ids)
            said = self.tokenizer.encode(message["content"])
            assistant = message["role"] == "assistant"
            last = i == len(messages) - 1
            learned = int(assistant and self.learns and message.get("weight", 1))
            ids += [3 + ("system", "user", "assistant", "tool").index(message["role"]), *said] + [2] * (assistant and last)
            mask += [0] + [learned] * (len(said) + (assistant and last))
            turns.append(Turn(message["role"], start, len(ids)))
        return Rendered(ids, mask, "", turns)


@pytest.fixture
def words() -> Words:
    return Words()


@pytest.fixture
def renderer() -> Renderer:
    return Renderer()


@pytest.fixture(scope="session")
def kinds() -> tuple[type[Words], type[Renderer]]:
    """The classes, for tests that make their own for each example."""
    return Words, Renderer


@pytest.fixture
def shared() -> Path:
    """The folder of real data; the test is skipped where it is absent."""
    place = os.environ.get("CAIRN_SHARED") or Path(__file__).parents[2].parent / "shared" / "data"
    if not Path(place).is_dir():
        pytest.skip(f"no shared data at {place} (set CAIRN_SHARED)")
    return Path(place)


@pytest.fixture
def write(tmp_path: Path):
    """Write a file of JSON Lines (from values or raw lines), a JSON list, text or bytes; give its path."""

    def put(name: str, content: Any) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif isinstance(content, str):
            path.write_bytes(content.encode())
        elif name.endswith(".jsonl"):
            path.write_bytes("".join((v if isinstance(v, str) else json.dumps(v)) + "\n" for v in content).encode())
        else:
            path.write_bytes(json.dumps(content, indent=1, ensure_ascii=False).encode())
        return path

    return put
