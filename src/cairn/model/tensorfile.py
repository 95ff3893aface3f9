"""The header of a safetensors file, for whoever writes one tensor by tensor: the library's own writer wants all of them in memory.
Knows names, types and shapes; no value."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence

import torch

TYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.int64: "I64", torch.int32: "I32",
    torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL", torch.float8_e4m3fn: "F8_E4M3",
}  # fmt: skip
Shape = tuple[torch.dtype, Sequence[int]]


def header(tensors: Mapping[str, Shape], metadata: Mapping[str, str] | None = None) -> tuple[bytes, list[str]]:
    """The bytes in front of the tensors, and the order in which the tensors' own bytes follow.

    Args:
        tensors: type and shape of each, by name.
        metadata: texts for the file's `__metadata__`.
    """
    # Wide types first: every tensor then begins at a multiple of its own size, as the format wants it.
    order = sorted(tensors, key=lambda name: (-tensors[name][0].itemsize, TYPES[tensors[name][0]], name))
    entries: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    at = 0
    for name in order:
        dtype, shape = tensors[name]
        end = at + math.prod(shape) * dtype.itemsize
        entries[name] = {"dtype": TYPES[dtype], "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, order
