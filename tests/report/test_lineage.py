"""Lineage out of records."""

from __future__ import annotations

from typing import Any

import pytest

from cairn.errors import UserError
from cairn.ledger.record import File
from cairn.ledger.store import Artifact
from cairn.report.lineage import ancestry, timeless, tree_text, tree_value


def test_tree_shows_every_branch_once(small: dict[str, Artifact], put: Any) -> None:
    text = tree_text([small["chat"], small["scores"]], put.store)
    shape = [line.split("  key")[0] for line in text.splitlines()]
    assert shape == [
        "chat (train)",
        "├─ base (train)",
        "│  └─ corpus (corpus)",
        "└─ corpus (corpus)",
        "scores (evaluate)",
        "├─ chat (train)",
        "└─ corpus (corpus)",
    ]
    assert text.splitlines()[5].endswith("(its inputs: see above)")


def test_files_from_outside_are_told_by_content(put: Any) -> None:
    config = {"data": [{"name": "x", "path": "/home/someone/x.jsonl"}]}
    files = {"data.0.path": File(path="/home/someone/x.jsonl", sha256="f" * 64)}
    made = put("rows", "data", {"rows.jsonl": "{}\n"}, config=config, files=files)
    assert tree_text([made], put.store).splitlines()[1] == f"└─ data.0.path (file from outside)  content {'f' * 16}"
    record = timeless(made.record)
    assert record["config"] == {"data": [{"name": "x", "path": {"content": "f" * 64}}]}
    assert "someone" not in str(record)
    assert "times" not in record


def test_ancestors_stand_before_what_reads_them(small: dict[str, Artifact], put: Any) -> None:
    names = [a.record.name for a in ancestry([small["scores"], small["chat"]], put.store)]
    assert names == ["corpus", "base", "chat", "scores"]


def test_a_tree_of_values_says_what_is_gone(small: dict[str, Artifact], put: Any) -> None:
    import shutil

    tree = tree_value(small["chat"], put.store)
    assert [(i["name"], i["kind"], i.get("note")) for i in tree["inputs"]] == [("base", "train", None), ("corpus", "corpus", None)]
    assert tree["inputs"][0]["inputs"][0]["digest"] == small["corpus"].record.digest
    shutil.rmtree(small["corpus"].folder)
    gone = tree_value(small["chat"], put.store)["inputs"][1]
    assert (gone["kind"], gone["note"], gone["digest"]) == (None, "no longer in the store", small["corpus"].record.digest)


def test_a_lost_ancestor_is_told(small: dict[str, Artifact], put: Any) -> None:
    import shutil

    shutil.rmtree(small["corpus"].folder)
    with pytest.raises(UserError, match="not in the store"):
        ancestry([small["chat"]], put.store)
