r"""The command `cairn`: finds the verb, calls it, and says what went wrong on one screen. Knows no verb's inside.

How a verb is written. A verb is a module `cairn/cli/<verb>.py` with a function `command`, an ordinary typer function:
`Annotated` arguments and options, and a docstring that is its help, with an example in a `\b` block. A group of verbs is
a module with `COMMANDS: dict[str, Callable]`. The tables below name them all, so that `cairn --help` imports none, and a
verb imports its own module alone. Verbs import at their top what is light and the rest inside the function.

A verb raises `UserError` for what the user can mend (status 2) and `typer.Exit(2)` after a report that found something
wrong in what it was given. What else escapes is our mistake (status 1). `--debug` belongs to this file: it may stand
anywhere and shows tracebacks. Shared options and consoles are in `cairn.cli.show`.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

VERBS: dict[str, str] = {
    "run": "Run a recipe: every stage that is not in the store yet.",
    "plan": "Show what a run would do and cost.",
    "list": "Show recipes, formats, kinds of stages and what the store holds.",
    "chat": "Talk with a model.",
    "generate": "Answer a file of prompts.",
    "serve": "Serve a model: OpenAI's API, and a page to talk to it.",
    "eval": "Measure models on a suite.",
    "card": "Write a model's card.",
    "merge": "Merge an adapter into its base.",
    "export": "Write a model as a folder for other programs.",
    "trace": "Show what an artifact was made from.",
    "verify": "Check an artifact's bytes, or run its stage again and compare.",
    "diff": "Show where two artifacts part.",
    "check": "Check a data file row by row.",
    "tokens": "Show a row's tokens and its loss mask.",
    "data": "Statistics and conversion of data: stats, convert.",
    "tokenizer": "Train and measure tokenizers: train, fertility.",
    "bench": "Measure this program.",
    "doctor": "Report on this machine and installation.",
}
"""Every verb with its line in the help, in the order of the help."""

GROUPS = frozenset({"data", "tokenizer"})
"""Verbs that have verbs of their own."""

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it."""


class Terminated(BaseException):
    """SIGTERM arrived. Not an `Exception`, so that no handler for mistakes takes it for one."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and give its exit status.

    Args:
        arguments: what stands after `cairn`; the process's own unless given.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    ends = words.index("--") if "--" in words else len(words)
    debug = "--debug" in words[:ends]
    words = [w for i, w in enumerate(words) if w != "--debug" or i > ends]
    try:
        restore = _on_terminate()
        try:
            status = _dispatch(words)
            # A closed pipe shows itself here at the latest, where it can still be silent.
            sys.stdout.flush()
            return status
        finally:
            restore()
    except KeyboardInterrupt:
        print("\ninterrupted; what was finished is kept", file=sys.stderr)
        return INTERRUPTED
    except Terminated:
        print("terminated; what was finished is kept", file=sys.stderr)
        return 128 + signal.SIGTERM
    except BrokenPipeError:
        # `cairn list | head`: the reader has gone. Python would complain once more when it closes standard output.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except Exception as error:
        return _report(error, debug, words)


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("--help", "-h", "help"):
        print(help_text())
        return 0 if words else 2
    if words[0] in ("--version", "-V"):
        from cairn import __version__

        print(f"cairn {__version__}")
        return 0
    verb, rest = words[0], words[1:]
    if verb not in VERBS:
        from cairn.errors import UserError, did_you_mean

        raise UserError(f"cairn has no command '{verb}'", where=f"cairn {verb}", remedy=did_you_mean(verb, VERBS))
    return _call(verb, rest)


def _call(verb: str, rest: list[str]) -> int:
    """Build the verb's command and run it; typer reports wrong usage itself, with status 2."""
    module = importlib.import_module(f"cairn.cli.{verb}")
    import typer

    app = typer.Typer(add_completion=False, rich_markup_mode=None, context_settings={"help_option_names": ["-h", "--help"]})
    escaped: list[BaseException] = []
    if verb in GROUPS:
        app.callback(help=VERBS[verb], no_args_is_help=True, invoke_without_command=False)(lambda: None)
        for name, function in module.COMMANDS.items():
            app.command(name, help=_help(function))(_keep(function, escaped))
    else:
        app.command(verb, help=_help(module.command))(_keep(module.command, escaped))
    try:
        status = typer.main.get_command(app).main(args=rest, prog_name=f"cairn {verb}", standalone_mode=True)
    except SystemExit as end:
        status = end.code
    if escaped:
        raise escaped[0]
    return status if isinstance(status, int) else 0


def _help(function: Callable[..., Any]) -> str:
    """A verb's docstring, in which a raw `\\b` may mark a block whose lines are to stay."""
    return inspect.cleandoc(function.__doc__ or "").replace("\\b\n", "\b\n")


def _keep(function: Callable[..., Any], escaped: list[BaseException]) -> Callable[..., Any]:
    """The function, whose exceptions are put aside: typer has its own answer to some of them, and it is not ours."""
    import typer

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        try:
            function(*args, **kwargs)
        except (typer.Exit, typer.Abort, typer.BadParameter, SystemExit):
            raise
        except BaseException as error:
            escaped.append(error)
            raise SystemExit(1) from error

    return wrapper


def help_text() -> str:
    """What `cairn --help` prints."""
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {verb:<{width}}  {line}" for verb, line in VERBS.items())
    return f"""Usage: cairn COMMAND [ARGS]...

Cairn builds chat models that you can check: from raw text to an aligned, evaluated model, replayable bit for bit.

Commands:
{verbs}

Options:
  --debug    Show the traceback of an error.
  --version  Show the version.
  --help     Show this, or after a command its own help.

Start with:  cairn run pebble   and then   cairn chat pebble/chat"""


def _on_terminate() -> Callable[[], None]:
    """Let SIGTERM unwind the stack like Ctrl-C, so that temporary files go and locks are let go. Gives what undoes it."""

    def stop(number: int, frame: Any) -> None:
        raise Terminated

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:
        # Not in the main thread (a server that embeds us): its owner keeps its own handler.
        return lambda: None
    return lambda: (signal.signal(signal.SIGTERM, before), None)[1]


def _report(error: Exception, debug: bool, words: list[str]) -> int:
    from cairn.errors import UserError

    if debug:
        import traceback

        traceback.print_exception(error)
    if isinstance(error, UserError):
        _show_user_error(error)
        return error.status
    line = f"cairn stopped on {type(error).__name__}: {error}".rstrip(": ")
    print(f"{line[:600]}\nThis is our mistake, not yours. Nothing that was finished is lost.", file=sys.stderr)
    if not debug:
        print(f"For the traceback, which a report needs:  cairn {shlex.join(words)} --debug", file=sys.stderr)
    return 1


def _show_user_error(error: Any) -> None:
    """A panel on a terminal, plain lines elsewhere: paths in them must stay whole for other programs."""
    lines = [f"error: {error.what}"]
    lines += [f"   at: {error.where}"] if error.where else []
    lines += [f"   do: {error.remedy}"] if error.remedy else []
    if not sys.stderr.isatty():
        print("\n".join(line[:2000] for line in lines), file=sys.stderr)
        return
    from rich.panel import Panel
    from rich.text import Text

    from cairn.cli.show import err

    body = Text(error.what[:2000], style="bold")
    for label, value in (("at", error.where), ("do", error.remedy)):
        if value:
            body.append(f"\n{label}: ", style="dim not bold")
            body.append(value[:2000], style="not bold")
    err().print(Panel(body, title="error", title_align="left", border_style="red", expand=False))


if __name__ == "__main__":
    sys.exit(main())
