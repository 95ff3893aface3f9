"""Schemas: their files are checked, a format takes one of one's own, fractions become whole numbers by the stated rule."""

from __future__ import annotations

import json
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cairn.chat.attributes import Attributes, built_in, from_fraction, nearest, read_schema, turn_attributes, with_attributes
from cairn.chat.format import Attribute
from cairn.chat.parse import parse
from cairn.chat.render import Renderer, render_text
from cairn.config import Config
from cairn.errors import UserError
from cairn.pipeline.keys import config_value
from cairn.tokenizer.train import byte_tokenizer

OWN = {"clarity": Attribute(default=3), "длина": Attribute(default=5, minimum=1, maximum=9)}
TALK = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}]


def test_the_built_in_nine_are_karakuris():
    helpsteer = dict.fromkeys(("helpfulness", "correctness", "coherence", "complexity", "verbosity"), 4)
    assert {name: one.default for name, one in built_in().items()} == helpsteer | {"quality": 4, "toxicity": 0, "humor": 0, "creativity": 0}
    assert {(one.minimum, one.maximum) for one in built_in().values()} == {(0, 4)}


@pytest.mark.parametrize("name", ["karakuri", "k2_attributes", "k2_steerable"])
def test_a_format_takes_a_schema_of_ones_own(name):
    format = with_attributes(name, OWN)
    text = render_text(format, TALK, attributes={"длина": 9})
    assert " [ATTR] clarity: 3 длина: 9 [/ATTR]" in text
    renderer = Renderer(format, byte_tokenizer(format))
    found = parse(renderer, renderer.tokenizer, renderer.render(TALK, attributes={"clarity": 0}).ids)
    assert found == {"messages": TALK, "attributes": {"clarity": 0, "длина": 5}}
    with pytest.raises(UserError, match="is 0") as error:
        renderer.render(TALK, attributes={"длина": 0})
    assert "from 1 to 9 (default 5)" in error.value.remedy
    with pytest.raises(UserError, match="unknown attribute 'humor'"):
        renderer.render(TALK, attributes={"humor": 1})


def test_a_format_without_a_place_for_attributes_is_refused():
    with pytest.raises(UserError, match="'k2' has no place for attributes") as error:
        with_attributes("k2", OWN)
    assert "k2_attributes or k2_steerable or karakuri" in error.value.remedy


def test_a_schema_file(tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text("attributes:\n  clarity: {default: 3}\n  length: {default: 5, minimum: 1, maximum: 9}\n")
    assert read_schema(path) == {"clarity": Attribute(default=3), "length": Attribute(default=5, minimum=1, maximum=9)}


@pytest.mark.parametrize(("text", "what"), [
    ("{a: {default: 5}}", r"the default \(5\) must lie between minimum \(0\) and maximum \(4\)"),
    ("{a: {default: 1, minimum: 3, maximum: 3}}", r"minimum \(3\) must be below maximum \(3\)"),
    ("{a: {}}", "'default' is missing"),
    ("{a: {default: 1, maximun: 3}}", "unknown key 'maximun'"),
    ("{a b: {default: 1}}", "'a b' cannot name an attribute"),
    ("{}", "at least one attribute"),
    ("[clarity, length]", r"this is \['clarity', 'length'\]"),
    ("clarity", "this is 'clarity'"),
    ("{clarity: 3}", "'clarity' is 3: its default and its range are asked for"),
])  # fmt: skip
def test_a_bad_schema_is_told_with_its_line(tmp_path, text, what):
    path = tmp_path / "s.yaml"
    path.write_text(f"attributes: {text}\n")
    with pytest.raises(UserError, match=what) as error:
        read_schema(path)
    assert "s.yaml, line 1" in error.value.where
    assert error.value.remedy


@pytest.mark.parametrize(("fraction", "level"), [
    (0.0, 0), (0.1249, 0), (0.125, 1), (0.25, 1), (1 / 3, 1), (0.375, 2), (0.37499999999999994, 2), (0.5, 2),
    (0.625, 3), (0.75, 3), (0.8749, 3), (0.875, 4), (1.0, 4),
])  # fmt: skip
def test_fractions_become_whole_numbers(fraction, level):
    assert from_fraction(fraction, Attribute(default=0)) == level


@given(st.integers(0, 40), st.integers(1, 40), st.integers(-3, 3), st.integers(1, 9))
def test_the_rule_is_exact_for_means_of_votes(part, votes, low, width):
    fraction = Fraction(min(part, votes), votes)
    wanted = low + (2 * fraction * width + 1) // 2
    assert from_fraction(float(fraction), Attribute(default=low, minimum=low, maximum=low + width)) == wanted


@pytest.mark.parametrize("fraction", [-0.01, 1.01, float("nan")])
def test_a_fraction_out_of_range_is_refused(fraction):
    with pytest.raises(ValueError, match="between 0 and 1"):
        from_fraction(fraction, Attribute(default=0))


def test_the_nearest_level():
    assert [nearest(x, Attribute(default=0)) for x in (-3.0, 0.49, 0.5, 1.5, 3.6, 9.0)] == [0, 0, 1, 2, 4, 4]


def test_a_turns_own_attributes_go_before_the_rows():
    row = {"messages": [{**TALK[0], "attributes": {"humor": 3}}, TALK[1], *TALK], "attributes": {"humor": 1, "quality": 2}}
    assert turn_attributes(row, 1) == {"humor": 3, "quality": 2}
    assert turn_attributes(row, 3) == {"humor": 1, "quality": 2}


class _Recipe(Config):
    attributes: Attributes | None = None


def test_a_record_that_sorts_its_keys_keeps_the_order_of_attributes():
    """What stands first in a prompt stands first in its replay."""
    recipe = _Recipe.model_validate({"attributes": {name: one.model_dump() for name, one in reversed(OWN.items())}})
    again = _Recipe.model_validate(json.loads(json.dumps(config_value(recipe), sort_keys=True)))
    assert again.attributes is not None
    assert recipe.attributes is not None
    assert list(again.attributes.root.items()) == list(recipe.attributes.root.items()) == list(reversed(OWN.items()))
    assert config_value(_Recipe()) == {"attributes": None}
