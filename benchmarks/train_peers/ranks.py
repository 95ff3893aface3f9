"""Tokens/s of `cairn run --ranks 2` on one core each, and of one rank on both cores, turn about. Knows cairn's command line only.

Rows and tokenizer are made once; every turn trains anew in the same store, under a rate of its own so that it is another stage. The
speed is what the loop notes of its own steps, without the first ones. The tokens of the steps must be the same on both sides.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from worker import job, reply

SKIP = 2


def recipe(told: dict[str, Any]) -> dict[str, Any]:
    """The recipe that is run: rows, tokenizer, training."""
    source = {"name": "rows", "stage": "rows", "file": "rows.train.jsonl"}
    data = {"kind": "data", "holdout": 0, "bad_rows": "drop", "sources": [{"name": "rows", "path": told["data"]}]}
    tokenizer = {"kind": "tokenizer", "format": "k2", "vocab_size": told["vocab_size"], "data": [{**source, "limit": 5000}]}
    train = {"kind": "train", "tokenizer": "tokenizer", "model": told["model"], "data": [source], **told["training"]}
    return {"recipe": "ranks", "seed": 1, "stages": {"rows": data, "tokenizer": tokenizer, "base": train}}


def cairn(words: list[str], threads: int = 2) -> str:
    """What `cairn` prints."""
    environ = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    return subprocess.run([sys.executable, "-m", "cairn", *words], env=environ, stdout=subprocess.PIPE, text=True, check=True).stdout


def measured(folder: Path, words: list[str], threads: int) -> tuple[float, list[int]]:
    """Tokens/s of one training after its first steps, and the tokens of each step."""
    done = json.loads(cairn(["run", str(folder / "ranks.yaml"), "--store", str(folder / "store"), "--json", *words], threads))
    base = done["stages"][-1]
    if base["status"] != "ran":
        raise ValueError(f"the training did not run: {base}")
    lines = (folder / "store" / "artifacts" / base["key"] / "logs" / "speed.jsonl").read_text(encoding="utf-8").splitlines()
    steps = [json.loads(line) for line in lines]
    return sum(s["tokens"] for s in steps[SKIP:]) / sum(s["seconds"] for s in steps[SKIP:]), [s["tokens"] for s in steps]


def main() -> None:
    told = job()
    folder = Path(told["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "ranks.yaml").write_text(yaml.safe_dump(recipe(told)), encoding="utf-8")
    if "--ranks" not in cairn(["run", "--help"]):
        reply(missing="cairn run has no --ranks")
        return
    rates: dict[int, list[float]] = {1: [], 2: []}
    for turn in range(told["rounds"]):
        seen = []
        for number, threads in ((1, 2), (2, 1)):
            words = ["--set", f"base.optimizer.lr={2e-5 + 1e-7 * (2 * turn + number)}", *(["--ranks", "2"] if number == 2 else [])]
            rate, tokens = measured(folder, words, threads)
            rates[number].append(rate)
            seen.append(tokens)
        if seen[0] != seen[1]:
            raise ValueError("one rank and two saw other tokens in their steps")
    reply(one=statistics.median(rates[1]), two=statistics.median(rates[2]))


if __name__ == "__main__":
    main()
