"""Digests tell contents apart and nothing else; the digest of code follows imports."""

from __future__ import annotations

import ast
import hashlib
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cairn.errors import UserError
from cairn.ledger.digest import bytes_digest, code_digest, file_digest, folder_digest, folder_files, import_statements, json_digest


def test_file_and_bytes_agree_with_sha256(tmp_path: Path) -> None:
    data = bytes(range(256)) * 5000
    (tmp_path / "f").write_bytes(data)
    assert file_digest(tmp_path / "f") == bytes_digest(data) == hashlib.sha256(data).hexdigest()


def test_json_digest_does_not_depend_on_key_order() -> None:
    assert json_digest({"a": 1, "b": [2]}) == json_digest({"b": [2], "a": 1})
    assert json_digest({"a": 1}) != json_digest({"a": 1.5})


def test_folder_digest_sees_content_and_names_only(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name / "sub").mkdir(parents=True)
        (tmp_path / name / "sub" / "x.txt").write_text("x")
    (tmp_path / "two" / "empty").mkdir()
    assert folder_digest(tmp_path / "one") == folder_digest(tmp_path / "two")
    (tmp_path / "two" / "sub" / "x.txt").rename(tmp_path / "two" / "sub" / "y.txt")
    assert folder_digest(tmp_path / "one") != folder_digest(tmp_path / "two")


def test_folder_files_skips_folders_and_refuses_links_to_folders(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "a").write_text("")
    (tmp_path / "b").write_text("")
    assert folder_files(tmp_path, skip={"logs"}) == ["b"]
    assert folder_files(tmp_path) == ["b", "logs/a"]
    (tmp_path / "link").symlink_to(tmp_path / "logs")
    with pytest.raises(UserError, match="symbolic link"):
        folder_files(tmp_path)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package in which room.main imports helper at its top, lazy inside a function, and plugins by computed names."""
    root = tmp_path / "pack"
    files = {
        "__init__.py": "",
        "room/__init__.py": "",
        "room/main.py": "from pack.room import helper\n\ndef f():\n    if helper:\n        from ..other.lazy import thing\n",
        "room/helper.py": "A = 1\n",
        "room/unused.py": "B = 1\n",
        "room/tables/words.txt": "word\n",
        "other/__init__.py": "",
        "other/lazy.py": "thing = 1\n",
        "other/plug.py": "import importlib\n\ndef load(name):\n    return importlib.import_module(f'pack.plugins.{name}')\n",
        "plugins/__init__.py": "",
        "plugins/one.py": "C = 1\n",
        "recipes/a.yaml": "a: 1\n",
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def _digest(package: Path, module: str = "pack.room.main") -> str:
    """The digest found by a new process: results are remembered inside one."""
    code = f"from cairn.ledger.digest import code_digest; import sys; print(code_digest({module!r}), 'pack.room' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=package.parent, capture_output=True, text=True, check=True)
    digest, imported = done.stdout.split()
    assert imported == "False", "the code must be read, not run"
    return digest


@pytest.mark.parametrize(
    ("file", "module", "counts"),
    [
        ("room/main.py", "pack.room.main", True),
        ("room/helper.py", "pack.room.main", True),
        ("other/lazy.py", "pack.room.main", True),  # imported inside a function, by a relative name
        ("room/__init__.py", "pack.room.main", True),
        ("room/tables/words.txt", "pack.room.main", True),
        ("room/unused.py", "pack.room.main", False),
        ("plugins/one.py", "pack.room.main", False),
        ("recipes/a.yaml", "pack.room.main", False),
        ("plugins/one.py", "pack.other.plug", True),  # imported by a computed name
    ],
)
def test_code_digest_changes_with_what_can_be_reached(package: Path, file: str, module: str, counts: bool) -> None:
    before = _digest(package, module)
    path = package / file
    path.write_text(path.read_text() + "# more\n")
    assert (_digest(package, module) != before) is counts


def test_code_digest_ignores_line_ends_and_caches_of_python(package: Path) -> None:
    before = _digest(package)
    path = package / "room" / "helper.py"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    (package / "room" / "__pycache__").mkdir(exist_ok=True)
    (package / "room" / "__pycache__" / "helper.cpython-311.pyc").write_bytes(b"x")
    assert _digest(package) == before


def _by_tree(source: bytes) -> set[str]:
    """Every import in the syntax tree, written in one way."""
    return {ast.unparse(node) for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Import | ast.ImportFrom)}


def test_imports_are_found_as_the_syntax_tree_has_them() -> None:
    import cairn

    files = sorted(Path(cairn.__file__).parent.rglob("*.py"))
    assert len(files) > 50
    for file in files:
        source = file.read_bytes()
        found = {ast.unparse(node) for node in import_statements(source)}
        assert _by_tree(source) <= found, file


@pytest.mark.parametrize(
    "source",
    [
        "if x: import a.b\n",
        "x = 1; from a import b; import c\n",
        "from a import (\n    b,  # (why)\n    c as d,\n)\n",
        "from a \\\n    import b, \\\n    c\n",
        "def f():\n\ttry:\n\t\tfrom .. import a\n\texcept E: from .a import b\n",
        "from a import b  # a tail (\n",
        "import a",
        "from a import (b)\r\nimport c\r\n",
        "async def f():\n  match x:\n    case 1: import z\n",
    ],
)
def test_imports_of_every_form_are_found(source: str) -> None:
    found = {ast.unparse(node) for node in import_statements(source.encode())}
    assert found >= _by_tree(source.encode())
    assert len(found) <= len(_by_tree(source.encode())) + 1, "a continued line may be taken for one of its own, no more"


def test_prose_that_reads_like_an_import_is_no_error() -> None:
    assert list(import_statements(b'"""\nfrom the start\nimport duty (\n"""\n')) == []


def test_code_digest_of_this_package_is_quick_and_leaves_out_the_frame() -> None:
    began = time.perf_counter()
    first = code_digest("cairn.ledger.seeds")
    assert time.perf_counter() - began < 1.0
    assert code_digest("cairn.ledger.seeds") == first
    # seeds imports nothing of the frame, so asking for a frame module beside it must change the digest, and importing it must not.
    assert code_digest("cairn.ledger.seeds", "cairn.errors") != first
    with pytest.raises(ModuleNotFoundError):
        code_digest("cairn.nothing.here")
