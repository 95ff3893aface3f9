"""Content digests of bytes, values, files, folders and of the code behind a module. Knows nothing of what they mean.

A digest is SHA-256 in hex. The digest of code covers the sources that a module can reach by imports, found without running it.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from cairn.config import canonical_bytes
from cairn.errors import UserError

FRAME = (
    "cairn.pipeline", "cairn.cli", "cairn.errors",
    "cairn.ledger.store", "cairn.ledger.record", "cairn.ledger.progress", "cairn.ledger.compare", "cairn.ledger.environment",
)  # fmt: skip
"""Modules that carry a stage's outputs without shaping them: a better progress bar must not send every model to be trained again."""

_DYNAMIC = (b"import_module", b"iter_modules", b"walk_packages")


def bytes_digest(data: bytes) -> str:
    """SHA-256 of bytes, in hex."""
    return hashlib.sha256(data).hexdigest()


def json_digest(value: Any) -> str:
    """Digest of a JSON-like value or configuration through its canonical bytes."""
    return bytes_digest(canonical_bytes(value))


def file_digest(path: Path | str) -> str:
    """SHA-256 of a file's bytes, read in pieces."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_files(folder: Path, skip: Callable[[str], bool] | Iterable[str] = ()) -> list[str]:
    """The files beneath `folder` as sorted relative POSIX paths.

    Args:
        folder: where to look.
        skip: relative paths to leave out (a folder's name leaves out all beneath it), or a function that says so.

    Raises:
        UserError: on a symbolic link that leads to a folder, whose content would be missed.
    """
    left_out = skip if callable(skip) else frozenset(skip).__contains__
    found: list[str] = []
    for base, dirs, files in os.walk(folder):
        inside = Path(base).relative_to(folder)
        kept = []
        for name in sorted(dirs):
            relative = (inside / name).as_posix()
            if left_out(relative):
                continue
            if os.path.islink(os.path.join(base, name)):
                where = os.path.join(base, name)
                raise UserError("a symbolic link to a folder cannot be hashed", where=where, remedy="put the files themselves there")
            kept.append(name)
        dirs[:] = kept
        found += [path for path in ((inside / name).as_posix() for name in files) if not left_out(path)]
    return sorted(found)


def folder_digest(folder: Path, skip: Callable[[str], bool] | Iterable[str] = ()) -> str:
    """Digest of a folder: of {relative path: digest of content}; names, times and empty folders around it do not count."""
    return json_digest({path: file_digest(folder / path) for path in folder_files(folder, skip)})


def code_digest(*modules: str) -> str:
    """Digest of the code that `modules` of this package can reach by imports, and of the data files beside that code.

    Imports are found without running anything, those inside functions too. Line ends count as one newline whatever the
    checkout made of them. Code outside this package is told by the environment's versions instead.

    Raises:
        ModuleNotFoundError: a module that does not exist.
    """
    return _code_digest(tuple(sorted(set(modules))))


@functools.cache
def _code_digest(modules: tuple[str, ...]) -> str:
    seen: dict[str, Path] = {}
    todo = list(modules)
    while todo:
        name = todo.pop()
        if name in seen or (_in_frame(name) and name not in modules):
            continue
        path = _source(name)
        if path is None:
            if name in modules:
                raise ModuleNotFoundError(f"no module named {name!r}", name=name)
            continue
        seen[name] = path
        todo += _imports(name, path)
        todo += [p for p in _parents(name) if "." in p]
    content = {name: _source_digest(path) for name, path in seen.items()}
    folders = {path.parent for name, path in seen.items() if name.count(".") > 1 or path.name == "__init__.py"}
    for folder in folders:
        root = _top(folder)
        for file in _data_files(folder, is_top=folder == root):
            content[f"data:{file.relative_to(root).as_posix()}"] = _source_digest(file)
    return json_digest(content)


def _in_frame(name: str) -> bool:
    return any(name == frame or name.startswith(frame + ".") for frame in FRAME)


def _parents(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:i]) for i in range(1, len(parts))]


def _top(folder: Path) -> Path:
    """The outermost package folder around `folder`."""
    while (folder.parent / "__init__.py").exists():
        folder = folder.parent
    return folder


@functools.cache
def _root(top: str) -> Path | None:
    spec = importlib.util.find_spec(top)
    if spec is None or not spec.origin or not spec.origin.endswith(".py"):
        return None
    return Path(spec.origin)


@functools.cache
def _source(name: str) -> Path | None:
    """The source file of a module, found by its place in the package and without importing it."""
    top, *rest = name.split(".")
    origin = _root(top)
    if origin is None:
        return None
    if not rest:
        return origin
    if origin.name != "__init__.py":
        return None
    base = origin.parent.joinpath(*rest)
    for candidate in (base / "__init__.py", base.with_name(base.name + ".py")):
        if candidate.is_file():
            return candidate
    return None


@functools.cache
def _source_digest(path: Path) -> str:
    return bytes_digest(path.read_bytes().replace(b"\r\n", b"\n"))


@functools.cache
def _data_files(package: Path, is_top: bool) -> list[Path]:
    """Files of a package that are not code: its own, and those of folders beneath it that are no packages."""
    found = []
    for base, dirs, files in os.walk(package):
        here = Path(base)
        if here != package and (here / "__init__.py").exists():
            dirs[:] = []
            continue
        # Recipes are configuration: what they say stands in the key already.
        dirs[:] = [d for d in dirs if d != "__pycache__" and not (is_top and here == package and d == "recipes")]
        found += [here / f for f in files if not f.endswith((".py", ".pyc", ".pyi")) and not f.startswith(".")]
    return sorted(found)


_IMPORT = re.compile(rb"(?:^|[;:])[ \t]*((?:import|from)[ \t\\][^\n]*)", re.MULTILINE)


@functools.cache
def _imports(name: str, path: Path) -> frozenset[str]:
    """The modules of the same package that the source at `path` imports, wherever in it."""
    source = path.read_bytes()
    top = name.split(".")[0]
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found: set[str] = set()
    for node in import_statements(source):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
            continue
        base = node.module or ""
        if node.level:
            around = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*around, base] if base else around)
        found |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    if any(word in source for word in _DYNAMIC):
        found |= _dynamic(ast.parse(source, filename=str(path)), top, package)
    return frozenset(m for m in found if m.split(".")[0] == top and _source(m) is not None)


def import_statements(source: bytes) -> Iterator[ast.Import | ast.ImportFrom]:
    """The import statements in a module's source, at whatever depth; a line of a docstring that reads like one comes too.

    Only what looks like an import is parsed: parsing whole files took a third of the time of a run with nothing to do.
    """
    source = source.replace(b"\r\n", b"\n")
    for match in _IMPORT.finditer(source):
        end = match.end(1)
        tree = _parse(source[match.start(1) : end])
        # The statement may go on over several lines, in parentheses or after a backslash; prose goes on for ever.
        goes_on = b"(" in match[1] or match[1].rstrip().endswith(b"\\")
        for _ in range(100 if tree is None and goes_on else 0):
            line_end = source.find(b"\n", end + 1)
            end = line_end if line_end > 0 else len(source)
            tree = _parse(source[match.start(1) : end])
            if tree is not None or line_end < 0:
                break
        if tree is not None:
            yield from (node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom))


def _parse(text: bytes) -> ast.Module | None:
    try:
        return ast.parse(text)
    except (SyntaxError, ValueError):
        return None


def _dynamic(tree: ast.AST, top: str, package: str) -> set[str]:
    """What a module may import by a computed name: packages that its strings name, or else all beneath its own package."""
    texts = (n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str))
    words = {text.rstrip(".") for text in texts if text.startswith(f"{top}.")}
    named = {w for w in words if " " not in w and _source(w) is not None}
    return {m for w in named or {package} for m in _beneath(w)}


def _beneath(name: str) -> Iterator[str]:
    yield name
    path = _source(name)
    if path is None or path.name != "__init__.py":
        return
    for file in sorted(path.parent.rglob("*.py")):
        parts = file.relative_to(path.parent).with_suffix("").parts
        yield ".".join([name, *(parts[:-1] if parts[-1] == "__init__" else parts)])
