"""Preferences to token ids: a prompt once, with all of its answers behind it. Knows rows and a renderer; no model and no loss.

Each answer is rendered behind the whole prompt by the very template; what all renderings begin with, up to the first target, is the
document's prompt, and what each goes on with is one of its answers. So nothing is assumed about where a template puts its borders.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from cairn.data.encode import Counters, Encoded, Overlong, RowRenderer, document, need_renderer, render_row
from cairn.data.rows import Row
from cairn.errors import UserError


def encode_answers(row: Row, renderer: RowRenderer | None, limit: int, overlong: Overlong, count: Counters) -> tuple[int, list[Encoded]]:
    """All tokens of a preference, its prompt counted once, and its document, if any.

    Targets are the answers' supervised tokens; turns of the assistant inside the prompt are context. An answer that makes a sequence
    too long loses its end unless `overlong` is drop; a row whose prompt alone is too long, or whose answers would be the same then,
    is left out.

    Raises:
        UserError: no preference, answers that are the same in tokens, or a margin that is no number.
    """
    renderer = need_renderer(renderer, row)
    where = f"row {row['id']}" if "id" in row else ""
    pair = [row[key] for key in ("chosen", "rejected") if key in row]
    found: list[list[dict[str, Any]]] = list(row["ranked"]) if "ranked" in row else pair
    if len(found) < 2:
        raise UserError("the row is no preference: it has no two answers", where=where, remedy="give chosen and rejected, or ranked")
    # Weight 0: what the assistant said before is not what is compared.
    prompt = [{**m, "weight": 0} if m["role"] == "assistant" else m for m in row["messages"]]
    rendered = [render_row(renderer, row, [*prompt, *answer]) for answer in found]
    ids, masks = [list(r.ids) for r in rendered], [list(r.mask) for r in rendered]
    shared = min(_common(ids), *(mask.index(1) if 1 in mask else 0 for mask in masks))
    whole = shared + sum(len(one) - shared for one in ids)
    if not shared:
        return whole, [Encoded(np.zeros(0, np.int32), np.zeros(0, np.uint8))]
    if _repeated(ids):
        raise UserError("two answers of the row are the same in tokens", where=where, remedy="remove the row: it prefers nothing")
    if max(map(len, ids)) > limit:
        ids, masks = [one[:limit] for one in ids], [mask[:limit] for mask in masks]
        if overlong == "drop" or shared >= limit or _repeated(ids) or not all(map(any, masks)):
            count.dropped_overlong += 1
            return whole, []
        count.truncated += 1
    every, targets = ([x for one in lists for x in one[shared:]] for lists in (ids, masks))
    joined = document(ids[0][:shared] + every, [0] * shared + targets)
    return whole, [replace(joined, answers=tuple(len(one) - shared for one in ids), margin=_margin(row, where))]


def with_mismatched(documents: Sequence[Encoded], limit: int, where: str = "") -> list[Encoded]:
    """The same documents, each with one more answer at its end: the best answer of the next document, which does not belong to it.

    KTO's reference point is the mean log ratio of such answers (Ethayarajh et al. 2024, section 4.1).

    Raises:
        UserError: there is only one document.
    """
    if len(documents) < 2:
        what = "kto needs the answers of other rows, and the source has one row"
        raise UserError(what, where=where, remedy="give more rows, or another loss")
    out = []
    for one, other in zip(documents, [*documents[1:], documents[0]], strict=True):
        prompt = len(other) - sum(other.answers)
        room = slice(prompt, prompt + min(other.answers[0], limit - (len(one) - sum(one.answers))))
        ids, mask = (np.concatenate([mine, theirs[room]]) for mine, theirs in ((one.ids, other.ids), (one.mask, other.mask)))
        out.append(replace(one, ids=ids, mask=mask, answers=(*one.answers, room.stop - room.start)))
    return out


def _margin(row: Row, where: str) -> float:
    """What the row says under `meta.margin`, as Llama 2's people did of how much better an answer is; 0 where it says nothing."""
    value = row.get("meta", {}).get("margin", 0.0)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise UserError(f"a margin is a number of at least 0, not {value!r}", where=f"{where}, meta.margin", remedy="correct or remove it")
    return float(value)


def _common(ids: list[list[int]]) -> int:
    """How many ids all begin with."""
    shortest = min(map(len, ids))
    return next((i for i in range(shortest) if len({one[i] for one in ids}) > 1), shortest)


def _repeated(ids: list[list[int]]) -> bool:
    return len({tuple(one) for one in ids}) < len(ids)
