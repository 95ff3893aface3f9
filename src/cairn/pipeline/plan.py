"""What a run of a recipe would do and cost. Runs nothing and writes nothing but the memory of file digests."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from cairn.errors import UserError
from cairn.ledger.store import Artifact, Store
from cairn.pipeline.check import check_files, check_heads
from cairn.pipeline.keys import Node, nodes
from cairn.pipeline.recipe import Recipe
from cairn.pipeline.stage import Estimate, PlannedInputs


@dataclass(frozen=True)
class Step:
    """One stage of a plan."""

    node: Node
    artifact: Artifact | None
    """The stage's artifact if it is in the store."""
    begun: bool
    """Whether a draft of an earlier run waits to be resumed."""
    estimate: Estimate
    """What it will cost; of a stage in the store, what it did cost as far as the record says."""
    held: int = 0
    """Bytes that the draft takes already."""

    @property
    def status(self) -> str:
        """ "in store" or "to run"."""
        return "in store" if self.artifact else "to run"

    def json(self) -> dict[str, Any]:
        """The step as JSON-like values."""
        spec = self.node.spec
        head = {"name": spec.name, "kind": spec.stage.kind, "key": self.node.key, "status": self.status, "begun": self.begun}
        return {**head, **asdict(self.estimate), "chosen": spec.stage.chosen(spec.config)}


def make_plan(recipe: Recipe, store: Store, until: str | None = None) -> list[Step]:
    """The steps of a recipe in the order in which they run.

    Raises:
        UserError: as `nodes`, for a damaged artifact, and for a stage that asks another one for a file which that one does not write.
    """
    present: dict[str, Artifact | None] = {}
    estimates: dict[str, Estimate] = {}
    steps = []
    for node in nodes(recipe, store, until):
        artifact = present[node.name] = store.get(node.key)
        held = 0 if artifact else sum(p.stat().st_size for p in (store.drafts / node.key).rglob("*") if p.is_file())
        begun = artifact is None and any((store.drafts / node.key).glob("*"))
        before = {name: present[name] for name in node.inputs}
        if artifact is None:
            check_files(recipe, node, before)
            check_heads(node)
        inputs = PlannedInputs(before, {n: recipe.stages[n].config for n in before}, {n: estimates[n] for n in before})
        estimate = _recorded(artifact) if artifact else _estimated(recipe, node, inputs)
        estimates[node.name] = estimate
        steps.append(Step(node, artifact, begun, estimate, held))
    return steps


def _estimated(recipe: Recipe, node: Node, inputs: PlannedInputs) -> Estimate:
    try:
        return node.spec.stage.estimate(node.spec.config, inputs) or Estimate()
    except UserError as error:
        raise recipe.told(node.name, error) from None


def _recorded(artifact: Artifact) -> Estimate:
    """What a finished stage did cost, out of its record: nothing is loaded, so that a run with nothing to do ends at once."""
    record = artifact.record
    size = sum(o.bytes for o in record.outputs.values()) + sum(o.bytes for o in record.logs.values())
    figures = {name: record.metrics.get(name) for name in ("parameters", "tokens", "flops")}
    return Estimate(**figures, disk_bytes=size, seconds=record.times.get("seconds"))


def needed_bytes(steps: list[Step]) -> int:
    """Disk that the steps still to run will take beyond what their drafts hold already, as far as they can tell."""
    return sum(max(0, (step.estimate.disk_bytes or 0) - step.held) for step in steps if step.artifact is None)
