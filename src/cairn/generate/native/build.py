"""The compiled decoder: `decoder.cpp` as a library, and its structures. Knows no model. Compiling takes about two seconds, once."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import Any

from cairn.model.native.build import Unavailable, built

__all__ = ["WEIGHTS", "Layer", "Linear", "Shape", "Unavailable", "library"]

WEIGHTS = {"float32": 0, "bfloat16": 1, "int8": 2, "int4": 3}
"""Kinds of weights, each a library of its own."""

_P = ctypes.c_void_p
_I = ctypes.c_int64


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
    source = Path(__file__).with_name("decoder.cpp")
    return _declare(built(source, f"decoder-{weights}", [f"-DWEIGHTS={WEIGHTS[weights]}"]))


def _declare(found: Any) -> Any:
    found.decoder_new.argtypes, found.decoder_new.restype = [ctypes.POINTER(Shape)], _P
    found.decoder_free.argtypes, found.decoder_free.restype = [_P], None
    found.decoder_forward.argtypes, found.decoder_forward.restype = [_P, _I, _P, _P, _P, _I, _P, _P], None
    found.decoder_copy.argtypes, found.decoder_copy.restype = [_P, _I, _I, _I], None
    return found
