"""Whoever computes runs with kernels that repeat themselves, and cuBLAS's workspace is settled where there is CUDA."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from cairn.chat.format import load_format
from cairn.errors import UserError
from cairn.ledger.environment import CUBLAS_WORKSPACE, environment, threads
from cairn.model.config import ModelConfig
from cairn.model.determinism import deterministic
from cairn.model.load import new_model, save_model
from cairn.tokenizer.train import byte_tokenizer, save

VARIABLE = "CUBLAS_WORKSPACE_CONFIG"


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of two layers that reads bytes, in the k2 format."""
    folder, k2 = tmp_path_factory.mktemp("model"), load_format("k2")
    tokenizer = byte_tokenizer(k2)
    save(tokenizer.backend, k2, folder)
    shape = ModelConfig(hidden_size=16, layers=1, heads=2, intermediate_size=16, context=64)
    save_model(new_model(shape, vocab_size=tokenizer.vocab_size, bos_id=None, eos_id=None, pad_id=None, seed=1), folder)
    return folder


@pytest.fixture(autouse=True)
def _settings_come_back(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # Set and deleted, so that what a test sets by itself is undone too.
    monkeypatch.setenv(VARIABLE, "x")
    monkeypatch.delenv(VARIABLE)
    before = torch.get_num_threads(), torch.backends.cuda.matmul.allow_tf32
    torch.use_deterministic_algorithms(False)
    yield
    torch.set_num_threads(before[0])
    torch.backends.cuda.matmul.allow_tf32 = before[1]


def test_threads_and_kernels_are_set(monkeypatch: pytest.MonkeyPatch) -> None:
    deterministic(2)
    assert torch.get_num_threads() == 2
    assert torch.are_deterministic_algorithms_enabled()
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    deterministic()
    assert torch.get_num_threads() == threads() == 1, "what a record names is what is used"


def test_cublas_gets_its_workspace_where_there_is_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    deterministic()
    assert VARIABLE not in os.environ
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    torch.backends.cuda.matmul.allow_tf32 = True
    deterministic()
    assert os.environ[VARIABLE] == CUBLAS_WORKSPACE == ":4096:8"
    assert not torch.backends.cuda.matmul.allow_tf32
    assert VARIABLE not in environment()["variables"], "a stage replayed alone has the same environment"
    monkeypatch.setenv(VARIABLE, ":16:8")
    deterministic()
    assert os.environ[VARIABLE] == environment()["variables"][VARIABLE] == ":16:8"


def test_a_workspace_that_does_not_repeat_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv(VARIABLE, ":0:0")
    with pytest.raises(UserError, match=":0:0") as caught:
        deterministic()
    assert ":4096:8" in caught.value.remedy


def _evaluate(folder: Path) -> Any:
    from cairn.evaluate.subject import load_subject

    return load_subject(folder)


def _generate(folder: Path) -> Any:
    from cairn.generate.load import load

    return load(folder)


def _chat(folder: Path) -> Any:
    from cairn.generate.load import load_chat

    return load_chat(folder)


@pytest.mark.parametrize("loader", [_evaluate, _generate, _chat])
def test_every_loader_of_a_model_calls_it(loader: Callable[[Path], Any], model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    torch.set_num_threads(1)
    loader(model_folder)
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.get_num_threads() == 2
