"""A conversation on a terminal or a pipe: what is typed, what is shown, what Ctrl-C stops. Keeps nothing of it; loads no model."""

from __future__ import annotations

import json
import os
import signal
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, TextIO

from cairn.cli.show import err, out
from cairn.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from cairn.generate.dialogue import Conversation
    from cairn.generate.session import Final, Piece

Message = dict[str, Any]

CALL_TAG = "<tool_call>"
"""Text from here on is held back on the screen: the finished call is shown as JSON in its place."""

HELP = {
    "/help": "this list",
    "/reset": "forget the conversation; system message, tools and attributes stay",
    "/system TEXT": "set the system message; without TEXT remove it",
    "/attr NAME=VALUE": "set an attribute; without VALUE remove it; alone show them",
    "/tools FILE": "offer the functions of a JSON file; 'off' offers none; alone show them",
    "/tool JSON": "give the result of the call that the model made",
    "/copy": "give the call itself as its result, to have JSON formatted",
    "/save FILE": "append the conversation as a row to a JSON Lines file",
    "/quit": "leave (as Ctrl-D does)",
    '"""': "begins and ends a message of several lines",
}


class Interrupt:
    """While an answer runs, Ctrl-C only sets `seen`, which the engine asks for between tokens; a second one does not wait for that."""

    def __init__(self) -> None:
        self.seen = False

    def _on(self, number: int, frame: FrameType | None) -> None:
        if self.seen:
            raise KeyboardInterrupt
        self.seen = True

    def __enter__(self) -> None:
        self.seen = False
        self._before = signal.signal(signal.SIGINT, self._on)

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    def cancelled(self) -> bool:
        """Whether Ctrl-C was pressed since the answer began."""
        return self.seen


class Screen:
    """Shows answers on standard output, and figures beside them: on a terminal in the same place, otherwise on standard error."""

    def __init__(self) -> None:
        self.terminal = sys.stdout.isatty()
        self.console = out()
        self.notes = self.console if self.terminal else err()

    def write(self, text: str) -> None:
        """Text of an answer, as it comes. Control characters in it must not reach a terminal, which would obey them."""
        sys.stdout.write("".join(map(_harmless, text)) if self.terminal else text)
        sys.stdout.flush()

    def note(self, text: str) -> None:
        """A remark that is no part of any answer."""
        self.notes.print(text, style="dim", markup=False)

    def calls(self, message: Message) -> None:
        """Function calls, as JSON."""
        from rich.json import JSON
        from rich.panel import Panel

        calls = [call["function"] for call in message["tool_calls"]]
        text = json.dumps(calls if len(calls) > 1 else calls[0], ensure_ascii=False, indent=2)
        if self.terminal:
            self.console.print(Panel(JSON(text), title="function call", title_align="left", border_style="cyan", expand=False))
        else:
            print(text, flush=True)

    def error(self, error: UserError) -> None:
        """A mistake after which the conversation goes on."""
        for label, text in (("error", error.what), ("at", error.where), ("do", error.remedy)):
            if text:
                self.notes.print(f"{label}: {text}", style="red" if label == "error" else "dim", markup=False)


def show_answer(events: Iterator[Piece | Final], screen: Screen) -> None:
    """Show an answer while it comes; a function call as JSON once it is complete."""
    from cairn.generate.session import Piece
    from cairn.generate.text import StopStrings

    shown = StopStrings((CALL_TAG,))
    whole, visible = "", ""
    for event in events:
        if isinstance(event, Piece):
            whole += event.text
            piece = shown.feed(event.text)
            visible += piece
            screen.write(piece)
            continue
        calls = event.message.get("tool_calls")
        if not calls:
            # What was held back was no call after all.
            visible, rest = whole, whole[len(visible) :]
            screen.write(rest)
        if visible:
            screen.write("\n")
        if calls:
            screen.calls(event.message)
        if not whole.strip():
            screen.note("(the answer is empty; your message was taken back)")
        screen.note(_figures(event))


def _figures(final: Final) -> str:
    ends = {"stop": "", "length": " · cut at the longest answer allowed or at the model's context", "cancelled": " · stopped"}
    first = f" · first after {final.first_seconds * 1000:.0f} ms" if final.ids else ""
    return f"{len(final.ids)} tokens · {final.tokens_per_second:,.0f} tokens/s{first}{ends[final.reason]}"


def _harmless(sign: str) -> str:
    return sign if sign in "\n\t" or unicodedata.category(sign) != "Cc" else "\ufffd"


class Commands:
    """What lines mean: messages, and commands that begin with a slash."""

    def __init__(self, conversation: Conversation, screen: Screen, interrupt: Interrupt) -> None:
        self.conversation, self.screen, self.interrupt = conversation, screen, interrupt

    def take(self, line: str) -> bool:
        """Do what a line says; false where it says to leave.

        Raises:
            UserError: the line cannot be done; the conversation is as before.
        """
        line = line.strip("\r\n")
        if not line.strip():
            return True
        if not line.startswith("/"):
            self._show(self.conversation.ask(line))
            return True
        word, _, rest = line.partition(" ")
        if word in ("/quit", "/exit"):
            return False
        method = getattr(self, f"_do_{word[1:]}", None)
        if method is None:
            raise UserError(f"there is no command {word}", remedy=did_you_mean(word, [name.split()[0] for name in HELP]))
        method(rest.strip())
        return True

    def _show(self, events: Iterator[Piece | Final]) -> None:
        with self.interrupt:
            show_answer(events, self.screen)

    def _do_help(self, rest: str) -> None:
        width = max(map(len, HELP))
        self.screen.note("\n".join(f"{name:<{width}}  {text}" for name, text in HELP.items()))

    def _do_reset(self, rest: str) -> None:
        self.conversation.dialogue.turns.clear()
        self.screen.note("the conversation is forgotten")

    def _do_system(self, rest: str) -> None:
        self.conversation.dialogue.system = rest or None
        self.screen.note("the system message is set" if rest else "there is no system message now")

    def _do_attr(self, rest: str) -> None:
        dialogue, format = self.conversation.dialogue, self.conversation.session.format
        if rest:
            dialogue.set_attribute(format, rest)
        values = dialogue.attribute_values(format)
        self.screen.note(" ".join(f"{name}={value}" for name, value in values.items()) or "this format has no attributes")

    def _do_tools(self, rest: str) -> None:
        from cairn.generate.dialogue import read_tools

        dialogue = self.conversation.dialogue
        if rest:
            dialogue.tools = None if rest == "off" else read_tools(Path(rest).expanduser())
        names = [tool.get("function", tool)["name"] for tool in dialogue.tools or ()]
        self.screen.note("functions: " + ", ".join(names) if names else "no functions are offered")

    def _do_tool(self, rest: str) -> None:
        self._result(rest)

    def _do_copy(self, rest: str) -> None:
        self._result(None)

    def _result(self, text: str | None) -> None:
        events = self.conversation.result(text)
        if events is not None:
            self._show(events)
            return
        self.screen.note(f"next: the result of {self.conversation.dialogue.pending()[0]['name']}")

    def _do_save(self, rest: str) -> None:
        if not rest:
            raise UserError("no file named", where="/save", remedy="write /save FILE")
        path = Path(rest).expanduser()
        self.conversation.dialogue.save(path)
        self.screen.note(f"saved to {path}")


def _messages(lines: Iterator[str]) -> Iterator[str]:
    """Lines, those between two lines of three quotes joined into one message."""
    for line in lines:
        if line.strip() != '"""':
            yield line
            continue
        block = []
        for inner in lines:
            if inner.strip() == '"""':
                break
            block.append(inner.rstrip("\r\n"))
        yield "\n".join(block)


def piped(conversation: Conversation, stream: TextIO, interrupt: Interrupt) -> None:
    """Take every line of a stream as a message or a command. The first mistake ends it."""
    commands = Commands(conversation, Screen(), interrupt)
    for line in _messages(iter(stream.readline, "")):
        if not commands.take(line):
            return


class Interactive:
    """The prompt: reads lines with a history, and goes on after mistakes and interrupts.

    Args:
        conversation: the dialogue.
        name: what the model is called.
        interrupt: what Ctrl-C sets while an answer runs.
    """

    def __init__(self, conversation: Conversation, name: str, interrupt: Interrupt) -> None:
        self.screen = Screen()
        self.commands = Commands(conversation, self.screen, interrupt)
        self.conversation, self.name = conversation, name

    def run(self) -> None:
        """Talk until the user leaves."""
        history = _history()
        engine = self.conversation.session.engine
        context = f", context {engine.context} tokens" if engine.context else ""
        self.screen.note(f"{self.name} · format {self.conversation.session.format.name}{context} · /help shows the commands, Ctrl-D leaves")
        try:
            for line in _messages(self._lines()):
                try:
                    if not self.commands.take(line):
                        return
                except UserError as error:
                    self.screen.error(error)
                except KeyboardInterrupt:
                    # Between the line and the answer's first step, or a second one while a long prompt is read.
                    self.screen.note("\n(stopped; your message was taken back)")
        finally:
            history()

    def _lines(self) -> Iterator[str]:
        """Lines as they are typed; ends at Ctrl-D, and at the second Ctrl-C in a row."""
        interrupted = False
        while True:
            waiting = self.conversation.dialogue.pending()
            prompt = f"result of {waiting[0]['name']} (/tool JSON or /copy) > " if waiting else "> "
            try:
                line = input(prompt)
            except EOFError:
                print()
                return
            except KeyboardInterrupt:
                print()
                if interrupted:
                    return
                interrupted = True
                self.screen.note("Ctrl-C once more, or Ctrl-D, leaves")
                continue
            interrupted = False
            yield line


def _history() -> Any:
    """Read what was typed in earlier conversations, for the arrow keys; gives what writes it back."""
    try:
        import readline
    except ImportError:
        # Some builds of Python come without it: lines can then be typed all the same.
        return lambda: None
    folder = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "cairn"
    file = folder / "chat_history"

    def write() -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            readline.set_history_length(1000)
            readline.write_history_file(file)
            file.chmod(0o600)
        except OSError:
            # A home that cannot be written to must not spoil the end of a conversation.
            return

    try:
        readline.read_history_file(file)
    except OSError:
        readline.clear_history()
    return write
