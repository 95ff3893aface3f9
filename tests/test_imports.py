"""The rooms' floors: every import of this package points down, as the table says; and the light modules stay light."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import cairn

SOURCE = Path(cairn.__file__).parent

FLOORS = {
    "errors": 0, "config": 0, "ledger": 0,
    "tokenizer": 1, "score": 1, "model": 1,
    "chat": 2,
    "data": 3, "generate": 3,
    "train": 4, "evaluate": 4, "serve": 4, "report": 4,
    "pipeline": 5,
    "cli": 6, "__main__": 7,
}  # fmt: skip
"""Room: floor. A room may import rooms of lower floors."""

SIDEWAYS = {("config", "errors"), ("ledger", "config"), ("ledger", "errors")}
"""Imports between rooms of one floor that are allowed besides."""

FORBIDDEN = {
    "errors": {"torch", "transformers"},
    "config": {"torch", "transformers"},
    "ledger": {"torch", "transformers", "numpy"},
    "score": {"torch", "transformers"},
    "chat": {"torch", "pyarrow"},
    "data": {"torch", "transformers"},
    "report": {"torch", "transformers"},
    "pipeline": {"fastapi", "uvicorn", "http"},
}
"""What a room must not know."""


def _modules() -> list[Path]:
    return sorted(p for p in SOURCE.rglob("*.py") if p != SOURCE / "__init__.py")


def _room(path: Path) -> str:
    first = path.relative_to(SOURCE).parts[0]
    return first.removesuffix(".py")


def _imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every import at whatever depth; relative ones made absolute."""
    package = ["cairn", *path.relative_to(SOURCE).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join([*package[: len(package) - node.level + 1], node.module or ""]).rstrip(".") if node.level else str(node.module)
            for alias in node.names:
                # `from cairn import config` imports a room; `from cairn.config import build` a name in one.
                yield node.lineno, f"{base}.{alias.name}" if base == "cairn" else base


def _arrows(path: Path) -> list[str]:
    """Every import of `path` that does not point down."""
    room, found = _room(path), []
    for line, name in _imports(path):
        parts = name.split(".")
        if parts[0] != "cairn" or len(parts) == 1 or parts[1] == room or parts[1] == "__version__":
            continue
        target = parts[1]
        assert target in FLOORS, f"{path}:{line}: the room '{target}' has no floor"
        down = FLOORS[target] < FLOORS[room]
        # Floor 4's loop may use data, generate and score, which all lie below it; no further arrow along a floor is drawn.
        if not down and (room, target) not in SIDEWAYS:
            found.append(f"{path.relative_to(SOURCE)}:{line} imports cairn.{target} (floor {FLOORS[room]} -> {FLOORS[target]})")
    return found


def test_every_room_has_a_floor() -> None:
    assert {_room(p) for p in _modules()} <= set(FLOORS)


def test_imports_point_down() -> None:
    assert [arrow for path in _modules() for arrow in _arrows(path)] == []


def test_an_arrow_up_would_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    file = tmp_path / "data" / "bad.py"
    file.write_text("def f():\n    from ..train import x\n    from cairn import cli\n    import cairn.generate.y, cairn.chat.z\n")
    monkeypatch.setitem(globals(), "SOURCE", tmp_path)
    assert [arrow.split(" imports ")[1].split(" ")[0] for arrow in _arrows(file)] == ["cairn.train", "cairn.cli", "cairn.generate"]


def test_no_room_knows_what_it_must_not() -> None:
    found = []
    for path in _modules():
        for line, name in _imports(path):
            if name.split(".")[0] in FORBIDDEN.get(_room(path), ()):
                found.append(f"{path.relative_to(SOURCE)}:{line} imports {name}")
    assert found == []


def test_light_modules_load_nothing_heavy() -> None:
    """A finished store answers in under two seconds only if no stage kind loads torch to be looked at."""
    stages = [f"cairn.pipeline.stages.{p.stem}" for p in sorted((SOURCE / "pipeline" / "stages").glob("*.py")) if p.stem != "__init__"]
    verbs = [f"cairn.cli.{p.stem}" for p in sorted((SOURCE / "cli").glob("*.py")) if p.stem != "__init__"]
    code = (
        "import importlib, sys\n"
        f"for name in {[*stages, *verbs, 'cairn.pipeline.run', 'cairn.pipeline.verify', 'cairn.pipeline.resolve']!r}:\n"
        "    importlib.import_module(name)\n"
        "    heavy = {'torch', 'transformers', 'pyarrow', 'matplotlib'} & set(sys.modules)\n"
        "    assert not heavy, f'{name} loads {heavy}'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-600:]
