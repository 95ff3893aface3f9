"""A student of half the depth: hard labels against a teacher's kept probabilities, over the same rows and as many tokens.

The teacher is pebble's chat model. It is cut to half its layers (stage `prune`), and the cut model is trained three times from there, on as
many tokens: on the rows' own tokens; on what the teacher says of them (stage `teacher`, objective `distillation`); and on what it says of
them and of texts that it wrote itself, each begun with the first word of a row (Kim & Rush 2016). Rows are few, as they are where a teacher
is worth most: a student on hard labels learns them by heart. The held-out loss is on texts of another seed; with dialogues among
the rows (`--set dialogues=60`), that on the answers of test dialogues and pebble's exact scores are told too.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field

from cairn.config import Config
from cairn.errors import UserError
from cairn.ledger.store import Artifact, Store
from cairn.pipeline.bench import Row, call_cairn, missed, row, say, workspace

CLOSED = ">= 0.5"
LONGEST = 200
"""Tokens that the teacher writes of a text; those that are not finished by then are left out."""


class Options(Config):
    """How it is measured."""

    store: Path | None = None
    """A new or empty folder, kept afterwards; None: a temporary one."""
    pebble: Path | None = None
    """A store in which `cairn run pebble` has been run; None: it is run first."""
    texts: int = Field(250, ge=10)
    """Pretraining texts that the students see."""
    dialogues: int = Field(0, ge=0)
    """Training dialogues of each skill that the students see beside the texts."""
    tokens: int = Field(600_000, ge=1000)
    """Tokens of each training."""
    written: int = Field(12, ge=0)
    """Texts that the teacher writes for each of these; 0: no student learns from such."""
    rate: float = Field(0.01, gt=0)
    """Muon's rate, for all; AdamW's and the embedding's are a half and five times of it."""
    loss: Literal["forward", "reverse", "jsd"] = "forward"
    """The divergence."""
    hard: float = Field(0.0, ge=0, lt=1)
    """The distillation's share of hard labels."""
    top_k: int = Field(32, ge=1)
    """Ids that are kept of the teacher's at each target."""
    held_out: int = Field(400, ge=10)
    """Texts, and test dialogues of each skill, that the held-out loss is measured on at most."""
    seed: int = 1


def run(options: Options) -> list[Row]:
    """Measure."""
    with workspace(options.store, "distill") as place:
        corpus, teacher = find_pebble(options, place.folder)
        say("texts of another seed, to be held out")
        fresh = run_recipe(place.folder, "fresh", {"corpus": {"kind": "corpus", "generator": "pebble"}}, options.seed + 1000)["corpus"]
        prepare(options, corpus, fresh.path(), place.folder)
        if options.written:
            say("the teacher writes")
            write_texts(options, teacher, place.folder)
        say("prune, hear the teacher, train")
        stages = run_recipe(place.folder, "students", recipe(options, corpus, teacher, place.folder), options.seed)
        folders = {"teacher": teacher, **{name: stages[name].path("model") for name in ("half", *students(options))}}
        losses = {name: losses_of(folder, options, corpus, place.folder) for name, folder in folders.items()}
        rows = [*loss_rows(losses), *cost_rows(stages, students(options))]
        if options.dialogues:
            asked = {name: folder for name, folder in folders.items() if name != "half"}
            rows += score_rows({name: score_of(folder, corpus, place.folder / "answers" / name) for name, folder in asked.items()})
        place.keep = place.keep or bool(missed(rows))
    return rows


def find_pebble(options: Options, folder: Path) -> tuple[Path, Path]:
    """The corpus and the chat model of pebble."""
    if options.pebble is None:
        say("cairn run pebble --until chat")
        call_cairn(["run", "pebble", "--until", "chat", "--store", str(folder / "pebble")])
    store = Store(options.pebble or folder / "pebble")
    named = store.named().get("pebble", {})
    if not {"corpus", "chat"} <= set(named):
        raise UserError("this store has no pebble", where=str(store.root), remedy="run it: cairn run pebble --store STORE")
    return Artifact(store.artifacts / named["corpus"]).path(), Artifact(store.artifacts / named["chat"]).path("model")


def run_recipe(folder: Path, name: str, stages: dict[str, Any], seed: int) -> dict[str, Artifact]:
    """Run stages in the workspace's store; their artifacts."""
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({"recipe": name, "seed": seed, "stages": stages}, sort_keys=False), encoding="utf-8")
    call_cairn(["run", str(path), "--store", str(folder / "store"), "--json"])
    store = Store(folder / "store")
    return {stage: Artifact(store.artifacts / key) for stage, key in store.named()[name].items()}


def prepare(options: Options, corpus: Path, fresh: Path, folder: Path) -> None:
    """Write the students' texts and the held-out ones, of which none is among those that the teacher or a student saw."""
    own = (corpus / "pretrain.jsonl").read_text(encoding="utf-8").splitlines()
    known = {json.loads(line)["text"] for line in own}
    other = [line for line in (fresh / "pretrain.jsonl").read_text(encoding="utf-8").splitlines() if json.loads(line)["text"] not in known]
    for name, lines in (("seen", own[: options.texts]), ("held-out", other[: options.held_out])):
        (folder / f"{name}.jsonl").write_text("".join(line + "\n" for line in lines), encoding="utf-8")


def students(options: Options) -> list[str]:
    """Names of the stages that train one."""
    return ["hard", "distilled", *(["written"] if options.written else [])]


def write_texts(options: Options, teacher: Path, folder: Path) -> None:
    """Texts of the teacher's own: each of the seen ones gives its first word, to be gone on from `options.written` times."""
    seen = [json.loads(line)["text"] for line in (folder / "seen.jsonl").read_text(encoding="utf-8").splitlines()]
    begun = [{"text": text.split()[0], "id": f"{number}-{again}"} for again in range(options.written) for number, text in enumerate(seen)]
    (folder / "begun.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in begun), encoding="utf-8")
    files = ["--in", str(folder / "begun.jsonl"), "--out", str(folder / "answered.jsonl")]
    drawn = ["--temperature", "1", "--seed", str(options.seed), "--max-new-tokens", str(LONGEST), "--batch", "256"]
    call_cairn(["generate", str(teacher), *files, *drawn, "--json"])
    rows = [json.loads(line) for line in (folder / "answered.jsonl").read_text(encoding="utf-8").splitlines()]
    ended = [{"text": row["text"], "id": row["id"]} for row in rows if row["reason"] == "stop"]
    (folder / "written.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ended), encoding="utf-8")


def skills_of(corpus: Path) -> list[str]:
    """The skills that have test dialogues."""
    return sorted(path.stem for path in (corpus / "test").glob("*.jsonl"))


def recipe(options: Options, corpus: Path, teacher: Path, folder: Path) -> dict[str, Any]:
    """The stages: what is cut, what the teacher says, and the trainings: the first two differ in the objective alone."""
    skills = skills_of(corpus) if options.dialogues else []
    texts = {"name": "texts", "path": str(folder / "seen.jsonl"), "weight": max(1.0, 0.3 * len(skills))}
    data = [texts, *({"name": s, "path": str(corpus / "train" / f"{s}.jsonl"), "limit": options.dialogues} for s in skills)]
    limits = {"data": data, "sequence_length": 512}
    layers = json.loads((teacher / "config.json").read_text(encoding="utf-8"))["num_hidden_layers"]
    rate = options.rate
    training = {
        "kind": "train", "init": "half", **limits, "tokens": options.tokens, "batch_sequences": 4, "precision": "bfloat16",
        "optimizer": {"kind": "muon", "lr": rate, "adam_lr": rate / 2, "embedding_lr": 5 * rate},
        "schedule": {"kind": "wsd", "warmup": 0.02, "decay": 0.9},
    }  # fmt: skip
    distillation = {"teacher": "heard", "loss": options.loss, "hard": options.hard}
    found: dict[str, Any] = {
        "half": {"kind": "prune", "checkpoint": str(teacher), "layers": layers // 2, **limits, "documents": 30},
        "heard": {"kind": "teacher", "checkpoint": str(teacher), **limits, "top_k": options.top_k},
        "hard": {**training, "objective": "supervised"},
        "distilled": {**training, "objective": "distillation", "distillation": distillation},
    }
    if options.written:
        # Every text is drawn alike, whoever wrote it.
        own = {"name": "written", "path": str(folder / "written.jsonl"), "weight": texts["weight"] * options.written}
        told = {**distillation, "teacher": None, "checkpoint": str(teacher)}
        found["written"] = {**found["distilled"], "data": [*data, own], "distillation": told}
    return found


def losses_of(model: Path, options: Options, corpus: Path, folder: Path) -> dict[str, float]:
    """Mean -log p a token on the held-out texts, and on the answers of the test dialogues of each skill, in nats."""
    from cairn.data.sources import Source
    from cairn.evaluate.likelihood import read_likelihood
    from cairn.evaluate.subject import load_subject

    subject, found = load_subject(model), {}
    files = {"texts": folder / "held-out.jsonl"}
    if options.dialogues:
        files |= {skill: corpus / "test" / f"{skill}.jsonl" for skill in skills_of(corpus)}
    for name, path in files.items():
        rows = list(Source(name=name, path=str(path), limit=options.held_out).read(path))
        results = read_likelihood(subject, name, rows, folder / "likelihood" / model.parent.name)
        found[name] = math.log(next(one.value for one in results if one.metric == "perplexity"))
    return found


def score_of(model: Path, corpus: Path, folder: Path) -> dict[str, float]:
    """The share of pebble's test questions of each skill that is answered exactly."""
    from cairn.evaluate.question import read_questions
    from cairn.evaluate.run import run_suite
    from cairn.evaluate.subject import load_subject
    from cairn.evaluate.suite import load_suite

    say(f"questions to {folder.name}")
    suite = load_suite("pebble")
    folder.mkdir(parents=True, exist_ok=True)
    results = run_suite(load_subject(model), suite, read_questions(suite, corpus).rows, folder)
    return {one.suite.rpartition("/")[2]: one.value for one in results if "/" in one.suite}


def closed(hard: float, distilled: float, teacher: float) -> float:
    """The share of the gap between the teacher and hard labels that distillation closes."""
    return (hard - distilled) / (hard - teacher)


def loss_rows(losses: dict[str, dict[str, float]]) -> list[Row]:
    """The gaps of the held-out losses: the bound is about that on texts."""
    rows = []
    means = {"texts": {name: own["texts"] for name, own in losses.items()}}
    if len(losses["teacher"]) > 1:
        # A mean over skills, each counting once.
        means["answers"] = {name: sum(v for k, v in own.items() if k != "texts") / (len(own) - 1) for name, own in losses.items()}
    for what, values in means.items():
        rows += [row(f"held-out loss on {what}, nats a token: {name}", round(value, 4)) for name, value in values.items()]
        for name in ("distilled", "written"):
            if name in values:
                share = closed(values["hard"], values[name], values["teacher"])
                last = what == "texts" and name == [*values][-1]
                text = f"share of the gap in held-out loss on {what} that distillation closes: {name}"
                rows.append(row(text, round(share, 3), CLOSED if last else ""))
    return rows


def score_rows(scores: dict[str, dict[str, float]]) -> list[Row]:
    """The exact scores, and the gap of their mean."""
    means = {name: sum(own.values()) / len(own) for name, own in scores.items()}
    rows = [row(f"exact answers, mean over skills: {name}", round(value, 4)) for name, value in means.items()]
    for skill in sorted(scores["hard"]):
        told = ", ".join(f"{name} {scores[name][skill]:.3f}" for name in scores if name != "distilled")
        rows.append(row(f"exact answers, {skill} (distilled; {told})", round(scores["distilled"][skill], 4)))
    shares = {name: closed(means["hard"], means[name], means["teacher"]) for name in ("distilled", "written") if name in means}
    return [*rows, *(row(f"share of the gap in exact answers that distillation closes: {name}", round(x, 3)) for name, x in shares.items())]


def cost_rows(stages: dict[str, Artifact], trained: list[str]) -> list[Row]:
    """What the students are and cost."""
    pruned, heard = stages["half"].record.metrics, stages["heard"].record.metrics
    tokens = {name: stages[name].record.metrics["tokens"] for name in trained}
    return [
        row("parameters of the student as a share of the teacher's", round(pruned["parameters"] / pruned["parameters_before"], 3)),
        row("the teacher's probability within the kept ids", round(heard["probability_in_top_k"], 5)),
        row("tokens of the distillation as a share of those on hard labels", tokens["distilled"] / tokens["hard"], "== 1"),
        *(row(f"tokens of the student '{name}' as a share of those", tokens[name] / tokens["hard"], "<= 1.01") for name in trained[2:]),
    ]
