"""The options that `chat` and `generate` share: how tokens are chosen, what answers must look like, and how the model is loaded.
Knows no verb and no engine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cairn.errors import UserError

if TYPE_CHECKING:
    from cairn.generate.grammar import Hold
    from cairn.generate.sampling import Sampling

MaxNewTokens = Annotated[int, typer.Option("--max-new-tokens", help="Longest answer, in tokens.")]
Temperature = Annotated[float, typer.Option("--temperature", "-t", help="0 takes the likeliest token; 1 draws as the model says.")]
TopK = Annotated[int, typer.Option("--top-k", help="Draw among so many of the likeliest tokens; 0 among all.")]
TopP = Annotated[float, typer.Option("--top-p", help="Draw among the likeliest tokens that together reach this probability.")]
MinP = Annotated[float, typer.Option("--min-p", help="Draw among tokens of at least this share of the likeliest one's probability.")]
Penalty = Annotated[float, typer.Option("--repetition-penalty", help="Above 1 makes tokens that were there already less likely.")]
Presence = Annotated[float, typer.Option("--presence-penalty", help="Taken off tokens that the answer holds already.")]
Frequency = Annotated[float, typer.Option("--frequency-penalty", help="The same, once for each time.")]
Seed = Annotated[int, typer.Option("--seed", help="The same seed gives the same answers.")]
Stop = Annotated[
    list[str] | None, typer.Option("--stop", help="End answers in front of this text; may be given again.", show_default=False)
]
FormatName = Annotated[
    str | None, typer.Option("--format", help="A chat format by name, in place of the model's own.", show_default=False)
]
Dtype = Annotated[str, typer.Option("--dtype", help="Precision of the weights: float32 or bfloat16.")]
Schema = Annotated[
    Path | None, typer.Option("--schema", help="JSON schema, a file: every answer is JSON that is valid against it.", show_default=False)
]
Regex = Annotated[str | None, typer.Option("--regex", help="Every answer matches this regular expression.", show_default=False)]
Choice = Annotated[
    list[str] | None, typer.Option("--choice", help="Every answer is one of these texts; give it again for each.", show_default=False)
]
GrammarFile = Annotated[
    Path | None,
    typer.Option("--grammar", help="Grammar in llguidance's Lark, a file: every answer is a text of it.", show_default=False),
]
Attr = Annotated[
    list[str] | None, typer.Option("--attr", help="name=value, for formats with attributes; may be given again.", show_default=False)
]
ToolChoice = Annotated[
    str | None,
    typer.Option(
        "--tool-choice",
        help="Hold answers to calls that parse: auto, none, required, or a function's name. Free unless given.",
        show_default=False,
    ),
]


def make_hold(
    schema: Path | None,
    regex: str | None,
    choice: list[str] | None,
    grammar_file: Path | None,
    tool_choice: str | None,
    healed: bool = False,
) -> Hold | None:
    """What answers are held to, out of the options; None where nothing is asked.

    Raises:
        UserError: options that exclude each other, an unreadable file, or something malformed.
    """
    given: dict[str, object] = {"--schema": schema, "--regex": regex, "--choice": choice or None, "--grammar": grammar_file}
    given["--tool-choice"] = tool_choice if tool_choice != "none" else None
    names = [name for name, value in given.items() if value is not None]  # an empty text is refused below, not passed over
    if len(names) > 1:
        raise UserError(f"{' and '.join(names)} exclude each other", remedy="give one of them")
    if not names and tool_choice is None and not healed:
        return None
    from cairn.generate import grammar

    constraint = None
    if schema is not None:
        constraint = grammar.json_schema(_json_file(schema), str(schema))
    elif regex is not None:
        constraint = grammar.regex(regex, "--regex")
    elif choice:
        constraint = grammar.choice(choice, "--choice")
    elif grammar_file is not None:
        constraint = grammar.grammar(_text_file(grammar_file), str(grammar_file))
    return grammar.Hold(constraint, tool_choice, healed)


def _json_file(path: Path) -> object:
    import json

    try:
        return json.loads(_text_file(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"cannot read the schema: {error}", where=str(path), remedy="give a JSON schema") from None


def _text_file(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError("no such file", where=str(path), remedy="check the path") from None
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the file: {error}", where=str(path), remedy="give a text file in UTF-8") from None


Weights = Annotated[
    str | None, typer.Option("--weights", help="int8 or int4: smaller and faster; their price in perplexity is told.", show_default=False)
]
Drafts = Annotated[
    str | None,
    typer.Option("--drafts", help="lookup, or a small model's folder: the same answers in fewer steps of the model.", show_default=False),
]


def say(line: str) -> None:
    """What a user should know about how the model runs, on standard error."""
    from cairn.cli.show import err

    err().print(line, markup=False)


def make_sampling(
    max_new_tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    repetition_penalty: float,
    presence_penalty: float,
    frequency_penalty: float,
    seed: int,
) -> Sampling:
    """The configuration out of the options.

    Raises:
        UserError: an option out of range.
    """
    from cairn.config import build
    from cairn.generate.sampling import Sampling

    values = {
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "presence_penalty": presence_penalty,
        "frequency_penalty": frequency_penalty,
        "seed": seed,
    }
    return build(Sampling, values, where="the sampling options")
