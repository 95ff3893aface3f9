"""What this machine and installation are like: what is missing or slow, how fast matrices multiply. Changes nothing; knows no stage."""

from __future__ import annotations

import os
from typing import Any

from cairn.errors import UserError
from cairn.ledger.environment import cores, environment, version
from cairn.ledger.store import Store, show_bytes

_EXTRAS = {
    "plot": (("matplotlib",), "training curves in model cards"),
    "tensorboard": (("tensorboard",), "event files of a training"),
    "bench": (("trl", "accelerate", "datasets"), "other trainers to compare with in `cairn bench train`"),
    "e2e": (("playwright",), "tests of the server's page"),
}
_NEEDED = (
    "torch", "transformers", "tokenizers", "safetensors", "peft", "huggingface-hub", "numpy", "pydantic", "typer", "rich", "pyyaml",
    "jinja2", "pyarrow", "llguidance", "fastapi", "uvicorn",
)  # fmt: skip


def examine_machine(store: Store, *, measure: bool = True) -> dict[str, Any]:
    """Look at packages, processor, memory and store.

    Args:
        store: is tried with a file of its own, which is taken away again.
        measure: also multiply matrices for about a second.

    Returns:
        {"ok": nothing needed is missing, "environment", "gemm_gflops": {"fp32", "bf16"} (empty where nothing was measured),
        "findings": [{"level": "missing" | "slow" | "note", "what", "remedy"}]}.
    """
    findings = [*_packages(), *_machine(), *_store(store)]
    speed = _speed() if measure else {}
    if speed:
        findings += _judge(speed)
    ok = not any(finding["level"] == "missing" for finding in findings)
    return {"ok": ok, "environment": environment(), "gemm_gflops": speed, "findings": findings}


def _finding(level: str, what: str, remedy: str = "") -> dict[str, str]:
    return {"level": level, "what": what, "remedy": remedy}


def _packages() -> list[dict[str, str]]:
    absent = [name for name in _NEEDED if version(name) is None]
    found = [_finding("missing", f"the package {name} is not installed", f"pip install {name}") for name in absent]
    for extra, (packages, use) in _EXTRAS.items():
        absent = [name for name in packages if version(name) is None]
        if absent:
            found.append(_finding("note", f"without {', '.join(absent)}: no {use}.", f"pip install 'cairn-llm[{extra}]'"))
    return found


def _machine() -> list[dict[str, str]]:
    found = []
    facts = environment()
    if facts["threads"] > cores():
        found.append(_finding("slow", f"{facts['threads']} threads on {cores()} cores hinder each other.", "unset OMP_NUM_THREADS"))
    elif facts["threads"] < cores():
        found.append(_finding("slow", f"only {facts['threads']} of {cores()} cores are used.", "unset OMP_NUM_THREADS"))
    if facts["platform"].endswith("x86_64") and "avx2" not in facts["instructions"]:
        found.append(_finding("slow", "the processor has no AVX2: matrix products are slow."))
    load = os.getloadavg()[0]
    if load > cores():
        found.append(_finding("slow", f"the machine is busy: load {load:.1f} on {cores()} cores.", "wait, or expect longer times"))
    memory = _free_memory()
    if memory is not None and memory < 2e9:
        found.append(_finding("slow", f"little memory is free: {memory / 1e9:.1f} GB.", "close other programs"))
    return found


def _free_memory() -> float | None:
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return float(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def _store(store: Store) -> list[dict[str, str]]:
    found = []
    if not store.root.exists():
        found.append(_finding("note", f"there is no store yet at {store.root}.", "cairn run pebble makes it"))
    else:
        try:
            store.test_save()
        except UserError as error:
            found.append(_finding("missing", f"{error.what}: {error.where}.", error.remedy))
        drafts = [p for p in store.drafts.glob("*") if p.is_dir()] if store.drafts.is_dir() else []
        if drafts:
            size = sum(f.stat().st_size for d in drafts for f in d.rglob("*") if f.is_file())
            what = f"{len(drafts)} unfinished drafts take {show_bytes(size)} in {store.drafts}."
            found.append(_finding("note", what, "delete those that you will not resume, while no run is going on"))
    free = store.free_bytes()
    if free < 2e9:
        what = f"the store's disk has only {show_bytes(free)} free."
        found.append(_finding("slow", what, "free some space, or choose another with --store"))
    return found


def _speed() -> dict[str, float]:
    """GFLOP/s of a square matrix product in fp32 and bf16; nothing where torch is missing."""
    if version("torch") is None:
        return {}
    from cairn.model.speed import gemm_rate

    return {name: round(gemm_rate(precision), 1) for name, precision in (("fp32", "float32"), ("bf16", "bfloat16"))}


def _judge(speed: dict[str, Any]) -> list[dict[str, str]]:
    found = []
    if speed["bf16"] < speed["fp32"]:
        what = f"bf16 is slower than fp32 here ({speed['bf16']:.0f} against {speed['fp32']:.0f} GFLOP/s)."
        found.append(_finding("slow", what, "train in float32 on this machine"))
    if speed["fp32"] < 20:
        what = f"matrix products reach {speed['fp32']:.0f} GFLOP/s in fp32."
        found.append(_finding("slow", what, "recipes will take several times as long"))
    return found
