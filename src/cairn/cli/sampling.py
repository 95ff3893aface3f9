"""The options that `chat` and `generate` share: how tokens are chosen, and how the model is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from cairn.generate.sampling import Sampling

MaxNewTokens = Annotated[int, typer.Option("--max-new-tokens", help="Longest answer, in tokens.")]
Temperature = Annotated[float, typer.Option("--temperature", "-t", help="0 takes the likeliest token; 1 draws as the model says.")]
TopK = Annotated[int, typer.Option("--top-k", help="Draw among so many of the likeliest tokens; 0 among all.")]
TopP = Annotated[float, typer.Option("--top-p", help="Draw among the likeliest tokens that together reach this probability.")]
MinP = Annotated[float, typer.Option("--min-p", help="Draw among tokens of at least this share of the likeliest one's probability.")]
Penalty = Annotated[float, typer.Option("--repetition-penalty", help="Above 1 makes tokens that were there already less likely.")]
Seed = Annotated[int, typer.Option("--seed", help="The same seed gives the same answers.")]
Stop = Annotated[
    list[str] | None, typer.Option("--stop", help="End answers in front of this text; may be given again.", show_default=False)
]
FormatName = Annotated[
    str | None, typer.Option("--format", help="A chat format by name, in place of the model's own.", show_default=False)
]
Dtype = Annotated[str, typer.Option("--dtype", help="Precision of the weights: float32 or bfloat16.")]


def make_sampling(
    max_new_tokens: int, temperature: float, top_k: int, top_p: float, min_p: float, repetition_penalty: float, seed: int
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
        "seed": seed,
    }
    return build(Sampling, values, where="the sampling options")
