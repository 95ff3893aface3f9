"""Where two artifacts part: the first difference in configuration, inputs, code, seed, environment and outputs.

Knows records and folders; knows nothing of how to run a stage again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cairn.ledger.record import Record
from cairn.ledger.store import Artifact

ASPECTS = ("kind", "configuration", "inputs", "files", "code", "seed", "environment", "metrics", "outputs")
"""What is compared, in this order."""

_ABSENT = "(absent)"


def compare(left: Artifact, right: Artifact) -> dict[str, dict[str, Any] | None]:
    """The first difference in each aspect, or None where they are equal.

    Returns:
        {aspect: {"path", "left", "right"} or None}; for outputs also "why".
    """
    found = compare_records(left.record, right.record)
    difference = found["outputs"]
    if difference is not None:
        difference["why"] = explain(left.path(difference["path"]), right.path(difference["path"]))
    return found


def compare_records(left: Record, right: Record) -> dict[str, dict[str, Any] | None]:
    """Like `compare`, by the records alone."""

    def view(record: Record) -> dict[str, Any]:
        return {
            "kind": record.kind,
            "configuration": record.config,
            "inputs": {label: i.digest for label, i in record.inputs.items()},
            "files": {label: f.sha256 for label, f in record.files.items()},
            "code": record.code,
            "seed": record.seed,
            "environment": record.environment,
            "metrics": record.metrics,
            "outputs": {path: o.sha256 for path, o in record.outputs.items()},
        }

    one, two = view(left), view(right)
    return {aspect: first_difference(one[aspect], two[aspect]) for aspect in ASPECTS}


def first_difference(left: Any, right: Any, path: str = "") -> dict[str, Any] | None:
    """The first place, in sorted order, at which two JSON-like values differ."""
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        for key in sorted({*left, *right}, key=str):
            # A file's path is a key as well: dots in it must not be taken for levels, so only the outermost level stays bare.
            inner = f"{path}.{key}" if path else str(key)
            if key not in left or key not in right:
                return {"path": inner, "left": left.get(key, _ABSENT), "right": right.get(key, _ABSENT)}
            found = first_difference(left[key], right[key], inner)
            if found:
                return found
        return None
    if _is_list(left) and _is_list(right):
        for index in range(max(len(left), len(right))):
            inner = f"{path}.{index}" if path else str(index)
            if index >= len(left) or index >= len(right):
                one = left[index] if index < len(left) else _ABSENT
                two = right[index] if index < len(right) else _ABSENT
                return {"path": inner, "left": one, "right": two}
            found = first_difference(left[index], right[index], inner)
            if found:
                return found
        return None
    # 1, 1.0 and True are equal to Python and are not to a record.
    if type(left) is not type(right) or left != right:
        return {"path": path, "left": left, "right": right}
    return None


def explain(left: Path, right: Path) -> str:
    """In words, where the bytes of two files first differ; the line too if both are text."""
    if not left.is_file() or not right.is_file():
        return "the file is missing on one side" if left.is_file() or right.is_file() else "the file is missing on both sides"
    position, line = 0, 1
    with open(left, "rb") as one, open(right, "rb") as two:
        while True:
            a, b = one.read(1 << 20), two.read(1 << 20)
            if a == b:
                if not a:
                    return "the bytes are equal now; the records differ"
                position, line = position + len(a), line + a.count(b"\n")
                continue
            at = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
            line += a[:at].count(b"\n")
            text = b"\0" not in a[:4096] + b[:4096]
            sizes = f"{left.stat().st_size} and {right.stat().st_size} bytes"
            return f"differs first at byte {position + at}{f' (line {line})' if text else ''}; {sizes}"


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)
