"""Which runner a model gets: the compiled one where it can run the model, the model's own forward elsewhere; with drafts if asked for.

For models whose weights do not change while they generate: the compiled forward has its own copy of them. Knows no request.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch

from cairn.errors import UserError
from cairn.generate.fast import FastRunner, NotFast
from cairn.generate.hf_runner import HfRunner
from cairn.generate.perplexity import compare
from cairn.generate.runner import Runner
from cairn.generate.speculate import Drafter, DraftModel, PromptLookup, Speculative
from cairn.model.context import context_length

JUDGED = 256
"""Tokens of the model's own text on which rounded weights are judged."""


class Choose:
    """Makes runners for an engine (its argument `runner`).

    Args:
        weights: None: as the model has them. Others only where the compiled forward runs the model.
        drafts: "lookup": what followed the last tokens earlier in the sequence; a small model of the same vocabulary; None: no drafts.
        budget: tokens that are held together at most, as the engine's `max_batch_tokens`.
        say: told, in a line each, what a user should know: why the compiled forward does not run, what rounding costs.
    """

    def __init__(
        self, weights: str | None = None, drafts: Literal["lookup"] | Any | None = None, *, budget: int = 32768,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:  # fmt: skip
        self.weights, self.drafts, self.budget, self.say = weights, drafts, budget, say

    def __call__(self, model: Any, slots: int, alone: bool) -> Runner:
        """The runner of a model.

        Raises:
            UserError: weights that need the compiled forward, which does not run here; a draft model of another vocabulary.
        """
        runner = self._runner(model, slots, alone, self.weights)
        drafter = self._drafter(model, slots, alone)
        return runner if drafter is None else Speculative(runner, drafter)

    def _runner(self, model: Any, slots: int, alone: bool, weights: str | None) -> Runner:
        try:
            fast = FastRunner(model, slots, _capacity(model, self.budget), weights=weights, budget=self.budget)
        except NotFast as error:
            if weights is not None:
                remedy = "leave the weights as the model has them, or give a model and machine that the compiled forward knows"
                raise UserError(f"no {weights} weights: {error}", where="weights", remedy=remedy) from error
            self.say(f"the model runs by its own, slower forward: {error}")
            return HfRunner(model, slots, alone=alone)
        if weights is not None:
            self._judge(model, fast)
        return fast

    def _judge(self, model: Any, rounded: FastRunner) -> None:
        context = _capacity(model, JUDGED + 1)
        full = FastRunner(model, 1, min(context, JUDGED + 1), check=False)
        found = compare(full, rounded, tokens=min(context, JUDGED + 1) - 1)
        line = f"perplexity {found['rounded']:.4g} with {rounded.weights} weights, {found['full']:.4g} without ({found['difference']:+.2%})"
        self.say(f"{line}, over {min(context, JUDGED + 1) - 1} tokens of the model's own; {found['divergence']:.2g} nats a token apart")

    def _drafter(self, model: Any, slots: int, alone: bool) -> Drafter | None:
        if self.drafts is None:
            return None
        if self.drafts == "lookup":
            return PromptLookup()
        vocab, own = (int(m.get_input_embeddings().weight.shape[0]) for m in (self.drafts, model))
        if vocab != own:
            what = f"the draft model knows {vocab:,} ids, the model {own:,}"
            raise UserError(what, where="draft model", remedy="use a small model with the same tokenizer")
        with torch.inference_mode():
            return DraftModel(self._runner(self.drafts, slots, alone, None), vocab)


def _capacity(model: Any, budget: int) -> int:
    return context_length(model.config) or budget
