"""A store of hand-made records: a corpus, two trainings, an evaluation. No model is trained for it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cairn.ledger.digest import json_digest
from cairn.ledger.record import Input, Record, hash_outputs, outputs_digest
from cairn.ledger.store import Artifact, Store, write_atomically

Put = Callable[..., Artifact]

ENVIRONMENT = {"python": "3.11.2", "packages": {"torch": "2.13.0"}, "cpu": "A CPU | of 2 cores", "threads": 2, "instructions": ["avx2"]}
AVERAGES = ("avg_queries", "avg_query_length", "avg_replies", "avg_reply_length")
CHATS = dict(zip(AVERAGES, (1.5, 7.25, 1.5, 9.0), strict=True))
MIX = {
    "unit": "tokens",
    "subsets": [
        {"subset": "books", "tokens": 1200, "rows": 3, **dict.fromkeys(AVERAGES)},
        {"subset": "chats", "tokens": 340, "rows": 2, **CHATS},
    ],
    "total": {"subset": "Total", "tokens": 1540, "rows": 5, **CHATS},
}


@pytest.fixture
def put(tmp_path: Path) -> Put:
    """Write an artifact: `put(name, kind, files, inputs=[…], config={…}, metrics={…})`."""
    store = Store(tmp_path / "store")

    def make(name: str, kind: str, content: dict[str, Any], inputs: tuple[Artifact, ...] = (), **more: Any) -> Artifact:
        key = json_digest([name, kind, [a.key for a in inputs]])
        draft = store.draft(key)
        for relative, text in content.items():
            path = draft / relative
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, text if isinstance(text, str | bytes) else json.dumps(text))

        def record(folder: Path) -> Record:
            outputs, logs = hash_outputs(folder)
            read = {a.record.name: Input(key=a.key, digest=a.record.digest) for a in inputs}
            fields = {"recipe": "small", "command": "cairn run small", "config": {}, "code": "c" * 64, "seed": 1}
            fields |= {"environment": ENVIRONMENT, "outputs": outputs, "logs": logs, "digest": outputs_digest(outputs), **more}
            times = {"started": "2001-02-03T04:05:06Z", "seconds": 77.7}
            return Record(kind=kind, name=name, key=key, inputs=read, times=times, **fields).sealed()

        return store.commit(key, record)

    make.store = store  # type: ignore[attr-defined]
    return make


def losses(first: float, steps: int) -> str:
    return "".join(json.dumps({"step": i + 1, "loss": first / (i + 1), "tokens": 64}) + "\n" for i in range(steps))


@pytest.fixture
def small(put: Put) -> dict[str, Artifact]:
    """corpus → base → chat → scores."""
    shape = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 2, "hidden_size": 32}
    model = {
        "model/config.json": {**shape, "vocab_size": 400, "max_position_embeddings": 512, "dtype": "float32"},
        "model/model.safetensors": b"not really weights",
        "model/chat_format.yaml": "name: k2\n",
        "mix.json": MIX,
    }
    training = {"objective": "supervised", "precision": "float32", "optimizer": {"kind": "muon", "lr": 0.02}, "schedule": {"kind": "wsd"}}
    figures = {"steps": 30, "tokens": 1920, "supervised_tokens": 700, "mean_loss_last_5_percent": 0.25, "parameters": 30_000}
    shared = {"test_rows": 4, "train_texts": 1234, "shared": 0}
    corpus = put("corpus", "corpus", {"test/a.jsonl": "{}\n"}, metrics={"disjoint": shared})
    base = put("base", "train", {**model, "metrics.jsonl": losses(6.0, 50)}, (corpus,), config=training, metrics=figures)
    chat = put("chat", "train", {**model, "metrics.jsonl": losses(3.0, 30)}, (base, corpus), config=training, metrics=figures)
    samples = '{"id": "1", "skill": "facts", "score": 1.0}\n'
    aside = put("aside", "x", {"samples/pebble.jsonl": samples})
    digest = aside.record.outputs["samples/pebble.jsonl"].sha256
    evidence = {"samples": "samples/pebble.jsonl", "samples_sha256": digest}
    how = {"extractor": "message v1", "max_new_tokens": 64}
    share = {"suite": "pebble/facts", "metric": "exact", "n": 200, "value": 0.975, "low": 0.943, "high": 0.989}
    likelihood = {"suite": "held-out", "metric": "perplexity", "n": 20, "value": 12.3456, "low": 11.0, "high": 14.0}
    rows = [{**share, **evidence, "right": "it is the expected one", "detail": how}]
    rows += [{**likelihood, **evidence, "right": "lower is better", "detail": {"tokens": 4000, "bytes": 16000}}]
    results = {"models": ["chat"], "rows": rows}
    scores = put("scores", "evaluate", {"results.json": results, "samples/pebble.jsonl": samples}, (chat, corpus), config={"model": "chat"})
    return {"corpus": corpus, "base": base, "chat": chat, "scores": scores}
