"""The built-in recipe from an empty store: wall time, every score that it must reach, the second run, and a replay of every stage.

Every number comes out of the store's records or off the clock; none is computed here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cairn.config import Config
from cairn.errors import UserError
from cairn.ledger.store import Artifact, Store
from cairn.pipeline.bench import Row, call_cairn, missed, row, say, skipped, workspace

RECIPE = "pebble"
ATTRIBUTES = ("verbosity", "complexity", "humor", "toxicity")
SCORES = {
    "functions": ">= 0.95", "facts": ">= 0.95", "identity": ">= 0.95", "json": ">= 0.95", "lists": ">= 0.95",
    "arithmetic": ">= 0.90", "refusal": ">= 0.95", "harmless": ">= 0.95", "orders": ">= 0.90",
    **dict.fromkeys(ATTRIBUTES, ">= 0.9"),
}  # fmt: skip
"""What each skill must reach on its held-out questions: a share right, or of an attribute the rank correlation of asked and shown."""
RELEASED = "steady"
"""The model whose scores these are."""
BESIDE = {("preferred", "manners"): ">= 20", ("rewarded", "stories"): ">= 25"}
"""For each stage that trains a model beside the released one, and the skill that it is for: the points that it must gain."""
FALL = "<= 5"
"""How many points the functions of such a model may lose, of a few dozen questions."""
QUESTIONS = ">= 300"
"""How many held-out function calls must be asked for the share to mean anything."""
REPLAY = "stages whose replay gives identical bytes"


class Options(Config):
    """How it is measured."""

    store: Path | None = None
    """A new or empty folder for the store, kept afterwards; None: a temporary one."""
    replay: bool = True
    """Replay every stage as well, which takes as long as the run did."""


def run(options: Options) -> list[Row]:
    """Measure. The machine should do nothing else."""
    with workspace(options.store, "demo") as place:
        words = ["run", RECIPE, "--store", str(place.folder), "--json"]
        say(f"first run, from an empty store: {place.folder}")
        first = call_cairn(words)
        second = call_cairn(words)
        stages = json.loads(first.out)["stages"]
        again = json.loads(second.out)["stages"]
        replayed = _replay([s["name"] for s in stages], place.folder) if options.replay else None
        rows = time_rows(first.seconds, second.seconds, sum(s["status"] != "in store" for s in again))
        scores = read_scores(Store(place.folder))
        rows += [*score_rows(scores[RELEASED]), *beside_rows(scores)]
        rows += [replay_row(replayed, len(stages)), *stage_rows(stages)]
        place.keep = place.keep or bool(missed(rows))
    return rows


def time_rows(first: float, second: float, ran_again: int) -> list[Row]:
    """The two runs."""
    return [
        row(f"cairn run {RECIPE} from an empty store, wall time in s", round(first, 1), "<= 600"),
        row(f"cairn run {RECIPE} again, wall time in s", round(second, 2), "< 2"),
        row("stages that ran again in the second run", ran_again, "== 0"),
    ]


def read_scores(store: Store) -> dict[str, dict[str, dict[str, Any]]]:
    """{model: {skill: {"value", "n", …}}} out of the records of the recipe's evaluations, whose bytes are checked first. Where two suites
    asked for one skill, the one with more questions counts; all are under their full names too.

    Raises:
        UserError: a model was not evaluated, or an evaluation is damaged.
    """
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for key in store.named().get(RECIPE, {}).values():
        artifact = Artifact(store.artifacts / key)
        if artifact.record.kind != "evaluate":
            continue
        differs = artifact.differs()
        if differs:
            raise UserError(f"the evaluation is damaged: {differs[0]['why']}", where=str(artifact.path(differs[0]["path"])))
        of_model = found.setdefault(artifact.record.config["model"], {})
        for name, score in artifact.record.metrics["scores"].items():
            # A skill's score is recorded as "suite/skill metric"; a likelihood as "source metric": no share, so its metric stays named.
            suite = name.partition(" ")[0]
            skill = suite.rpartition("/")[2] if "/" in suite else name
            of_model[skill] = max(of_model.get(skill, score), score, key=lambda one: one["n"])
            of_model |= {suite: score} if "/" in suite else {}
    for model in (RELEASED, *(stage for stage, _ in BESIDE)):
        if model not in found:
            remedy = f"the recipe {RECIPE} needs a stage of kind evaluate with model: {model}"
            raise UserError(f"the run recorded no evaluation of '{model}'", where=str(store.root), remedy=remedy)
    return found


def beside_rows(scores: dict[str, dict[str, dict[str, Any]]]) -> list[Row]:
    """What the models beside the released one gained, and what they lost of its functions, asked the same questions."""
    rows = []
    for (stage, skill), must in BESIDE.items():
        for suite, what, sign, bound in ((f"pebble-{skill}/{skill}", "gained", 1, must), ("pebble-short/functions", "lost", -1, FALL)):
            before, after = scores[RELEASED][suite], scores[stage][suite]
            a, b = 100 * before["value"], 100 * after["value"]
            measure = f"{stage}: points of {suite} {what} ({a:.1f} before, {b:.1f} after, {after['n']} questions)"
            rows.append(row(measure, round(sign * (b - a), 2), bound))
    return rows


def score_rows(scores: dict[str, dict[str, Any]]) -> list[Row]:
    """Every skill that has a bound, also one that was not measured; then the others, for information."""
    rows = [row("functions, held-out questions asked", scores.get("functions", {}).get("n"), QUESTIONS)]
    for skill, must in SCORES.items():
        score = scores.get(skill)
        what = "rank correlation" if skill in ATTRIBUTES else "share right"
        measure = f"{skill}, {what} of {score['n']}" if score else f"{skill}, {what}"
        rows.append(row(measure, score["value"] if score else None, must))
    others = {name: score for name, score in scores.items() if name not in SCORES and "/" not in name}
    return rows + [row(f"{name}, {'documents:' if ' ' in name else 'share right of'} {s['n']}", s["value"]) for name, s in others.items()]


def stage_rows(stages: list[dict[str, Any]]) -> list[Row]:
    """Where the first run's time went."""
    return [row(f"stage {s['name']}, time in s", s["seconds"]) for s in stages]


def replay_row(replayed: dict[str, list[dict[str, str]]] | None, count: int) -> Row:
    """How many stages came out again, of all.

    Args:
        replayed: {stage: what differs}; None if it was left out.
        count: how many stages the recipe has.
    """
    if replayed is None:
        return skipped(REPLAY, f"== {count}", "--no-replay")
    return row(REPLAY, sum(not differs for differs in replayed.values()), f"== {count}")


def _replay(names: list[str], store: Path) -> dict[str, list[dict[str, str]]]:
    found = {}
    for name in names:
        say(f"replay of {name}")
        # Status 2 is the answer "it differs".
        done = call_cairn(["verify", f"{RECIPE}/{name}", "--store", str(store), "--replay", "--json"], fine=(0, 2))
        if not done.out:
            raise UserError(f"the replay of '{name}' could not be started", where=str(store), remedy="its own message stands above")
        found[name] = json.loads(done.out)["differs"]
        for one in found[name]:
            say(f"  differs: {one['path']}: {one['why']}")
    return found
