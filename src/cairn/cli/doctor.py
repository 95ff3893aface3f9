"""`cairn doctor`: what this machine and installation are like, what is missing, and how fast it multiplies matrices."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from cairn.cli.show import Json, StoreDir, open_store, out, print_json

if TYPE_CHECKING:
    from cairn.ledger.store import Store

_EXTRAS = {
    "plot": (("matplotlib",), "training curves in model cards"),
    "tensorboard": (("tensorboard",), "event files of a training"),
    "eval": (("lm-eval", "sacrebleu", "rouge-score"), "published benchmarks"),
    "gguf": (("gguf",), "export to GGUF"),
    "quant": (("torchao",), "quantised models"),
    "hub": (("datasets",), "data sets from the hub"),
}
_NEEDED = (
    "torch", "transformers", "tokenizers", "safetensors", "huggingface-hub", "numpy", "pydantic", "typer", "rich", "pyyaml", "jinja2",
    "pyarrow",
)  # fmt: skip


def command(
    store: StoreDir = None,
    fast: Annotated[bool, typer.Option("--fast", help="Measure nothing: leave out the matrix products.")] = False,
    json: Json = False,
) -> None:
    r"""Report the environment, what is slow or missing, and the measured speed of matrix products.

    \b
    Example:
        cairn doctor
    """
    from rich.table import Table
    from rich.text import Text

    from cairn.ledger.environment import environment

    place = open_store(store)
    findings = [*_packages(), *_machine(), *_store(place)]
    speed = {} if fast else _gemm()
    if speed:
        findings += _judge(speed)
    if json:
        ok = not any(f["level"] == "missing" for f in findings)
        print_json({"ok": ok, "environment": environment(), "gemm_gflops": speed, "findings": findings})
        return
    console = out()
    table = Table(title="environment", title_justify="left", show_header=False)
    for name, value in environment().items():
        if isinstance(value, dict):
            value = [f"{k}={v}" for k, v in value.items()]
        table.add_row(name, Text(" ".join(value) if isinstance(value, list) else str(value)))
    for name, value in speed.items():
        table.add_row(f"matrix product {name}", f"{value:,.1f} GFLOP/s")
    console.print(table)
    styles = {"missing": "bold red", "slow": "yellow", "note": "dim"}
    for one in findings:
        line = Text.assemble((f"{one['level']}: ", styles[one["level"]]), one["what"], (f"  {one['remedy']}", "dim"))
        console.print(line, soft_wrap=True)
    if not findings:
        console.print("[green]Nothing is missing and nothing is slow.[/]")


def _finding(level: str, what: str, remedy: str = "") -> dict[str, str]:
    return {"level": level, "what": what, "remedy": remedy}


def _packages() -> list[dict[str, str]]:
    from cairn.ledger.environment import version

    absent = [name for name in _NEEDED if version(name) is None]
    found = [_finding("missing", f"the package {name} is not installed", f"pip install {name}") for name in absent]
    for extra, (packages, use) in _EXTRAS.items():
        absent = [name for name in packages if version(name) is None]
        if absent:
            found.append(_finding("note", f"without {', '.join(absent)}: no {use}.", f"pip install 'cairn-llm[{extra}]'"))
    return found


def _machine() -> list[dict[str, str]]:
    import os

    from cairn.ledger.environment import cores, environment

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
    from cairn.errors import UserError
    from cairn.ledger.store import show_bytes

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


def _gemm(size: int = 1024, seconds: float = 0.4) -> dict[str, float]:
    """GFLOP/s of a square matrix product in fp32 and bf16, the best of several."""
    try:
        import torch
    except ImportError:
        return {}
    import time

    found: dict[str, float] = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        # Values do not matter to the speed; a fill by count draws no random number.
        left = torch.arange(size * size, dtype=torch.float32).remainder_(17).view(size, size).to(dtype)
        right = left.t().contiguous()
        torch.matmul(left, right)
        best, end = float("inf"), time.perf_counter() + seconds
        while time.perf_counter() < end:
            began = time.perf_counter()
            torch.matmul(left, right)
            best = min(best, time.perf_counter() - began)
        found[name] = round(2 * size**3 / best / 1e9, 1)
    return found


def _judge(speed: dict[str, Any]) -> list[dict[str, str]]:
    found = []
    if speed["bf16"] < speed["fp32"]:
        what = f"bf16 is slower than fp32 here ({speed['bf16']:.0f} against {speed['fp32']:.0f} GFLOP/s)."
        found.append(_finding("slow", what, "train in float32 on this machine"))
    if speed["fp32"] < 20:
        what = f"matrix products reach {speed['fp32']:.0f} GFLOP/s in fp32."
        found.append(_finding("slow", what, "recipes will take several times as long"))
    return found
