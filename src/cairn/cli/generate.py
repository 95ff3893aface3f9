"""`cairn generate`: answers a file of prompts. Knows no row and no engine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

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


def command(
    ref: Annotated[str, typer.Argument(help="recipe/stage, a folder, the start of a key, or a checkpoint's name on the hub.")],
    source: Annotated[Path, typer.Option("--in", help="Rows of dialogues or texts, in any form that `cairn check` reads.")],
    target: Annotated[Path, typer.Option("--out", help="JSON Lines file to write: each row with its answer, reason and ids.")],
    reader: Annotated[str, typer.Option("--reader", help="How to read the file.")] = "auto",
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Answer so many rows.", show_default=False)] = None,
    max_new_tokens: MaxNewTokens = 256,
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
    attr: Attr = None,
    heal: Annotated[bool, typer.Option("--heal", help="Continue plain text from inside of its last word where a longer one fits.")] = False,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Rows answered together at most.")] = 64,
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="Compute each row by itself: no answer can depend on other rows. Slower.")
    ] = False,
    format: FormatName = None,
    dtype: Dtype = "float32",
    weights: Weights = None,
    drafts: Drafts = None,
    store: StoreDir = None,
    json: Json = False,
) -> None:
    r"""Answer a file of prompts.

    A dialogue that ends with an assistant message is answered anew; its own last message stands as "reference" in the output.
    An interrupted run goes on where it was when the same command is given again.

    \b
    Example:
        cairn generate pebble/chat --in questions.jsonl --out answers.jsonl --max-new-tokens 64
        cairn generate mine/steered --in questions.jsonl --out answers.jsonl --attr humor=4 --attr verbosity=0
    """
    from cairn.chat.format import load_format
    from cairn.generate.dialogue import Dialogue
    from cairn.ledger.progress import make_progress
    from cairn.pipeline.answers import answer_file
    from cairn.pipeline.resolve import model_folder

    sampling = make_sampling(
        max_new_tokens, temperature, top_k, top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty, seed
    )
    hold = make_hold(schema, regex, choice, grammar, tool_choice, heal)
    model = model_folder(ref, open_store(store))
    asked = Dialogue()
    for text in attr or ():
        asked.set_attribute(load_format(format or str(model)), text)
    report = answer_file(
        model, source, target, make_progress("generate"), sampling=sampling, stop=stop or [], hold=hold, reader=reader, limit=limit,
        batch=batch, deterministic=deterministic, format=format, attributes=asked.attributes, dtype=dtype, weights=weights,
        drafts=drafts, say=say,
    )  # fmt: skip
    if json:
        print_json(report)
        return
    ends = ", ".join(f"{name} {count}" for name, count in sorted(report["reasons"].items()))
    figures = f"{report['tokens']:,} tokens in {report['seconds']:.1f} s, {report['tokens_per_second']:,.0f} tokens/s"
    err().print(f"{report['rows']} rows to {target}: {figures} ({ends})", markup=False)
