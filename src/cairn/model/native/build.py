"""A C++ source made into a library by the machine's own compiler, once, and the threads it is given. Knows no function of a library.

The library is kept under the digest of its source, flags, compiler and processor in the user's cache folder (`$XDG_CACHE_HOME/cairn`,
`~/.cache/cairn`). No library is opened from a folder that somebody else may write to.
"""

from __future__ import annotations

import ctypes
import functools
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cairn.ledger.digest import json_digest
from cairn.ledger.environment import compiler_path, environment

_FLAGS = ("-O3", "-std=c++17", "-shared", "-fPIC", "-pthread")


class Unavailable(Exception):
    """The library cannot be compiled or opened here; its text says why."""


def built(source: Path, name: str, flags: Sequence[str] = ()) -> ctypes.CDLL:
    """The library of a source, compiled if that was not done before.

    Args:
        source: a file of C++17; what it includes by a path in quotes counts as its text.
        name: what the library is called in the cache.
        flags: the compiler's, beyond those that every library has.

    Raises:
        Unavailable: no compiler, or it failed.
    """
    if sys.platform not in ("linux", "darwin"):
        raise Unavailable(f"compiled kernels are for Linux and macOS, not {sys.platform}")
    compiler = compiler_path()
    if compiler is None:
        raise Unavailable("no C++ compiler (g++ or clang++) is installed")
    every = [*_FLAGS, "-mcpu=native" if _is_arm() else "-march=native", *flags]
    facts = environment()
    about = [*_texts(source), every, compiler, os.stat(compiler).st_mtime_ns, facts["cpu"], facts["instructions"]]
    path = _folder() / f"{name}-{json_digest(about)[:24]}.so"
    if not path.exists():
        _compile([compiler, *every, str(source)], path)
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise Unavailable(f"the compiled library does not open: {error}") from error


def opened(source: Path, name: str, functions: Mapping[str, Sequence[Any]], flags: Sequence[str] = ()) -> tuple[Any, str]:
    """(`built`, for a source that includes parallel.h: its functions declared by the types of their arguments, on torch's threads; why
    there is none)."""
    try:
        library = built(source, name, flags)
        for function, types in {**functions, "use_threads": [ctypes.c_void_p]}.items():
            declared = getattr(library, function)
            declared.argtypes, declared.restype = list(types), None
        library.use_threads(openmp())
    except Unavailable as error:
        return None, str(error)
    return library, ""


def _texts(source: Path) -> list[str]:
    """The text of a source, and those of what it includes from its own folder's neighbourhood."""
    text = source.read_text(encoding="utf-8")
    found = re.findall(r'^#include "(.+)"$', text, re.MULTILINE)
    return [text, *(inner for name in found for inner in _texts(source.parent / name))]


@functools.cache
def openmp() -> int:
    """The address of the function that starts threads in the OpenMP runtime that torch has loaded: a second runtime would have threads
    of its own, which wait for work on the cores that torch's need."""
    try:
        lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise Unavailable(f"torch's OpenMP runtime is not found: {error}") from error
    for path in dict.fromkeys(line.split()[-1] for line in lines):
        if "omp" in Path(path).name and ".so" in path:
            found = getattr(ctypes.CDLL(path), "GOMP_parallel", None)
            if found is not None:
                return ctypes.cast(found, ctypes.c_void_p).value or 0
    raise Unavailable("torch's OpenMP runtime is not found")


def _is_arm() -> bool:
    return os.uname().machine in ("aarch64", "arm64")


def _folder() -> Path:
    """The folder of libraries: ours alone."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "cairn"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        state = folder.stat()
        if state.st_uid != os.getuid() or state.st_mode & 0o022 or not os.access(folder, os.W_OK):
            raise Unavailable(f"{folder} can be written by others, or not by this user")
    except OSError as error:
        raise Unavailable(f"no folder for compiled libraries: {error}") from error
    return folder


def _compile(command: list[str], path: Path) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent) as aside:
        made = Path(aside) / path.name
        done = subprocess.run([*command, "-o", str(made)], capture_output=True, text=True, check=False)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [str(done.returncode)]
            said = [line for line in lines if "error" in line] or lines
            raise Unavailable(f"{command[0]} failed: {said[0].strip()}")
        # Two processes that compile at once write the same bytes; the later one wins.
        made.replace(path)
