"""The first difference is found, named, and in its place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from cairn.ledger.compare import ASPECTS, compare_records, explain, first_difference
from cairn.ledger.record import Input, Output, Record, outputs_digest

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.text("ab", max_size=2),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("xy", max_size=2), inner, max_size=3),
    max_leaves=8,
)


@given(json_values)
def test_equal_values_do_not_differ(value: Any) -> None:
    assert first_difference(value, value) is None


@given(json_values, json_values)
def test_a_difference_is_seen_from_both_sides(left: Any, right: Any) -> None:
    one, two = first_difference(left, right), first_difference(right, left)
    assert (one is None) == (repr(left) == repr(right) or _same(left, right))
    if one and two:
        assert (one["path"], one["left"], one["right"]) == (two["path"], two["right"], two["left"])


def _same(left: Any, right: Any) -> bool:
    import json

    return json.dumps(left, sort_keys=True) == json.dumps(right, sort_keys=True)


def test_paths_and_absences_are_named() -> None:
    assert first_difference({"a": {"b": [1, 2]}}, {"a": {"b": [1, 3]}}) == {"path": "a.b.1", "left": 2, "right": 3}
    assert first_difference({"a": [1]}, {"a": [1, 2]}) == {"path": "a.1", "left": "(absent)", "right": 2}
    assert first_difference({"a": True}, {"a": 1}) is not None


def _record(**more: Any) -> Record:
    outputs = more.pop("outputs", {"f.txt": Output(sha256="1", bytes=1)})
    fixed: dict[str, Any] = {"kind": "k", "name": "n", "key": "1", "config": {"lr": 1}, "code": "c", "seed": 0}
    return Record(**{**fixed, "environment": {"threads": 2}, **more}, outputs=outputs, digest=outputs_digest(outputs))


def test_each_aspect_is_reported_on_its_own() -> None:
    changes: dict[str, dict[str, Any]] = {
        "kind": {"kind": "other"},
        "configuration": {"config": {"lr": 2}},
        "inputs": {"inputs": {"base": Input(key="k", digest="d")}},
        "code": {"code": "d"},
        "seed": {"seed": 1},
        "environment": {"environment": {"threads": 4}},
        "metrics": {"metrics": {"loss": 1.0}},
        "outputs": {"outputs": {"f.txt": Output(sha256="2", bytes=1)}},
    }
    for aspect, change in changes.items():
        found = compare_records(_record(), _record(**change))
        assert [a for a in ASPECTS if found[a] is not None] == [aspect]
    # Keys, names and times say nothing about what an artifact is.
    same = compare_records(_record(), _record(name="m", key="2", times={"seconds": 3}))
    assert all(value is None for value in same.values())


def test_explain_names_byte_and_line(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_bytes(b"first\nsecond\n")
    two.write_bytes(b"first\nsecOnd\n")
    assert explain(one, two) == "differs first at byte 9 (line 2); 13 and 13 bytes"
    two.write_bytes(b"first\n")
    assert "byte 6" in explain(one, two)
    one.write_bytes(b"\0" * (1 << 20) + b"a")
    two.write_bytes(b"\0" * (1 << 20) + b"b")
    assert f"at byte {1 << 20}" in explain(one, two)
    assert "missing on one side" in explain(one, tmp_path / "three")
