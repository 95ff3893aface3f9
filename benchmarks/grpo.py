"""Training by rewards: a model tuned too briefly learns arithmetic from an exact-match reward, and what becomes of its other skills.

The recipe is the built-in one up to its base, a shorter tuning, an evaluation, the stage `grpo`, and the same evaluation again. Every
number comes out of the store's records.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field

from cairn.config import Config
from cairn.ledger.store import Artifact, Store
from cairn.pipeline.bench import Row, call_cairn, missed, row, say, workspace
from cairn.pipeline.recipe import built_in

RECIPE, SKILL = "brief", "arithmetic"
GAIN, SECONDS, FALL, START = ">= 25", "<= 600", "<= 2", "<= 60"
STAGE: dict[str, Any] = {
    "kind": "grpo", "init": "chat",
    "rollouts": {"prompts": 40, "answers": 8, "max_new_tokens": 40, "max_batch": 320},
    "sequence_length": 256, "batch_sequences": 16, "precision": "bfloat16",
    "optimizer": {"kind": "muon", "lr": 0.004, "adam_lr": 0.0005, "embedding_lr": 0.003},
    "schedule": {"kind": "linear", "warmup": 0.02, "final": 0.1},
}  # fmt: skip
REWARDS = {
    "arithmetic": ("number", 1.0), "identity": ("exact", 0.08), "json": ("json", 0.1), "lists": ("exact", 0.06), "facts": ("exact", 0.06),
    "harmless": ("answers", 0.08), "refusal": ("refuses", 0.06), "korean": ("exact", 0.06), "japanese": ("exact", 0.06),
}  # fmt: skip
"""The metric of each skill, and how often a prompt of it is drawn: a few of the others keep what is half learnt there."""
NOTHING: list[str] = []


class Options(Config):
    """How it is measured."""

    store: Path | None = None
    """A new or empty folder for the store, kept afterwards; None: a temporary one."""
    tokens: int = Field(800_000, gt=0)
    """Of the short tuning; the recipe's own has 3.8 million."""
    steps: int = Field(120, gt=0)
    """Updates of the stage grpo."""
    budget: list[str] = NOTHING
    """Further overrides, as `cairn run --set` takes them."""


def run(options: Options) -> list[Row]:
    """Measure. The machine should do nothing else."""
    with workspace(options.store, "grpo") as place:
        path = place.folder / "brief.yaml"
        path.write_text(yaml.safe_dump(recipe(options), sort_keys=False), encoding="utf-8")
        say(f"a tuning of {options.tokens:,} tokens, {options.steps} updates by rewards, two evaluations: {place.folder}")
        words = [word for one in options.budget for word in ("--set", one)]
        store = place.folder / "store"
        stages = json.loads(call_cairn(["run", str(path), "--store", str(store), "--json", *words]).out)["stages"]
        seconds = {stage["name"]: stage["seconds"] for stage in stages}
        rows = score_rows(*(scores(store, name) for name in ("before", "after")))
        rows += [row("stage grpo, time in s", seconds["grpo"], SECONDS), *told_rows(artifact(store, "grpo").record.metrics)]
        place.keep = place.keep or bool(missed(rows))
    return rows


def recipe(options: Options) -> dict[str, Any]:
    """The built-in recipe with a short tuning and what follows it here."""
    stages = yaml.safe_load(built_in()["pebble"].read_text(encoding="utf-8"))["stages"]
    kept = {name: stages[name] for name in ("corpus", "tokenizer", "base", "chat")}
    kept["chat"] |= {"tokens": options.tokens, "checkpoints": {"every": 0}}
    data = [
        {"name": name, "stage": "corpus", "file": f"train/{name}.jsonl", "weight": weight} for name, (_, weight) in REWARDS.items()
    ]
    metric = {name: metric for name, (metric, _) in REWARDS.items()}
    exam = {"kind": "evaluate", "data": "corpus", "suites": ["pebble"]}
    rewarded = STAGE | {"data": data, "metric": metric, "steps": options.steps}
    more = {"before": exam | {"model": "chat"}, "grpo": rewarded, "after": exam | {"model": "grpo"}}
    return {"recipe": RECIPE, "seed": 1, "stages": kept | more}


def artifact(store: Path, name: str) -> Artifact:
    return Artifact(Store(store).artifacts / Store(store).named()[RECIPE][name])


def scores(store: Path, name: str) -> dict[str, dict[str, Any]]:
    """{skill: {"value", "n"}} of an evaluation."""
    found = artifact(store, name).record.metrics["scores"]
    return {measure.partition(" ")[0].rpartition("/")[2]: score for measure, score in found.items()}


def score_rows(before: dict[str, dict[str, Any]], after: dict[str, dict[str, Any]]) -> list[Row]:
    """The skill's gain, the largest fall of another one, and both values of each; in points of 100."""
    points = {skill: (100 * score["value"], 100 * after[skill]["value"]) for skill, score in before.items()}
    start, end = points[SKILL]
    skill, fall = max(((name, a - b) for name, (a, b) in points.items() if name != SKILL), key=lambda one: one[1])
    rows = [
        row(f"{SKILL} after the short tuning, % right of {before[SKILL]['n']}", round(start, 2), START),
        row(f"{SKILL}, points gained by rewards", round(end - start, 2), GAIN),
        row(f"largest fall of another skill ({skill}), points", round(fall, 2), FALL),
    ]
    told = {name: f"{name}, % right of {before[name]['n']}: after, before (peer)" for name in points}
    return rows + [row(told[name], round(b, 2), peer=round(a, 2)) for name, (a, b) in points.items()]


def told_rows(metrics: dict[str, Any]) -> list[Row]:
    """What the stage says of itself."""
    told = {"reward_first": "mean reward, first tenth", "reward_last": "mean reward, last tenth", "groups": "groups",
            "groups_without_variance": "groups without variance", "answers": "answers"}  # fmt: skip
    return [row(text, metrics[name]) for name, text in told.items()]
