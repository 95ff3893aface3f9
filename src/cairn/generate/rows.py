"""Rows answered one after another, many at a time: prompts in, prompts with answers out. Knows rows as plain dicts, no file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from cairn.errors import UserError
from cairn.generate.continuation import Continuation, continuation
from cairn.generate.engine import Completion, Request
from cairn.generate.grammar import Hold
from cairn.generate.load import Loaded
from cairn.generate.sampling import Sampling
from cairn.generate.text import TextStop

WINDOW = 1024
"""Rows whose prompts are held, sorted and batched together. Answers depend on the window's rows in their last float bits."""

FREE = Hold()
"""Answers that are held to nothing."""

TOO_LONG = "prompt too long"
"""The reason of a row whose prompt does not fit into the model's context: it gets no answer."""


@dataclass
class _Prompt:
    row: dict[str, Any]
    messages: list[dict[str, Any]] | None
    request: Request | None
    stop: TextStop | None = None
    plain: Continuation | None = None


def answer_rows(
    loaded: Loaded,
    rows: Iterable[dict[str, Any]],
    sampling: Sampling,
    *,
    stop_strings: Sequence[str] = (),
    hold: Hold = FREE,
    first: int = 0,
    window: int = WINDOW,
    on_progress: Callable[[int, int], None] | None = None,
) -> Iterator[dict[str, Any]]:
    """Answer rows of dialogues or plain text, in their order.

    A dialogue is answered after its last message; where that is the assistant's, it is taken off first and stands as
    "reference" in what comes out. Plain text is continued.

    Args:
        loaded: the model.
        rows: checked rows.
        sampling: how tokens are chosen.
        stop_strings: texts that end an answer; they are not part of it.
        hold: what the answers are held to.
        first: the number of the first row, which names its stream of draws.
        window: rows that are held at once.
        on_progress: called with (answered rows, generated tokens).

    Raises:
        UserError: a row that the format cannot render, with its id.
    """
    source = iter(rows)
    done = tokens = 0
    while held := list(islice(source, window)):
        prompts = [_prompt(loaded, row, first + done + i, sampling, stop_strings, hold) for i, row in enumerate(held)]
        asked = [p.request for p in prompts if p.request is not None]
        so_far = (done + len(prompts) - len(asked), tokens)
        report = None if on_progress is None else (lambda d, t, at=so_far: on_progress(at[0] + d, at[1] + t))
        completions = iter(loaded.engine.generate(asked, report))
        for prompt in prompts:
            completion = None if prompt.request is None else next(completions)
            tokens += 0 if completion is None else len(completion.ids)
            yield _answered(loaded, prompt, completion)
        done += len(prompts)


def _prompt(
    loaded: Loaded, row: dict[str, Any], index: int, sampling: Sampling, stop_strings: Sequence[str], hold: Hold
) -> _Prompt:
    try:
        if "messages" in row:
            stop = TextStop(loaded.tokenizer, stop_strings) if stop_strings else None
            messages, plain = list(row["messages"]), None
            if messages[-1]["role"] == "assistant":
                messages.pop()
            made = loaded.session.request(
                messages,
                tools=row.get("tools"),
                tool_choice=hold.tool_choice,
                constraint=hold.constraint,
                attributes=row.get("attributes"),
                sampling=sampling,
                index=index,
            )
            request = replace(made, stop=stop)
        else:
            messages = None
            plain = continuation(
                loaded.tokenizer,
                loaded.constrainer,
                row["text"],
                sampling,
                index=index,
                stop_strings=stop_strings,
                constraint=hold.constraint,
                healed=hold.healed,
            )
            request, stop = plain.request, plain.stop
    except UserError as error:
        where = f"row {index + 1} (id {row.get('id', '?')})"
        raise UserError(error.what, where=f"{where}, {error.where}" if error.where else where, remedy=error.remedy) from None
    context = loaded.engine.context
    fits = context is None or len(request.ids) <= context
    return _Prompt(row, messages, request if fits else None, stop, plain)


def _answered(loaded: Loaded, prompt: _Prompt, completion: Completion | None) -> dict[str, Any]:
    row = prompt.row
    given: dict[str, Any] = {key: row[key] for key in ("id", "source") if key in row}
    rest: dict[str, Any] = {"reason": TOO_LONG, "ids": []} if completion is None else {"reason": completion.reason, "ids": completion.ids}
    cut = prompt.stop.text if prompt.stop is not None and prompt.stop.stopped is not None else None
    if prompt.messages is None:
        answer = "" if completion is None or prompt.plain is None else prompt.plain.answer(completion)
        return {**given, "text": row["text"] + answer, "answer": answer, **rest}
    answers = [] if completion is None else [loaded.session.message(completion.ids, cut)]
    kept: dict[str, Any] = {key: row[key] for key in ("tools", "attributes") if key in row}
    reference = {"reference": row["messages"][-1]} if len(row["messages"]) > len(prompt.messages) else {}
    return {**given, "messages": prompt.messages + answers, **kept, **reference, **rest}
