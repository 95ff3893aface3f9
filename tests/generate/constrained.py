"""What constraints are tested with: a tokenizer of pebble's shape, models without a mind, and a small judge of JSON schemas."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cairn.chat.format import load_format
from cairn.generate.constrain import Compiled, Constrainer
from cairn.tokenizer.load import Tokenizer
from cairn.tokenizer.train import TokenizerConfig, train_tokenizer

TEXTS = [
    '{"arguments": {"city": "Oslo", "days": 12}, "name": "weather"}, {"a": [1, 2.5], "b": null, "c": true}',
    "The weather in Oslo is sunny today; http://example.org/path?x=1 says so. Once upon a time there was a cairn.",
    "오늘 오슬로의 날씨는 맑습니다. 東京は今日も晴れです。",
] * 8

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer", "minimum": 0},
        "height": {"type": "number"},
        "tags": {"type": "array", "items": {"type": "string"}},
        "more": {},
    },
    "required": ["name", "age"],
}


def trained(folder: Path, size: int = 700) -> Tokenizer:
    """Byte-level BPE with k2's special tokens, as pebble has it, only smaller."""
    train_tokenizer(iter(TEXTS), TokenizerConfig(vocab_size=size), load_format("k2"), folder)
    return Tokenizer.load(folder)


Chooses = Callable[[list[int], random.Random], int]


def anything(ids: list[int], rng: random.Random) -> int:
    """A model without a mind."""
    return rng.choice(ids)


def walk(compiled: Callable[[], Any], budget: int, seed: int = 0, choose: Chooses = anything) -> tuple[list[int], bool]:
    """(the ids of one answer, whether the constraint ended it): what the engine does, without a model."""
    matcher, rng, out = compiled(), random.Random(seed), []
    while len(out) < budget and not matcher.finished:
        left = budget - len(out)
        while True:
            mask = matcher.allowed(left)
            assert mask is not None
            ids = mask.nonzero()[:, 0].tolist()
            assert ids, "no id is left"
            id = choose(ids, rng)
            if matcher.accept(id, left):
                break
        out.append(id)
    return out, matcher.finished


def text_of(constrainer: Constrainer, tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """The answer's text without its stop token."""
    return tokenizer.decode([id for id in ids if id not in constrainer.vocabulary.stop_ids])


def answer(constrainer: Constrainer, tokenizer: Tokenizer, compiled: Compiled, budget: int, seed: int, choose: Chooses = anything) -> str:
    """The text of one answer."""
    return text_of(constrainer, tokenizer, walk(compiled, budget, seed, choose)[0])


def valid(schema: Any, value: Any) -> bool:
    """Whether a value is valid against a schema of the few keywords that the tests draw."""
    if "enum" in schema:
        return any(type(v) is type(value) and v == value for v in schema["enum"])
    if "anyOf" in schema:
        return any(valid(inner, value) for inner in schema["anyOf"])
    kinds: dict[str, Any] = {"string": str, "integer": int, "boolean": bool, "null": type(None), "array": list, "object": dict}
    kind = schema.get("type")
    if kind == "number":
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind is not None and (not isinstance(value, kinds[kind]) or (kind == "integer" and isinstance(value, bool))):
        return False
    if kind == "string":
        return schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", 1 << 30)
    if kind == "integer":
        return bool(schema.get("minimum", value) <= value <= schema.get("maximum", value))
    if kind == "array":
        fits = schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", 1 << 30)
        return fits and all(valid(schema["items"], item) for item in value)
    if kind == "object":
        properties = schema.get("properties", {})
        if not set(schema.get("required", ())) <= set(value):
            return False
        if schema.get("additionalProperties") is False and not set(value) <= set(properties):
            return False
        return all(valid(properties[key], inner) for key, inner in value.items() if key in properties)
    return True
