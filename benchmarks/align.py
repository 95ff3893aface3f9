"""Preference training against TRL's DPOTrainer: pairs/s, peak memory, and whether both compute the same.

Pairs are Alpaca's: a row's own answer is chosen, another row's is rejected. All start from the same ids and the same random weights,
each in a process of its own (`train_peers/pairs_*.py`); ours and one configuration of TRL are alive at a time and train in turns. TRL
is the optional extra `bench`; where it cannot be imported, what needs it is skipped.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from cairn.config import Config
from cairn.errors import UserError, did_you_mean
from cairn.pipeline.bench import Row, load_benchmark, missed, row, say, skipped, workspace

Part = Literal["speed", "exact"]
PARTS: list[Part] = ["exact", "speed"]
BOTH = ["S", "M"]
PEERS: dict[str, dict[str, Any]] = {
    "TRL default": {},
    "TRL without checkpointing": {"gradient_checkpointing": False},
    "TRL reference precomputed": {"gradient_checkpointing": False, "precompute_ref_log_probs": True},
    "TRL reference precomputed, fp32": {"gradient_checkpointing": False, "precompute_ref_log_probs": True, "bf16": False},
}
"""What TRL is told beyond its defaults."""
EVERYBODY = list(PEERS)
SPEED, MEMORY, EQUAL = ">= 6", "<= 0.6", "<= 0.0001"
LENGTH = 1024
FIRST = 8
"""Pairs of the step that is compared in fp32."""
BATCH = 8
"""TRL's pairs in a micro-batch, its default."""


class Options(Config):
    """How it is measured."""

    store: Path | None = None
    """A new or empty folder for models, jobs and logs, kept afterwards; None: a temporary one."""
    data: Path | None = None
    """Alpaca rows, a file or a folder; None: `alpaca_subset` in the folder that CAIRN_SHARED names."""
    python: Path | None = None
    """The interpreter of the peers, where the extra `bench` is installed; None: this one."""
    shapes: list[str] = BOTH
    """S (6 M), M (25 M), tiny; the first one is also that of `exact`."""
    parts: list[Part] = PARTS
    """What is measured."""
    peers: list[str] = EVERYBODY
    """Configurations of TRL; the fastest one is the measure."""
    rounds: int = Field(3, ge=1)
    """Turns of ours and of each peer."""
    seconds: float = Field(8.0, gt=0)
    """Length of a turn; the step that it falls into is finished."""
    pairs: int = Field(240, ge=16)
    """Pairs, spread over the data: TRL measures the reference of all of them before it starts."""
    step_tokens: int = Field(2048, ge=1024)
    """Tokens of a step of ours, a prompt counted once; TRL takes as many pairs, in whole micro-batches."""
    compile: bool = True
    """Whether ours compiles, which no turn counts."""
    seed: int = 1


@dataclass
class Duel:
    """Ours and one configuration of TRL, turn about, in pairs/s."""

    ours: list[float]
    peer: list[float]
    peak_mb: float = 0.0

    @property
    def rates(self) -> tuple[float, float]:
        return statistics.median(self.ours), statistics.median(self.peer)


def run(options: Options) -> list[Row]:
    """Measure. The machine should do nothing else."""
    for name in options.peers:
        if name not in PEERS:
            raise UserError(f"no peer is called '{name}'", where="cairn bench align", remedy=did_you_mean(name, PEERS))
    train = load_benchmark("train")
    settings = {"data": options.data, "python": options.python, "shapes": options.shapes, "compile": options.compile, "seed": options.seed}
    common = train.Options(**settings)
    rows: list[Row] = []
    with workspace(options.store, "align") as place:
        bench = train.Bench(common, place.folder)
        say("pairs, tokenizers and random weights")
        shapes = {name: {"vocab_size": train.SHAPES[name].vocab_size, "model": train.model_of(name)} for name in options.shapes}
        job = {
            "data": str(train.data_of(common)), "pairs": options.pairs, "first": FIRST, "format": "k2", "shapes": shapes,
            "folder": str(place.folder), "max_length": LENGTH, "seed": options.seed,
        }  # fmt: skip
        known = bench.answer("pairs_prepare", job, "prepare")["shapes"]
        for name, one in known.items():
            say(f"  {name}: {one['parameters']:,} parameters; a pair has {one['mean_tokens']:.0f} tokens, its prompt counted once")
        measures = {"exact": lambda: exact(bench, options, known), "speed": lambda: speed(bench, options, known)}
        for part in options.parts:
            rows += measures[part]()
        place.keep = place.keep or bool(missed(rows))
    return rows


def ours_job(bench: Any, options: Options, known: dict[str, Any], rows: str, **training: Any) -> dict[str, Any]:
    """What our process is told: dpo in bf16 with AdamW at a constant rate, and no resume points, which no peer writes."""
    bench.number += 1
    told = {
        "objective": "preference", "steps": 1_000_000, "sequence_length": LENGTH, "batch_sequences": options.step_tokens // LENGTH,
        "precision": "bfloat16", "optimizer": {"kind": "adamw", "lr": 1e-6}, "schedule": {"kind": "constant", "warmup": 0.0},
        "checkpoints": {"resume_seconds": 1e6}, "compile": "on" if options.compile else "off", **training,
    }  # fmt: skip
    folder = str(bench.folder / f"run-{bench.number}")
    return {"model": f"{known['folder']}/model", "rows": f"{known['folder']}/{rows}.npz", "seed": options.seed, "warmup": 2,
            "training": told, "folder": folder}  # fmt: skip


def peer_job(options: Options, known: dict[str, Any], rows: str, settings: dict[str, Any]) -> dict[str, Any]:
    """What TRL's process is told."""
    accumulate = max(1, round(options.step_tokens / known["mean_tokens"] / BATCH))
    told = {"per_device_train_batch_size": BATCH, "gradient_accumulation_steps": accumulate, **settings}
    folder = known["folder"]
    return {"model": f"{folder}/model", "rows": f"{folder}/{rows}.npz", "seed": options.seed, "warmup": 2, "settings": told}


# -- the same numbers ---------------------------------------------------------------------------------------------------


def exact(bench: Any, options: Options, shapes: dict[str, Any]) -> list[Row]:
    """Three steps over the same pairs in fp32, and each answer's log-probability before them."""
    shape, steps, rate = options.shapes[0], 3, 1e-3
    names = [f"{shape}: {what}, fp32, relative difference" for what in
             ("log-probability of an answer (the largest)", "loss of step 1", f"loss of step {steps}")]  # fmt: skip
    say(f"{shape}: {FIRST} pairs in fp32, {steps} steps")
    optimizer = {"kind": "adamw", "lr": rate, "betas": (0.9, 0.999)}
    more = {"precision": "float32", "steps": steps, "optimizer": optimizer, "compile": "off", "batch_sequences": 64}
    mine = bench.answer("pairs_ours", {**ours_job(bench, options, shapes[shape], "first", **more), "whole": True, "warmup": 10**6}, "exact")
    settings = {"bf16": False, "gradient_checkpointing": False, "precompute_ref_log_probs": True, "learning_rate": rate,
                "gradient_accumulation_steps": 1, "max_steps": steps}  # fmt: skip
    job = {**peer_job(options, shapes[shape], "first", settings), "warmup": 10**6}
    theirs = bench.answer("pairs_trl", job, "exact TRL", peer=True)
    if "missing" in theirs:
        return [skipped(name, EQUAL, theirs["missing"]) for name in names]
    apart = max(abs(a - b) / abs(b) for a, b in zip(mine["reference"], theirs["reference"], strict=True))
    losses = [abs(a - b) / abs(b) for a, b in zip(mine["losses"], theirs["losses"], strict=True)]
    return [row(name, value, EQUAL) for name, value in zip(names, (apart, losses[0], losses[-1]), strict=True)]


# -- speed and memory -----------------------------------------------------------------------------------------------------


def speed(bench: Any, options: Options, shapes: dict[str, Any]) -> list[Row]:
    """Every shape against every configuration."""
    rows: list[Row] = []
    for shape in options.shapes:
        say(f"{shape}: starts and compiles")
        duels: dict[str, Duel] = {}
        with bench.start("pairs_ours", ours_job(bench, options, shapes[shape], "pairs"), f"{shape} ours") as ours:
            ours.read()
            for name in options.peers:
                found = duel(bench, options, shapes[shape], name, ours)
                if isinstance(found, str):
                    say(f"  {name}: {found}")
                    continue
                duels[name] = found
                say(f"  {shape}, {name}: ours {found.rates[0]:.2f}, peer {found.rates[1]:.2f} pairs/s, {found.peak_mb:,.0f} MB")
            peak = ours.ask("stop")["peak_mb"]
        rows += speed_rows(shape, duels, peak)
    return rows


def duel(bench: Any, options: Options, known: dict[str, Any], name: str, ours: Any) -> Duel | str:
    """The two in turns; why not, where the peer cannot be imported."""
    with bench.start("pairs_trl", peer_job(options, known, "pairs", PEERS[name]), name, peer=True) as peer:
        ready = peer.read()
        if "missing" in ready:
            return str(ready["missing"])
        found = Duel([], [])
        for _ in range(options.rounds):
            for side, rates in ((ours, found.ours), (peer, found.peer)):
                turn = side.ask(f"go {options.seconds}")
                rates.append(turn["tokens"] / turn["seconds"])
        found.peak_mb = peer.ask("stop")["peak_mb"]
    return found


def speed_rows(shape: str, duels: dict[str, Duel], peak: float) -> list[Row]:
    """One row a configuration; the bounds are about the fastest."""
    names = f"{shape}: pairs/s against TRL's fastest configuration", f"{shape}: peak MB against TRL's fastest configuration"
    if not duels:
        return [skipped(name, must, "TRL is not installed") for name, must in zip(names, (SPEED, MEMORY), strict=True)]
    fastest = max(duels, key=lambda name: duels[name].rates[1])
    ours, peer = duels[fastest].rates
    rows = [
        row(f"{names[0]} ({fastest})", round(ours, 3), SPEED, peer=round(peer, 3)),
        row(f"{names[1]} ({fastest})", round(peak, 1), MEMORY, peer=round(duels[fastest].peak_mb, 1)),
    ]
    for name, found in duels.items():
        rows.append(row(f"{shape}: pairs/s, {name}", round(found.rates[0], 3), peer=round(found.rates[1], 3)))
        rows.append(row(f"{shape}: peak MB, {name}", round(peak, 1), peer=round(found.peak_mb, 1)))
    return rows
