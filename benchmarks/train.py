"""The training core against TRL, transformers' Trainer and a dense compiled loop: tokens/s, memory, exactness, quality at equal time.

All start from the same rows in tokens, the same masks and the same random weights, and each trains in a process of its own (the scripts
in `train_peers/`). Ours and one peer are alive at a time and train in turns of some seconds, so that a machine that slows down does
so for both. Real tokens are those that are not padding. The peers are the optional extra `bench`; one that cannot be imported is
skipped, and so is every bound that needs it. litgpt is no peer: its version of today takes transformers down to 5.3.
"""

from __future__ import annotations

import contextlib
import os
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field

from cairn.config import Config
from cairn.errors import UserError, did_you_mean
from cairn.ledger.environment import cores, threads
from cairn.pipeline.bench import Row, Script, bench_folder, missed, row, say, skipped, workspace

Part = Literal["speed", "exact", "head", "ranks", "quality"]
PARTS: list[Part] = ["speed", "exact", "head", "ranks", "quality"]
ISSUE_SHAPES = ["S", "M", "L"]
VOCABULARIES = [8192, 32768, 65536, 131072, 262144]
OURS_AT_BEST = {"optimizer": {"kind": "muon", "lr": 0.02, "adam_lr": 0.004}, "schedule": {"kind": "wsd", "warmup": 0.04, "decay": 0.5}}
DENSE_AT_BEST = {"kind": "muon", "lr": 0.02, "adam_lr": 0.004, "warmdown": 0.5}
MAX_LENGTH = 1024
"""Longest row, in tokens; longer ones are dropped for all."""


class Shape(Config):
    """A model, and how its steps are cut."""

    vocab_size: int
    model: dict[str, Any]
    step_tokens: int
    """Real tokens of an optimiser step, for all as nearly as their batches allow."""
    pass_tokens: int
    """Tokens that ours and the dense loop take at once."""
    seconds: float
    """Length of a turn."""
    rounds: int | None = None
    """Most turns of each."""
    warmup: int = 2
    """Steps before the first turn."""
    bounds: dict[str, str] = Field(default_factory=dict)
    """What must be reached, by what is compared."""


class Peer(Config):
    """Somebody else's way to train."""

    script: str
    """A file of `train_peers/`."""
    rows: int | None = None
    """Rows of a micro-batch; None: it takes dense or packed tokens, `pass_tokens` at once."""
    job: dict[str, Any] = Field(default_factory=dict)
    """What its script is told."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """What its library is told beyond its defaults."""


_SETUP = yaml.safe_load((bench_folder() / "train_peers" / "setup.yaml").read_text(encoding="utf-8"))
SHAPES = {name: Shape(**values) for name, values in _SETUP["shapes"].items()}
PEERS = {name: Peer(**values) for name, values in _SETUP["peers"].items()}
EVERYBODY = list(PEERS)
TRL = [name for name in PEERS if name.startswith("TRL")]
DENSE = "dense loop, bf16, compiled"


class Options(Config):
    """How it is measured."""

    store: Path | None = None
    """A new or empty folder for models, jobs and logs, kept afterwards; None: a temporary one."""
    data: Path | None = None
    """Alpaca rows, a file or a folder; None: `alpaca_subset` in the folder that CAIRN_SHARED names."""
    python: Path | None = None
    """The interpreter of the peers, where the extra `bench` is installed; None: this one."""
    shapes: list[str] = ISSUE_SHAPES
    """S (6 M), M (25 M), L (135 M), tiny. The first one is also that of `exact` and `quality`."""
    parts: list[Part] = PARTS
    """What is measured."""
    peers: list[str] = EVERYBODY
    """Whom ours is compared with; a bound that needs one left out is skipped."""
    rounds: int = Field(3, ge=1)
    """Turns of ours and of each peer; M and L have two at most, for a step of their peers takes long."""
    seconds: float | None = Field(None, gt=0)
    """Length of a turn; the step that it falls into is finished. None: the shape's own."""
    rows: int = Field(0, ge=0)
    """Use so many rows, spread over the data; 0: all."""
    compile: bool = True
    """Whether ours and the dense loop compile, which no turn counts; without, both are slower and start at once."""
    training: dict[str, Any] = Field(default_factory=dict)
    """Further keys of ours in all parts, as a recipe's train stage takes them."""
    vocabularies: list[int] = VOCABULARIES
    """Of the head's memory curve."""
    quality_seconds: float = Field(300.0, gt=0)
    """Training time of each side in `quality`."""
    quality_tokens: int = Field(4096, ge=1024)
    """Tokens of an optimiser step in `quality`: small steps learn more in minutes."""
    quality_ours: dict[str, Any] = OURS_AT_BEST
    """Ours in `quality`, as a recipe's train stage takes it."""
    quality_dense: dict[str, Any] = DENSE_AT_BEST
    """The dense loop's optimiser in `quality`."""
    seed: int = 1
    """Of the weights and of the rows' order."""


class Bench:
    """One run: its options, its folder and what was prepared in it."""

    def __init__(self, options: Options, folder: Path) -> None:
        for names, known, what in ((options.shapes, SHAPES, "shape"), (options.peers, PEERS, "peer")):
            for name in names:
                if name not in known:
                    raise UserError(f"no {what} is called '{name}'", where="cairn bench train", remedy=did_you_mean(name, known))
        self.options, self.folder, self.number = options, folder, 0
        self.shapes: dict[str, dict[str, Any]] = {}
        self.absent: dict[str, str] = {}

    def start(self, script: str, job: dict[str, Any], name: str, *, peer: bool = False, environ: dict[str, str] | None = None) -> Script:
        """A script as a process, with the same threads for everybody, and nothing from or to a network."""
        self.number += 1
        common = {
            "OMP_NUM_THREADS": str(threads()), "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1",
            # Whoever compiles pays for it here, and not once for all runs on this machine.
            "TORCHINDUCTOR_CACHE_DIR": str(self.folder / "inductor" / str(self.number)), "HF_HOME": str(self.folder / "hf"),
        }  # fmt: skip
        label = f"{self.number:02d}-{''.join(c if c.isalnum() else '-' for c in name)}"
        path = bench_folder() / "train_peers" / f"{script}.py"
        return Script(path, job, self.folder, label, python=self.options.python if peer else None, environ={**common, **(environ or {})})

    def answer(self, script: str, job: dict[str, Any], name: str, **how: Any) -> dict[str, Any]:
        """The last reply of a script that is not talked to."""
        with self.start(script, job, name, **how) as worker:
            found = worker.read()
            while "done" in found:
                found = worker.read()
            return found

    def prepare(self) -> None:
        """Rows in tokens, tokenizers and random weights, once for all."""
        shapes = {name: {"vocab_size": SHAPES[name].vocab_size, "model": model_of(name)} for name in self.options.shapes}
        job = {
            "data": str(data_of(self.options)), "rows": self.options.rows, "format": "k2", "shapes": shapes, "folder": str(self.folder),
            "max_length": MAX_LENGTH, "first_rows": 24, "seed": self.options.seed,
        }  # fmt: skip
        say("rows, tokenizers and random weights")
        self.shapes = self.answer("prepare", job, "prepare")["shapes"]
        for name, known in self.shapes.items():
            say(
                f"  {name}: {known['parameters']:,} parameters, {known['rows']:,} rows of {known['mean_length']:.0f} tokens, "
                f"{known['supervised_share']:.0%} of them targets, {known['tokenizer_ids']:,} ids in use"
            )

    # -- jobs -------------------------------------------------------------------------------------------------------

    def ours(self, shape: str, rows: str = "rows", *, step_tokens: int | None = None, more: dict[str, Any] | None = None) -> dict[str, Any]:
        """What our process is told: by default AdamW in bf16 with a constant rate, and no resume points, which no peer writes."""
        cut = SHAPES[shape]
        step = step_tokens or cut.step_tokens
        one = min(cut.pass_tokens, step)
        training = {
            "steps": 1_000_000, "sequence_length": MAX_LENGTH, "batch_sequences": one // MAX_LENGTH, "accumulate": step // one,
            "precision": "bfloat16", "optimizer": {"kind": "adamw", "lr": 2e-5}, "schedule": {"kind": "constant"},
            "checkpoints": {"resume_seconds": 1e6},
            # By length of run it would be decided anew in every part, and the steps of `quality` are set by the speed before.
            "compile": "on" if self.options.compile else "off", **self.options.training, **(more or {}),
        }  # fmt: skip
        self.number += 1
        return {**self._common(shape, rows), "training": training, "folder": str(self.folder / f"run-{self.number}")}

    def peer(self, name: str, shape: str, rows: str = "rows", *, step_tokens: int | None = None) -> dict[str, Any]:
        """What a peer's process is told: batches that hold as many real tokens a step as ours."""
        peer, cut, known = PEERS[name], SHAPES[shape], self.shapes[shape]
        step = step_tokens or cut.step_tokens
        batch = peer.rows or max(1, min(cut.pass_tokens, step) // MAX_LENGTH)
        accumulate = max(1, round(step / batch / (known["mean_length"] if peer.rows else MAX_LENGTH)))
        told = {**self._common(shape, rows), **peer.job}
        if peer.script == "dense":
            told["compile"] = self.options.compile
            return {**told, "length": MAX_LENGTH, "batch": batch, "accumulate": accumulate, "optimizer": {"kind": "adamw", "lr": 2e-5}}
        settings = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulate, **peer.settings}
        return {**told, "settings": settings}

    def _common(self, shape: str, rows: str) -> dict[str, Any]:
        folder = self.shapes[shape]["folder"]
        return {"model": f"{folder}/model", "rows": f"{folder}/{rows}.npz", "seed": self.options.seed, "warmup": SHAPES[shape].warmup}


def model_of(shape: str) -> dict[str, Any]:
    """The shape's model, as a recipe writes it."""
    return {"family": "llama", "context": 2048, **SHAPES[shape].model}


def data_of(options: Options) -> Path:
    """Where the rows lie.

    Raises:
        UserError: nowhere.
    """
    shared = Path(os.environ.get("CAIRN_SHARED") or bench_folder().parents[1] / "shared" / "data")
    path = options.data or shared / "alpaca_subset"
    if not path.exists():
        remedy = "give --set data=FOLDER with Alpaca rows (JSON), or set CAIRN_SHARED to the folder that holds alpaca_subset"
        raise UserError("the benchmark needs rows to train on", where=str(path), remedy=remedy)
    return path.absolute()


def run(options: Options) -> list[Row]:
    """Measure. The machine should do nothing else."""
    data_of(options)
    rows: list[Row] = []
    with workspace(options.store, "train") as place:
        bench = Bench(options, place.folder)
        bench.prepare()
        measures = {"speed": speed, "exact": exact, "head": head, "ranks": ranks, "quality": quality}
        for part, measure in measures.items():
            if part in options.parts:
                rows += measure(bench)
        place.keep = place.keep or bool(missed(rows))
    return rows


# -- speed and memory -----------------------------------------------------------------------------------------------


@dataclass
class Duel:
    """Ours and one peer at one shape, turn about."""

    ours: list[float]
    """Real tokens/s of each turn."""
    peer: list[float]
    peak_mb: float

    @property
    def rates(self) -> tuple[float, float]:
        return statistics.median(self.ours), statistics.median(self.peer)

    @property
    def ratio(self) -> float:
        return self.rates[0] / self.rates[1]

    def told(self) -> str:
        """The two, their ratio, and how far the rounds lie apart."""
        each = [a / b for a, b in zip(self.ours, self.peer, strict=True)]
        return (
            f"ours {self.rates[0]:,.0f}, peer {self.rates[1]:,.0f} tokens/s, {self.peak_mb:,.0f} MB; "
            f"ratio {self.ratio:.2f} (rounds {min(each):.2f} to {max(each):.2f})"
        )


def speed(bench: Bench) -> list[Row]:
    """Every shape against every peer."""
    rows = first_loss(bench, bench.options.shapes[0])
    for shape in bench.options.shapes:
        duels: dict[str, Duel] = {}
        gemm: list[float] = []
        say(f"{shape}: starts and compiles")
        with bench.start("ours", bench.ours(shape), f"{shape} ours") as ours:
            _say_ready(f"{shape} ours", ours.read())
            for name in bench.options.peers:
                found = duel(bench, shape, name, ours, gemm)
                if found is not None:
                    duels[name] = found
                    say(f"  {shape}, {name}: {found.told()}")
            peak = ours.ask("stop")["peak_mb"]
        rows += speed_rows(shape, duels, peak, gemm, bench.shapes[shape])
    return rows


def duel(bench: Bench, shape: str, name: str, ours: Script, gemm: list[float]) -> Duel | None:
    """Ours, the machine's bf16 rate and a peer in turns; None where the peer cannot be imported or fails, which is noted."""
    if name in bench.absent:
        return None
    try:
        with bench.start(PEERS[name].script, bench.peer(name, shape), f"{shape} {name}", peer=True) as peer:
            ready = peer.read()
            if "missing" in ready:
                bench.absent[name] = ready["missing"]
                say(f"  {name}: {ready['missing']}")
                return None
            _say_ready(f"{shape} {name}", ready)
            return _turns(bench, shape, ours, peer, gemm)
    except UserError as error:
        if ours.process.poll() is not None:
            raise
        # Half an hour of measurements is not thrown away for one peer; what needs it is skipped and says so.
        say(f"  {shape}, {name} failed: {error.what}; {error.remedy}")
        return None


def _turns(bench: Bench, shape: str, ours: Script, peer: Script, gemm: list[float]) -> Duel:
    cut, options, found = SHAPES[shape], bench.options, Duel([], [], 0.0)
    seconds = options.seconds or cut.seconds
    for _ in range(min(options.rounds, cut.rounds or options.rounds)):
        for side, rates in ((ours, found.ours), (peer, found.peer)):
            turn = side.ask(f"go {seconds}")
            rates.append(turn["tokens"] / turn["seconds"])
        gemm.append(ours.ask("gemm")["gflops"])
    found.peak_mb = peer.ask("stop")["peak_mb"]
    return found


def _say_ready(name: str, ready: dict[str, Any]) -> None:
    say(f"  {name}: {ready['loaded']:.0f} s to start, {ready['warmed']:.0f} s for {ready['steps']} first steps, compiling included")


def speed_rows(shape: str, duels: dict[str, Duel], peak: float, gemm: list[float], known: dict[str, Any]) -> list[Row]:
    """The bounds of one shape, and every peer for information.

    Args:
        shape: its name.
        duels: by peer; only those that ran.
        peak: our peak memory in MB.
        gemm: the machine's bf16 rates in between, in GFLOP/s.
        known: what `prepare` counted of the model and the rows.
    """
    bounds, rows = SHAPES[shape].bounds, []
    against = {"default": (["TRL default"], "TRL default"), "best": (TRL, "TRL's best"), "fastest": (EVERYBODY, "fastest peer")}
    for key, (names, label) in against.items():
        if key not in bounds:
            continue
        absent = [name for name in names if name not in duels]
        if absent:
            rows.append(skipped(f"{shape}: real tokens/s, ours / {label}", bounds[key], f"without {', '.join(absent)}"))
            continue
        best = min(names, key=lambda name: duels[name].ratio)
        ours, theirs = duels[best].rates
        rows.append(row(f"{shape}: real tokens/s, ours / {label}{'' if best == label else f' ({best})'}", ours, bounds[key], peer=theirs))
    if "memory" in bounds:
        measure = f"{shape}: peak memory in MB, ours / TRL's best"
        absent = [name for name in TRL if name not in duels]
        best = min((name for name in TRL if name in duels), key=lambda name: duels[name].ratio, default="")
        if absent:
            rows.append(skipped(measure, bounds["memory"], f"without {', '.join(absent)}"))
        else:
            rows.append(row(f"{measure} ({best})", peak, bounds["memory"], peer=duels[best].peak_mb))
    if duels:
        from cairn.model.config import training_flops

        sizes = {"layers": known["layers"], "hidden_size": known["hidden_size"], "mean_length": known["attended_length"]}
        one = training_flops(known["matrix_parameters"], 1, **sizes)
        reached = statistics.median([rate for d in duels.values() for rate in d.ours]) * one / 1e9
        measure = f"{shape}: GFLOP/s by 6N + attention per real token, ours / bf16 GEMM"
        rows.append(row(measure, reached, bounds.get("gemm", ""), peer=statistics.median(gemm)))
    for name, found in duels.items():
        rows.append(row(f"{shape}: real tokens/s, ours / {name}", found.rates[0], peer=found.rates[1]))
        rows.append(row(f"{shape}: peak memory in MB, ours / {name}", peak, peer=found.peak_mb))
    return rows


def first_loss(bench: Bench, shape: str) -> list[Row]:
    """Whether all compute the same: the loss of one step over the same rows in fp32, no row seeing another."""
    more = {"precision": "float32", "steps": 1}
    ours = bench.answer("ours", {**bench.ours(shape, "first", more=more), "whole": True, "warmup": 10}, "first loss ours")["loss"]
    rows = []
    for name in ("TRL default", "HF Trainer bf16, grouped by length", DENSE):
        if name not in bench.options.peers:
            continue
        told = bench.peer(name, shape, "first")
        if PEERS[name].script == "dense":
            told |= {"whole": True, "bf16": False, "compile": False, "steps": 1}
        else:
            cut = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 3, "bf16": False, "logging_steps": 1}
            told |= {"settings": {**told["settings"], **cut}, "steps": 1}
        found = bench.answer(PEERS[name].script, {**told, "warmup": 10}, f"first loss {name}", peer=True)
        measure = f"{shape}: loss of step 1 in fp32, ours against {name.partition(',')[0]}, relative difference"
        if "missing" in found:
            bench.absent[name] = found["missing"]
            rows.append(skipped(measure, "<= 0.0001", found["missing"]))
        else:
            rows.append(row(measure, abs(ours - found["loss"]) / abs(found["loss"]), "<= 0.0001"))
    return rows


# -- exactness, the head's memory, ranks ----------------------------------------------------------------------------


def exact(bench: Bench) -> list[Row]:
    """Ours, packed and in two passes, against every document alone."""
    shape = bench.options.shapes[0]
    say(f"{shape}: loss and gradients against every document alone, in fp32")
    more = {"precision": "float32", "steps": 1, "clip": 0.0, "sequence_length": MAX_LENGTH, "batch_sequences": 1, "accumulate": 2}
    found = bench.answer("exact", bench.ours(shape, "first", more=more), "exact")
    what = "packed" if found["packed"] else "UNPACKED"
    return [
        row(f"{shape}: loss, {what} against documents alone, fp32, relative difference", found["loss_error"], "<= 0.00001"),
        row(
            f"{shape}: {found['weights']} gradients, largest difference over the gradient's largest entry ({found['worst']})",
            found["gradient_error"],
            "<= 0.00001",
        ),
    ]


def head(bench: Bench) -> list[Row]:
    """Memory of head and loss over the vocabulary."""
    say("memory of head and loss over the vocabulary, 4,096 positions, width 256")
    # Large blocks go back to the system at once, so that the resident size is what is in use.
    environ = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    rows, curves = [], {}
    for precision in ("bfloat16", "float32"):
        curve: dict[int, float] = {}
        for vocab in bench.options.vocabularies:
            job = {"vocab": vocab, "width": 256, "positions": 4096, "precision": precision}
            curve[vocab] = bench.answer("head_memory", job, f"head {precision} {vocab}", environ=environ)["mb"]
            say(f"  {precision}, vocabulary {vocab:,}: {curve[vocab]:,.0f} MB")
            rows.append(row(f"head and loss in {precision}, vocabulary {vocab:,}: MB beyond weight and gradient", round(curve[vocab], 1)))
        curves[precision] = curve
    first, last = bench.options.vocabularies[0], bench.options.vocabularies[-1]
    flat = [
        row(f"head and loss in {name}, MB beyond weight and gradient, vocabulary {last:,} / {first:,}", c[last], "<= 1.1", peer=c[first])
        for name, c in curves.items()
    ]
    return flat + rows


def ranks(bench: Bench) -> list[Row]:
    """Two ranks on one core each against one rank on both, through the command line."""
    shape, options = bench.options.shapes[0], bench.options
    measure = f"{shape}: tokens/s, two gloo ranks on one core each / one rank on both cores"
    if cores() < 2:
        return [skipped(measure, ">= 0.85", "this machine has one core")]
    say(f"{shape}: two ranks against one")
    cut = bench.ours(shape)
    job = {
        "data": str(data_of(options)), "vocab_size": SHAPES[shape].vocab_size, "model": model_of(shape), "rounds": min(2, options.rounds),
        "training": {**cut["training"], "steps": 15}, "folder": cut["folder"],
    }  # fmt: skip
    found = bench.answer("ranks", job, "ranks")
    if "missing" in found:
        return [skipped(measure, ">= 0.85", found["missing"])]
    return [row(measure, found["two"], ">= 0.85", peer=found["one"])]


# -- quality at equal time ------------------------------------------------------------------------------------------


def quality(bench: Bench) -> list[Row]:
    """Held-out loss of ours and of the dense loop after the same time of training from the same weights."""
    shape, options = bench.options.shapes[0], bench.options
    measure = f"{shape}: held-out loss after {options.quality_seconds:.0f} s of training, ours / {DENSE}"
    steps = {side: calibrated(bench, shape, side) for side in ("ours", "dense")}
    say(f"{shape}: {options.quality_seconds:.0f} s of training each: {steps['ours']} steps of ours, {steps['dense']} of the dense loop")
    spent = {"ours": 0.0, "dense": 0.0}
    tokens = {"ours": 0, "dense": 0}
    with contextlib.ExitStack() as stack:
        workers = {side: stack.enter_context(_quality_worker(bench, shape, side, steps[side])) for side in steps}
        for worker in workers.values():
            worker.read()
        going = list(workers)
        while going:
            for side in list(going):
                turn = workers[side].ask(f"go {min(20.0, options.quality_seconds / 4)}")
                spent[side] += turn["seconds"]
                tokens[side] += turn["tokens"]
                if turn.get("done"):
                    going.remove(side)
                    workers[side].read()
                    workers[side].read()
            say(f"  ours {spent['ours']:.0f} s, dense loop {spent['dense']:.0f} s")
    losses = {}
    for side in steps:
        job = {"model": str(bench.folder / f"quality-{side}"), "rows": f"{bench.shapes[shape]['folder']}/heldout.npz"}
        losses[side] = bench.answer("heldout", job, f"heldout {side}")["loss"]
    told = ", ".join(f"{side} {losses[side]:.4f} after {tokens[side]:,} tokens in {spent[side]:.0f} s" for side in steps)
    say(f"  {told}")
    if spent["ours"] > 1.02 * spent["dense"]:
        # The steps were set by the speed before: if the machine then slowed ours down, it had more time, and the comparison says nothing.
        return [skipped(measure, "<= 1", f"unequal times: {told}")]
    seen = row(f"{shape}: tokens seen in that time, ours / {DENSE}", tokens["ours"], peer=tokens["dense"])
    return [row(measure, losses["ours"], "<= 1", peer=losses["dense"]), seen]


def calibrated(bench: Bench, shape: str, side: str) -> int:
    """How many steps fit into the time, which a schedule has to know before."""
    seconds = bench.options.quality_seconds
    with _quality_worker(bench, shape, side, None) as worker:
        worker.read()
        turn = worker.ask(f"go {max(1.0, seconds / 20)}")
        worker.ask("stop")
    return max(4, int(seconds * turn["steps"] / turn["seconds"]))


def _quality_worker(bench: Bench, shape: str, side: str, steps: int | None) -> Script:
    options = bench.options
    if side == "ours":
        told = bench.ours(shape, step_tokens=options.quality_tokens, more={**options.quality_ours, **({"steps": steps} if steps else {})})
    else:
        told = {**bench.peer(DENSE, shape, step_tokens=options.quality_tokens), "optimizer": options.quality_dense, "steps": steps}
    save = {"save": str(bench.folder / f"quality-{side}")} if steps else {}
    return bench.start("ours" if side == "ours" else "dense", {**told, **save}, f"quality {side} {steps or ''}", peer=side == "dense")
