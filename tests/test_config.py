"""What a configuration says of a mistake: the key that is wrong, its line, and what was meant."""

from __future__ import annotations

from typing import Annotated

import pytest
from pydantic import Field, model_validator

from cairn.config import Config, Invalid, build, checked, parse_yaml
from cairn.errors import UserError


class Inner(Config):
    """A part."""

    name: str
    size: int = Field(default=1, ge=1)


def _known(word: str) -> None:
    if word != "good":
        raise UserError(f"unknown word '{word}'", remedy="did you mean 'good'?")


class Outer(Config):
    """A whole."""

    parts: list[Annotated[str, checked(_known)] | Inner] = Field(default_factory=list)
    word: Annotated[str, checked(_known)] = "good"


class Ordered(Config):
    """Two numbers."""

    a: int
    b: int

    @model_validator(mode="after")
    def _in_order(self) -> Ordered:
        if self.a > self.b:
            raise ValueError("a is above b")
        return self


class Pair(Config):
    """What holds them."""

    pair: Ordered


def _error(text: str) -> UserError:
    with pytest.raises(UserError) as caught:
        build(Outer, parse_yaml(text, where="x.yaml"), where="x.yaml", text=text)
    return caught.value


@pytest.mark.parametrize(
    ("text", "what", "where", "remedy"),
    [
        ("parts:\n  - name: a\n    sise: 2\n", "unknown key 'sise'", "x.yaml, line 3, parts.0.sise", "did you mean 'size'?"),
        ("parts:\n  - size: 2\n", "the key 'name' is missing", "x.yaml, line 2, parts.0.name", "add it"),
        ("parts:\n  - name: a\n    size: 0\n", "greater than or equal to 1", "x.yaml, line 3, parts.0.size", "correct the value"),
        ("parts: [good, gud]\n", "unknown word 'gud'", "x.yaml, line 1, parts.1", "did you mean 'good'?"),
        ("parts: [3]\n", "valid string", "x.yaml, line 1, parts.0", "correct the value"),
        ("\nword: gud\n", "unknown word 'gud'", "x.yaml, line 2, word", "did you mean 'good'?"),
        ("word: 1\nwrod: good\n", "unknown key 'wrod'", "x.yaml, line 2, wrod", "did you mean 'word'?"),
    ],
)
def test_a_mistake_is_told_where_it_stands(text: str, what: str, where: str, remedy: str) -> None:
    error = _error(text)
    assert what in error.what
    assert (error.where, error.remedy) == (where, remedy)


def test_a_validators_own_remedy_is_kept() -> None:
    assert Invalid("what", "remedy").remedy == "remedy"
    assert _error("word: gud\n").what == "unknown word 'gud'", "what was given stands in the sentence already"


def test_a_mapping_that_contradicts_itself_is_not_repeated() -> None:
    with pytest.raises(UserError) as caught:
        build(Pair, {"pair": {"a": 2, "b": 1}}, where="x.yaml")
    assert (caught.value.what, caught.value.where) == ("a is above b", "x.yaml, pair")
    with pytest.raises(UserError) as caught:
        build(Pair, {"pair": {"a": 1, "b": "x" * 500}}, where="x.yaml")
    assert caught.value.what.endswith("(got '" + "x" * 99 + "…)")
