"""The engine against transformers' generate, llama.cpp and vLLM on CPU: tokens/s at batch 1, of 16 equal and of 32 mixed requests.

All run the same random weights, greedy, with the same prompts and lengths, each in a process of its own (the scripts in
`generate_peers/`). Ours and one peer are alive at a time and generate in turns of some seconds, so that a machine that slows down
does so for both. A prompt's time is in every figure; tokens that nobody asked for (a padded batch runs until its longest answer is
done) are not. llama.cpp and vLLM are optional, each in an environment of its own; one that is missing is skipped, and so is its bound.
"""

from __future__ import annotations

import random
import statistics
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from cairn.config import Config
from cairn.errors import UserError, did_you_mean
from cairn.ledger.environment import threads
from cairn.pipeline.bench import Row, Script, bench_folder, missed, row, say, skipped, workspace

SHAPES: dict[str, dict[str, Any]] = {
    "25M": {"vocab_size": 32768, "hidden_size": 384, "layers": 8, "heads": 6, "kv_heads": 3, "intermediate_size": 1024},
    "135M": {"vocab_size": 49152, "hidden_size": 576, "layers": 30, "heads": 9, "kv_heads": 3, "intermediate_size": 1536},
    "tiny": {"vocab_size": 512, "hidden_size": 32, "layers": 2, "heads": 2, "kv_heads": 1, "intermediate_size": 64},
}
"""Llamas with tied embeddings, in a context of 2,048; 135M is SmolLM's."""

Part = Literal["one", "sixteen", "mixed", "copying", "held", "start", "perplexity"]
PARTS: list[Part] = ["one", "sixteen", "mixed", "copying", "held", "start", "perplexity"]
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "title": {"type": "string", "maxLength": 60},
        "start": {"type": "string", "pattern": "^20[0-9]{2}-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]$"},
        "minutes": {"type": "integer", "minimum": 5, "maximum": 1440},
        "where": {"type": "string", "maxLength": 80},
        "guests": {
            "type": "array",
            "minItems": 2,
            "maxItems": 4,
            "items": {
                "type": "object",
                "properties": {
                    "name": {"type": "string", "maxLength": 40},
                    "email": {"type": "string", "pattern": "^[a-z]{1,20}@[a-z]{1,20}\\.org$"},
                    "optional": {"type": "boolean"},
                },
                "required": ["name", "email"],
                "additionalProperties": False,
            },
        },
        "repeat": {"enum": ["never", "daily", "weekly", "monthly"]},
        "remind": {"type": ["integer", "null"], "minimum": 0, "maximum": 10080},
    },
    "required": ["title", "start", "minutes", "guests", "repeat"],
    "additionalProperties": False,
}
"""What a calendar's function takes: texts of bounded length, so that weights without a mind come to an end too."""
BYTES = {"bfloat16": 2.0, "int8": 1.0}


@dataclass(frozen=True)
class Peer:
    """Somebody else's engine: its script, what it is told, our weights against it, and what must be reached by work."""

    script: str
    job: dict[str, Any]
    weights: str
    bounds: dict[str, str]


PEERS = {
    "transformers bf16": Peer(
        "transformers_generate", {"dtype": "bfloat16"}, "bfloat16", {"one": ">= 2.5", "sixteen": "", "mixed": ">= 3"}
    ),
    "llama.cpp f32": Peer("llama_cpp_generate", {"kind": "F32"}, "bfloat16", {"one": ">= 1"}),
    "llama.cpp Q8_0": Peer("llama_cpp_generate", {"kind": "Q8_0"}, "int8", {"one": ">= 0.8"}),
    "vLLM bf16": Peer("vllm_generate", {"dtype": "bfloat16"}, "bfloat16", {"one": "", "sixteen": ">= 1.2"}),
}
EVERYBODY = list(PEERS)
ISSUE_SHAPES = ["25M", "135M"]
LABELS = {"one": "one request", "sixteen": "16 equal requests", "mixed": "32 mixed requests"}


class Options(Config):
    """How it is measured."""

    store: Path | None = None
    """A new or empty folder for models, jobs and logs, kept afterwards; None: a temporary one."""
    shapes: list[str] = ISSUE_SHAPES
    """25M, 135M, tiny."""
    parts: list[Part] = PARTS
    """What is measured."""
    peers: list[str] = EVERYBODY
    """Whom ours is compared with."""
    llama_python: Path | None = None
    """An interpreter that has llama-cpp-python and gguf; None: this one."""
    vllm_python: Path | None = None
    """An interpreter that has vLLM; None: this one."""
    rounds: int = Field(5, ge=1)
    """Turns of ours and of each peer."""
    seconds: float = Field(2.0, gt=0)
    """Length of a turn; the work that it falls into is finished."""
    prompt: int = Field(32, ge=1)
    """Tokens of a prompt at batch 1 and of equal requests."""
    answer: int = Field(128, ge=1)
    """Tokens of their answers."""
    longest: int = Field(512, ge=16)
    """Prompts and answers of mixed requests have 16 to so many tokens."""
    seed: int = 1
    """Of weights, prompts and lengths."""


class Bench:
    """One run: its options, its folder, its models and works."""

    def __init__(self, options: Options, folder: Path) -> None:
        for names, known, what in ((options.shapes, SHAPES, "shape"), (options.peers, PEERS, "peer")):
            for name in names:
                if name not in known:
                    raise UserError(f"no {what} is called '{name}'", where="cairn bench generate", remedy=did_you_mean(name, known))
        self.options, self.folder, self.number = options, folder, 0
        self.absent: dict[str, str] = {}
        self.parameters: dict[str, int] = {}

    def prepare(self) -> None:
        """Random weights in bf16, once for all."""
        import torch

        from cairn.chat.format import load_format
        from cairn.model.config import ModelConfig
        from cairn.model.load import new_model, save_model
        from cairn.tokenizer.train import TokenizerConfig, train_tokenizer

        for shape in self.options.shapes:
            known = dict(SHAPES[shape])
            vocab = known.pop("vocab_size")
            config = ModelConfig(family="llama", context=2048, **known)
            model = new_model(config, vocab_size=vocab, bos_id=None, eos_id=None, pad_id=None, seed=self.options.seed).to(torch.bfloat16)
            self.parameters[shape] = sum(p.numel() for p in model.parameters())
            save_model(model, self.model(shape))
            if "held" in self.options.parts:
                train_tokenizer(library_text(), TokenizerConfig(vocab_size=vocab), load_format("k2"), self.tokenizer(shape))
            say(f"{shape}: {self.parameters[shape]:,} parameters")

    def model(self, shape: str) -> Path:
        """Where a shape's model lies."""
        return self.folder / shape / "model"

    def tokenizer(self, shape: str) -> Path:
        """Where a tokenizer of its vocabulary's size lies."""
        return self.folder / shape / "tokenizer"

    def works(self, shape: str) -> dict[str, Any]:
        """The requests of each work: (prompt, wanted tokens)."""
        o, vocab = self.options, SHAPES[shape]["vocab_size"]
        rng = random.Random(o.seed)

        def ids(length: int) -> list[int]:
            return [rng.randrange(3, vocab) for _ in range(length)]

        def length() -> int:
            return round(16 * (o.longest / 16) ** rng.random())

        held = [(ids(o.prompt), 0) for _ in range(16)] if "held" in o.parts else []
        copied = [ids(2 * o.answer) for _ in range(2)]
        return {
            "one": [(ids(o.prompt), o.answer)],
            "sixteen": [(ids(o.prompt), o.answer) for _ in range(16)],
            "mixed": [(ids(length()), length()) for _ in range(32)],
            "copying": [(text, len(text)) for text in copied],
            "copying+": [(text, len(text)) for text in copied],
            "held": held[:1],
            "held16": held,
        }

    def answers(self, shape: str, works: dict[str, Any]) -> list[list[int]]:
        """What the copying requests are to say: their prompt once more, in which every sixteenth token, by chance, is another."""
        rng = random.Random(self.options.seed + 1)
        vocab = SHAPES[shape]["vocab_size"]
        return [[rng.randrange(3, vocab) if rng.random() < 1 / 16 else id for id in text] for text, _ in works["copying"]]

    def start(self, script: str, job: dict[str, Any], shape: str, name: str, python: Path | None = None) -> Script:
        """A script as a process, with the same threads for everybody, and nothing from or to a network."""
        self.number += 1
        works = self.works(shape)
        told = {"model": str(self.model(shape)), "folder": str(self.folder), "threads": threads(), "works": works, **job}
        environ = {
            "OMP_NUM_THREADS": str(threads()), "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1",
            # Whoever compiles pays for it here, and not once for all runs on this machine.
            "TORCHINDUCTOR_CACHE_DIR": str(self.folder / "inductor"), "XDG_CACHE_HOME": str(self.folder / "cache"),
            "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        }  # fmt: skip
        label = f"{self.number:02d}-{''.join(c if c.isalnum() else '-' for c in f'{shape} {name}')}"
        return Script(bench_folder() / "generate_peers" / f"{script}.py", told, self.folder, label, python=python, environ=environ)

    def ours(self, shape: str, weights: str) -> Script:
        """Our process with weights of one kind."""
        answers = self.answers(shape, self.works(shape))
        told: dict[str, Any] = {"dtype": "bfloat16", "weights": weights, "answers": answers}
        if "held" in self.options.parts:
            told |= {"tokenizer": str(self.tokenizer(shape)), "schema": SCHEMA}
        return self.start("ours", told, shape, f"ours {weights}")

    def peer(self, shape: str, name: str) -> Script:
        """A peer's process."""
        pythons = {"llama_cpp_generate": self.options.llama_python, "vllm_generate": self.options.vllm_python}
        return self.start(PEERS[name].script, PEERS[name].job, shape, name, pythons.get(PEERS[name].script))


def run(options: Options) -> list[Row]:
    """Measure. The machine should do nothing else."""
    rows: list[Row] = []
    with workspace(options.store, "generate") as place:
        bench = Bench(options, place.folder)
        bench.prepare()
        for shape in options.shapes:
            for weights in BYTES:
                rows += measure(bench, shape, weights)
        place.keep = place.keep or bool(missed(rows))
    return rows


def measure(bench: Bench, shape: str, weights: str) -> list[Row]:
    """Ours with weights of one kind: against its peers, its floor and itself."""
    options, rows = bench.options, []
    with bench.ours(shape, weights) as ours:
        ours.read()
        started = ours.ask("started")
        say(f"{shape} {weights}: {started['compiled']:.1f} s to compile, {started['packed']:.1f} s to check and pack")
        if "start" in options.parts:
            what = f"{shape} {weights}: seconds until ready at the first use ever, compiling included"
            rows.append(row(what, sum(started.values()), "<= 60"))
            rows.append(row(f"{shape} {weights}: seconds to check and pack at every start", started["packed"]))
        if "one" in options.parts:
            rate, bandwidth = alone(bench, ours)
            floor = bandwidth * 1e9 / bench.parameters[shape] / BYTES[weights]
            what = f"{shape} {weights}: tokens/s of one request, ours / weight bytes over memory bandwidth ({bandwidth:.1f} GB/s)"
            rows.append(row(what, rate, peer=floor))
        for name in options.peers:
            if PEERS[name].weights == weights:
                rows += against(bench, shape, ours, name)
        if "copying" in options.parts:
            plain, drafted = turns(bench, ours, ours, "copying", "copying+")
            measure = f"{shape} {weights}: tokens/s of answers that copy, prompt lookup / plain"
            rows.append(row(measure, median(drafted).rate, ">= 1.5", peer=median(plain).rate))
            say(f"  {shape}, prompt lookup / plain: {median(drafted).rate / median(plain).rate:.2f}")
        if "held" in options.parts:
            rows += held(bench, shape, weights, ours)
        if "perplexity" in options.parts and weights != "bfloat16":
            found = ours.ask("perplexity")
            what = f"{shape} {weights}: perplexity over 512 tokens of the bf16 model's own, {weights} / bf16"
            rows.append(row(what, found["rounded"], peer=found["full"]))
    return rows


def held(bench: Bench, shape: str, weights: str, ours: Script) -> list[Row]:
    """Answers under a JSON schema, and as many tokens of the same prompts without one, in turns."""
    rows = []
    # With one byte a weight the model is twice as fast, and the same work of a constraint takes a larger share.
    for work, must in {"held": ">= 0.9" if weights == "bfloat16" else "", "held16": ""}.items():
        under, free = turns(bench, ours, ours, work, f"un{work}")
        a, b = median(under), median(free)
        what = "one request" if work == "held" else "16 requests"
        say(f"  {shape}, {what} under a JSON schema / free: {a.rate / b.rate:.2f}; by processor time {a.thrift / b.thrift:.2f}")
        rows.append(row(f"{shape} {weights}: tokens/s of {what} under a JSON schema / free", a.rate, must, peer=b.rate))
    return rows


def library_text(characters: int = 16_000_000) -> Iterator[str]:
    """Python's own library as text: what a vocabulary can be made of on every machine."""
    for file in sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py")):
        if "site-packages" in file.parts:
            continue
        text = file.read_text(encoding="utf-8", errors="replace")[:characters]
        characters -= len(text)
        yield from (text[at : at + 4000] for at in range(0, len(text), 4000))


def alone(bench: Bench, ours: Script) -> tuple[float, float]:
    """Our rate of one request, and the memory's in GB/s, in turns; the best of the memory's, for a floor."""
    ours.ask("first one")
    rates, memory = [], []
    for _ in range(bench.options.rounds):
        memory.append(ours.ask("bandwidth")["gigabytes"])
        rates.append(go(bench, ours, "one"))
    return median(rates).rate, max(memory)


def against(bench: Bench, shape: str, ours: Script, name: str) -> list[Row]:
    """Ours and a peer in turns, at every work that they share; what cannot be measured is said."""
    works = {w: b for w, b in PEERS[name].bounds.items() if w in bench.options.parts}
    rows = []
    if not works:
        return []
    try:
        if name in bench.absent:
            raise UserError(bench.absent[name])
        with bench.peer(shape, name) as peer:
            ready = peer.read()
            if "missing" in ready:
                bench.absent[name] = ready["missing"]
                raise UserError(ready["missing"])
            for work, must in works.items():
                mine, theirs = turns(bench, ours, peer, work, work)
                each = [a.rate / b.rate for a, b in zip(mine, theirs, strict=True)]
                a, b = median(mine), median(theirs)
                spread = f"rounds {min(each):.2f} to {max(each):.2f}; by processor time {a.thrift / b.thrift:.2f}"
                say(f"  {shape}, {LABELS[work]}: ours {a.rate:,.0f}, {name} {b.rate:,.0f} tokens/s; {spread}")
                rows.append(row(f"{shape} {PEERS[name].weights}: tokens/s of {LABELS[work]}, ours / {name}", a.rate, must, peer=b.rate))
    except UserError as error:
        if ours.process.poll() is not None:
            raise
        say(f"  {name}: {error.what} {error.remedy or ''}")
        bench.absent[name] = error.what
        left = list(works.items())[len(rows) :]
        rows += [skipped(f"{shape}: tokens/s of {LABELS[work]}, ours / {name}", must, error.what) for work, must in left]
    return rows


@dataclass(frozen=True)
class Turn:
    """Tokens per second, and per second of processor time: on a busy machine the latter says more, if there is but one thread."""

    rate: float
    thrift: float


def go(bench: Bench, side: Script, work: str) -> Turn:
    """One turn."""
    turn = side.ask(f"go {work} {bench.options.seconds}")
    return Turn(turn["tokens"] / turn["seconds"], turn["tokens"] / max(turn["processor"], 1e-9))


def median(found: list[Turn]) -> Turn:
    """Of each figure by itself."""
    return Turn(statistics.median(t.rate for t in found), statistics.median(t.thrift for t in found))


def turns(bench: Bench, first: Script, second: Script, work: str, other: str) -> tuple[list[Turn], list[Turn]]:
    """Two in turns, after one run of each that does not count."""
    first.ask(f"first {work}")
    second.ask(f"first {other}")
    found: tuple[list[Turn], list[Turn]] = ([], [])
    for _ in range(bench.options.rounds):
        found[0].append(go(bench, first, work))
        found[1].append(go(bench, second, other))
    return found
