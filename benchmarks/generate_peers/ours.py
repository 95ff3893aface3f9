"""Cairn's side of the generation benchmark: the public engine on its compiled runner. Knows nothing of the peers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from turns import job, reply, serve

from cairn.generate.constrain import Compiled, Constrainer
from cairn.generate.engine import Engine, Request
from cairn.generate.fast import FastRunner
from cairn.generate.grammar import json_schema
from cairn.generate.native import build
from cairn.generate.perplexity import compare
from cairn.generate.runner import Piece
from cairn.generate.sampling import Sampling
from cairn.generate.speculate import PromptLookup, Speculative
from cairn.model.load import load_model
from cairn.tokenizer.load import Tokenizer


class Dictating:
    """A runner under which a model copies, whatever its weights: behind a known prompt the next id of its answer is the likeliest."""

    def __init__(self, runner: FastRunner, works: list[tuple[list[int], list[int]]]) -> None:
        self.runner, self.slots, self.capacity, self.invariant = runner, runner.slots, runner.capacity, runner.invariant
        self.row_cost = runner.row_cost
        self.known = {tuple(prompt[:8]): (len(prompt), answer) for prompt, answer in works}
        self.now: tuple[int, list[int]] = (0, [])
        self.cost, self.truncate, self.copy = runner.cost, runner.truncate, runner.copy

    def forward(self, pieces: Sequence[Piece]) -> list[torch.Tensor]:
        found = self.runner.forward(pieces)
        for piece, rows_TV in zip(pieces, found, strict=True):
            if piece.start == 0:
                self.now = self.known[tuple(piece.ids[:8])]
            begin, answer = self.now
            first = piece.start + len(piece.ids) - piece.wanted + 1 - begin  # of the answer, the place behind the first row
            for row, id in enumerate(answer[first : first + piece.wanted]):
                rows_TV[row, id] = 1e9
        return found


HELD = ("held", "held16")
"""Works under a schema; their answers end by themselves, and the free ones beside them get as many tokens."""
MOST = 1024


def hold(told: dict[str, Any]) -> tuple[Compiled | None, frozenset[int]]:
    """The constraint of those works, and what ends their answers."""
    if "schema" not in told:
        return None, frozenset()
    tokenizer = Tokenizer.load(Path(told["tokenizer"]))
    stops = frozenset([tokenizer.eos_id]) if tokenizer.eos_id is not None else frozenset[int]()
    constrainer = Constrainer(tokenizer, stops)
    compiled = constrainer.compile(json_schema(told["schema"]))
    constrainer.close()
    return compiled, stops


def bandwidth(seconds: float = 1.0) -> dict[str, Any]:
    """The best rate at which all threads read memory that no cache holds, in GB/s."""
    memory = torch.ones(64 << 20)
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        begun = time.perf_counter()
        memory.sum()
        best = min(best, time.perf_counter() - begun)
    return {"gigabytes": memory.numel() * 4 / best / 1e9}


def main() -> None:
    told = job()
    torch.set_num_threads(told["threads"])
    begun = time.perf_counter()
    build.library(told["weights"])
    compiled = time.perf_counter() - begun
    model = load_model(told["model"], told["dtype"])
    begun = time.perf_counter()
    plain = Engine(model, runner=lambda m, slots, alone: FastRunner(m, slots, 2048, weights=told["weights"], budget=32768))
    assert plain.scheduler
    packed = time.perf_counter() - begun
    copies = [(ids, answer) for (ids, _), answer in zip(told["works"].get("copying", ()), told["answers"], strict=False)]

    def copying() -> Dictating:
        return Dictating(FastRunner(model, 1, 2048, weights=told["weights"]), copies)

    engines = {
        "copying": Engine(model, max_batch=1, runner=lambda m, slots, alone: copying()),
        "copying+": Engine(model, max_batch=1, runner=lambda m, slots, alone: Speculative(copying(), PromptLookup())),
    }

    schema, stops = hold(told)

    def run(work: str, given: Any) -> list[list[int]]:
        engine = engines.get(work, plain)
        if work in HELD:
            sampling = Sampling(max_new_tokens=MOST)
            held = [Request(ids, sampling, stops, index=i, constraint=schema) for i, (ids, _) in enumerate(given)]
            return [c.ids for c in engine.generate(held)]
        requests = [Request(ids, Sampling(max_new_tokens=want), index=i) for i, (ids, want) in enumerate(given)]
        said = [c.ids for c in engine.generate(requests)]
        assert work not in engines or said == told["answers"], "what was dictated was not said"
        return said

    for work in HELD if schema else ():
        given = told["works"][work]
        wanted = [(ids, len(answer)) for (ids, _), answer in zip(given, run(work, given), strict=True)]
        told["works"] |= {work: wanted, f"un{work}": wanted}

    def started() -> dict[str, Any]:
        return {"compiled": compiled, "packed": packed}

    def quantised() -> dict[str, Any]:
        full = FastRunner(model, 1, 1024)
        return compare(full, FastRunner(model, 1, 1024, weights=told["weights"]), tokens=512)

    serve(told["works"], run, {"bandwidth": bandwidth, "started": started, "perplexity": quantised})
    reply(ended=True)


if __name__ == "__main__":
    main()
