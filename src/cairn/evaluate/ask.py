"""Asks a model a suite's questions and keeps what it was given and what it gave. Knows no score.

Where a suite says so, the model goes through a dialogue by itself: the assistant's earlier turns are its own answers, as in MT-Bench
(Zheng et al. 2023), and not those of the row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from cairn.errors import UserError
from cairn.evaluate.question import prompt_of
from cairn.evaluate.subject import Subject
from cairn.evaluate.suite import Suite
from cairn.generate.rows import TOO_LONG

Row = dict[str, Any]
Report = Callable[[int, int], None]


@dataclass
class Asked:
    """One question on its way: the messages so far, and what came last."""

    row: Row
    messages: list[Row]
    """The prompt; in a dialogue its later turns are still to come."""
    later: list[Row] = field(default_factory=list)
    """Messages that follow once the model has answered; the assistant's among them are replaced by its own."""
    prompt: str = ""
    prompt_ids: list[int] = field(default_factory=list)
    answer_ids: list[int] = field(default_factory=list)
    reason: str = ""


def check_dialogue(suite: Suite, row: Row) -> None:
    """Refuse a row that a model cannot go through by itself.

    Raises:
        UserError: the row offers functions: nobody would answer the calls of the model's own turns.
    """
    if suite.own_turns and (row.get("tools") or any(message["role"] == "tool" for message in row["messages"])):
        where = f"suite '{suite.name}', row {row.get('id', '?')}"
        remedy = "unset the suite's `own_turns`, or leave the row out"
        raise UserError("the row offers functions, and nobody answers the calls of the model's own turns", where=where, remedy=remedy)


def ask(
    subject: Subject, suite: Suite, rows: Sequence[Row], examples: Sequence[Row], max_batch: int, on_progress: Report | None = None
) -> tuple[list[Asked], bool]:
    """Every row's answer, in the order of the rows, and whether none of them can depend on what ran beside it.

    Args:
        subject: the model.
        suite: how it is asked.
        rows: checked dialogue rows.
        examples: rows that stand in front of every question.
        max_batch: questions answered together at most.
        on_progress: called with (finished questions, generated tokens).
    """
    from cairn.generate.choose import Choose
    from cairn.generate.engine import Engine

    engine = Engine(subject.model, max_batch=max_batch, vocab_size=subject.tokenizer.vocab_size, runner=Choose())
    asked = [_begin(suite, row, examples) for row in rows]
    tokens = finished = 0
    while waiting := [one for one in asked if not one.reason]:

        def report(done: int, made: int, so_far: tuple[int, int] = (finished, tokens)) -> None:
            if on_progress:
                # A dialogue's earlier turns are no finished questions.
                on_progress(so_far[0] + (0 if any(one.later for one in waiting) else done), so_far[1] + made)

        tokens += _answer(subject, suite, engine, waiting, report)
        for one in waiting:
            if one.later and one.reason != TOO_LONG:
                _go_on(subject, one)
        finished = sum(1 for one in asked if one.reason)
        report(0, 0, (finished, tokens))
    return asked, engine.deterministic


def _begin(suite: Suite, row: Row, examples: Sequence[Row]) -> Asked:
    messages = prompt_of(suite, row, examples)
    if not suite.own_turns:
        return Asked(row, messages)
    shown = sum(len(example["messages"]) for example in examples)
    first = next((i for i, message in enumerate(messages) if i >= shown and message["role"] == "assistant"), len(messages))
    return Asked(row, messages[:first], messages[first:])


def _answer(subject: Subject, suite: Suite, engine: Any, waiting: Sequence[Asked], report: Report) -> int:
    """Answer the turn at which each question stands; gives the number of generated tokens."""
    from cairn.generate.engine import Request
    from cairn.generate.sampling import Sampling

    sampling = Sampling.model_validate({"max_new_tokens": suite.max_new_tokens})
    stop_ids = frozenset(subject.renderer.stop_ids)
    requests, fits = [], []
    for number, one in enumerate(waiting):
        tools, attributes = one.row.get("tools"), one.row.get("attributes")
        prompt = subject.renderer.render(one.messages, tools=tools, attributes=attributes, add_generation_prompt=True)
        one.prompt, one.prompt_ids, one.answer_ids, one.reason = prompt.text, list(prompt.ids), [], TOO_LONG
        if subject.context is None or len(prompt.ids) <= subject.context:
            requests.append(Request(ids=prompt.ids, sampling=sampling, stop_ids=stop_ids, index=number))
            fits.append(one)
    made = 0
    for one, completion in zip(fits, engine.generate(requests, on_progress=report), strict=True):
        one.answer_ids, one.reason = list(completion.ids), completion.reason
        made += len(completion.ids)
    return made


def _go_on(subject: Subject, one: Asked) -> None:
    """Put the model's answer where the row's stood, and the turns up to the next answer behind it."""
    from cairn.chat.parse import parse_answer

    one.messages = [*one.messages, parse_answer(subject.format, subject.tokenizer, one.answer_ids)]
    rest = one.later[1:]
    until = next((i for i, message in enumerate(rest) if message["role"] == "assistant"), len(rest))
    one.messages += rest[:until]
    one.later = rest[until:]
    one.reason = ""
