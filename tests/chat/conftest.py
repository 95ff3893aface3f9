"""Tokenizers trained for every format on a few lines, once for a session."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cairn.chat.format import format_names, load_format
from cairn.chat.render import Renderer, render_text
from cairn.tokenizer.load import Tokenizer
from cairn.tokenizer.train import TokenizerConfig, train_tokenizer

LINES = [
    "The kettle sings, and the answer is known to the user of the system.",
    "a  b   c\n\nd\n\n\n  e \t f 0123456789 <tag> [list] ### Heading\n- item\n",
    "서울은 대한민국의 수도이다. 안녕하세요, 무엇을 도와 드릴까요?",
    "東京は日本の首都です。何をお手伝いしましょうか。",
    '{"name": "weather", "arguments": {"city": "Oslo", "days": 3}}',
]


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tokenizer folder for every format."""
    out = {}
    for name in format_names():
        format = load_format(name)
        call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
        talk = [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Is it cold?"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": '{"degrees": -3}'},
            {"role": "assistant", "content": "- Yes, 3 below zero."},
        ]
        texts = [*LINES, render_text(format, talk, tools=[{"type": "function", "function": {"name": "weather"}}])] * 4
        out[name] = tmp_path_factory.mktemp(name)
        train_tokenizer(iter(texts), TokenizerConfig(vocab_size=600, format=name), format, out[name])
    return out


@pytest.fixture(scope="session")
def renderers(folders: dict[str, Path]) -> dict[str, Renderer]:
    """A renderer for every format, with everything read back from its folder."""
    return {name: Renderer(load_format(folder), Tokenizer.load(folder)) for name, folder in folders.items()}


@pytest.fixture(scope="session")
def hf_tokenizers(folders: dict[str, Path]) -> dict[str, Any]:
    """What transformers makes of the same folders."""
    from transformers import AutoTokenizer

    return {name: AutoTokenizer.from_pretrained(str(folder)) for name, folder in folders.items()}
