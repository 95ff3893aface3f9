"""A real server in a process of its own, with tiny models, and what talks to it."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch
import transformers

from cairn.chat.format import load_format
from cairn.tokenizer.train import byte_tokenizer, save

TALKER = Path(__file__).parent.parent / "cli" / "talker.py"
WAIT = 240.0
"""Seconds for anything; a busy machine may stop a process for minutes."""


class Served:
    """A running `cairn serve`."""

    def __init__(self, folder: Path, *words: str, environ: dict[str, str] | None = None, log: Path) -> None:
        command = [sys.executable, "-m", "cairn", "serve", str(folder), "--port", "0", "--name", "tiny", *words]
        self.log = log
        with log.open("w") as stderr:
            self.process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=stderr, text=True, env={**os.environ, **(environ or {})}
            )  # fmt: skip
        assert self.process.stdout
        line = self.process.stdout.readline()
        assert line.startswith("serving tiny at http://"), (line, log.read_text())
        self.address = line.split()[3]
        self.port = int(self.address.rsplit(":", 1)[1])

    def client(self, key: str = "none") -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.address}/v1", api_key=key, max_retries=0, timeout=WAIT)

    def post(self, body: Any, path: str = "/v1/chat/completions", **headers: str) -> httpx.Response:
        """A raw request; a body that is no bytes becomes JSON."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return httpx.post(self.address + path, content=data, headers={"content-type": "application/json", **headers}, timeout=WAIT)

    def get(self, path: str, **headers: str) -> httpx.Response:
        return httpx.get(self.address + path, headers=headers, timeout=WAIT)

    def metric(self, name: str) -> float:
        """One figure of /metrics."""
        return next(float(line.split()[-1]) for line in self.get("/metrics").text.splitlines() if line.startswith(name + " "))

    def end(self, number: int = signal.SIGTERM) -> int:
        """Ask it to end, and its status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(WAIT)


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folders of tiny models, made once: `talker` (knows dialogues), `endless` (never stops), `neox` (not compiled), or a format's name."""
    spec = importlib.util.spec_from_file_location("cairn_test_talker", TALKER)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            known = name in ("talker", "endless")
            own = other_family if name == "neox" else lambda folder: random_model(folder, name)
            made[name] = (getattr(module, name) if known else own)(folder)
        return made[name]

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield make  # type: ignore[misc]
    torch.set_num_threads(threads)


def random_model(folder: Path, format: str) -> Path:
    """A random model of bytes with a context of 512 tokens, whose format is a shipped one."""
    chat_format = load_format(format)
    tokenizer = byte_tokenizer(chat_format)
    config = transformers.LlamaConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=1024, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = transformers.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder)
    save(tokenizer.backend, chat_format, folder)
    return folder


def other_family(folder: Path) -> Path:
    """A random GPT-NeoX, which the compiled forward does not know."""
    chat_format = load_format("k2")
    tokenizer = byte_tokenizer(chat_format)
    config = transformers.GPTNeoXConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=512, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = transformers.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder)
    save(tokenizer.backend, chat_format, folder)
    return folder


@pytest.fixture(scope="module")
def serve(checkpoints: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Served]]:
    """Start servers; all of them are ended with the module."""
    running: list[Served] = []

    def start(name: str, *words: str, environ: dict[str, str] | None = None) -> Served:
        running.append(Served(checkpoints(name), *words, environ=environ, log=tmp_path_factory.mktemp("log") / "stderr"))
        return running[-1]

    yield start
    for one in running:
        if one.process.poll() is None:
            one.process.kill()
            one.process.wait()
