"""An engine over a model that is being trained: it answers with the weights as they are now, and proves it. Knows no text and no loss.

The compiled forward has copies of the weights, which are renewed in place before each round; a model that it cannot run answers by its own
forward, which has none. A checksum of the copies against the trained weights, and logits of both on a few tokens, guard every round.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch

from cairn.errors import UserError
from cairn.generate.engine import Completion, Engine, Request, evaluating
from cairn.generate.fast import TOLERANCE, FastRunner, NotFast
from cairn.generate.hf_runner import HfRunner
from cairn.generate.runner import Piece, Runner
from cairn.model import kernels
from cairn.model.checksum import checksum
from cairn.model.context import context_length

Forward = Literal["auto", "compiled", "own"]
PROBE = 16
"""Tokens on which both forwards are compared in every round."""


class Stale(RuntimeError):
    """What would answer does not hold the weights that are trained."""


class Live:
    """Answers with a model in training.

    Args:
        model: a causal LM whose weights somebody moves between two rounds.
        attention: the attention implementation that generates; training may use another one.
        max_batch: requests that run together at most.
        longest: tokens of a prompt with its answer, at most.
        vocab_size: ids from here on are never chosen.
        forward: own: the model's own. compiled: ours, on a CPU and for decoders of known structure. auto: compiled where it runs.
        say: told why the compiled forward does not run.

    Raises:
        UserError: the compiled forward was asked for by name and does not run.
    """

    def __init__(
        self, model: Any, *, attention: str, max_batch: int, longest: int, vocab_size: int, forward: Forward = "auto",
        say: Callable[[str], None] = lambda line: None,
    ) -> None:  # fmt: skip
        self.model, self.attention = model, attention
        self.capacity = min(longest, context_length(model.config) or longest)
        self._fast: FastRunner | None = None
        self._make = lambda _, slots, alone: self._runner(slots, alone, forward, say)
        budget = max_batch * (self.capacity + 32)
        self.engine = Engine(model, max_batch=max_batch, max_batch_tokens=budget, vocab_size=vocab_size, runner=self._make)
        with self._generating():
            self.engine.ready()

    @property
    def compiled(self) -> bool:
        """Whether the compiled forward answers."""
        return self._fast is not None

    def generate(self, requests: Sequence[Request], on_progress: Callable[[int, int], None] | None = None) -> tuple[list[Completion], str]:
        """Answer with the weights as they are now; (the answers, the checksum of these weights in hex).

        Raises:
            Stale: what would answer holds other weights.
            UserError: as of `Engine.generate`.
        """
        with self._generating():
            if self._fast is not None:
                self._fast.renew()
            told = self.guard()
            return self.engine.generate(requests, on_progress), told

    def guard(self) -> str:
        """The checksum of the trained weights, in hex.

        Raises:
            Stale: the copies differ from them, or their logits do.
        """
        if self._fast is None:
            return f"{checksum(self.model.parameters()):016x}"
        own, copied = self._fast.weights_checksum(), self._fast.checksum()
        if own != copied:
            raise Stale(f"the engine's weights have checksum {copied:016x}, the trained ones {own:016x}")
        ids = [(7 + 2654435761 * i) % self.engine.rows for i in range(min(PROBE, self.capacity))]
        with torch.inference_mode():
            want_TV = self.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].float()
        got_TV = self._fast.forward([Piece(0, ids, 0, len(ids))])[0]
        apart, largest = float((got_TV - want_TV).abs().max()), float(want_TV.abs().max())
        self._fast.truncate(0, 0)
        # Not >: a NaN must not pass.
        if not apart <= TOLERANCE[self._fast.weights] * largest and bool(want_TV.isfinite().all()):
            raise Stale(f"the engine's logits are {apart:.2g} from the trained model's own, whose largest is {largest:.2g}")
        return f"{own:016x}"

    def _runner(self, slots: int, alone: bool, forward: Forward, say: Callable[[str], None]) -> Runner:
        if forward != "own":
            try:
                self._fast = FastRunner(self.model, slots, self.capacity)
                return self._fast
            except NotFast as error:
                if forward == "compiled":
                    remedy = "set forward: auto, and the model's own forward answers"
                    raise UserError(f"no compiled forward: {error}", where="forward", remedy=remedy) from error
                say(f"answers are generated by the model's own, slower forward: {error}")
        return HfRunner(self.model, slots, alone=alone)

    @contextmanager
    def _generating(self) -> Iterator[None]:
        """The model as generation calls it."""
        before = self.model.config._attn_implementation
        self.model.set_attn_implementation(self.attention)
        try:
            # Formulas are compiled for the sizes of training; a step of one token would compile them anew.
            with evaluating(self.model), kernels.compiled(False):
                yield
        finally:
            self.model.set_attn_implementation(before)
