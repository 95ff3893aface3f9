"""One request on its way through the engine: what it has generated, where it stands and how it ended. Knows no other request."""

from __future__ import annotations

from contextlib import suppress

from torch import Tensor

from cairn.errors import UserError
from cairn.generate.choice import Choice, logprob
from cairn.generate.draw import NOT_FINITE
from cairn.generate.request import Completion, Logprob, Reason, Request, Step
from cairn.generate.runner import Piece


class Job:
    """A request's progress.

    Args:
        request: what is asked.
        limit: tokens that it may generate.
        deterministic: noted in its completion.
    """

    def __init__(self, request: Request, limit: int, deterministic: bool = False) -> None:
        self.request, self.limit = request, limit
        self.prompt = list(request.ids)
        self.answer: list[int] = []
        self.slot: int | None = None
        self.held = 0
        """Tokens of prompt and answer that its slot holds."""
        self.cached = 0
        self.cancelled = False
        """Set from any thread; heeded before the next step."""
        self.choice: Choice | None = None
        self.completion: Completion | None = None
        self.error: Exception | None = None
        self._logprobs: list[Logprob] = []
        self._deterministic = deterministic

    @property
    def length(self) -> int:
        """Tokens of prompt and answer."""
        return len(self.prompt) + len(self.answer)

    @property
    def left(self) -> int:
        """Tokens that it may still generate."""
        return self.limit - len(self.answer)

    @property
    def total(self) -> int:
        """Tokens that its slot may come to hold: the last one generated needs no place."""
        return len(self.prompt) + self.limit - 1

    @property
    def done(self) -> bool:
        """Whether it ended, one way or the other."""
        return self.completion is not None or self.error is not None

    def piece(self, most: int) -> Piece:
        """The tokens to run next, at most so many; logits are wanted of the last one that is known."""
        assert self.slot is not None
        end = min(self.held + most, self.length)
        known = len(self.prompt)
        ids = self.prompt[self.held : end] if self.held < known else self.answer[self.held - known : end - known]
        return Piece(self.slot, ids, self.held, int(end == self.length))

    def take(self, id: int, logits_V: Tensor) -> None:
        """Add a token to the answer, and end where it ends.

        Args:
            id: the chosen one, which its `choice` has accepted.
            logits_V: the model's own, for the log-probability.

        Raises:
            UserError: the logits were no numbers.
        """
        if id == NOT_FINITE:
            remedy = "load it in float32; if that fails too, its weights are damaged"
            raise UserError("the model's logits are not finite numbers", remedy=remedy)
        self._add(id, [] if self.request.logprobs is None else [logprob(logits_V, id, self.request.logprobs)])

    def take_forced(self) -> None:
        """Add the tokens that come next whatever the model says. It is asked all the same where it is to say how likely they are."""
        assert self.choice is not None
        while not self.done and self.request.logprobs is None:
            id = self.choice.forced(self.left)
            if id is None:
                return
            self._add(id, [])

    def _add(self, id: int, new: list[Logprob]) -> None:
        request = self.request
        assert self.choice is not None
        self.answer.append(id)
        self._logprobs += new
        if id in request.stop_ids:
            self._end("stop", id)
        elif self.choice.finished or (request.stop is not None and request.stop(self.answer)):
            self._end("stop")
        elif len(self.answer) >= self.limit:
            self._end("length")
        self._tell(Step([id], new, self.completion))

    def cancel(self) -> None:
        """End now, with what there is."""
        self._end("cancelled")
        with suppress(Exception):  # a caller who went may fail to hear of it: that must not end the other requests
            self._tell(Step([], [], self.completion))

    def fail(self, error: Exception) -> None:
        """End without an answer."""
        self.completion, self.error = None, error
        # What failed may be the callback itself: it then fails again, and that must not end the other requests.
        with suppress(Exception):
            self._tell(Step([], [], None, error))

    def _end(self, reason: Reason, stop_id: int | None = None) -> None:
        logprobs = None if self.request.logprobs is None else self._logprobs
        self.completion = Completion(self.answer, reason, stop_id, logprobs, self.cached, self._deterministic)

    def _tell(self, step: Step) -> None:
        if self.request.on_step is not None:
            self.request.on_step(step)
