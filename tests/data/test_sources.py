"""A source's configuration: what is refused before anything is read."""

from __future__ import annotations

import pytest

from cairn.config import build
from cairn.data.sources import Source
from cairn.errors import UserError


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({"path": "x", "weight": 0}, "above zero"),
        ({"path": "x", "weight": -1}, "above zero"),
        ({}, "either 'path' or 'stage'"),
        ({"path": "x", "stage": "s", "file": "f"}, "either 'path' or 'stage'"),
        ({"stage": "s"}, "go together"),
        ({"path": "x", "file": "f"}, "go together"),
        ({"path": "x", "limit": 0}, "greater than or equal to 1"),
        ({"path": "x", "wieght": 1}, "unknown key 'wieght'"),
        ({"path": "x", "name": "a/b"}, "pattern"),
    ],
)
def test_mistakes_are_refused(given, word):
    with pytest.raises(UserError, match=word):
        build(Source, {"name": "s", **given}, where="recipe.yaml")


def test_a_source_reads_its_rows(write):
    path = write("x.txt", "one\n\ntwo\n\nthree")
    source = Source(name="books", path=str(path), language="en", separator="\n\n", limit=2)
    assert list(source.read(path)) == [
        {"text": "one", "source": "books", "language": "en", "id": "x.txt:1"},
        {"text": "two", "source": "books", "language": "en", "id": "x.txt:2"},
    ]
