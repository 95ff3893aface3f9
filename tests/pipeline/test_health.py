"""What the machine's health report says of packages and speed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cairn.ledger.store import Store
from cairn.pipeline import health


def levels(report: dict[str, Any], word: str) -> list[str]:
    return [finding["level"] for finding in report["findings"] if word in finding["what"]]


def test_a_needed_package_that_is_absent_is_missing_and_an_extra_is_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "version", lambda name: None if name in ("pyarrow", "matplotlib") else "1")
    report = health.examine_machine(Store(tmp_path / "store"), measure=False)
    assert (levels(report, "pyarrow"), levels(report, "matplotlib")) == (["missing"], ["note"])
    assert (report["ok"], report["gemm_gflops"]) == (False, {})


@pytest.mark.parametrize(("speeds", "found"), [((5.0, 4.0), 2), ((50.0, 40.0), 1), ((50.0, 60.0), 0)])
def test_slow_products_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, speeds: tuple[float, float], found: int) -> None:
    monkeypatch.setattr("cairn.model.speed.gemm_rate", lambda precision: speeds[precision == "bfloat16"])
    report = health.examine_machine(Store(tmp_path / "store"))
    assert report["gemm_gflops"] == dict(zip(("fp32", "bf16"), speeds, strict=True))
    assert len(levels(report, "GFLOP/s")) == found
