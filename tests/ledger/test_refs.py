"""Marked fields are found however deep they stand."""

from __future__ import annotations

from pydantic import Field

from cairn.config import Config
from cairn.ledger.refs import INPUT, STAGE, InputPath, StageRef, locate, marked, replace


class Source(Config):
    name: str
    stage: StageRef | None = None
    path: InputPath | None = None


class Other(Config):
    name: str


class Whole(Config):
    first: StageRef
    plain: str = "first"
    several: list[StageRef] = Field(default_factory=list)
    sources: list[Source] = Field(default_factory=list)
    by_name: dict[str, Source | Other] = Field(default_factory=dict)
    pair: tuple[str, StageRef] | None = None
    files: dict[str, InputPath] = Field(default_factory=dict)


def test_a_dotted_place_is_located() -> None:
    value = {"data": [{"path": "a"}, {"path": "b"}], "0": "c"}
    assert locate(value, "data.1.path") == (("data", 1, "path"), "b")
    assert locate(value, "0") == (("0",), "c")


def test_every_mark_is_found_and_nothing_else() -> None:
    config = Whole(
        first="a",
        several=["b", "c"],
        sources=[Source(name="x", stage="d"), Source(name="y", path="p")],
        by_name={"k": Source(name="z", stage="e"), "l": Other(name="o")},
        pair=("no", "f"),
        files={"q": "r"},
    )
    assert list(marked(config, STAGE)) == [
        (("first",), "a"),
        (("several", 0), "b"),
        (("several", 1), "c"),
        (("sources", 0, "stage"), "d"),
        (("by_name", "k", "stage"), "e"),
        (("pair", 1), "f"),
    ]
    assert list(marked(config, INPUT)) == [(("sources", 1, "path"), "p"), (("files", "q"), "r")]


def test_replace_changes_one_place_of_a_copy() -> None:
    value = {"a": [1, {"b": 2}], "c": 3}
    assert replace(value, ("a", 1, "b"), 9) == {"a": [1, {"b": 9}], "c": 3}
    assert value == {"a": [1, {"b": 2}], "c": 3}
