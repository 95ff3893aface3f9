"""Run a recipe: every stage whose artifact is not in the store, in order, resuming what was begun. Knows no stage's inside."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cairn.errors import UserError
from cairn.ledger.environment import environment, memory_bytes
from cairn.ledger.progress import Progress, Silent
from cairn.ledger.record import Input, Record, hash_outputs, outputs_digest
from cairn.ledger.store import Artifact, Store, show_bytes
from cairn.pipeline.check import check_rows
from cairn.pipeline.keys import Node, config_value, nodes
from cairn.pipeline.plan import Step, make_plan, needed_bytes
from cairn.pipeline.recipe import Recipe
from cairn.pipeline.stage import Context, Stage
from cairn.pipeline.team import Team, command_of

UNSURE = 1.5
"""How far a prediction of memory may be beyond the machine's before a run is refused."""
FLOOR_BYTES = 32_000_000
"""Room that a run asks for whatever its stages say."""


@dataclass(frozen=True)
class StageResult:
    """What became of one stage."""

    name: str
    status: str
    """"ran" or "in store"."""
    seconds: float
    """Time that it took in this run; 0 if it was in the store."""
    stage: Stage
    artifact: Artifact

    def json(self) -> dict[str, Any]:
        """As JSON-like values."""
        record = self.artifact.record
        return {
            "name": self.name, "key": record.key, "status": self.status, "seconds": round(self.seconds, 3),
            "digest": record.digest, "metrics": record.metrics,
        }  # fmt: skip


@dataclass(frozen=True)
class RunResult:
    """What became of a recipe."""

    recipe: str
    stages: list[StageResult] = field(default_factory=list)
    last: list[StageResult] = field(default_factory=list)
    """The stages that no other one of the run needs."""

    @property
    def ran(self) -> int:
        """How many stages ran."""
        return sum(s.status == "ran" for s in self.stages)

    def json(self) -> dict[str, Any]:
        """As JSON-like values."""
        return {"recipe": self.recipe, "stages": [s.json() for s in self.stages]}


def run_recipe(
    recipe: Recipe,
    store: Store,
    *,
    until: str | None = None,
    fresh: bool = False,
    progress: Callable[[str], Progress] = lambda title: Silent(),
    on_stage: Callable[[Step, StageResult | None], None] = lambda step, result: None,
    ranks: int = 1,
) -> RunResult:
    """Run a recipe.

    Args:
        recipe: what to run.
        store: where artifacts lie.
        until: stop after this stage, and leave out what it does not need.
        fresh: begin stages anew instead of resuming their drafts.
        progress: makes the progress display of a stage out of a title.
        on_stage: called with None before a stage that is to run, and with the result after each stage.
        ranks: processes that a training is divided over, on this machine. Under torchrun its own count holds, and this process may be
            a rank that only takes part: it writes nothing and its result is empty.

    Raises:
        UserError: anything that the user can mend; what was done until then is kept.
    """
    team = Team(ranks, command_of(recipe.words, store.root, until))
    if team.follows:
        return _follow(recipe, store, until, team)
    try:
        return _lead(recipe, store, until, fresh, progress, on_stage, team)
    finally:
        team.close()


def _follow(recipe: Recipe, store: Store, until: str | None, team: Team) -> RunResult:
    """A rank other than 0: run the stages that rank 0 calls, and write nothing."""
    known = {node.name: node for node in nodes(recipe, store, until)}
    for call in team.calls():
        node = known.get(call["name"])
        if node is None or node.key != call["key"]:
            what = f"this rank knows the stage '{call['name']}' by another key than rank 0: its recipe, its data or its code differ"
            raise UserError(what, remedy="give all ranks the same files and the same version")
        inputs = {name: Artifact(store.artifacts / key) for name, key in node.inputs.items()}
        context = Context(
            config=node.spec.config, seed=recipe.seed, inputs=inputs, draft=Path(call["draft"]), store=store,
            name=node.name, recipe=recipe.name, command=recipe.command, names=node.names, key=node.key, team=team,
        )  # fmt: skip
        with store.guard(), team.quietly():
            node.spec.stage.run(context)
    return RunResult(recipe.name)


def _lead(
    recipe: Recipe,
    store: Store,
    until: str | None,
    fresh: bool,
    progress: Callable[[str], Progress],
    on_stage: Callable[[Step, StageResult | None], None],
    team: Team,
) -> RunResult:
    """Rank 0, or the only process."""
    steps = make_plan(recipe, store, until)
    todo = [step.node for step in steps if step.artifact is None]
    if todo:
        _check_memory(recipe, steps)
        store.test_save(max(FLOOR_BYTES, needed_bytes(steps)))
        check_rows(todo, store, progress)
    artifacts: dict[str, Artifact] = {}
    results: list[StageResult] = []
    checked: set[str] = set()
    for step in steps:
        node, began = step.node, time.monotonic()
        artifact, ran = step.artifact, False
        if artifact is None:
            on_stage(step, None)
            inputs = {name: artifacts[name] for name in node.inputs}
            _check_inputs(inputs, checked)
            artifact, ran = _run_stage(recipe, node, store, inputs, fresh, progress, team)
        artifacts[node.name] = artifact
        with store.guard():
            store.name(recipe.name, node.name, node.key)
        seconds = time.monotonic() - began if ran else 0.0
        results.append(StageResult(node.name, "ran" if ran else "in store", seconds, node.spec.stage, artifact))
        on_stage(step, results[-1])
    needed = {name for step in steps for name in step.node.inputs}
    return RunResult(recipe.name, results, [r for r in results if r.name not in needed])


def _check_memory(recipe: Recipe, steps: list[Step]) -> None:
    """Refuse what no processor of this machine can hold: the system would end the process, and perhaps others, without a word.

    Raises:
        UserError: a stage whose predicted memory is beyond this machine's by more than a prediction can be wrong.
    """
    for step in steps:
        need, have = step.estimate.memory_bytes, memory_bytes()
        if step.artifact is not None or need is None or need <= UNSURE * have:
            continue
        import torch

        if torch.cuda.is_available():
            return  # predicted for a processor; a GPU's own rules are those of `memory`
        raise UserError(
            f"the stage '{step.node.name}' would take about {show_bytes(need)} of memory, this machine has {show_bytes(have)}",
            where=recipe.spot("stages", step.node.name),
            remedy="take fewer tokens a pass (batch_sequences; accumulate makes up for it), a smaller model, or for an adapter "
            "adapter.merge: false, and `cairn merge` on a larger machine; `cairn plan` shows it",
        )


def _check_inputs(inputs: dict[str, Artifact], checked: set[str]) -> None:
    """Hash what a stage is about to read: on a damaged input, hours of work would stand on sand."""
    for name, artifact in inputs.items():
        if artifact.key in checked:
            continue
        differs = artifact.differs()
        if differs:
            raise UserError(
                f"the artifact of stage '{name}' is damaged: {differs[0]['why']}",
                where=str(artifact.path(differs[0]["path"])),
                remedy=f"delete {artifact.folder} and run the recipe again",
            )
        checked.add(artifact.key)


def _run_stage(
    recipe: Recipe,
    node: Node,
    store: Store,
    inputs: dict[str, Artifact],
    fresh: bool,
    progress: Callable[[str], Progress],
    team: Team,
) -> tuple[Artifact, bool]:
    """The stage's artifact, and whether it was this process that made it."""
    display = progress(node.name)
    try:
        with store.guard(), store.lock(node.key, lambda: display.note("another run is at this stage: waiting for it")):
            found = store.get(node.key)
            if found is not None:
                return found, False
            if fresh:
                store.discard(node.key)
            finished = store.finish(node.key)
            if finished is not None:
                return finished, True
            draft = store.draft(node.key)
            if any(draft.iterdir()):
                display.note("resuming what an earlier run has begun")
            context = Context(
                config=node.spec.config, seed=recipe.seed, inputs=inputs, draft=draft, store=store, progress=display,
                name=node.name, recipe=recipe.name, command=recipe.command, names=node.names, key=node.key, team=team,
            )  # fmt: skip
            started, began = datetime.now(UTC), time.monotonic()
            try:
                metrics = node.spec.stage.run(context) or {}
            except UserError as error:
                raise recipe.told(node.name, error) from error
            times = {"started": _stamp(started), "finished": _stamp(datetime.now(UTC)), "seconds": round(time.monotonic() - began, 3)}
            return store.commit(node.key, lambda folder: make_record(node, context, folder, metrics, times)), True
    finally:
        display.close()


def make_record(node: Node, context: Context, folder: Path, metrics: dict[str, Any], times: dict[str, Any]) -> Record:
    """The record of a stage that has run."""
    outputs, logs = hash_outputs(folder)
    return Record(
        kind=node.spec.stage.kind,
        name=node.name,
        recipe=context.recipe,
        command=context.command,
        key=node.key,
        config=config_value(node.spec.config),
        inputs={name: Input(key=a.key, digest=a.record.digest) for name, a in context.inputs.items()},
        names=node.names,
        files=node.files,
        code=node.code,
        environment={**environment(), **context.environment},
        seed=context.seed,
        outputs=outputs,
        logs=logs,
        metrics=plain(metrics),
        times=times,
        digest=outputs_digest(outputs),
    )


def plain(value: Any) -> Any:
    """Metrics as JSON-like values: library scalars become numbers; a number that is none becomes its name, which JSON can hold."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if value is not None and not isinstance(value, str | int | float) and hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _stamp(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


__all__ = ["RunResult", "StageResult", "make_record", "plain", "run_recipe"]
