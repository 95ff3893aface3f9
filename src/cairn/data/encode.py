"""Rows to token ids with a loss mask: which ids a model is to predict. Knows rows, a renderer and a tokenizer; no file and no model.

`mask[i] = 1` says that id `i` is a target, predicted from the ids before it. The first id of a document has nothing
before it, so its mask is always 0, and the number of targets is the mask's sum.

A row that is too long is never cut without a word: the policy says what happens, and `Counters` says how often.
`split`, the default, cuts plain text into several documents, each of which starts with the last id of the one before, so
that nothing is lost: every id but the first is a target exactly once. A dialogue has no meaning without its beginning, so
under `split` and `truncate` alike it keeps the turns up to the last assistant turn that fits (its stop token included: the
dialogue is rendered anew without the rest). `truncate` keeps of plain text the beginning only, and loses the rest. `drop`
leaves the row out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

import numpy as np

from cairn.data.rows import Row, messages_of
from cairn.errors import UserError

Overlong = Literal["split", "truncate", "drop"]
Objective = Literal["language_model", "supervised", "answers"]
OnRow = Callable[[Row, int], None]


class TextTokenizer(Protocol):
    """What is asked of a tokenizer here."""

    @property
    def bos_id(self) -> int | None: ...
    @property
    def eos_id(self) -> int | None: ...
    def encode(self, text: str, /) -> list[int]: ...


class RowRenderer(Protocol):
    """What is asked of a renderer here: ids, mask and the turns' borders."""

    def render(self, messages: list[dict[str, Any]], /, *, tools: Any = None, attributes: Any = None) -> Any: ...


@dataclass(frozen=True, slots=True)
class Encoded:
    """One document in tokens."""

    ids: np.ndarray
    """Token ids, int32."""
    mask: np.ndarray
    """1 where the id is a target, else 0; uint8, as long as `ids`."""
    answers: tuple[int, ...] = ()
    """Of a prompt with several answers, which follow it back to back: the ids of each answer, the best one first."""
    margin: float = 0.0
    """By how much the row says that its answers lie apart."""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def targets(self) -> int:
        """How many of its ids are targets."""
        return int(self.mask.sum())

    @property
    def longest(self) -> int:
        """Positions that it takes: of a prompt with answers those of the longest one behind the prompt."""
        return len(self.ids) if not self.answers else len(self.ids) - sum(self.answers) + max(self.answers)


@dataclass
class Counters:
    """What became of the rows of a source."""

    rows: int = 0
    """Rows seen."""
    kept: int = 0
    """Rows that gave at least one document."""
    documents: int = 0
    """Documents that they gave: more than `kept` where text was split."""
    dropped_overlong: int = 0
    """Rows left out because they, or their first answer, do not fit."""
    truncated: int = 0
    """Rows that lost their end: dialogues, and texts under `truncate`."""
    split: int = 0
    """Rows that became several documents."""
    no_supervised: int = 0
    """Rows left out because no id of theirs is a target."""
    tokens: int = 0
    """Ids of all documents."""
    supervised_tokens: int = 0
    """Targets of all documents."""

    def as_dict(self) -> dict[str, int]:
        """The counters by name, for a record."""
        return asdict(self)

    def losses(self) -> str:
        """What rows lost because they are too long, in words; empty where they lost nothing."""
        told = ((self.truncated, "lost their end"), (self.dropped_overlong, "were left out"))
        parts = [f"{number:,} {what}" for number, what in told if number]
        return f"of {self.rows:,} rows {' and '.join(parts)}" if parts else ""


def encode_row(
    row: Row,
    renderer: RowRenderer | None,
    tokenizer: TextTokenizer,
    *,
    max_length: int,
    overlong: Overlong = "split",
    objective: Objective = "supervised",
    counters: Counters | None = None,
    on_row: OnRow | None = None,
) -> list[Encoded]:
    """The documents of one row; none where the row was left out, which `counters` tells.

    Args:
        row: a checked row.
        renderer: renders dialogues; may be None where there is only plain text.
        tokenizer: encodes plain text, between the tokenizer's bos (if it has one) and eos.
        max_length: the most tokens that a document may have, at least 2.
        overlong: what is done with a longer row; see above.
        objective: `supervised` learns what the renderer marks, and all of plain text; `language_model` learns every id; `answers` makes one
            document of a preference's prompt and all of its answers.
        counters: counts what became of the row.
        on_row: is told the row and the number of its tokens before anything was cut off, so that a table need not render it again.

    Raises:
        UserError: a dialogue without a renderer, or a row that cannot be rendered.
    """
    count = counters if counters is not None else Counters()
    if max_length < 2:
        raise UserError(f"documents of at most {max_length} tokens hold no target", remedy="raise the sequence length")
    count.rows += 1
    if objective == "answers":
        from cairn.data.answers import encode_answers

        tokens, documents = encode_answers(row, renderer, max_length, overlong, count)
    elif "text" in row:
        tokens, documents = _text(row["text"], tokenizer, max_length, overlong, count)
    else:
        tokens, documents = _dialogue(row, renderer, max_length, overlong, objective, count)
    if on_row:
        on_row(row, tokens)
    if documents and not any(d.targets for d in documents):
        # A mask of zeros trains nothing and says nothing: the loss would be 0/0 or, worse, a fine-looking 0.
        count.no_supervised += 1
        documents = []
    if documents:
        count.kept += 1
        count.documents += len(documents)
        count.tokens += sum(map(len, documents))
        count.supervised_tokens += sum(d.targets for d in documents)
    return documents


def encode_rows(
    rows: Iterable[Row],
    renderer: RowRenderer | None,
    tokenizer: TextTokenizer,
    *,
    max_length: int,
    overlong: Overlong = "split",
    objective: Objective = "supervised",
    counters: Counters,
    where: str = "",
    on_row: OnRow | None = None,
) -> Iterator[Encoded]:
    """The documents of a source's rows, in order.

    Raises:
        UserError: a row that cannot be rendered; at the end, where not one row of the source was kept. `where` names the source.
    """
    first = ""
    for row in rows:
        try:
            documents = encode_row(
                row, renderer, tokenizer, max_length=max_length, overlong=overlong, objective=objective, counters=counters, on_row=on_row
            )
        except UserError as error:
            # A row's id alone says nothing of the file that it stands in.
            place = ", ".join(part for part in (where, error.where) if part)
            raise UserError(error.what, where=place, remedy=error.remedy) from error
        if not documents and not first:
            first = str(row.get("id", f"row {counters.rows}"))
        yield from documents
    if counters.kept:
        return
    if not counters.rows:
        raise UserError("the source has no rows", where=where, remedy="check its file")
    if counters.no_supervised:
        raise UserError(
            f"no row has a token to learn ({counters.no_supervised} of {counters.rows} rows have a loss mask of zeros)",
            where=f"{where}, first {first}",
            remedy="look at a row with `cairn tokens`; give the assistant's turns a weight above 0, or choose a format that marks them",
        )
    raise UserError(
        f"no row fits into {max_length} tokens ({counters.dropped_overlong} of {counters.rows} rows are too long)",
        where=f"{where}, first {first}",
        remedy="raise the sequence length, or set overlong to 'split' or 'truncate'",
    )


def document(ids: list[int], mask: list[int]) -> Encoded:
    """Arrays out of lists; the first id is never a target."""
    out = Encoded(np.asarray(ids, dtype=np.int32), np.asarray(mask, dtype=np.uint8))
    if len(out.mask):
        out.mask[0] = 0
    return out


def _text(text: str, tokenizer: TextTokenizer, limit: int, overlong: Overlong, count: Counters) -> tuple[int, list[Encoded]]:
    """All tokens of a text, and its documents."""
    bos, eos = tokenizer.bos_id, tokenizer.eos_id
    ids = [*([] if bos is None else [bos]), *tokenizer.encode(text), *([] if eos is None else [eos])]
    if len(ids) <= limit:
        return len(ids), [document(ids, [1] * len(ids))]
    if overlong == "drop":
        count.dropped_overlong += 1
        return len(ids), []
    if overlong == "truncate":
        count.truncated += 1
        return len(ids), [document(ids[:limit], [1] * limit)]
    count.split += 1
    # Each piece repeats one id as the context of its first target; a rest of one id alone would hold no target.
    pieces = [ids[i : i + limit] for i in range(0, len(ids) - 1, limit - 1)]
    return len(ids), [document(piece, [1] * len(piece)) for piece in pieces]


def _dialogue(
    row: Row, renderer: RowRenderer | None, limit: int, overlong: Overlong, objective: Objective, count: Counters
) -> tuple[int, list[Encoded]]:
    """All tokens of a dialogue, and its document, if any."""
    renderer = need_renderer(renderer, row)
    messages = messages_of(row)
    rendered = render_row(renderer, row, messages)
    whole = len(rendered.ids)
    if whole > limit:
        rendered = None if overlong == "drop" else _shorter(renderer, row, messages, rendered.turns, limit)
        if rendered is None:
            count.dropped_overlong += 1
            return whole, []
        count.truncated += 1
    ids = list(rendered.ids)
    return whole, [document(ids, [1] * len(ids) if objective == "language_model" else list(rendered.mask))]


def need_renderer(renderer: RowRenderer | None, row: Row) -> RowRenderer:
    """Raises:
    UserError: there is none.
    """
    if renderer is None:
        where = str(row.get("id", ""))
        raise UserError("a dialogue cannot be encoded without a chat format", where=where, remedy="set the format, such as k2")
    return renderer


def _shorter(renderer: RowRenderer, row: Row, messages: list[dict[str, Any]], turns: list[Any], limit: int) -> Any:
    """The longest beginning of a dialogue that fits and ends with an answer, rendered anew; None where no answer fits."""
    for end in range(len(messages) - 1, 0, -1):
        if messages[end - 1]["role"] != "assistant" or (end <= len(turns) and turns[end - 1].start >= limit):
            continue
        rendered = render_row(renderer, row, messages[:end])
        if len(rendered.ids) <= limit:
            return rendered
    return None


def render_row(renderer: RowRenderer, row: Mapping[str, Any], messages: list[dict[str, Any]]) -> Any:
    """Messages of a row, rendered with its tools and attributes; an error names the row."""
    try:
        return renderer.render(messages, tools=row.get("tools"), attributes=row.get("attributes"))
    except UserError as error:
        where = ", ".join(part for part in (f"row {row['id']}" if "id" in row else "", error.where) if part)
        raise UserError(error.what, where=where, remedy=error.remedy) from error
