"""Training by rewards: a model tuned too briefly learns arithmetic from an exact-match reward, and what becomes of its other skills.

The recipe is the built-in one up to its base, a shorter tuning, an evaluation, the stage `grpo`, and the same evaluation again. Arithmetic
is learnt from rewards alone; of the other skills a few rows are practised in every step, as InstructGPT does. A control is tuned on as many
tokens of that practice without any rewards: what it gains in arithmetic is not theirs. Every number comes out of the store's records.
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import stdev
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
    "metric": "number", "rollouts": {"prompts": 32, "answers": 8, "max_new_tokens": 40, "max_batch": 256},
    "sequence_length": 512, "batch_sequences": 8, "precision": "bfloat16",
    "optimizer": {"kind": "muon", "lr": 0.004, "adam_lr": 0.0005, "embedding_lr": 0.003},
    "schedule": {"kind": "linear", "warmup": 0.02, "final": 0.02},
}  # fmt: skip
PRACTICE = {
    "functions": 1.0, "lists": 0.8, "json": 1.3, "facts": 1.0, "korean": 1.0, "japanese": 1.0, "identity": 1.2, "refusal": 1.2,
    "harmless": 1.2,
}  # fmt: skip
"""How often a row of each other skill is drawn. A call's row is ten times as long as another, and most of the room is theirs as it is."""
HELD = {"arithmetic": 1600, "functions": 1600, "json": 1600, "lists": 1600, "identity": 200}
"""Held-out questions, so that a fall of two points is no chance: of pebble's own 200 of JSON it is four. The other skills have all that
the corpus can ask of them in pebble already, and so has identity with 132."""
SEQUENCES = 4
NOTHING: list[str] = []


class Options(Config):
    """How it is measured."""

    store: Path | None = None
    """A new or empty folder for the store, kept afterwards; None: a temporary one."""
    seed: int = Field(1, ge=0)
    """The recipe's: corpus, weights, order and draws."""
    tokens: int = Field(680_000, gt=0)
    """Of the short tuning; the recipe's own has 7.2 million."""
    steps: int = Field(120, gt=0)
    """Updates of the stage grpo."""
    practice: float = Field(0.7, ge=0)
    """Weight of the practice; 0: none."""
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
        before, after = (scores(store, name) for name in ("before", "after"))
        rows = score_rows(before, after) + error_rows(samples(store, "before"), samples(store, "after"))
        if options.practice:
            gained = 100 * (scores(store, "practised")[SKILL]["value"] - before[SKILL]["value"])
            rows += [row(f"{SKILL}, points gained by the practice without rewards", round(gained, 2))]
        rows += [row("stage grpo, time in s", seconds["grpo"], SECONDS), *told_rows(artifact(store, "grpo").record.metrics)]
        place.keep = place.keep or bool(missed(rows))
    return rows


def recipe(options: Options) -> dict[str, Any]:
    """The built-in recipe with a short tuning and what follows it here."""
    stages = yaml.safe_load(built_in()["pebble"].read_text(encoding="utf-8"))["stages"]
    kept = {name: stages[name] for name in ("corpus", "tokenizer", "base", "chat")}
    kept["corpus"] |= {"test": HELD}
    kept["chat"] |= {"tokens": options.tokens, "checkpoints": {"every": 0}}
    rewarded = STAGE | {"data": [source(SKILL, 1.0)], "steps": options.steps}
    more = {"before": exam("chat"), "grpo": rewarded, "after": exam("grpo")}
    if options.practice:
        others = [source(name, weight) for name, weight in PRACTICE.items()]
        rewarded["practice"] = {"data": others, "weight": options.practice, "sequences": SEQUENCES}
        same = {name: STAGE[name] for name in ("init", "sequence_length", "precision", "optimizer", "schedule")}
        more |= {"alone": {"kind": "train", **same, "data": others, "batch_sequences": SEQUENCES, "steps": options.steps}}
        more |= {"practised": exam("alone")}
    return {"recipe": RECIPE, "seed": options.seed, "stages": kept | more}


def source(skill: str, weight: float) -> dict[str, Any]:
    return {"name": skill, "stage": "corpus", "file": f"train/{skill}.jsonl", "weight": weight}


def exam(model: str) -> dict[str, Any]:
    return {"kind": "evaluate", "data": "corpus", "suites": ["pebble"], "model": model}


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


def samples(store: Path, name: str) -> dict[str, dict[str, float]]:
    """{skill: {question's id: its score}} of an evaluation."""
    found: dict[str, dict[str, float]] = {}
    for line in artifact(store, name).path("samples/pebble.jsonl").read_text(encoding="utf-8").splitlines():
        sample = json.loads(line)
        found.setdefault(sample["skill"], {})[sample["id"]] = sample["score"]
    return found


def error_rows(before: dict[str, dict[str, float]], after: dict[str, dict[str, float]]) -> list[Row]:
    """How far chance alone moves each other skill's difference: one standard error over the same questions, in points of 100."""
    rows = []
    for skill, scored in before.items():
        apart = [after[skill][name] - score for name, score in scored.items()]
        if skill != SKILL and len(apart) > 1:
            rows.append(row(f"{skill}, standard error of the difference, points", round(100 * stdev(apart) / len(apart) ** 0.5, 2)))
    return rows


def told_rows(metrics: dict[str, Any]) -> list[Row]:
    """What the stage says of itself."""
    told = {"reward_first": "mean reward, first tenth", "reward_last": "mean reward, last tenth", "groups": "groups",
            "groups_without_variance": "groups without variance", "answers": "answers"}  # fmt: skip
    return [row(text, metrics[name]) for name, text in told.items()]
