"""Tables and curves."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cairn.report.plot import draw_curves, read_curve, smoothed
from cairn.report.tables import markdown_table, show_interval, show_value


@given(st.lists(st.lists(st.text(), min_size=2, max_size=2), max_size=4))
def test_no_cell_breaks_the_table(rows: list[list[str]]) -> None:
    lines = markdown_table(["a", "b"], rows, right=(1,)).split("\n")
    assert lines[:2] == ["| a | b |", "| --- | ---: |"]
    assert len(lines) == 2 + len(rows) + 1
    for line in lines[2:-1]:
        assert line.replace("\\|", "").count("|") == 3


def test_values() -> None:
    assert show_value("exact", 0.97499) == "97.5 %"
    assert show_value("perplexity", 12.3456) == "12.346"
    assert show_interval("exact", 0.9, 1.0) == "90.0 to 100.0 %"
    assert show_interval("bits_per_byte", 0.9, 1.0) == "0.900 to 1.000"
    assert show_interval("perplexity", None, None) == "–"


@given(st.lists(st.floats(0, 20), min_size=1, max_size=200))
def test_smoothing_stays_between_the_losses(losses: list[float]) -> None:
    curve = list(enumerate(losses))
    out = smoothed(curve)
    assert [step for step, _ in out] == [step for step, _ in curve]
    assert all(min(losses) - 1e-9 <= value <= max(losses) + 1e-9 for _, value in out)


def test_smoothing_is_a_mean_of_the_last_ones() -> None:
    curve = [(i, float(i)) for i in range(80)]
    assert smoothed(curve)[10] == (10, pytest.approx(9.5))
    assert smoothed(curve)[0] == (0, 0.0)


def test_curve_of_a_run(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 5.5, "lr": 0.1}\n{"step": 2, "loss": 4}\n')
    assert read_curve(path) == [(1, 5.5), (2, 4.0)]
    draw_curves({"one": read_curve(path)}, tmp_path / "a.png")
    draw_curves({"one": [(1, 5.5), (2, 4.5)]}, tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() != (tmp_path / "b.png").read_bytes(), "other losses, another picture"
