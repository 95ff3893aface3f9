"""The compiled decoder: when there is none, why, and where it is kept."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from cairn.generate.native import build


@pytest.fixture(autouse=True)
def _anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    build.library.cache_clear()
    yield
    build.library.cache_clear()


def test_it_is_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build.library("float32")
    first = {p: p.stat().st_mtime_ns for p in (tmp_path / "cairn").iterdir()}
    assert len(first) == 1
    build.library.cache_clear()
    monkeypatch.setattr(build, "_compile", lambda *_: pytest.fail("compiled again"))
    build.library("float32")
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "cairn").iterdir()} == first


def test_without_a_compiler_the_reason_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(build.Unavailable, match="no C\\+\\+ compiler"):
        build.library("float32")


def test_a_failing_compiler_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "_FLAGS", ("--no-such-flag",))
    with pytest.raises(build.Unavailable, match="no-such-flag"):
        build.library("float32")
    assert list((tmp_path / "cairn").iterdir()) == []


def test_a_folder_that_others_write_to_is_not_trusted(tmp_path: Path) -> None:
    (tmp_path / "cairn").mkdir()
    (tmp_path / "cairn").chmod(0o777)
    with pytest.raises(build.Unavailable, match="written by others"):
        build.library("float32")
