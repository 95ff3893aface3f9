"""What `cairn plan` predicts against what is measured: peak memory and time of trainings, each in a process of its own.

The table SAVED of `model/cost.py` (what a block keeps for its backward) was counted by `--set saved=true`, which counts it again.
"""

from __future__ import annotations

import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from cairn.config import Config
from cairn.pipeline.bench import Row, row, say

SHAPES: dict[str, dict[str, Any]] = {
    "S": {"hidden_size": 256, "layers": 6, "heads": 4, "kv_heads": 4, "intermediate_size": 688, "context": 1024, "tied": True},
    "M": {"hidden_size": 384, "layers": 8, "heads": 6, "kv_heads": 6, "intermediate_size": 1024, "context": 1024, "tied": True},
}
VOCABULARY = {"S": 8192, "M": 32768}
DOCUMENT = 256
CASES = [
    ("S", {"precision": "bfloat16"}),
    ("S", {"precision": "float32", "optimizer": {"kind": "adamw", "lr": 1e-3}}),
    ("S", {"precision": "bfloat16", "memory": {"activation_checkpointing": "layers"}}),
    ("S", {"precision": "bfloat16", "batch_sequences": 4}),
    ("S", {"precision": "float32", "batch_sequences": 4}),
    ("M", {"precision": "bfloat16"}),
    ("M", {"precision": "float32"}),
    ("M", {"precision": "bfloat16", "optimizer": {"kind": "adamw", "lr": 1e-3}, "memory": {"activation_checkpointing": "layers"}}),
    ("M", {"precision": "bfloat16", "adapter": {}}),
    ("M", {"precision": "bfloat16", "adapter": {"targets": ["q_proj", "v_proj"]}}),
    ("M", {"precision": "float32", "adapter": {}}),
    ("M", {"precision": "bfloat16", "adapter": {}, "memory": {"activation_checkpointing": "layers"}}),
    ("M", {"precision": "float32", "adapter": {}, "memory": {"activation_checkpointing": "layers"}}),
    ("M", {"precision": "float32", "memory": {"activation_checkpointing": "layers"}}),
    ("M", {"precision": "bfloat16", "adapter": {"base": "nf4"}}),
    ("M", {"precision": "bfloat16", "adapter": {"kind": "dora"}}),
    ("M", {"precision": "bfloat16", "adapter": {"kind": "ia3"}}),
]
"""Shape and settings of each training: eight documents of 256 tokens in a pass unless it says otherwise."""
STEPS = 6


class Options(Config):
    """What is measured."""

    cases: list[Annotated[int, Field(ge=0, lt=len(CASES))]] = Field(default_factory=lambda: list(range(len(CASES))))
    """Numbers of trainings, from 0."""
    saved: bool = False
    """Count instead what a block keeps, tensor by tensor, and print the fitted table."""


def run(options: Options) -> list[Row]:
    """Measure. The times want a machine that does nothing else."""
    if options.saved:
        saved()
        return []
    rows = []
    for number in options.cases:
        name, settings = CASES[number]
        done = subprocess.run([sys.executable, __file__, str(number)], capture_output=True, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        memory, seconds = predict(name, settings, found)
        what = f"{name} {json.dumps(settings)}"
        say(f"{what}: {memory / 1e6:,.0f} MB predicted, {found['bytes'] / 1e6:,.0f} measured; {seconds:.2f} s, {found['seconds']:.2f}")
        rows.append(row(f"{what}: how far predicted memory is off", abs(memory / found["bytes"] - 1), "<= 0.15"))
        rows.append(row(f"{what}: peak MB, predicted / measured", memory / 1e6, peer=found["bytes"] / 1e6))
        rows.append(row(f"{what}: seconds of a step, predicted / measured", seconds, peer=found["seconds"]))
        rows.append(row(f"{what}: how far predicted time is off", abs(seconds / found["seconds"] - 1), "<= 0.15"))
    return rows


def train(name: str, settings: dict[str, Any]) -> dict[str, float]:
    """Some steps in this process: peak resident bytes, the median of their seconds, and the machine's rate of matrix products."""
    import resource

    from cairn.data.batches import PackedStream
    from cairn.data.encode import document
    from cairn.ledger.progress import Silent
    from cairn.model.adapter import attach
    from cairn.model.adapter_config import AdapterConfig
    from cairn.model.config import ModelConfig
    from cairn.model.determinism import deterministic
    from cairn.model.load import new_model
    from cairn.model.nf4 import quantise_linears
    from cairn.model.speed import gemm_rate
    from cairn.train.config import Training
    from cairn.train.loop import Trainer

    deterministic()
    given = {"steps": STEPS, "sequence_length": 512, "batch_sequences": 8, "objective": "language_model", **settings}
    adapter = given.pop("adapter", None)
    config = Training.model_validate(given)
    rows = [[document([(7 * i + k) % VOCABULARY[name] for k in range(DOCUMENT)], [1] * DOCUMENT) for i in range(64)]]
    model = new_model(ModelConfig(**SHAPES[name]), vocab_size=VOCABULARY[name], bos_id=None, eos_id=0, pad_id=None, seed=1)
    if adapter is not None:
        told = AdapterConfig.model_validate(adapter)
        if told.base == "nf4":
            quantise_linears(model.base_model)
        attach(model, told, 1)
    stream = PackedStream(rows, [1.0], 7, config.sequence_length, config.batch_sequences * config.accumulate)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(model, stream, config, Path(folder), Silent())
        found = []
        for _ in range(STEPS):
            begun = time.perf_counter()
            trainer.one_step()
            found.append(time.perf_counter() - begun)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0
    return {"bytes": peak, "seconds": statistics.median(found[1:]), "rate": gemm_rate(config.compute), "bf16_rate": gemm_rate("bfloat16")}


def predict(name: str, settings: dict[str, Any], machine: dict[str, float]) -> tuple[float, float]:
    """Bytes at the peak, and seconds of a step on a machine of such rates of matrix products."""
    from cairn.model.adapter import plan_adapter
    from cairn.model.adapter_config import AdapterConfig
    from cairn.model.config import ModelConfig, transformers_config
    from cairn.model.cost import Dimensions, Run, flops, memory, muon_seconds, seconds

    shape = ModelConfig.model_validate(SHAPES[name])
    model = Dimensions.of(shape, vocabulary=VOCABULARY[name])
    adapter = None
    if "adapter" in settings:
        whole = transformers_config(shape, vocab_size=VOCABULARY[name], bos_id=None, eos_id=0, pad_id=None)
        adapter = plan_adapter(whole, AdapterConfig.model_validate(settings["adapter"]))[1]
    again = model.layers if settings.get("memory", {}).get("activation_checkpointing") == "layers" else 0
    tokens = 512 * settings.get("batch_sequences", 8)
    kind = settings.get("optimizer", {}).get("kind", "muon")
    run = Run(tokens=tokens, document=DOCUMENT, precision=settings["precision"], optimizer=kind, recomputed=again, adapter=adapter)
    operations = flops(model, tokens, document=DOCUMENT, recomputed=again) * (1.0 if adapter is None else 2 / 3)
    took = seconds(operations, machine["rate"], hidden=model.hidden, compute=settings["precision"], adapter=adapter)
    if kind == "muon" and adapter is None:
        took += muon_seconds(model, machine["bf16_rate"])
    return memory(model, run).peak, took


def saved() -> None:
    """Fit the tables SAVED and ADAPTED: bytes that a block keeps, over several widths."""
    import numpy as np
    import torch

    from cairn.model.adapter import attach
    from cairn.model.adapter_config import AdapterConfig
    from cairn.model.config import ModelConfig
    from cairn.model.fused import fuse, join_weights
    from cairn.model.load import new_model
    from cairn.model.packing import Layout, enable, probe

    def kept(layers: int, numbers: tuple[int, ...], dtype: torch.dtype, fused: bool, adapter: dict[str, Any] | None) -> float:
        width, heads, groups, size, inner, length, rank = numbers
        shape = ModelConfig(
            hidden_size=width, heads=heads, kv_heads=groups, head_size=size, layers=layers, intermediate_size=inner, tied=False
        )
        model = new_model(shape, vocab_size=64, bos_id=None, eos_id=0, pad_id=None, seed=1)
        if adapter is not None:
            attach(model, AdapterConfig.model_validate(adapter if adapter.get("kind") == "ia3" else {**adapter, "rank": rank}), 1)
        enable(model.train())
        if fused:
            fuse(model, probe)
        for p in model.parameters():
            p.data = p.data.to(dtype)
        if fused:
            join_weights(model)
        weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
        found: dict[int, torch.Tensor] = {}

        def note(t: torch.Tensor) -> torch.Tensor:
            if t.untyped_storage().data_ptr() not in weights:
                found[t.untyped_storage().data_ptr()] = t
            return t

        ids, positions = torch.arange(4 * length) % 64, torch.arange(4 * length) % length
        with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
            out = model.base_model(input_ids=ids[None], position_ids=positions[None], use_cache=False, packing=Layout.of([length] * 4))
        del out
        return sum(t.untyped_storage().nbytes() for t in found.values()) / (4 * length)

    sizes = [
        (64, 4, 4, 16, 128, 32, 8), (128, 4, 4, 16, 128, 32, 8), (64, 8, 4, 16, 128, 32, 8), (64, 4, 2, 16, 128, 32, 8),
        (64, 4, 4, 32, 128, 32, 8), (64, 4, 4, 16, 256, 32, 8), (64, 4, 4, 16, 128, 64, 8), (96, 6, 2, 16, 320, 32, 8),
        (96, 6, 2, 16, 320, 320, 8), (96, 12, 2, 16, 320, 320, 8), (64, 4, 4, 16, 128, 32, 16), (96, 6, 2, 16, 320, 32, 32),
    ]  # fmt: skip
    forms: list[tuple[bool, dict[str, Any] | None]] = [(True, None), (False, None)]
    forms += [(True, told) for told in ({}, {"targets": ["q_proj", "v_proj"]}, {"kind": "dora"}, {"kind": "ia3"})]
    for (fused, adapter), dtype in itertools.product(forms, (torch.bfloat16, torch.float32)):
        # The last but one: weights, of which DoRA keeps some, whatever the tokens.
        terms = [
            (d, h * s, g * s, i, h * n, r, (d * s * (2 * h + 2 * g) + 3 * d * i) / (4 * n), 1, h) for d, h, g, s, i, n, r in sizes
        ]  # fmt: skip
        bytes_ = [kept(3, size, dtype, fused, adapter) - kept(2, size, dtype, fused, adapter) for size in sizes]
        fit = np.linalg.lstsq(np.array(terms, float), np.array(bytes_), rcond=None)[0]
        name = ("fused" if fused else "plain") if adapter is None else f"adapter {json.dumps(adapter)}"
        print(name, dtype, "residual, query, key and value, feed-forward, probability, rank, weights:", np.round(fit[:7], 1))


if __name__ == "__main__":
    print(json.dumps(train(*CASES[int(sys.argv[1])])))
