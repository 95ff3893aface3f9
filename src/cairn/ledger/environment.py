"""Where a stage ran: versions, processor, threads. Imports none of the libraries that it names.

Bit-equality is promised where these facts are the same; elsewhere a record tells what differed.
"""

from __future__ import annotations

import functools
import os
import platform
import shutil
import subprocess
import sys
from importlib import metadata
from typing import Any

PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "peft", "numpy", "pyarrow", "jinja2")
"""Distributions whose version can change an output."""

_FLAGS = ("avx2", "fma", "avx512f", "avx512_bf16", "avx512_vnni", "amx_tile", "amx_bf16", "asimd", "sve", "bf16", "i8mm")
_VARIABLES = (
    "OMP_NUM_THREADS", "MKL_NUM_THREADS", "ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "CUBLAS_WORKSPACE_CONFIG", "CUDA_VISIBLE_DEVICES",
)  # fmt: skip

CUBLAS_WORKSPACE = ":4096:8"
"""What CUBLAS_WORKSPACE_CONFIG is set to where it is not set (model/determinism.py). A record leaves this value out: the process of a
run sets it for training and all that follows, and a stage that is replayed alone would seem to run in another environment."""


def environment() -> dict[str, Any]:
    """The facts, as JSON-like values. A stage may add its own (the device, the threads that it set)."""
    return {
        "python": platform.python_version(),
        "packages": {name: found for name in PACKAGES if (found := version(name)) is not None},
        "platform": f"{sys.platform}-{platform.machine()}",
        "cpu": _cpu()[0],
        "instructions": list(_cpu()[1]),
        "compiler": compiler(),
        "threads": threads(),
        "world_size": int(os.environ.get("WORLD_SIZE", "1")),
        "variables": _variables(),
    }


def _variables() -> dict[str, str]:
    """The variables that are set and change what is computed."""
    found = {name: os.environ[name] for name in _VARIABLES if name in os.environ}
    if found.get("CUBLAS_WORKSPACE_CONFIG") == CUBLAS_WORKSPACE:
        del found["CUBLAS_WORKSPACE_CONFIG"]
    return found


@functools.cache
def version(distribution: str) -> str | None:
    """The installed version of a distribution, or None; imports nothing of it."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def compiler() -> str | None:
    """The first line of the C++ compiler's version, or None: our kernels are compiled where they run, and without one torch computes
    other last bits."""
    path = compiler_path()
    return _first_line(path) if path is not None else None


@functools.cache
def _first_line(program: str) -> str | None:
    """Of what a program says of its version."""
    done = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
    return next(iter(done.stdout.splitlines()), None)


def compiler_path() -> str | None:
    """Where the C++ compiler is; None: there is none."""
    return next((found for name in ("g++", "clang++") if (found := shutil.which(name))), None)


def threads() -> int:
    """How many threads a numeric library takes unless told otherwise: the variable, or the cores this process may use."""
    told = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    if told.isdigit() and int(told) > 0:
        return int(told)
    return cores()


def memory_bytes() -> int:
    """This machine's memory."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def cores() -> int:
    """Cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


@functools.cache
def _cpu() -> tuple[str, tuple[str, ...]]:
    """(model, instruction sets of note)."""
    model, flags = platform.processor() or platform.machine(), set()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                key, _, value = line.partition(":")
                key = key.strip()
                if key == "model name":
                    model = value.strip()
                elif key in ("flags", "Features"):
                    flags = set(value.split())
                if not line.strip():
                    break
    except OSError:
        pass
    return model, tuple(f for f in _FLAGS if f in flags)
