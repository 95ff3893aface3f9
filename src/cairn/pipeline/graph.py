"""The order of a recipe's stages. Knows names and references, no configuration and no store."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from cairn.errors import UserError, did_you_mean


def order(references: Mapping[str, Sequence[str]], spot: Callable[..., str] = lambda name, ref=None: name) -> list[str]:
    """The stages so that each stands after all that it refers to; as the recipe lists them where that allows.

    Args:
        references: for each stage, the stages that it refers to.
        spot: where a stage, or its reference to another one, stands in the recipe, for errors.

    Raises:
        UserError: a reference to no stage, or stages that form a circle.
    """
    for name, refs in references.items():
        for ref in refs:
            if ref not in references:
                others = set(references) - {name}
                remedy = did_you_mean(ref, others) if others else "the recipe has no other stage: add the one that is meant"
                what = f"the stage '{name}' refers to '{ref}', which is no stage of the recipe"
                raise UserError(what, where=spot(name, ref), remedy=remedy)
    done: dict[str, None] = {}
    while len(done) < len(references):
        ready = next((n for n, refs in references.items() if n not in done and all(r in done for r in refs)), None)
        if ready is None:
            circle = _circle({n: refs for n, refs in references.items() if n not in done})
            raise UserError(
                f"stages form a circle: {' -> '.join([*circle, circle[0]])} (each needs the next)",
                where=spot(circle[0]),
                remedy="let one of them refer to something else",
            )
        done[ready] = None
    return list(done)


def ancestors(references: Mapping[str, Sequence[str]], name: str) -> set[str]:
    """`name` and all that it needs."""
    found, todo = set(), [name]
    while todo:
        one = todo.pop()
        if one not in found:
            found.add(one)
            todo += references[one]
    return found


def _circle(references: Mapping[str, Sequence[str]]) -> list[str]:
    """One circle among stages of which none can come first."""
    path: list[str] = []
    here = next(iter(references))
    while here not in path:
        path.append(here)
        here = next(r for r in references[here] if r in references)
    return path[path.index(here) :]
