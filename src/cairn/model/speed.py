"""How fast this machine multiplies matrices: what every claim about training speed is measured against. Knows torch only."""

from __future__ import annotations

import ctypes
import os
import sys
import time
from functools import lru_cache

from cairn.errors import UserError, did_you_mean


@lru_cache(maxsize=8)
def gemm_rate(precision: str = "float32", size: int = 1024, seconds: float = 0.3) -> float:
    """Measured GFLOP/s of a square matrix product: the best of repeated runs for about `seconds`."""
    import torch

    keep_code_once()
    types = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if precision not in types:
        raise UserError(f"unknown precision '{precision}'", remedy=did_you_mean(precision, types))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        from cairn.model.determinism import fix_cublas

        # The first product of a process settles cuBLAS's workspace for all that follow.
        fix_cublas()
        size *= 8
    a = torch.full((size, size), 0.5, dtype=types[precision], device=device)
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end or best == float("inf"):
        begun = time.perf_counter()
        a @ a
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - begun)
    return 2.0 * size**3 / best / 1e9


def keep_code_once() -> None:
    """Code that is made for each size of a product (0.4 to 2 MB a size) is kept twice: by oneDNN for 1,024 sizes, and by ideep above it
    for another 1,024. Kept from here on for 128 and for 8, unless the environment says otherwise: half a gigabyte less for a small model,
    and no slower (docs/experiments.md). It counts only if this process has multiplied nothing before.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")
    os.environ.setdefault("LRU_CACHE_CAPACITY", "8")


def keep_freed_memory() -> bool:
    """Let this process keep what it frees for its next use, as every step frees and takes the same: glibc gives large pieces back to
    the system at once otherwise, and fetching fresh pages again took a tenth of a training step. Returns whether it could be set.
    """
    keep_code_once()
    if not sys.platform.startswith("linux"):
        return False
    trim_threshold, mmap_threshold = -1, -3
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(mmap_threshold, 1 << 30)) and bool(mallopt(trim_threshold, (1 << 31) - 1))
