"""What is asked of an engine and what it gives back. Plain data: knows no model, no batch and no text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from cairn.generate.matcher import Matcher
from cairn.generate.sampling import Sampling

Reason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True)
class Logprob:
    """How likely one generated token was, by the model itself: before penalties, bias, constraint and temperature.

    Attributes:
        id: the chosen token.
        logprob: natural logarithm of its probability.
        top: the likeliest tokens with theirs, likeliest first; empty unless asked for.
    """

    id: int
    logprob: float
    top: list[tuple[int, float]] = field(default_factory=list)


@dataclass
class Completion:
    """The tokens that continue a prompt.

    Attributes:
        ids: every generated id, the stop token included where one ended the answer.
        reason: "stop" (stop token, stop function or complete constraint), "length" (max_new_tokens or the model's context), "cancelled".
        stop_id: the stop token, where one ended the answer.
        logprobs: one a generated id, where the request asked for them.
        cached: prompt tokens that were taken from a prefix computed before.
        deterministic: whether the answer's bytes are the same in any company.
    """

    ids: list[int]
    reason: Reason
    stop_id: int | None = None
    logprobs: list[Logprob] | None = None
    cached: int = field(default=0, compare=False)
    deterministic: bool = field(default=False, compare=False)

    @property
    def content_ids(self) -> list[int]:
        """The ids without the stop token."""
        return self.ids if self.stop_id is None else self.ids[:-1]


@dataclass(frozen=True)
class Step:
    """What one step brought to one request.

    Attributes:
        ids: the new tokens; none where the request was cancelled or failed, several where drafts were accepted.
        logprobs: one an id, where the request asked for them.
        completion: the whole answer, on its last step.
        error: what ended the request in place of an answer: its constraint or its stop function raised it, or the model did.
    """

    ids: list[int]
    logprobs: list[Logprob]
    completion: Completion | None = None
    error: Exception | None = None


@dataclass(frozen=True)
class Request:
    """One prompt to be continued.

    Attributes:
        ids: the prompt's token ids, at least one.
        sampling: how tokens are chosen, and how many at most.
        stop_ids: tokens that end the answer.
        stop: called with the ids generated so far after each token; true ends the answer.
        index: names the request's stream of draws; give distinct ones to distinct requests of one seed.
        sample: which of several answers to one prompt this is; each has its own stream of draws.
        constraint: makes the matcher that says which ids may come; called once, when the request's first token is chosen.
        logprobs: None for none; 0 for the chosen tokens'; n for those of the n likeliest tokens besides.
        on_step: called with each `Step`, the last one included, from whatever thread runs the engine.
    """

    ids: Sequence[int]
    sampling: Sampling = field(default_factory=Sampling)
    stop_ids: frozenset[int] = frozenset()
    stop: Callable[[list[int]], bool] | None = None
    index: int = 0
    sample: int = 0
    constraint: Callable[[], Matcher] | None = None
    logprobs: int | None = None
    on_step: Callable[[Step], None] | None = None

    @property
    def stream(self) -> str:
        """The name of the stream that its draws come from."""
        return f"sample/{self.index}" if self.sample == 0 else f"sample/{self.index}/{self.sample}"
