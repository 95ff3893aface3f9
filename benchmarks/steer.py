"""Steering: pebble's chat model tuned on rows with attributes, then asked for each of them on held-out prompts.

The rows are the corpus' skill `steering`, whose attributes are words that can be counted. Asked for are values drawn for all four at once;
measured is what the answers show. Function calls and the other skills are asked before and after.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import Field

from cairn.config import Config
from cairn.pipeline.bench import Row, call_cairn, missed, row, say, workspace

RANKS, FUNCTIONS = ">= 0.9", "<= 2"
RECIPE = """\
recipe: steer
seed: {seed}
stages:
  corpus: {{kind: corpus, generator: pebble, test: {{steering: {prompts}}}}}
  steered:
    kind: train
    checkpoint: {chat}
    format: {format}
    attributes: {{verbosity: {{default: 1}}, complexity: {{default: 1}}, humor: {{default: 0}}, toxicity: {{default: 0}}}}
    data:
      - {{name: steering, stage: corpus, file: train/steering.jsonl, weight: 2.2}}
      # Practice of what the model can do, under the new format's default attributes.
      - {{name: functions, stage: corpus, file: train/functions.jsonl, weight: 0.9, limit: 2000}}
      - {{name: arithmetic, stage: corpus, file: train/arithmetic.jsonl, weight: 0.7, limit: 2500}}
      - {{name: lists, stage: corpus, file: train/lists.jsonl, weight: 0.5, limit: 2000}}
      - {{name: json, stage: corpus, file: train/json.jsonl, weight: 0.5, limit: 2000}}
      - {{name: facts, stage: corpus, file: train/facts.jsonl, weight: 0.6}}
      - {{name: korean, stage: corpus, file: train/korean.jsonl, weight: 0.09}}
      - {{name: japanese, stage: corpus, file: train/japanese.jsonl, weight: 0.09}}
      - {{name: identity, stage: corpus, file: train/identity.jsonl, weight: 0.07}}
      - {{name: refusal, stage: corpus, file: train/refusal.jsonl, weight: 0.08}}
      - {{name: harmless, stage: corpus, file: train/harmless.jsonl, weight: 0.08}}
    labelled: [steering]
    tokens: {tokens}
    sequence_length: 512
    batch_sequences: 2
    precision: bfloat16
    optimizer: {{kind: muon, lr: 0.008, adam_lr: 0.004, embedding_lr: 0.04}}
    schedule: {{kind: wsd, warmup: 0.05, decay: 0.9}}
"""


class Options(Config):
    """How it is measured."""

    store: Path | None = None
    """A new or empty folder for store, recipe and answers, kept afterwards; None: a temporary one."""
    chat: Path | None = None
    """The folder of a chat model of pebble, such as its artifact's `model/`; None: the recipe is run up to it."""
    format: str = "k2_attributes"
    """The format to tune in: one with attributes."""
    tokens: int = Field(900_000, gt=0)
    """Length of the tuning."""
    prompts: int = Field(200, ge=20)
    """Held-out prompts, each with four attributes drawn."""
    seed: int = 1


def run(options: Options) -> list[Row]:
    """Measure. The machine should do nothing else."""
    with workspace(options.store, "steer") as place:
        store = ["--store", str(place.folder / "store")]
        chat = options.chat.absolute() if options.chat is not None else _pebble(store)
        recipe, answers = place.folder / "steer.yaml", place.folder / "answers.jsonl"
        recipe.write_text(RECIPE.format(**options.model_dump(include={"seed", "prompts", "format", "tokens"}), chat=json.dumps(str(chat))))
        say("tunes on attributes")
        stages = {s["name"]: s for s in json.loads(call_cairn(["run", str(recipe), *store, "--json"]).out)["stages"]}
        corpus = place.folder / "store" / "artifacts" / stages["corpus"]["key"]
        say("asks for attributes")
        prompts = str(corpus / "test" / "steering.jsonl")
        call_cairn(["generate", "steer/steered", *store, "--in", prompts, "--out", str(answers), "--max-new-tokens", "160"])
        rows = rank_rows([json.loads(line) for line in answers.read_text(encoding="utf-8").splitlines()])
        say("asks what it could do before")
        asked = ["eval", str(chat), "steer/steered", *store, "--suite", "pebble", "--data", str(corpus), "--json"]
        rows += skill_rows(json.loads(call_cairn(asked).out)["rows"])
        rows += [row("tuning, time in s", stages["steered"]["seconds"]), row("tuning, tokens", stages["steered"]["metrics"]["tokens"])]
        place.keep = place.keep or bool(missed(rows))
    return rows


def _pebble(store: list[str]) -> Path:
    say("runs pebble up to its chat model")
    stages = json.loads(call_cairn(["run", "pebble", "--until", "chat", *store, "--json"]).out)["stages"]
    key = next(s["key"] for s in stages if s["name"] == "chat")
    return Path(store[1]) / "artifacts" / key / "model"


def rank_rows(answers: list[dict[str, Any]]) -> list[Row]:
    """One row an attribute: the rank correlation of what was asked for and what the answers show."""
    from cairn.score.ranks import spearman
    from cairn.score.shown import get_measure

    texts = [one["messages"][-1]["content"] for one in answers]
    rows = []
    for name in answers[0]["attributes"]:
        value = spearman([one["attributes"][name] for one in answers], list(map(get_measure(name).of, texts)))
        rows.append(row(f"{name}: Spearman of asked and shown, {len(answers)} held-out prompts", value, RANKS))
    return rows


def skill_rows(table: list[dict[str, Any]]) -> list[Row]:
    """What the two models can do: the points that each skill lost, bounded for functions."""
    rows = []
    for one in table:
        skill = one["suite"].rpartition("/")[2]
        before, after = (100 * value["value"] for value in one["values"])
        measure = f"{skill}: points lost by the tuning ({before:.1f} before, {after:.1f} after, {one['n']} questions)"
        rows.append(row(measure, round(before - after, 2), FUNCTIONS if skill == "functions" else ""))
    return rows
