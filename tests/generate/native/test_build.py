"""The compiled decoder: a library for each kind of weights, compiled once, or the reason why there is none."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from cairn.generate.native import build
from cairn.model.native import build as libraries


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
    monkeypatch.setattr(libraries, "_compile", lambda *_: pytest.fail("compiled again"))
    build.library("float32")
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "cairn").iterdir()} == first


def test_without_a_compiler_the_reason_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(build.Unavailable, match="no C\\+\\+ compiler"):
        build.library("float32")
