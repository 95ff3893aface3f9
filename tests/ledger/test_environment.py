"""The recorded environment names what can change an output, without importing it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from cairn.ledger.environment import cores, environment, threads, version


def test_it_is_json_and_names_versions_and_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")
    facts = json.loads(json.dumps(environment()))
    assert facts["threads"] == 3
    assert facts["world_size"] == 4
    assert facts["packages"]["numpy"] == version("numpy")
    assert facts["variables"]["OMP_NUM_THREADS"] == "3"
    assert facts["cpu"]


def test_threads_fall_back_to_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "none")
    assert threads() == cores() >= 1
    assert version("no-such-distribution") is None


def test_no_library_is_imported_for_it() -> None:
    code = "import sys; from cairn.ledger.environment import environment; environment(); print({'torch', 'numpy'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_the_compiler_is_named_by_its_version(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = tmp_path / "g++"
    compiler.write_text("#!/bin/sh\necho 'g++ 99.1 (mine)'\necho more\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert environment()["compiler"] == "g++ 99.1 (mine)"
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert environment()["compiler"] is None
