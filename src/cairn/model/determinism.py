"""What makes torch repeat itself bit for bit in one environment. Called by whoever is about to compute; knows no model.

The settings belong to the process, not to a model: a training, an evaluation and a conversation that follow each other have the same.
"""

from __future__ import annotations

import os

import torch

from cairn.errors import UserError
from cairn.ledger.environment import CUBLAS_WORKSPACE, threads
from cairn.model.speed import keep_code_once

_VARIABLE = "CUBLAS_WORKSPACE_CONFIG"
_REPEATING = (":4096:8", ":16:8")
"""The workspaces with which cuBLAS promises the same sums again (its documentation, "Results reproducibility")."""


def deterministic(count: int | None = None) -> None:
    """Set torch to kernels that repeat themselves, with a fixed number of threads. Every loader calls it before it touches a model.

    Args:
        count: threads of an operation; None: as many as the environment says, which is what a record names.

    Raises:
        UserError: on CUDA, CUBLAS_WORKSPACE_CONFIG asks for a workspace with which sums do not repeat.
    """
    keep_code_once()
    # Sums are cut into one piece a thread, so another number of threads adds in another order.
    torch.set_num_threads(threads() if count is None else count)
    torch.use_deterministic_algorithms(True)
    # Filling fresh memory with NaN guards against reading it; it costs 4 % of a step, and nothing here reads what it did not write.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if torch.cuda.is_available():
        fix_cublas()


def fix_cublas() -> None:
    """Let cuBLAS repeat itself; must come before the process's first matrix product on CUDA, where the variable is read.

    Raises:
        UserError: CUBLAS_WORKSPACE_CONFIG is set to what does not repeat.
    """
    # With a workspace of its own choice, cuBLAS splits sums by what is free when streams run side by side; torch refuses its
    # matrix products under deterministic algorithms unless the variable says otherwise.
    given = os.environ.setdefault(_VARIABLE, CUBLAS_WORKSPACE)
    if given not in _REPEATING:
        remedy = f"unset it, or set it to {' or '.join(_REPEATING)}"
        raise UserError(f"with {_VARIABLE}={given} matrix products do not repeat themselves", where="environment", remedy=remedy)
    # TF32 repeats itself, but rounds float32's factors to 10 bits: records of the same precision would not mean the same.
    torch.backends.cuda.matmul.allow_tf32 = False
