"""Stage `corpus`: writes a generated corpus, with its held-out tests and the proof that they are held out.

Outputs: `pretrain.jsonl` (texts), `train/<skill>.jsonl` and `test/<skill>.jsonl` (dialogues; in the test the last message is
the reference answer and "meta" holds what the scorer needs), `summary.json` (counts, languages and the check).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

from cairn.data.pebble import ALL, Corpus, Sizes, generate
from cairn.ledger.store import Artifact, write_atomically
from cairn.pipeline.drafts import empty
from cairn.pipeline.stage import Context, Estimate, Stage, register

Row = dict[str, Any]


class CorpusConfig(Sizes):
    """Which corpus, and how much of it: the sizes stand beside the generator's name."""

    generator: Literal["pebble"] = "pebble"
    """Who makes the rows; `pebble` is the one that comes with Cairn."""


def _lines(rows: list[Row]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _files(corpus: Corpus) -> dict[str, list[Row]]:
    files = {"pretrain.jsonl": corpus.pretrain} if corpus.pretrain else {}
    for folder, part in (("train", corpus.train), ("test", corpus.test)):
        files |= {f"{folder}/{skill}.jsonl": rows for skill, rows in part.items()}
    return files


@register
class CorpusStage(Stage):
    """Generates, checks, writes."""

    kind = "corpus"
    config = CorpusConfig

    def run(self, context: Context) -> dict[str, Any]:
        """Everything in one go: it takes seconds, so a draft is not resumed but written over."""
        empty(context.draft)
        corpus = generate(context.seed, context.config)
        checked = corpus.check()
        files = _files(corpus)
        context.progress.start(sum(len(rows) for rows in files.values()), "rows")
        done = 0
        for name, rows in files.items():
            path = context.draft / name
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, _lines(rows))
            done += len(rows)
            context.progress.update(done)
        context.progress.close()
        metrics = {
            "pretrain_rows": len(corpus.pretrain),
            "pretrain_characters": sum(len(row["text"]) for row in corpus.pretrain),
            "train_rows": {skill: len(rows) for skill, rows in corpus.train.items()},
            "test_rows": {skill: len(rows) for skill, rows in corpus.test.items()},
            "disjoint": checked,
        }
        languages: dict[str, int] = {}
        for rows in files.values():
            for row in rows:
                languages[row["language"]] = languages.get(row["language"], 0) + 1
        summary = {"generator": context.config.generator, **metrics, "languages": languages}
        write_atomically(context.draft / "summary.json", json.dumps(summary, ensure_ascii=False, indent=2) + "\n")
        return metrics

    def outputs(self, config: CorpusConfig) -> set[str]:
        """A file for each skill with rows of that part."""
        parts = {(part, name) for name in ALL for part in ("train", "test") if ALL[name].drafts and config.of(name, part)}
        texts = {"pretrain.jsonl"} if any(skill.statements and config.of(name, "pretrain") for name, skill in ALL.items()) else set()
        return {f"{part}/{name}.jsonl" for part, name in parts} | texts | {"summary.json"}

    def estimate(self, config: CorpusConfig, inputs: Mapping[str, Artifact | None]) -> Estimate:
        """Rows by the thousand, from the sizes alone."""
        rows = config.rows()
        # A row takes about 600 bytes and a tenth of a millisecond, most of both for function calls.
        return Estimate(disk_bytes=600 * rows, seconds=1e-4 * rows)

    def summarize(self, artifact: Artifact) -> str:
        """One line: how much there is, and that no test question was trained on."""
        metrics = artifact.record.metrics
        train, test = sum(metrics["train_rows"].values()), sum(metrics["test_rows"].values())
        return f"{metrics['pretrain_rows']} texts, {train} dialogues to train on, {test} held-out questions, none of which is in training"
