"""Fixtures for tests that run recipes of dummy stages, through the API or the command line."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from cairn.ledger.store import Store
from cairn.pipeline import stage as stages

# A busy machine is no fault of the code: no example of a property has a time to keep.
hypothesis.settings.register_profile("cairn", deadline=None)
hypothesis.settings.load_profile("cairn")

DUMMIES = Path(__file__).parent / "pipeline" / "dummies.py"


@pytest.fixture
def dummies() -> Iterator[Any]:
    """The dummy stage kinds, known during one test."""
    spec = importlib.util.spec_from_file_location("cairn_test_dummies", DUMMIES)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    stages.unregister("lines")
    stages.unregister("fault")
    del sys.modules[spec.name]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store."""
    return Store(tmp_path / "store")


@pytest.fixture
def write_recipe(tmp_path: Path) -> Callable[..., str]:
    """Write a recipe file and give its path."""

    def write(stages_yaml: str, head: str = "recipe: small\nseed: 1\n") -> str:
        path = tmp_path / "small.yaml"
        path.write_text(f"{head}stages:\n{stages_yaml}")
        return str(path)

    return write


def heed_interrupts() -> None:
    """Let a child process have Ctrl-C's signal as a terminal gives it: a shell starts what it runs in the background with the signal
    ignored, and children inherit that. For `preexec_fn`."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture
def cairn_process() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start `cairn` with the dummy kinds as a process of its own; what is left at the end is killed."""
    running: list[subprocess.Popen[str]] = []

    def start(*words: str, pause: float = 0.0) -> subprocess.Popen[str]:
        environ = {**os.environ, "DUMMY_PAUSE": str(pause)}
        command = [sys.executable, str(DUMMIES), *words]
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = subprocess.Popen(command, env=environ, text=True, preexec_fn=heed_interrupts, **pipes)
        running.append(process)
        return process

    yield start
    for process in running:
        if process.poll() is None:
            process.kill()
        process.communicate()
