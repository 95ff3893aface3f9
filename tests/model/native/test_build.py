"""Libraries out of C++: compiled once, kept where nobody else writes, and the reason told where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from cairn.model.native import build

SOURCE = 'extern "C" int answer() { return 42; }\n'


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "answer.cpp"
    path.write_text(SOURCE, encoding="utf-8")
    return path


def test_a_changed_source_is_another_library(source: Path, tmp_path: Path) -> None:
    assert build.built(source, "answer").answer() == 42
    source.write_text(SOURCE.replace("42", "43"), encoding="utf-8")
    assert build.built(source, "answer").answer() == 43
    assert len(list((tmp_path / "cache" / "cairn").iterdir())) == 2


def test_a_failing_compiler_leaves_nothing(source: Path, tmp_path: Path) -> None:
    source.write_text("#error this processor will not do\n", encoding="utf-8")
    with pytest.raises(build.Unavailable, match="this processor will not do"):
        build.built(source, "answer")
    assert list((tmp_path / "cache" / "cairn").iterdir()) == []


def test_a_folder_that_others_write_to_is_not_trusted(source: Path, tmp_path: Path) -> None:
    (tmp_path / "cache" / "cairn").mkdir(parents=True)
    (tmp_path / "cache" / "cairn").chmod(0o777)
    with pytest.raises(build.Unavailable, match="written by others"):
        build.built(source, "answer")
