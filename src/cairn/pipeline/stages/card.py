"""The stage `card`: a trained model and its evaluations in, a release out. Knows how the rooms fit together.

Outputs: the model's files at the top, so that the folder loads as it is; `README.md`, `training-curve.png`, `lineage.json`, and
`evaluations/<stage>/` with results and samples.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from cairn.errors import UserError
from cairn.ledger.refs import StageRef
from cairn.ledger.store import Artifact
from cairn.pipeline.drafts import empty
from cairn.pipeline.names import NamedStore
from cairn.pipeline.stage import Context, Estimate, Stage, register
from cairn.report.plot import REMEDY, can_plot
from cairn.report.release import CARD, EVALUATIONS, LINEAGE, CardInfo


class CardConfig(CardInfo):
    """What is released, and what its card says beyond the records."""

    model: StageRef
    """The train stage whose model is released."""
    evaluations: list[StageRef] = Field(default_factory=list)
    """The evaluate stages whose numbers the card prints."""
    data: StageRef | None = None
    """The stage that made the rows and checked that training and test share none."""


@register
class Card(Stage):
    """Write a release."""

    kind = "card"
    config = CardConfig
    code = "cairn.report.card"
    shows_names = True

    def run(self, context: Context) -> dict[str, Any]:
        from cairn.ledger.environment import version
        from cairn.report.release import Material, read_evaluation, write_release

        config: CardConfig = context.config
        empty(context.draft)
        context.environment["matplotlib"] = version("matplotlib")
        store = NamedStore(context.store, context.names)
        inputs = {name: store.get(artifact.key) or artifact for name, artifact in context.inputs.items()}
        # Two stages of one configuration are one artifact: its numbers are printed once.
        evaluations = {inputs[name].key: inputs[name] for name in config.evaluations}
        material = Material(
            model=inputs[config.model],
            store=store,
            info=config,
            evaluations=[read_evaluation(artifact) for artifact in evaluations.values()],
            data=inputs[config.data] if config.data else None,
            recipe=context.recipe,
            command=context.command,
        )
        return write_release(context.draft, material)

    def outputs(self, config: CardConfig) -> set[str]:
        return {CARD, LINEAGE}

    def needs(self, config: CardConfig) -> Iterator[tuple[tuple[str | int, ...], str, tuple[str, ...]]]:
        yield ("model",), config.model, ("model/config.json",)
        for number, name in enumerate(config.evaluations):
            yield ("evaluations", number), name, ("results.json",)

    def estimate(self, config: Any, inputs: Mapping[str, Artifact | None]) -> Estimate | None:
        if any(artifact is None for artifact in inputs.values()) and not can_plot():
            # Told before the training that comes first, not after it.
            raise UserError("the card's training curve needs matplotlib, which is not installed", remedy=REMEDY)
        return None

    def summarize(self, artifact: Any) -> Any:
        """What the model can do, three dialogues, where the card lies and what to type next."""
        from rich.console import Group
        from rich.text import Text

        from cairn.pipeline.results import dialogues, models_table, scores_table

        names, model = artifact.record.config["evaluations"], artifact.record.config["model"]
        folders = {name: artifact.path(f"{EVALUATIONS}/{name}") for name in names}
        lineage = {record["name"]: record for record in json.loads(artifact.path(LINEAGE).read_text(encoding="utf-8"))}
        examined = {name: lineage[name]["config"]["model"] if name in lineage else model for name in names}
        own = [name for name in names if examined[name] == model]
        parts: list[Any] = [scores_table(_rows(folders[name])) for name in own]
        known = {(row["suite"], row["metric"], row["n"]): row for name in own for row in _rows(folders[name])}
        for name in (name for name in names if name not in own):
            both = [(mine, row) for row in _rows(folders[name]) if (mine := known.get((row["suite"], row["metric"], row["n"])))]
            told = [{**mine, "values": [mine, other]} for mine, other in both if mine["value"] != other["value"]]
            pair = [model, examined[name]]
            if _leads_to(lineage, examined[name], model):
                pair.reverse()
                told = [{**row, "values": row["values"][::-1]} for row in told]
            if told:
                parts.append(models_table(pair, told, title=f"Before and after {pair[1]}: what changed, of {len(both)} numbers"))
        where = Text.assemble("\nModel card  ", (str(_shown(artifact.path(CARD))), "bold"), no_wrap=True, overflow="ignore")
        step = Text.assemble("Talk to it  ", (f"cairn chat {artifact.record.recipe}/{model}", "bold"))
        return Group(*parts, *dialogues(list(folders.values())), where, step)


def _rows(folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((folder / "results.json").read_text(encoding="utf-8"))["rows"]
    return rows


def _leads_to(lineage: Mapping[str, Any], first: str, last: str) -> bool:
    """Whether the stage `last` was made from the stage `first`, directly or not."""
    return last == first or any(_leads_to(lineage, first, name) for name in lineage.get(last, {"inputs": ()})["inputs"])


def _shown(path: Path) -> Path:
    """The path as it is shortest to type from here."""
    try:
        return path.relative_to(Path.cwd())
    except ValueError:
        return path
