"""`cairn chat`: talk with a model. Checks the options, loads the model and hands over to `repl`; knows no turn of it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cairn.cli.sampling import (
    Attr,
    Choice,
    Drafts,
    Dtype,
    FormatName,
    Frequency,
    GrammarFile,
    MaxNewTokens,
    MinP,
    Penalty,
    Presence,
    Regex,
    Schema,
    Seed,
    Stop,
    Temperature,
    ToolChoice,
    TopK,
    TopP,
    Weights,
    make_hold,
    make_sampling,
    say,
)
from cairn.cli.show import Json, StoreDir, err, open_store, print_json
from cairn.errors import UserError

if TYPE_CHECKING:
    from cairn.chat.format import Format
    from cairn.cli.repl import Interrupt
    from cairn.generate.dialogue import Conversation
    from cairn.generate.session import Session


def command(
    ref: Annotated[str, typer.Argument(help="recipe/stage, a folder, the start of a key, or a checkpoint's name on the hub.")],
    system: Annotated[str | None, typer.Option("--system", help="The system message.", show_default=False)] = None,
    tools: Annotated[Path | None, typer.Option("--tools", help="JSON file of functions that it may call.", show_default=False)] = None,
    attr: Attr = None,
    once: Annotated[
        str | None, typer.Option("--once", help="Answer this one message and end; - reads it from standard input.", show_default=False)
    ] = None,
    max_new_tokens: MaxNewTokens = 512,
    temperature: Temperature = 0.0,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    min_p: MinP = 0.0,
    repetition_penalty: Penalty = 1.0,
    presence_penalty: Presence = 0.0,
    frequency_penalty: Frequency = 0.0,
    seed: Seed = 0,
    stop: Stop = None,
    schema: Schema = None,
    regex: Regex = None,
    choice: Choice = None,
    grammar: GrammarFile = None,
    tool_choice: ToolChoice = None,
    format: FormatName = None,
    dtype: Dtype = "float32",
    weights: Weights = None,
    drafts: Drafts = None,
    store: StoreDir = None,
    json: Json = False,
) -> None:
    r"""Talk with a model.

    Ctrl-C stops an answer; twice at the empty prompt, or Ctrl-D, ends the conversation. /help shows the commands. Where
    standard input is no terminal, each of its lines is a message.

    \b
    Examples:
        cairn chat pebble/chat
        cairn chat pebble/chat --tools tools.json --once "What is the weather in Oslo?"
    """
    from cairn.cli import repl
    from cairn.generate.dialogue import Conversation, Dialogue, read_tools
    from cairn.pipeline.resolve import model_folder

    message = sys.stdin.read() if once == "-" else once or ""
    if once is not None and not message.strip():
        raise UserError("the message is empty", where="--once", remedy="give some text, or - and the text on standard input")
    if json and once is None:
        raise UserError("--json prints one answer", remedy="give the message with --once TEXT")
    if "" in (stop or ()):
        raise UserError("a stop string is empty", where="--stop", remedy="give at least one character")
    sampling = make_sampling(
        max_new_tokens, temperature, top_k, top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty, seed
    )
    hold = make_hold(schema, regex, choice, grammar, tool_choice)
    folder = model_folder(ref, open_store(store))
    chat_format = _format(folder, format)
    dialogue = Dialogue(system=system, tools=read_tools(tools) if tools else None)
    for text in attr or ():
        dialogue.set_attribute(chat_format, text)
    interrupt = repl.Interrupt()
    loaded = _load(folder, format, dtype, weights, drafts)
    conversation = Conversation(loaded, dialogue, sampling, stop or (), interrupt.cancelled, hold)
    if once is not None:
        _once(conversation, message, json, interrupt)
    elif sys.stdin.isatty():
        repl.Interactive(conversation, ref, interrupt).run()
    else:
        repl.piped(conversation, sys.stdin, interrupt)


def _format(folder: Path, name: str | None) -> Format:
    """The model's chat format.

    Raises:
        UserError: there is none.
    """
    from cairn.chat.format import format_names, load_format

    if name is not None and name not in format_names():
        from cairn.errors import did_you_mean

        raise UserError(f"unknown chat format '{name}'", where="--format", remedy=did_you_mean(name, format_names()))
    try:
        return load_format(name or folder)
    except UserError as error:
        if name is not None or error.where != str(folder):
            raise
        remedy = f"train it on dialogues first, or name a format that its tokenizer holds: --format {' or '.join(format_names())}"
        raise UserError("this model has no chat format, so it cannot chat", where=str(folder), remedy=remedy) from None


def _load(folder: Path, format: str | None, dtype: str, weights: str | None, drafts: str | None) -> Session:
    """The session of a model."""
    from contextlib import nullcontext

    with err().status("loading the model") if sys.stderr.isatty() else nullcontext():
        from cairn.generate.load import load_chat

        return load_chat(folder, format=format, dtype=dtype, weights=weights, drafts=drafts, say=say).session


def _once(conversation: Conversation, message: str, json: bool, interrupt: Interrupt) -> None:
    from cairn.cli import repl
    from cairn.generate.session import Final

    if not json:
        with interrupt:
            repl.show_answer(conversation.ask(message), repl.Screen())
        return
    with interrupt:
        *_, final = conversation.ask(message)
    assert isinstance(final, Final)
    print_json(
        {
            "message": final.message,
            "reason": final.reason,
            "prompt_tokens": final.prompt_tokens,
            "answer_tokens": len(final.ids),
            "seconds": final.seconds,
            "tokens_per_second": final.tokens_per_second,
        }
    )
