"""Calling functions: 2 to 4 tools are offered, and one fits, or two calls are asked, or none fits.

Held out are the argument values of a function taken together: a test question's function was never called with its values in
training. Functions with few combinations hold out the template as well. Part of the training dialogues go on with the tool's
result, which the model reports in bullet points.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import count
from typing import Any

from cairn.data.pebble.draw import Dice, held_out
from cairn.data.pebble.skill import Draft, Row, Skill, ask
from cairn.data.pebble.tables import SMALL_TALK
from cairn.data.pebble.tools import FUNCTIONS, Function

SHARE = 0.12
NONE = "None of the tools fits."

_FEW = 60
# How many tools are offered: two in half of the rows, because a tool costs more than 50 tokens.
_OFFERED = (2, 2, 2, 2, 2, 3, 3, 3, 4, 4)
# Training holds more of the hard cases than the test does.
_NONE_SHARE = {"train": 0.25, "test": 0.12}
_TWO_SHARE = {"train": 0.35, "test": 0.08}
_RESULT_SHARE, _TALK_SHARE = 0.12, 0.02
_TURNS = (1, 2, 3)
_THANKS = ("Thanks!", "Thank you.", "Great, thank you!")


class _Request:
    """A drawn call and the sentence that asks for it."""

    def __init__(self, dice: Dice, label: str, function: Function) -> None:
        self.function = function
        self.arguments: dict[str, Any] = {}
        for name, parameter in function.parameters.items():
            # The same city twice would be a flight to where one is.
            free = [v for v in parameter.values if v not in self.arguments.values()]
            self.arguments[name] = dice.pick(f"{label}/{name}", free)
        template = dice.below(f"{label}/template", len(function.asks))
        self.text = function.asks[template].format(**self.arguments)
        values = ", ".join(str(v) for v in self.arguments.values())
        self.key = f"functions/{function.name}({values})" + (f"/{template}" if function.combinations() < _FEW else "")
        self.held = held_out(self.key, SHARE)

    def call(self) -> Row:
        """The call in OpenAI's shape, arguments as an object."""
        return {"type": "function", "function": {"name": self.function.name, "arguments": self.arguments}}

    def result(self, dice: Dice, label: str) -> dict[str, Any]:
        """What the tool gives back: the first argument and the function's own fields."""
        first = next(iter(self.arguments))
        own = {name: dice.pick(f"result/{label}/{name}", parameter.values) for name, parameter in self.function.gives.items()}
        return {first: self.arguments[first], **own}


def _draft(dice: Dice, split: str) -> Draft:
    """A dialogue of one request in the test, of up to three in training: the tools are the dear part, so they are used more than once."""
    if dice.chance("talk", _TALK_SHARE):
        return _talk(dice)
    n = dice.pick("offered", _OFFERED)
    offered = dice.some("functions", FUNCTIONS, n)
    names = {f.name for f in offered}
    others = [f for f in FUNCTIONS if f.name not in names]
    order = dice.shuffled("order", offered)
    # Many tools and many turns together would outgrow a short sequence.
    turns = 1 if split == "test" else min(dice.pick("turns", _TURNS), 5 - n)
    messages: list[Row] = []
    requests: list[_Request] = []
    kind, calls = "one", []
    for turn in range(turns):
        last = turn == turns - 1
        kind, asked = _turn(dice, turn, split, offered, others, last)
        requests += asked
        messages.append({"role": "user", "content": " ".join(request.text for request in asked)})
        # In the order of the check in front of them, so that two calls are one walk along its yeses.
        calls = [] if kind == "none" else [request.call() for request in sorted(asked, key=lambda r: order.index(r.function))]
        if kind == "none":
            messages.append({"role": "assistant", "content": _check(asked, order)})
            continue
        messages.append({"role": "assistant", "content": _check(asked, order), "tool_calls": calls})
        if not last or (kind == "one" and split == "train" and dice.chance("result", _RESULT_SHARE)):
            messages += _report(dice, f"{turn}", asked[0])
    if messages[-2]["role"] == "tool" and dice.chance("thanks", 0.3):
        messages += ask(dice.pick("thanks/how", _THANKS), "You are welcome!")
    # One held-out request suffices: training then holds no dialogue in which a held-out call is asked for.
    held = any(request.held for request in requests)
    keys = tuple(request.key for request in requests if request.held or not held)
    tools = [f.schema() for f in order]
    meta = {"kind": kind if turns == 1 else "several"}
    return Draft(keys=keys, held=held, messages=messages, tools=tools, expected=[c["function"] for c in calls], meta=meta)


def _check(asked: list[_Request], order: list[Function]) -> str:
    """Each offered tool by name, and whether the question needs it.

    Written down before the call, because a small model that has to decide at the first token never looks at the offer: it calls whatever
    function it knows for the question. One name against one question at a time is a decision that it can learn.
    """
    needed = {request.function.name for request in asked}
    marks = ", ".join(f"{function.name} {'yes' if function.name in needed else 'no'}" for function in order)
    return f"Check: {marks}." + ("" if needed & {function.name for function in order} else f" {NONE}")


def _turn(dice: Dice, turn: int, split: str, offered: list[Function], others: list[Function], last: bool) -> tuple[str, list[_Request]]:
    """What is asked in a turn: its kind, and one request or two."""
    if dice.chance(f"none/{turn}", _NONE_SHARE[split]):
        return "none", [_Request(dice, f"{turn}/none", dice.pick(f"other/{turn}", others))]
    if last and dice.chance("two", _TWO_SHARE[split]):
        return "two", [_Request(dice, f"{turn}/{k}", function) for k, function in enumerate(dice.some("both", offered, 2))]
    return "one", [_Request(dice, f"{turn}", dice.pick(f"function/{turn}", offered))]


def _talk(dice: Dice) -> Draft:
    """Small talk while tools are on offer: it is answered as if there were none."""
    questions, answer = dice.pick("about", SMALL_TALK)
    question = dice.pick("question", questions)
    tools = [f.schema() for f in dice.some("functions", FUNCTIONS, 2)]
    return Draft(keys=(f"chat/talk/{question}",), held=False, messages=ask(question, answer), tools=tools, meta={"kind": "talk"})


def _report(dice: Dice, label: str, request: _Request) -> list[Row]:
    """The tool's result and the assistant's report of it."""
    result = request.result(dice, label)
    bullets = "\n".join(f"- {name}: {value}" for name, value in result.items())
    return [{"role": "tool", "content": json.dumps(result)}, {"role": "assistant", "content": bullets}]


def _drafts(seed: int, split: str) -> Iterator[Draft]:
    for index in count():
        yield _draft(Dice(seed, f"functions/{split}", index), split)


def _statements(seed: int) -> Iterator[str]:
    """The names of two or three functions, and four questions with their calls or the word that none fits: practice without schemas."""
    for index in count():
        dice = Dice(seed, "functions/text", index)
        functions = dice.some("functions", FUNCTIONS, 4)
        offered = functions[: dice.between("offered", 2, 3)]
        lines: list[str] = []
        for k, function in enumerate(dice.shuffled("order", functions)):
            request = _Request(dice, f"{k}", function)
            if not request.held:
                fits = function in offered
                lines += [request.text, _check([request], offered)]
                lines += [json.dumps({"arguments": request.arguments, "name": function.name})] if fits else []
        if lines:
            yield "\n".join([json.dumps([{"name": function.name} for function in offered]), *lines])


SKILLS = (Skill(name="functions", drafts=_drafts, statements=_statements, train=6000, test=480, pretrain=2500),)
