"""The command line finds verbs without loading them, and ends with the right status and one screen of words."""

from __future__ import annotations

import importlib
import subprocess
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer

from cairn.cli import main as module
from cairn.cli.main import GROUPS, VERBS, main
from cairn.errors import UserError


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Put a verb of the test's own under the name `probe`."""

    def install(function: Callable[..., Any] | None = None, **commands: Callable[..., Any]) -> None:
        fake = types.ModuleType("cairn.cli.probe")
        if function is not None:
            fake.command = function  # type: ignore[attr-defined]
        else:
            fake.COMMANDS = commands  # type: ignore[attr-defined]
            monkeypatch.setattr(module, "GROUPS", frozenset({"probe"}))
        monkeypatch.setitem(sys.modules, "cairn.cli.probe", fake)
        monkeypatch.setitem(VERBS, "probe", "A probe.")

    return install


def test_help_names_every_verb_and_loads_none() -> None:
    code = "import sys\nfrom cairn.cli.main import main\nmain(['--help'])\nprint({'typer', 'torch', 'pydantic', 'yaml'} & set(sys.modules))"
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    # A generous bound, for the machine may be busy: what matters is that nothing heavy was loaded. `cairn bench cli` has the true one.
    assert time.perf_counter() - began < 3
    assert done.stdout.splitlines()[-1] == "set()"
    assert all(f"\n  {name} " in done.stdout for name in VERBS)


def test_help_of_a_verb_keeps_the_lines_of_its_example(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--help"]) == 0
    out = capsys.readouterr().out
    assert "\n      cairn run pebble\n" in out
    assert "--until" in out
    assert "\\b" not in out


def test_status_of_help_version_and_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert main([]) == 2
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("cairn 0.")


def test_an_unknown_verb_gets_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["vefiry", "x"]) == 2
    assert "did you mean 'verify'?" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["run"], ["run", "a", "--no-such"], ["run", "a", "b"]])
def test_wrong_usage_is_status_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert "Usage:" in err
    assert out == ""


def test_an_option_without_its_value_is_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "--store"]) == 2
    assert "--store" in capsys.readouterr().err


def test_a_user_error_is_one_screen_on_standard_error(verb: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> None:
        raise UserError("the [row] is wrong", where="a.jsonl, row 3", remedy="mend it")

    verb(command)
    assert main(["probe"]) == 2
    assert capsys.readouterr() == ("", "error: the [row] is wrong\n   at: a.jsonl, row 3\n   do: mend it\n")


def test_a_terminal_gets_a_panel(verb: Callable[..., None], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def command() -> None:
        raise UserError("the [row] is wrong", where="a.jsonl, row 3")

    verb(command)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert main(["probe"]) == 2
    err = capsys.readouterr().err
    assert "the [row] is wrong" in err
    assert "╭" in err


def test_our_mistake_is_status_1_and_tells_how_to_see_more(verb: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    def command(name: str) -> None:
        raise KeyError(name)

    verb(command)
    assert main(["probe", "two words"]) == 1
    err = capsys.readouterr().err
    assert "KeyError: 'two words'" in err
    assert "our mistake" in err
    assert "cairn probe 'two words' --debug" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("words", [["--debug", "probe"], ["probe", "--debug"]])
def test_debug_shows_the_traceback_of_both_kinds(words: list[str], verb: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> None:
        raise UserError("wrong")

    verb(command)
    assert main(words) == 2
    assert "Traceback" in capsys.readouterr().err


def test_debug_after_two_dashes_is_an_argument(verb: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    def command(text: str) -> None:
        print(text)

    verb(command)
    assert main(["probe", "--", "--debug"]) == 0
    assert capsys.readouterr().out == "--debug\n"


@pytest.mark.parametrize(
    ("error", "status"),
    [(KeyboardInterrupt(), 130), (module.Terminated(), 143), (typer.Exit(2), 2), (typer.Exit(0), 0), (SystemExit(3), 3), (EOFError(), 1)],
)
def test_other_ends(error: BaseException, status: int, verb: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> None:
        raise error

    verb(command)
    assert main(["probe"]) == status
    assert "Traceback" not in capsys.readouterr().err


def test_options_of_a_verb_arrive(verb: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    def command(many: Annotated[list[str] | None, typer.Option("--set")] = None, flag: bool = False) -> None:
        print(many, flag)

    verb(command)
    assert main(["probe", "--set", "a=1", "--set", "b=2", "--flag"]) == 0
    assert capsys.readouterr().out == "['a=1', 'b=2'] True\n"


def test_a_group_has_verbs_of_its_own(verb: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    def one(value: int) -> None:
        """Do one thing."""
        print(value + 1)

    verb(one=one)
    assert main(["probe", "one", "4"]) == 0
    assert capsys.readouterr().out == "5\n"
    assert main(["probe", "--help"]) == 0
    assert "Do one thing." in capsys.readouterr().out
    assert main(["probe", "two"]) == 2


def test_a_closed_pipe_is_silent(tmp_path: Path) -> None:
    command = f"{sys.executable} -m cairn --help | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr
    assert done.stdout.strip() in ("0", "141")


def test_every_verb_has_a_module_with_what_the_table_promises() -> None:
    for name in VERBS:
        found = importlib.import_module(f"cairn.cli.{name}")
        functions = list(found.COMMANDS.values()) if name in GROUPS else [found.command]
        assert functions
        for function in functions:
            assert function.__doc__, f"cairn {name} has no help"
            assert "cairn " + name in function.__doc__, f"the help of cairn {name} has no example"
