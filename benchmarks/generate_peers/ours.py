"""Cairn's side of the generation benchmark: the public engine on its compiled runner. Knows nothing of the peers."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from turns import job, reply, serve

from cairn.generate.constrain import Compiled, Constrainer
from cairn.generate.engine import Engine, Request
from cairn.generate.fast import FastRunner
from cairn.generate.grammar import json_schema
from cairn.generate.matcher import Matcher
from cairn.generate.native import build
from cairn.generate.perplexity import compare
from cairn.generate.sampling import Sampling
from cairn.generate.speculate import PromptLookup, Speculative
from cairn.model.load import load_model
from cairn.tokenizer.load import Tokenizer


class Dictated(Matcher):
    """A constraint that allows one text only: an answer that copies, whatever the model's weights."""

    def __init__(self, ids: list[int], vocab: int) -> None:
        self.ids, self.at, self.finished, self.mask_V = ids, 0, False, torch.zeros(vocab, dtype=torch.bool)

    def allowed(self, left: int) -> torch.Tensor:
        self.mask_V.zero_()
        self.mask_V[self.ids[self.at]] = True
        return self.mask_V

    def accept(self, id: int, left: int) -> bool:
        if id != self.ids[self.at]:
            return False
        self.at += 1
        return True


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
    drafted = Speculative(FastRunner(model, 1, 2048, weights=told["weights"]), PromptLookup())
    drafting = Engine(model, max_batch=1, runner=lambda m, slots, alone: drafted)
    vocab = model.config.vocab_size

    schema, stops = hold(told)

    def run(work: str, given: Any) -> list[list[int]]:
        engine = drafting if work == "copying+" else plain
        if work in HELD:
            sampling = Sampling(max_new_tokens=MOST)
            held = [Request(ids, sampling, stops, index=i, constraint=schema) for i, (ids, _) in enumerate(given)]
            return [c.ids for c in engine.generate(held)]
        requests = []
        for i, (ids, want) in enumerate(given):
            answer = told["answers"][i] if work.startswith("copying") else None
            constraint = None if answer is None else lambda answer=answer: Dictated(answer, vocab)
            requests.append(Request(ids, Sampling(max_new_tokens=want), index=i, constraint=constraint))
        return [c.ids for c in engine.generate(requests)]

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
