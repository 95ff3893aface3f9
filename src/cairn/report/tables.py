"""Tables of a card in Markdown, and how a number is shown. Knows results as JSON-like values; nothing of what made them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cairn.data import stats

RANKS = frozenset({"spearman"})
"""Metrics that are rank correlations."""
NO_SHARES = RANKS | {"perplexity", "bits_per_byte"}
"""Metrics that are no share of right answers: no percent sign, no bar."""


def is_share(metric: str) -> bool:
    """Whether a metric is a share of right answers, between 0 and 1."""
    return metric not in NO_SHARES


def show_value(metric: str, value: float) -> str:
    """A value for people."""
    return f"{100 * value:.1f} %" if is_share(metric) else f"{value:.3f}"


def show_interval(metric: str, low: float | None, high: float | None) -> str:
    """A 95 % interval for people; a dash where there is none."""
    if low is None or high is None:
        return "–"
    return f"{100 * low:.1f} to {100 * high:.1f} %" if is_share(metric) else f"{low:.3f} to {high:.3f}"


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[Any]], right: Sequence[int] = ()) -> str:
    """A Markdown table.

    Args:
        header: the columns' names.
        rows: cells, as text or numbers; a vertical bar or line end in one does not break the table.
        right: numbers of the columns that are set to the right.
    """
    lines = [_line(header), _line(["---:" if i in right else "---" for i in range(len(header))])]
    return "\n".join(lines + [_line(row) for row in rows]) + "\n"


def _line(cells: Sequence[Any]) -> str:
    return "| " + " | ".join(" ".join(str(cell).split()).replace("|", "\\|") for cell in cells) + " |"


def mix_table(table: Mapping[str, Any]) -> str:
    """A mix table (`MixTable.as_dict`, also out of a record); its last row is the total."""
    names = stats.headers(table["unit"])
    total = [f"**{cell}**" if cell else "" for cell in stats.cells(table["total"])]
    return markdown_table(names, [*map(stats.cells, table["subsets"]), total], right=range(1, len(names)))


def results_table(rows: Iterable[dict[str, Any]]) -> str:
    """The table of scores: what was asked, how often, the share of right answers with its interval."""
    cells = []
    for r in rows:
        value, interval = show_value(r["metric"], r["value"]), show_interval(r["metric"], r["low"], r["high"])
        examples = r["detail"].get("few_shot") or []
        suite = f"{r['suite']} ({len(examples)}-shot)" if examples else r["suite"]
        cells.append((suite, f"`{r['metric']}`: {r['right']}", f"{r['n']:,}", value, interval))
    return markdown_table(["Suite", "Metric", "n", "Score", "95 % interval"], cells, right=(2, 3, 4))


def compared_table(models: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    """Several models side by side, and the plain mean of what are shares of right answers.

    Args:
        models: their names.
        rows: `{"suite", "metric", "n", "values": [{"value", "low", "high"}, …]}`, a value for each model.
    """
    cells = []
    for r in rows:
        shown = [f"{show_value(r['metric'], v['value'])} ({show_interval(r['metric'], v['low'], v['high'])})" for v in r["values"]]
        cells.append([r["suite"], f"`{r['metric']}`", f"{r['n']:,}", *shown])
    shares = [r["values"] for r in rows if is_share(r["metric"])]
    if len(shares) > 1:
        means = (math.fsum(values[i]["value"] for values in shares) / len(shares) for i in range(len(models)))
        cells.append([f"**Average of {len(shares)}**", "", "", *(f"**{show_value('', mean)}**" for mean in means)])
    return markdown_table(["Suite", "Metric", "n", *models], cells, right=range(2, 3 + len(models)))


def likelihood_table(rows: Iterable[dict[str, Any]]) -> str:
    """Perplexity and bits per byte of each held-out set."""
    cells = []
    for r in rows:
        size = f"{r['detail'].get('tokens', 0):,} tokens, {r['detail'].get('bytes', 0):,} bytes"
        value, interval = show_value(r["metric"], r["value"]), show_interval(r["metric"], r["low"], r["high"])
        cells.append((r["suite"], r["metric"].replace("_", " "), f"{r['n']:,}", size, value, interval))
    return markdown_table(["Held-out rows", "Metric", "Documents", "Size", "Value", "95 % interval"], cells, right=(2, 3, 4, 5))


def evidence_table(files: dict[str, str]) -> str:
    """The files of samples with their digests."""
    return markdown_table(["Samples", "SHA-256"], [(f"[`{path}`]({path})", f"`{digest}`") for path, digest in files.items()])
