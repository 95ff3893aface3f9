"""Tables and curves."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cairn.data.stats import MixTable
from cairn.report.plot import draw_curves, read_curve, smoothed
from cairn.report.tables import compared_table, markdown_table, mix_table, results_table, show_interval, show_value


class Letters:
    """A tokenizer whose tokens are letters."""

    bos_id = eos_id = None

    def encode(self, text: str) -> list[int]:
        return [ord(sign) for sign in text]


@given(st.lists(st.lists(st.text(), min_size=2, max_size=2), max_size=4))
def test_no_cell_breaks_the_table(rows: list[list[str]]) -> None:
    lines = markdown_table(["a", "b"], rows, right=(1,)).split("\n")
    assert lines[:2] == ["| a | b |", "| --- | ---: |"]
    assert len(lines) == 2 + len(rows) + 1
    for line in lines[2:-1]:
        assert line.replace("\\|", "").count("|") == 3


def test_the_mix_has_the_columns_of_the_card() -> None:
    table = MixTable(Letters())
    table.add({"source": "chat", "messages": [{"role": "user", "content": "abcd"}, {"role": "assistant", "content": "ef"}]})
    table.add({"source": "books", "text": "ghi"})
    assert mix_table(table.as_dict()).splitlines() == [
        "| Subset | #Tokens | Avg. #Q | Avg. Query Len | Avg. #R | Avg. Reply Len |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        "| chat | 6 | 1.00 | 4.00 | 1.00 | 2.00 |",
        "| books | 3 | not instruction data |  |  |  |",
        "| **Total** | **9** | **1.00** | **4.00** | **1.00** | **2.00** |",
    ]


def test_models_side_by_side_with_the_mean_of_shares_alone() -> None:
    def value(x: float) -> dict[str, float | None]:
        return {"value": x, "low": None, "high": None}

    rows = [
        {"suite": "a", "metric": "exact", "n": 1200, "values": [value(0.5), value(0.25)]},
        {"suite": "b", "metric": "number", "n": 3, "values": [value(1.0), value(0.3)]},
        {"suite": "text", "metric": "perplexity", "n": 2, "values": [value(9.0), value(8.0)]},
    ]
    assert compared_table(["old", "new"], rows).splitlines() == [
        "| Suite | Metric | n | old | new |",
        "| --- | --- | ---: | ---: | ---: |",
        "| a | `exact` | 1,200 | 50.0 % (–) | 25.0 % (–) |",
        "| b | `number` | 3 | 100.0 % (–) | 30.0 % (–) |",
        "| text | `perplexity` | 2 | 9.000 (–) | 8.000 (–) |",
        "| **Average of 2** |  |  | **75.0 %** | **27.5 %** |",
    ]
    assert "Average" not in compared_table(["old", "new"], rows[1:])


def test_a_suite_says_how_many_examples_it_shows() -> None:
    row = {"suite": "a", "metric": "exact", "right": "it is", "n": 5, "value": 1.0, "low": 0.5, "high": 1.0}
    table = results_table([{**row, "detail": {"few_shot": ["x", "y"]}}, {**row, "detail": {}}])
    assert [line.split(" | ")[0] for line in table.splitlines()[2:]] == ["| a (2-shot)", "| a"]


def test_without_a_tokenizer_the_header_says_words() -> None:
    table = MixTable()
    table.add({"text": "a", "source": "odd|name"})
    lines = mix_table(table.as_dict()).splitlines()
    assert "#Words" in lines[0]
    assert "odd\\|name" in lines[2]


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
