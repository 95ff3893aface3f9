"""The training curve as a picture. Knows losses by step; knows no stage. The same losses give the same bytes."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from cairn.errors import UserError

REMEDY = 'install the extra: pip install "cairn-llm[plot]"'
Curve = Sequence[tuple[int, float]]


def read_curve(path: Path) -> list[tuple[int, float]]:
    """(step, loss) of every line of a training's `metrics.jsonl`."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    return [(int(line["step"]), float(line["loss"])) for line in lines]


def smoothed(curve: Curve) -> list[tuple[int, float]]:
    """The mean over a window that ends at each step: a fortieth of the curve, at least one step."""
    width = max(1, len(curve) // 40)
    out, total = [], 0.0
    for i, (step, loss) in enumerate(curve):
        total += loss - (curve[i - width][1] if i >= width else 0.0)
        out.append((step, total / min(i + 1, width)))
    return out


def can_plot() -> bool:
    """Whether the drawing library is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def draw_curves(curves: Mapping[str, Curve], path: Path) -> None:
    """Draw the losses of one or more trainings side by side into a PNG.

    Args:
        curves: the losses of each training by its name, in the order in which they ran; none of them empty.
        path: the file to write.

    Raises:
        UserError: the drawing library is missing.
    """
    if not can_plot():
        raise UserError("the training curve cannot be drawn: matplotlib is not installed", remedy=REMEDY)
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    # Whoever has a style of their own would get another picture out of the same numbers.
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        figure = Figure(figsize=(4.8 * len(curves), 3.4), dpi=100, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(1, len(curves), squeeze=False)[0]
        for axis, (name, curve) in zip(axes, curves.items(), strict=True):
            axis.plot(*zip(*curve, strict=True), color="#b8c4d6", linewidth=0.8)
            axis.plot(*zip(*smoothed(curve), strict=True), color="#1f4e9c", linewidth=1.6)
            axis.set_title(name, fontsize=11)
            axis.set_xlabel("step")
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
            axis.set_ylabel("loss, nats a token")
            axis.grid(visible=True, color="#e6e6e6", linewidth=0.6)
            axis.spines[["top", "right"]].set_visible(False)
        # Matplotlib signs its pictures with its version; nothing that is not a number of ours belongs into a digest.
        figure.savefig(path, format="png", metadata={"Software": None})
