"""A check names every file that is not what it was, and a replay every one that does not come out again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cairn.errors import UserError
from cairn.ledger.store import Artifact, Store
from cairn.pipeline.recipe import load_recipe
from cairn.pipeline.run import run_recipe
from cairn.pipeline.verify import parse_interval, replay, verify_folder

Write = Callable[..., str]

TWO = "  one: {kind: lines, lines: 4}\n  two: {kind: lines, after: one}\n"
FILE = "  one: {kind: lines}\n  two: {kind: lines, after: one, file: none}\n"


def _artifact(write: Write, store: Store, yaml: str = TWO, *overrides: str) -> Artifact:
    return run_recipe(load_recipe(write(yaml), overrides), store).stages[-1].artifact


def test_an_untouched_artifact_is_right_and_a_flipped_byte_is_named(write_recipe: Write, store: Store) -> None:
    artifact = _artifact(write_recipe, store)
    verdict = verify_folder(artifact.folder)
    assert verdict.json() == {"ok": True, "differs": []}
    assert verdict.files == 2
    file = artifact.path("out/lines.txt")
    data = bytearray(file.read_bytes())
    data[7] ^= 1
    file.write_bytes(data)
    verdict = verify_folder(artifact.folder)
    assert [d["path"] for d in verdict.differs] == ["out/lines.txt"]
    assert "other bytes" in verdict.differs[0]["why"]


def test_a_damaged_record_and_a_moved_folder_are_told(write_recipe: Write, store: Store) -> None:
    artifact = _artifact(write_recipe, store)
    moved = artifact.folder.rename(artifact.folder.with_name("f" * 64))
    assert "folder's name" in verify_folder(moved).differs[0]["why"]
    (moved / "record.json").write_text("{}")
    assert verify_folder(moved).differs[0]["path"] == "record.json"


def test_a_replay_gives_the_same_bytes_and_leaves_the_store_as_it_was(write_recipe: Write, store: Store, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("x\n")
    artifact = _artifact(write_recipe, store, FILE, f"two.file={tmp_path / 'in.txt'}")
    before = sorted(p for p in store.root.rglob("*"))
    verdict = replay(artifact, store)
    assert verdict.ok, verdict.differs
    assert verdict.notes == []
    assert verdict.files == 1
    assert sorted(p for p in store.root.rglob("*")) == before


def test_a_replay_finds_outputs_and_metrics_that_depend_on_the_clock(write_recipe: Write, store: Store) -> None:
    verdict = replay(_artifact(write_recipe, store, "  clock: {kind: fault, how: clock}\n"), store)
    assert [d["path"] for d in verdict.differs] == ["clock.txt", "record.json: metrics.clock"]
    assert "differs first at byte" in verdict.differs[0]["why"]


def test_a_replay_refuses_other_inputs(write_recipe: Write, store: Store, tmp_path: Path) -> None:
    outside = tmp_path / "in.txt"
    outside.write_text("x\n")
    artifact = _artifact(write_recipe, store, FILE, f"two.file={outside}")
    outside.write_text("y\n")
    with pytest.raises(UserError, match="has changed since") as caught:
        replay(artifact, store)
    assert caught.value.where == str(outside)
    outside.write_text("x\n")
    before = store.artifacts / artifact.record.inputs["one"].key / "out" / "lines.txt"
    before.write_bytes(before.read_bytes().replace(b"word", b"ward", 1))
    with pytest.raises(UserError, match="'one' is damaged") as caught:
        replay(artifact, store)
    assert caught.value.where == str(before)


def test_a_relative_file_is_found_from_another_folder(
    write_recipe: Write, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in.txt").write_text("x\n")
    monkeypatch.chdir(tmp_path)
    artifact = _artifact(write_recipe, store, "  one: {kind: lines, parts: [{path: in.txt}]}\n")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert replay(artifact, store).ok


def test_notes_tell_of_another_environment_and_other_code(write_recipe: Write, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = _artifact(write_recipe, store)
    monkeypatch.setenv("OMP_NUM_THREADS", "77")
    monkeypatch.setattr("cairn.pipeline.verify.stage_code", lambda stage: "other")
    notes = replay(artifact, store).notes
    assert any("threads was" in note and "is 77" in note for note in notes)
    assert any("code has changed" in note for note in notes)


def test_an_interval_is_left_to_the_stage(write_recipe: Write, store: Store) -> None:
    artifact = _artifact(write_recipe, store, "  one: {kind: lines, lines: 6}\n")
    assert replay(artifact, store, interval=(1, 4)).ok
    file = artifact.path("out/lines.txt")
    lines = file.read_text().splitlines()
    lines[2] = "forged"
    file.write_text("\n".join(lines))
    assert [d["path"] for d in replay(artifact, store, interval=(1, 4)).differs] == ["line 2"]
    assert replay(artifact, store, interval=(3, 6)).ok
    with pytest.raises(UserError, match="no intervals"):
        replay(_artifact(write_recipe, store, "  clock: {kind: fault, how: clock}\n"), store, interval=(0, 1))


@pytest.mark.parametrize("text", ["", "1", "2:1", "1:1", "a:b", "1:", "-1:2"])
def test_a_wrong_interval_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="A:B"):
        parse_interval(text)
    assert parse_interval("10:20") == (10, 20)
