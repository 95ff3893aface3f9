"""The compiled decoder: `decoder.cpp` made into a library by the machine's own C++ compiler, once, and opened. Knows no model.

Compiling takes about two seconds; the library is kept under the digest of its source, flags, compiler and processor in the user's
cache folder (`$XDG_CACHE_HOME/cairn`, `~/.cache/cairn`). No library is opened from a folder that somebody else may write to.
"""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from cairn.ledger.digest import json_digest
from cairn.ledger.environment import environment

WEIGHTS = {"float32": 0, "bfloat16": 1, "int8": 2, "int4": 3}
"""Kinds of weights, each a library of its own."""

_FLAGS = ("-O3", "-std=c++17", "-shared", "-fPIC", "-pthread")
_P = ctypes.c_void_p
_I = ctypes.c_int64


class Unavailable(Exception):
    """The decoder cannot be compiled or opened here; its text says why."""


class Linear(ctypes.Structure):
    """`Linear` of decoder.cpp."""

    _fields_ = (("weight", _P), ("scale", _P), ("bias", _P), ("rows", _I), ("k", _I))


class Layer(ctypes.Structure):
    """`Layer` of decoder.cpp."""

    _fields_ = (
        *((name, Linear) for name in ("qkv", "out", "gate_up", "down")),
        *((name, _P) for name in ("norm1", "norm2", "q_norm", "k_norm", "keys", "values")),
        ("window", _I),
    )


class Shape(ctypes.Structure):
    """`Shape` of decoder.cpp."""

    _fields_ = (
        *((name, _I) for name in ("layers", "hidden", "heads", "kv_heads", "head_dim", "inner")),
        *((name, _I) for name in ("capacity", "max_rows", "threads", "embed_bf16")),
        ("eps", ctypes.c_float), ("scaling", ctypes.c_float),
        *((name, _P) for name in ("embed", "cos", "sin", "pages", "norm")),
        ("head", Linear), ("layer", ctypes.POINTER(Layer)),
    )  # fmt: skip


@functools.cache
def library(weights: str) -> Any:
    """The functions of the decoder for weights of one kind.

    Raises:
        Unavailable: no compiler, or it failed.
    """
    if sys.platform not in ("linux", "darwin"):
        raise Unavailable(f"the compiled decoder is for Linux and macOS, not {sys.platform}")
    compiler = next((found for name in ("g++", "clang++") if (found := shutil.which(name))), None)
    if compiler is None:
        raise Unavailable("no C++ compiler (g++ or clang++) is installed")
    source = Path(__file__).with_name("decoder.cpp")
    flags = [*_FLAGS, "-mcpu=native" if _is_arm() else "-march=native", f"-DWEIGHTS={WEIGHTS[weights]}"]
    facts = environment()
    about = [source.read_text(encoding="utf-8"), flags, compiler, os.stat(compiler).st_mtime_ns, facts["cpu"], facts["instructions"]]
    path = _folder() / f"decoder-{weights}-{json_digest(about)[:24]}.so"
    if not path.exists():
        _compile([compiler, *flags, str(source)], path)
    try:
        return _declare(ctypes.CDLL(str(path)))
    except OSError as error:
        raise Unavailable(f"the compiled decoder does not open: {error}") from error


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
        raise Unavailable(f"no folder for the compiled decoder: {error}") from error
    return folder


def _compile(command: list[str], path: Path) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent) as aside:
        built = Path(aside) / path.name
        done = subprocess.run([*command, "-o", str(built)], capture_output=True, text=True, check=False)
        if done.returncode:
            raise Unavailable(f"{command[0]} failed: {done.stderr.strip().splitlines()[0] if done.stderr.strip() else done.returncode}")
        # Two processes that compile at once write the same bytes; the later one wins.
        built.replace(path)


def _declare(found: Any) -> Any:
    found.decoder_new.argtypes, found.decoder_new.restype = [ctypes.POINTER(Shape)], _P
    found.decoder_free.argtypes, found.decoder_free.restype = [_P], None
    found.decoder_forward.argtypes, found.decoder_forward.restype = [_P, _I, _P, _P, _P, _I, _P, _P], None
    found.decoder_copy.argtypes, found.decoder_copy.restype = [_P, _I, _I, _I], None
    return found
