"""Stated shares are reached in tokens, by the mix itself; what cannot be reached is refused."""

from __future__ import annotations

import numpy as np
import pytest

from cairn.config import build
from cairn.data.batches import PackedStream
from cairn.data.encode import Encoded
from cairn.data.shares import Part, Shares, reached, weights
from cairn.errors import UserError


def part(name, tokens, language, kind="dialogues", weight=1.0):
    return Part(name, weight, tokens, frozenset({language}), frozenset({kind}))


PARTS = [
    part("en-long", 300.0, "en", weight=2.0), part("en-short", 40.0, "en"), part("ja", 90.0, "ja", weight=5.0),
    part("books", 500.0, "en", "texts"), part("aozora", 700.0, "ja", "texts"),
]  # fmt: skip


def found(shares, parts=PARTS):
    out = weights(parts, Shares.model_validate(shares))
    mass = {p.name: w * p.tokens for p, w in zip(parts, out, strict=True)}
    return {name: value / sum(mass.values()) for name, value in mass.items()}


def test_karakuris_mix():
    shares = found({"text": 0.4, "dialogues": {"ja": 0.025}, "texts": {"ja": 0.7}})
    assert shares["books"] + shares["aozora"] == pytest.approx(0.4)
    assert shares["aozora"] == pytest.approx(0.28)
    assert shares["ja"] == pytest.approx(0.6 * 0.025)
    assert shares["en-long"] / shares["en-short"] == pytest.approx(600 / 40)  # what is free keeps its proportions


def test_what_is_not_stated_stays():
    before = [p.weight * p.tokens for p in PARTS]
    shares = found({"dialogues": {"ja": 0.5, "en": 0.5}})
    assert shares["books"] == pytest.approx(before[3] / sum(before))
    assert shares["ja"] == pytest.approx(sum(before[:3]) / sum(before) / 2)


def test_the_stream_draws_what_was_stated():
    lengths = {"en-long": (20, 40), "en-short": (3, 5), "ja": (7, 11)}
    draw = np.random.default_rng(0)
    documents = [[Encoded(np.zeros(n, np.int32), np.ones(n, np.uint8)) for n in draw.integers(*lengths[p.name], 50)] for p in PARTS[:3]]
    means = [sum(map(len, own)) / len(own) for own in documents]
    parts = [part(p.name, mean, next(iter(p.languages)), weight=p.weight) for p, mean in zip(PARTS[:3], means, strict=True)]
    out = weights(parts, Shares(dialogues={"ja": 0.025}))
    stream, drawn = PackedStream(documents, out, 1, 64, 16), np.zeros(3)
    for _ in range(400):
        batch = next(stream)
        np.add.at(drawn, batch.sources, batch.doc_lengths)
    assert drawn[2] / drawn.sum() == pytest.approx(0.025, rel=0.02)


@pytest.mark.parametrize(("shares", "parts", "what"), [
    ({"dialogues": {"ko": 0.1}}, PARTS, "no source of dialogues is of the language 'ko'"),
    ({"dialogues": {"ja": 0.1, "en": 0.5}}, PARTS, "leave 0.4 of the tokens to 0 other sources"),
    ({"dialogues": {"ja": 1.0}}, PARTS, "leave 0 of the tokens to 2 other sources"),
    ({"text": 0.5}, PARTS[:3], "there is no source of texts"),
    ({"dialogues": {"ja": 0.1}}, [PARTS[0], Part("both", 1, 9, frozenset({"ja", None}), frozenset({"dialogues"}))], "languages ja, none"),
    ({"text": 0.1}, [PARTS[0], Part("both", 1, 9, frozenset({"en"}), frozenset({"texts", "dialogues"}))], "holds dialogues and plain text"),
])  # fmt: skip
def test_what_cannot_be_reached_is_refused(shares, parts, what):
    with pytest.raises(UserError, match=what) as error:
        weights(parts, Shares.model_validate(shares))
    assert error.value.where.startswith("shares")
    assert error.value.remedy


@pytest.mark.parametrize("shares", [{}, {"dialogues": {"ja": 0.6, "en": 0.5}}, {"text": 1.0}, {"texts": {"ja": 0}}])
def test_shares_are_parts_of_a_whole(shares):
    with pytest.raises(UserError):
        build(Shares, shares, where="recipe.yaml")


def test_what_was_reached_is_told_of_what_was_asked():
    tokens = {"en": 300, "ja": 100, "books": 500, "aozora": 100}
    groups = {"en": ("dialogues", "en"), "ja": ("dialogues", "ja"), "books": ("texts", None), "aozora": ("texts", "ja")}
    asked = Shares.model_validate({"text": 0.5, "dialogues": {"ja": 0.2, "en": 0.8}, "texts": {"ja": 0.1}})
    assert reached(tokens, groups, asked) == {
        "text": 0.6, "dialogues": {"ja": 0.25, "en": 0.75}, "texts": {"ja": pytest.approx(1 / 6)},
    }  # fmt: skip
    assert reached(tokens, groups, Shares(text=0.5)) == {"text": 0.6}
    assert reached({"en": 5}, groups, asked)["texts"] == {"ja": 0.0}
