"""Records survive the disk, and damage to one is told with the place."""

from __future__ import annotations

from pathlib import Path

import pytest

from cairn.errors import UserError
from cairn.ledger.record import Output, Record, outputs_digest, read_record, record_text


def _record() -> Record:
    outputs = {"b": Output(sha256="2", bytes=2), "a": Output(sha256="1", bytes=1)}
    return Record(
        kind="train", name="base", key="k", config={"lr": 0.1, "말": [None, True]}, code="c", seed=7, outputs=outputs,
        digest=outputs_digest(outputs), metrics={"loss": 1.25},
    )  # fmt: skip


def test_a_record_comes_back_equal(tmp_path: Path) -> None:
    record = _record().sealed()
    (tmp_path / "record.json").write_text(record_text(record), encoding="utf-8")
    again = read_record(tmp_path / "record.json")
    assert again == record
    assert again.whole()
    assert not again.model_copy(update={"seed": 8}).whole()


def test_the_digest_covers_the_outputs_alone() -> None:
    outputs = {"a": Output(sha256="1", bytes=1)}
    assert outputs_digest(outputs) == outputs_digest({"a": Output(sha256="1", bytes=99)})
    assert outputs_digest(outputs) != outputs_digest({"b": Output(sha256="1", bytes=1)})


@pytest.mark.parametrize(
    ("text", "says", "where"),
    [("{", "cannot be read", "record.json"), ('{"kind": 1}', "cannot be read", "record.json, kind"), (None, "no record", "record.json")],
)
def test_a_damaged_record_is_told(tmp_path: Path, text: str | None, says: str, where: str) -> None:
    path = tmp_path / "record.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=says) as caught:
        read_record(path)
    assert where in caught.value.where
    assert "delete" in caught.value.remedy
