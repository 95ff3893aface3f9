"""`cairn chat` as its users meet it: piped, on a terminal, interrupted, with tools, with mistakes."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from cairn.cli.main import main
from cairn.data.readers import read_rows

from ..conftest import heed_interrupts
from .talker import CALLED, TOOL, endless, talker

CAIRN = [sys.executable, "-m", "cairn.cli.main"]


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")  # what loading a model sets them to
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(talker(tmp_path_factory.mktemp("talker")))


@pytest.fixture(scope="module")
def babbler(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(endless(tmp_path_factory.mktemp("endless")))


@pytest.fixture
def tools(tmp_path: Path) -> str:
    (tmp_path / "tools.json").write_text(json.dumps([TOOL]))
    return str(tmp_path / "tools.json")


class Said:
    """What a piped conversation printed."""

    def __init__(self, status: int, captured: Any) -> None:
        self.status, self.out, self.err = status, captured.out, captured.err


@pytest.fixture
def talk(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    def run(words: list[str], lines: list[str] | None = None) -> Said:
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines or [])))
        return Said(main(["chat", *words]), capsys.readouterr())

    return run


def test_one_message_one_answer_and_figures_beside_it(talk: Any, model: str) -> None:
    said = talk([model, "--once", "Hi"])
    assert (said.status, said.out) == (0, "Hello, 친구!\n")
    assert "tokens/s" in said.err


def test_json_is_one_object(talk: Any, model: str) -> None:
    value = json.loads(talk([model, "--once", "Hi", "--json", "--system", "Yell."]).out)
    assert value["message"] == {"role": "assistant", "content": "HELLO"}
    assert value["reason"] == "stop"
    assert value["answer_tokens"] > 1
    assert value["prompt_tokens"] > 1


def test_once_reads_a_message_of_several_lines_from_standard_input(talk: Any, model: str) -> None:
    assert talk([model, "--once", "-"], ["Hi"]).status == 0


def test_lines_are_turns_of_one_dialogue(talk: Any, model: str) -> None:
    assert talk([model], ["Hi", "", "Who?"]).out == "Hello, 친구!\nA cairn.\n"


def test_commands_change_the_dialogue(talk: Any, model: str) -> None:
    assert talk([model], ["/system Yell.", "Hi", "/reset", "/system", "Hi", "/quit", "Hi"]).out == "HELLO\nHello, 친구!\n"


def test_an_empty_system_message_is_none(talk: Any, model: str) -> None:
    assert talk([model, "--system", ""], ["Hi", "Who?"]).out == talk([model], ["Hi", "Who?"]).out


def test_help_names_every_command_that_there_is(talk: Any, model: str) -> None:
    from cairn.cli.repl import HELP, Commands

    told = talk([model], ["/help"]).err
    assert all(name in told for name in HELP)
    named = {name.split()[0][1:] for name in HELP if name.startswith("/")} - {"quit"}
    assert named == {name.removeprefix("_do_") for name in dir(Commands) if name.startswith("_do_")}


def test_a_call_is_shown_as_json_and_its_result_answered(talk: Any, model: str, tools: str) -> None:
    said = talk([model, "--tools", tools], ["Rain?", '/tool {"mm": 3}'])
    call, rest = json.JSONDecoder().raw_decode(said.out)
    assert call == CALLED
    assert said.out[rest:].strip() == "- 3 mm"
    assert "tool_call" not in said.out


def test_the_call_itself_can_be_the_result(talk: Any, model: str, tools: str) -> None:
    assert talk([model], [f"/tools {tools}", "Rain?", "/copy"]).out.endswith("- JSON\n")


@pytest.mark.parametrize(
    ("lines", "word"),
    [
        (["/tool {}"], "no function call waits"),
        (["/copy"], "no function call waits"),
        (["/nope"], "no command /nope"),
        (["/save"], "no file named"),
        (["/save x.jsonl"], "nothing to save"),
        (["/attr helpfulness=4"], "unknown attribute 'helpfulness'"),
        (["/tools nowhere.json"], "no such file"),
    ],
)
def test_mistakes_on_a_pipe_end_it_with_status_2(talk: Any, model: str, lines: list[str], word: str) -> None:
    said = talk([model], lines)
    assert said.status == 2
    assert word in said.err
    assert said.out == ""


def test_a_result_that_is_no_json_is_refused(talk: Any, model: str, tools: str) -> None:
    said = talk([model, "--tools", tools], ["Rain?", "/tool three"])
    assert said.status == 2
    assert "not JSON" in said.err


def test_a_saved_conversation_is_a_row_of_data(talk: Any, model: str, tools: str, tmp_path: Path) -> None:
    file = tmp_path / "said.jsonl"
    save = f"/save {file}"
    assert talk([model], ["Hi", "Who?", save, "/reset", f"/tools {tools}", "Rain?", '/tool {"mm": 3}', save]).status == 0
    first, second = read_rows(file)
    assert [m["content"] for m in first["messages"]] == ["Hi", "Hello, 친구!", "Who?", "A cairn."]
    assert second["tools"][0].get("function", second["tools"][0])["name"] == "rain"
    assert second["messages"][1]["tool_calls"][0]["function"] == CALLED
    assert second["messages"][2]["content"] == '{"mm": 3}'


def test_stop_strings_and_limits(talk: Any, model: str) -> None:
    assert talk([model, "--once", "Hi", "--stop", "친"]).out == "Hello, \n"
    said = talk([model, "--once", "Hi", "--max-new-tokens", "1"])
    assert said.out.strip() in "Hello,"
    assert "cut at" in said.err


def test_the_seed_decides(talk: Any, babbler: str) -> None:
    words = [babbler, "--once", "Hi", "--max-new-tokens", "12", "--temperature", "2"]
    one, same, other = (talk([*words, "--seed", seed]).out for seed in ("1", "1", "2"))
    assert one == same != other


def test_three_quotes_hold_several_lines_together(talk: Any, model: str, tmp_path: Path) -> None:
    file = tmp_path / "said.jsonl"
    talk([model, "--max-new-tokens", "3"], ['"""', "Hi", "", "Who?", '"""', f"/save {file}"])
    assert next(iter(read_rows(file)))["messages"][0]["content"] == "Hi\n\nWho?"


@pytest.mark.parametrize(
    ("words", "word"),
    [
        (["--attr", "helpfulness=4"], "has no attributes"),
        (["--attr", "nothing"], "write name=value"),
        (["--tools", "nowhere.json"], "no such file"),
        (["--temperature", "-1"], "temperature"),
        (["--stop", ""], "stop string is empty"),
        (["--format", "chat-ml"], "did you mean 'chatml'"),
        (["--format", "crystal"], "lacks special tokens"),
        (["--json"], "--once"),
        (["--once", " "], "message is empty"),
    ],
)
def test_bad_options_are_told_before_the_model_is_loaded(
    talk: Any, model: str, words: list[str], word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cairn.generate.load.load_model", lambda *given: pytest.fail("the model was loaded"))
    said = talk([model, *words], ["Hi"])
    assert said.status == 2
    assert word in said.err


def test_broken_tool_files_are_told(talk: Any, model: str, tmp_path: Path) -> None:
    file = tmp_path / "bad.json"
    for text, word in (("{", "cannot read"), ('[{"description": "x"}]', "tools[0].function.name"), ("3", "must be a list")):
        file.write_text(text)
        said = talk([model, "--tools", str(file)], ["Hi"])
        assert said.status == 2
        assert word in said.err


def test_a_model_without_chat_format_is_told(talk: Any, model: str, tmp_path: Path) -> None:
    folder = tmp_path / "base"
    folder.mkdir()
    for file in Path(model).iterdir():
        if file.name != "chat_format.yaml":
            folder.joinpath(file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["chat_template"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    said = talk([str(folder), "--once", "Hi"])
    assert said.status == 2
    assert "no chat format" in said.err
    assert "--format" in said.err
    assert talk([str(folder), "--once", "Hi", "--format", "k2"]).out == "Hello, 친구!\n"


def test_a_message_longer_than_the_context_is_told(talk: Any, model: str, tmp_path: Path) -> None:
    folder = tmp_path / "short"
    folder.mkdir()
    for file in Path(model).iterdir():
        folder.joinpath(file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 20}))
    said = talk([str(folder)], ["x" * 200])
    assert said.status == 2
    assert "context holds 20" in said.err


# Ctrl-C


def environ(tmp_path: Path) -> dict[str, str]:
    return {**os.environ, "XDG_STATE_HOME": str(tmp_path), "OMP_NUM_THREADS": "1", "TERM": "dumb"}


def test_an_interrupt_stops_the_answer_and_not_the_program(babbler: str, tmp_path: Path) -> None:
    words = [*CAIRN, "chat", babbler, "--max-new-tokens", "500000"]
    pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(words, bufsize=0, env=environ(tmp_path), preexec_fn=heed_interrupts, **pipes) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        for _ in range(2):
            process.stdin.write(b"Hi\n")
            assert process.stdout.read(1), "the answer has begun"
            process.send_signal(signal.SIGINT)
            note = b""
            while b"stopped" not in note:
                note += (part := process.stderr.read(1000))
                assert part, note
            while select.select([process.stdout], [], [], 0)[0]:
                process.stdout.read(100000)
        process.stdin.close()
        assert process.wait(60) == 0


def _take_terminal() -> None:
    heed_interrupts()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


class Terminal:
    """A process on a terminal of its own."""

    def __init__(self, words: list[str], env: dict[str, str]) -> None:
        self.master, slave = pty.openpty()
        self.process = subprocess.Popen(
            words, stdin=slave, stdout=slave, stderr=slave, env=env, start_new_session=True,
            preexec_fn=_take_terminal,
        )  # fmt: skip
        os.close(slave)
        self.seen = ""

    def type(self, keys: str) -> None:
        os.write(self.master, keys.encode())

    def wait_for(self, text: str, seconds: float = 120) -> str:
        """Read until `text` was shown since the last call; gives what was shown up to it."""
        end = time.monotonic() + seconds
        while text not in self.seen:
            assert time.monotonic() < end, f"no {text!r} in {self.seen[-500:]!r}"
            if select.select([self.master], [], [], 1)[0]:
                try:
                    self.seen += os.read(self.master, 65536).decode(errors="replace")
                except OSError:
                    raise AssertionError(f"ended before {text!r}: {self.seen[-500:]!r}") from None
        before, _, self.seen = self.seen.partition(text)
        return before

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.master)


def test_on_a_terminal(babbler: str, tmp_path: Path) -> None:
    terminal = Terminal([*CAIRN, "chat", babbler, "--max-new-tokens", "500000"], environ(tmp_path))
    try:
        terminal.wait_for("/help shows the commands")
        terminal.wait_for("> ")
        terminal.type("/nope\r")
        terminal.wait_for("no command /nope")
        terminal.wait_for("> ")
        for _ in range(2):
            terminal.type("Hi\r")
            terminal.wait_for("Hi\r\n")
            time.sleep(0.5)  # in the middle of the answer, most often
            terminal.type("\x03")
            answer = terminal.wait_for("stopped")
            assert len(answer) > 5
            shown = re.sub(r"\x1b\[[0-9;?]*[a-z]", "", answer)  # colours of our own
            assert not [c for c in shown if c < " " and c not in "\r\n\t"], "an answer must not command the terminal"
            terminal.wait_for("> ")
        # Python's readline misses a signal between showing its prompt and waiting for keys; nobody types that fast.
        time.sleep(0.5)
        terminal.type("\x03")
        terminal.wait_for("Ctrl-C once more")
        terminal.wait_for("> ")
        time.sleep(0.5)
        terminal.type("\x03")
        assert terminal.process.wait(60) == 0
    finally:
        terminal.close()
    assert "Hi" in (tmp_path / "cairn" / "chat_history").read_text().split()
