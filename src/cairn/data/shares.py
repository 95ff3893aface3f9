"""Weights that make a mix reach stated shares of tokens: of plain text beside dialogues, and of each language. Arithmetic: knows no row.

Weights count rows, and a row of one source may be ten times as long as one of another; shares count tokens. KARAKURI LM Chat was tuned on
dialogues of which 2.5 % of the tokens were Japanese, mixed with plain text (its card); that is `dialogues: {ja: 0.025}` here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field, model_validator

from cairn.config import Config
from cairn.errors import UserError

Share = Annotated[float, Field(gt=0, le=1)]


class Shares(Config):
    """Which shares of the drawn tokens a mix reaches; within what is left free, the sources' weights keep their proportions."""

    text: Annotated[float, Field(gt=0, lt=1)] | None = None
    """The share of plain text among all tokens. None: what the weights give."""
    dialogues: dict[str, Share] = Field(default_factory=dict)
    """{language: its share of the tokens of dialogues}; languages that are not named share the rest."""
    texts: dict[str, Share] = Field(default_factory=dict)
    """The same of plain text."""

    @model_validator(mode="after")
    def _fit(self) -> Shares:
        for name in ("dialogues", "texts"):
            total = math.fsum(getattr(self, name).values())
            if total > 1 + 1e-9:
                raise ValueError(f"the shares of {name} add up to {total:g}, more than the whole")
        if self.text is None and not self.dialogues and not self.texts:
            raise ValueError("no share is stated: give text, dialogues or texts")
        return self


@dataclass(frozen=True)
class Part:
    """A source, as its shares see it."""

    name: str
    weight: float
    """How often a row is drawn, before."""
    tokens: float
    """Mean tokens of a document."""
    languages: frozenset[str | None]
    """The languages of its rows; None for rows that name none."""
    kinds: frozenset[str]
    """`dialogues`, `texts`, or both."""


def weights(parts: Sequence[Part], shares: Shares) -> list[float]:
    """The weight of each source with which the mix reaches the shares, in the long run exactly.

    Raises:
        UserError: a source of several languages or kinds where they must be told apart, a share that no source can fill, or a rest of a
            share that no source is there for.
    """
    mass = [part.weight * part.tokens for part in parts]
    kinds = [_kind(part) for part in parts]
    for kind in ("dialogues", "texts"):
        stated: Mapping[str, float] = getattr(shares, kind)
        if stated:
            languages = [_language(part) if own == kind else None for part, own in zip(parts, kinds, strict=True)]
            mass = _reach(mass, languages, kinds, kind, stated)
    if shares.text is not None:
        mass = _split(mass, kinds, shares.text)
    return [value / part.tokens for value, part in zip(mass, parts, strict=True)]


def reached(tokens: Mapping[str, int], groups: Mapping[str, Sequence[str | None]], shares: Shares) -> dict[str, Any]:
    """What a mix made of its shares: `{"text"?, "dialogues"?: {language: share}, "texts"?: {…}}`, of those that are stated.

    Args:
        tokens: of each source, those that were drawn.
        groups: (kind, language) of each source; None where its rows are of several languages or name none.
        shares: what was asked for.
    """

    def share(kind: str, language: str | None = None) -> float:
        """Of all tokens those of a kind; with a language of the kind's tokens its own."""
        whole = sum(n for name, n in tokens.items() if language is None or groups[name][0] == kind)
        own = sum(n for name, n in tokens.items() if groups[name][0] == kind and language in (None, groups[name][1]))
        return own / whole if whole else 0.0

    told: dict[str, Any] = {} if shares.text is None else {"text": share("texts")}
    for kind in ("dialogues", "texts"):
        told |= {kind: {language: share(kind, language) for language in stated}} if (stated := getattr(shares, kind)) else {}
    return told


def _kind(part: Part) -> str:
    if len(part.kinds) > 1:
        raise UserError("the source holds dialogues and plain text", where=f"shares, {part.name}", remedy="make two sources of it")
    return next(iter(part.kinds))


def _language(part: Part) -> str:
    if len(part.languages) > 1 or None in part.languages:
        named = ", ".join(sorted(name or "none" for name in part.languages))
        remedy = "make a source of each language, or give the source's `language` if its rows name none"
        raise UserError(f"the source's rows are of the languages {named}", where=f"shares, {part.name}", remedy=remedy)
    return str(next(iter(part.languages)))


def _reach(mass: list[float], languages: list[str | None], kinds: list[str], kind: str, stated: Mapping[str, float]) -> list[float]:
    """The masses with which each stated language has its share of a kind; the kind's whole stays."""
    inside = [i for i, own in enumerate(kinds) if own == kind]
    whole = sum(mass[i] for i in inside)
    out, rest = list(mass), 1 - math.fsum(stated.values())
    groups = {name: [i for i in inside if languages[i] == name] for name in stated}
    for name, members in groups.items():
        if not members:
            known = ", ".join(sorted({str(languages[i]) for i in inside})) or "none"
            raise UserError(f"no source of {kind} is of the language '{name}'", where=f"shares.{kind}.{name}", remedy=f"there are: {known}")
        _scale(out, members, stated[name] * whole)
    free = [i for i in inside if languages[i] not in stated]
    if (rest > 1e-9) != bool(free):
        what = f"the stated shares of {kind} leave {max(0.0, rest):g} of the tokens to {len(free)} other sources"
        raise UserError(what, where=f"shares.{kind}", remedy="shares add up to 1 where every language is named, to less elsewhere")
    _scale(out, free, rest * whole)
    return out


def _split(mass: list[float], kinds: list[str], text: float) -> list[float]:
    out = list(mass)
    for kind, share in (("texts", text), ("dialogues", 1 - text)):
        members = [i for i, own in enumerate(kinds) if own == kind]
        if not members:
            raise UserError(f"there is no source of {kind}", where="shares.text", remedy="add one, or leave the share out")
        _scale(out, members, share)
    return out


def _scale(mass: list[float], members: Sequence[int], whole: float) -> None:
    """Bring the masses of some sources to a sum, their proportions kept."""
    total = sum(mass[i] for i in members)
    for i in members:
        mass[i] *= whole / total
