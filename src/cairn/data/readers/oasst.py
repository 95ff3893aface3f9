"""The readers of Open Assistant's trees: nested (`prompt` with `replies`), or flat messages that name their parent.

Of each tree the best path becomes a row: at every turn the reply that people ranked first. `oasst_all` makes a row of
every path to a leaf instead, `oasst_labelled` one of every answer that people gave labels. Messages that are deleted, or
that did not pass review, are left out with all beneath them.
A flat file must keep the messages of one tree together, which the published ones do; then one tree is held at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from cairn.chat.attributes import built_in, from_fraction
from cairn.data.readers.base import Outcome, Record, Skip, attempt, stream_reader
from cairn.data.readers.turns import role_of
from cairn.data.rows import WHOLE, Problem, Row, RowError

Node = dict[str, Any]

LABELS = ("quality", "toxicity", "humor", "creativity")
"""The labels that become attributes."""


def _detect(record: dict[str, Any]) -> bool:
    nested = isinstance(record.get("prompt"), dict) and "replies" in record["prompt"]
    return nested or ("message_id" in record and "parent_id" in record and "text" in record)


@stream_reader("oasst", help="Open Assistant trees or messages: the best-ranked path of each tree", detect=_detect)
def oasst(records: Iterator[Record]) -> Iterator[Outcome]:
    """One row a tree."""
    return _outcomes(records, every=False)


@stream_reader("oasst_all", help="Open Assistant trees or messages: every path of each tree")
def oasst_all(records: Iterator[Record]) -> Iterator[Outcome]:
    """One row a leaf."""
    return _outcomes(records, every=True)


@stream_reader("oasst_labelled", help="Open Assistant trees or messages: every answer with labels, as attributes from 0 to 4")
def oasst_labelled(records: Iterator[Record]) -> Iterator[Outcome]:
    """One row an answer that has all of the labels quality, toxicity, humor and creativity; what was said before it is context.

    A label is the mean of votes, a fraction between 0 and 1; it becomes a whole number from 0 to 4 by the rule of
    `cairn.chat.attributes.from_fraction`: floor(4 × fraction + 1/2). The numbers stand at the user turn that the answer follows, also
    for labelled answers of the context.
    """
    return _outcomes(records, labelled=True)


def _outcomes(records: Iterator[Record], every: bool = False, labelled: bool = False) -> Iterator[Outcome]:
    for item in _trees(records):
        if isinstance(item, Outcome):
            yield item
            continue
        number, root, state = item
        if state not in (None, "ready_for_export"):
            yield Outcome(number, skipped=f"the tree's state is {state}")
            continue
        paths = list(_labelled(root) if labelled else _paths(root, every)) if _accepted(root) else []
        if not paths:
            yield Outcome(number, skipped="no accepted answer with labels in the tree" if labelled else "no accepted answer in the tree")
        for path in paths:
            yield attempt(number, _labelled_row if labelled else _row, path)


def _trees(records: Iterator[Record]) -> Iterator[Outcome | tuple[int, Node, str | None]]:
    """(number, root, state) of each tree, and what is wrong with records that belong to none."""
    tree = _FlatTree()
    done: set[str] = set()
    for record in records:
        value = record.value
        if record.problem or not isinstance(value, dict):
            problem = Problem(record.number, WHOLE, "a row must be an object", "write one JSON object a row")
            yield Outcome(record.number, problem=record.problem or problem)
            continue
        nested = value.get("prompt") if isinstance(value.get("prompt"), dict) else value if "replies" in value else None
        if nested is not None:
            yield from tree.finish()
            tree = _FlatTree()
            yield record.number, nested, value.get("tree_state")
            continue
        key = value.get("message_tree_id") or (value.get("message_id") if value.get("parent_id") is None else tree.key)
        if key != tree.key:
            yield from tree.finish()
            done.add(str(tree.key))
            tree = _FlatTree(key)
            if key in done:
                what = "the messages of a tree do not stand together"
                yield Outcome(record.number, problem=Problem(record.number, "message_tree_id", what, "sort the file by message_tree_id"))
        yield from tree.add(record.number, value)
    yield from tree.finish()


class _FlatTree:
    """A tree whose messages come one by one."""

    def __init__(self, key: Any = None) -> None:
        self.key = key
        self._root: tuple[int, Node] | None = None
        self._nodes: dict[str, Node] = {}
        self._waiting: list[tuple[int, Node]] = []

    def add(self, number: int, value: Node) -> Iterator[Outcome]:
        node = {**value, "replies": []}
        if not isinstance(value.get("message_id"), str):
            yield Outcome(number, problem=Problem(number, "message_id", "the message has no id", "add 'message_id'"))
            return
        self._nodes[value["message_id"]] = node
        if value.get("parent_id") is None:
            self._root = (number, node)
        else:
            self._waiting.append((number, node))

    def finish(self) -> Iterator[Outcome | tuple[int, Node, str | None]]:
        for number, node in self._waiting:
            parent = self._nodes.get(node["parent_id"])
            if parent is None:
                yield Outcome(number, skipped="its parent is not in the file")
            else:
                parent["replies"].append(node)
        if self._root:
            yield self._root[0], self._root[1], self._root[1].get("tree_state")


def _accepted(node: Node) -> bool:
    return not node.get("deleted") and node.get("review_result", True) is True


def _paths(node: Node, every: bool) -> Iterator[list[Node]]:
    """Paths from `node` on that end with an assistant's turn."""
    replies = [r for r in node.get("replies") or () if isinstance(r, dict) and _accepted(r)]
    # Of equal rank, or without one, the first in the file.
    replies.sort(key=lambda r: r["rank"] if isinstance(r.get("rank"), int) else len(replies) + 1000)
    found = False
    for reply in replies if every else replies[:1]:
        for rest in _paths(reply, every):
            found = True
            yield [node, *rest]
    if not found and node.get("role") == "assistant":
        yield [node]


def _labelled(node: Node, before: tuple[Node, ...] = ()) -> Iterator[list[Node]]:
    """The path to every answer that has labels."""
    path = (*before, node)
    if node.get("role") == "assistant" and _has_labels(node):
        yield [*path]
    for reply in node.get("replies") or ():
        if isinstance(reply, dict) and _accepted(reply):
            yield from _labelled(reply, path)


def _votes(node: Node) -> dict[str, Any]:
    """{label: fraction}, of trees ({name: {"value", "count"}}) and of tables ({"name": […], "value": […]})."""
    found = node.get("labels") or {}
    if isinstance(found.get("name"), list):
        return dict(zip(found["name"], found.get("value") or (), strict=False))
    return {name: one.get("value") if isinstance(one, dict) else one for name, one in found.items()}


def _has_labels(node: Node) -> bool:
    votes = _votes(node) if isinstance(node.get("labels"), dict) else {}
    return all(votes.get(name) is not None for name in LABELS)


def _labelled_row(path: list[Node]) -> Row:
    row = _row(path)
    for i, node in enumerate(path):
        if node.get("role") != "assistant":
            continue
        if node is not path[-1]:
            row["messages"][i]["weight"] = 0
        if i and row["messages"][i - 1]["role"] == "user" and _has_labels(node):
            votes = _votes(node)
            row["messages"][i - 1]["attributes"] = {n: _level(n, votes[n], f"messages[{i}].labels.{n}") for n in LABELS}
    return row


def _level(name: str, fraction: Any, field: str) -> int:
    if isinstance(fraction, bool) or not isinstance(fraction, int | float) or not 0 <= fraction <= 1:
        raise RowError(field, f"the label '{name}' is {fraction!r}", "give the mean of the votes, a number from 0 to 1")
    return from_fraction(float(fraction), built_in()[name])


def _row(path: Iterable[Node]) -> Row:
    nodes = list(path)
    turns = []
    for i, node in enumerate(nodes):
        if not isinstance(node.get("text"), str):
            raise RowError(f"messages[{i}].text", "the message has no text", "remove it from the tree")
        turns.append({"role": role_of(node.get("role"), f"messages[{i}].role"), "content": node["text"]})
    if not turns:
        raise Skip("no accepted answer in the tree")
    row: Row = {"messages": turns}
    if isinstance(nodes[0].get("lang"), str):
        row["language"] = nodes[0]["lang"]
    if isinstance(nodes[-1].get("message_id"), str):
        row["id"] = nodes[-1]["message_id"]
    return row
