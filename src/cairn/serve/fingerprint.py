"""`system_fingerprint`: a name for all that shapes an answer beside its request. Knows a loaded model; knows no HTTP.

Two servers with the same fingerprint give the same answer to the same request and seed, where answers are deterministic at all. It is
a digest of what runs, not of a name or a time: a restart keeps it; other weights, another rounding of them, template or machine change it.
"""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor

from cairn.errors import UserError
from cairn.generate.load import Loaded
from cairn.generate.speculate import Speculative
from cairn.ledger.digest import bytes_digest, code_digest, json_digest
from cairn.ledger.environment import environment


def fingerprint(loaded: Loaded) -> str:
    """`fp_` and twelve hexadecimal digits, as OpenAI writes it. Reads all of the weights once."""
    return "fp_" + json_digest({
        "code": code_digest("cairn.serve.job"),
        "environment": environment(),
        "runner": _runner(loaded.engine.scheduler.runner),
        "deterministic": loaded.engine.deterministic,
        "config": loaded.engine.model.config.to_dict() | {"_name_or_path": None},
        "weights": _weights(loaded.engine.model),
        "tokenizer": bytes_digest(loaded.tokenizer.backend.to_str().encode()),
        "format": _format(loaded),
    })[:12]  # fmt: skip


def _runner(runner: Any) -> list[str | None]:
    """What computes the logits, and in which weights; drafts may change an answer's last bits where its company does."""
    if isinstance(runner, Speculative):
        return [type(runner.drafter).__name__, *_runner(runner.runner)]
    return [type(runner).__name__, getattr(runner, "weights", None)]


def _weights(model: torch.nn.Module) -> str:
    found = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        found.update(_bytes(tensor))
    return found.hexdigest()


def _bytes(tensor: Tensor) -> memoryview:
    array: Any = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return memoryview(array)


def _format(loaded: Loaded) -> str | None:
    try:
        return bytes_digest(loaded.format.template.encode())
    except UserError:  # plain text only
        return None
