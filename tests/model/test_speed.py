"""What a process keeps of the code that its products need."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

GROWTH = """
import sys, torch
if sys.argv[1] == "ours":
    from cairn.model.determinism import deterministic
    deterministic(1)
torch.set_num_threads(1)
resident = lambda: int(open("/proc/self/statm").read().split()[1]) * 4096
right = torch.ones(256, 64, dtype=torch.bfloat16)
torch.ones(8, 256, dtype=torch.bfloat16) @ right
before = resident()
for rows in range(64, 364):
    torch.ones(rows, 256, dtype=torch.bfloat16) @ right
print(resident() - before)
"""


@pytest.mark.skipif(
    sys.platform != "linux" or not torch.backends.mkldnn.is_available() or not torch.ops.mkldnn._is_mkldnn_bf16_supported(),
    reason="bf16 products by oneDNN are made on Linux, on processors that have them",
)
def test_products_of_many_sizes_take_little_memory() -> None:
    clean = {key: value for key, value in os.environ.items() if not key.endswith("CACHE_CAPACITY")}
    grown = {}
    for which in ("plain", "ours"):
        out = subprocess.run([sys.executable, "-c", GROWTH, which], env=clean, capture_output=True, text=True, check=True, timeout=200)
        grown[which] = int(out.stdout)
    assert grown["ours"] < 0.6 * grown["plain"], grown
