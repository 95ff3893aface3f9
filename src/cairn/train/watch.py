"""What a training tells of itself: a line of metrics a step, a line of speed, and a plain reason with the documents where it must stop.

Knows batches and losses as numbers; no optimiser, no checkpoint. `metrics.jsonl` holds what is a function of the run: a replay gives its
bytes again; `logs/speed.jsonl` holds what the clock and the machine say, which no digest covers.
"""

from __future__ import annotations

import json
import math
import resource
import statistics
import sys
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import IO, Any

import numpy as np

from cairn.errors import UserError
from cairn.ledger.progress import Progress
from cairn.ledger.store import show_bytes
from cairn.model.config import training_flops
from cairn.model.nf4 import count_weights
from cairn.model.speed import gemm_rate
from cairn.train.config import WatchConfig
from cairn.train.view import View

SHOWN = 3
"""Documents that a message names."""
RECENT = 20
"""Steps over which speeds are averaged."""


@dataclass(frozen=True)
class Origins:
    """Where documents came from, for people.

    Attributes:
        names: the sources' names, in the stream's order.
        rows: the row of each document of each source, counted from 1 in reading order; None where that is not known.
        look: (source, row) → the command that shows a row, or "".
    """

    names: Sequence[str] = ()
    rows: Sequence[Sequence[int]] | None = None
    look: Callable[[int, int], str] = lambda source, row: ""

    def name(self, source: int) -> str:
        return self.names[source] if source < len(self.names) else f"source {source + 1}"

    def document(self, source: int, document: int) -> tuple[str, str]:
        """("functions, row 12", the command that shows it) of a source's document."""
        if self.rows is None:
            return f"{self.name(source)}, document {document + 1}", ""
        row = int(self.rows[source][document])
        return f"{self.name(source)}, row {row}", self.look(source, row)


@dataclass
class Tally:
    """Sums of one step: of each document, of each source, and the objective's own.

    Attributes:
        sources, documents: the source of each document, and its number in there.
        tokens, targets, nll: of each document; `nll` in nats over its targets, NaN where the objective gives none.
        metrics: the objective's figures, summed over the micro-batches.
    """

    sources: list[int] = field(default_factory=list)
    documents: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)
    nll: list[float] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)

    def add(self, part: Any, batch: Any, loss: Any | None = None) -> None:
        """Take in a micro-batch: the data room's arrays, the tensors made of them, and their loss, if it came to that."""
        count = len(part.doc_lengths)
        of_N = batch.document_N.cpu().numpy()
        self.sources += part.sources
        self.documents += part.documents
        self.tokens += part.doc_lengths
        self.targets += np.bincount(of_N, minlength=count).tolist()
        per_target = getattr(loss, "nll_N", None)
        if per_target is None:
            self.nll += [math.nan] * count
        else:
            self.nll += np.bincount(of_N, weights=per_target.detach().double().cpu().numpy(), minlength=count).tolist()
        for name, value in (loss.metrics if loss is not None else {}).items():
            self.metrics[name] = self.metrics.get(name, 0.0) + float(value)

    @staticmethod
    def merged(parts: Sequence[Tally]) -> Tally:
        """The tally of a whole step out of those of its ranks."""
        if len(parts) == 1:
            return parts[0]
        whole = Tally()
        for part in parts:
            for name in ("sources", "documents", "tokens", "targets", "nll"):
                getattr(whole, name).extend(getattr(part, name))
            for name, value in part.metrics.items():
                whole.metrics[name] = whole.metrics.get(name, 0.0) + value
        return whole

    def line(self, origins: Origins) -> dict[str, Any]:
        """`{"sources": {name: {"loss"?, "tokens", "supervised_tokens"}}, "objective"?: {…}}`: losses are means over a source's targets."""
        count = max(self.sources) + 1
        tokens, targets, nll = (np.bincount(self.sources, weights=x, minlength=count) for x in (self.tokens, self.targets, self.nll))
        found = {}
        for source in sorted(set(self.sources)):
            loss = {"loss": nll[source] / targets[source]} if targets[source] and math.isfinite(nll[source]) else {}
            found[origins.name(source)] = loss | {"tokens": int(tokens[source]), "supervised_tokens": int(targets[source])}
        return {"sources": found} | ({"objective": self.metrics} if self.metrics else {})

    @property
    def mean_length(self) -> float:
        """Length of the document in which a token stands, on average: what attention's cost follows."""
        return sum(n * n for n in self.tokens) / sum(self.tokens)

    def suspects(self, origins: Origins) -> tuple[str, str]:
        """(which documents are concerned, how to look at them): those whose loss is not finite, or else those with the highest."""
        means = [nll / max(1, targets) for nll, targets in zip(self.nll, self.targets, strict=True)]
        known = any(math.isfinite(m) for m in means)
        broken = [i for i, m in enumerate(means) if not math.isfinite(m)] if known else []
        order = broken or sorted(range(len(means)), key=lambda i: (-means[i] if known else 0.0, i))
        count = f"{len(means)} document{'s' if len(means) > 1 else ''}"
        head = f"{len(broken)} of {count} with a loss that is not finite" if broken else count
        if not broken and known and len(means) > 1:
            head += ", those with the highest loss"
        return _told(head, [(self.sources[i], self.documents[i]) for i in order[:SHOWN]], len(order), origins)


def _told(head: str, documents: list[tuple[int, int]], count: int, origins: Origins) -> tuple[str, str]:
    told = [origins.document(source, document) for source, document in documents]
    more = "; …" if count > len(told) else ""
    looks = [look for _, look in told if look]
    return f"{head}: " + "; ".join(name for name, _ in told) + more, "".join(f"\n      {look}" for look in looks)


def stop_without_targets(step: int, tally: Tally, origins: Origins) -> UserError:
    """The error of a step that has nothing to learn."""
    where, look = tally.suspects(origins)
    return UserError(
        f"step {step} has no supervised token in {sum(tally.tokens)} tokens", where=where,
        remedy="look at the loss mask of these rows" + (f":{look}" if look else " with `cairn tokens`"),
    )  # fmt: skip


def stop_not_finite(step: int, loss: float, norm: float, tally: Tally, origins: Origins, weights: Iterable[tuple[str, Any]]) -> UserError:
    """The error of a loss or gradient that is NaN or infinite. Where weights are so already, no document is to blame."""
    spoilt = next((name for name, tensor in weights if not bool(tensor.detach().isfinite().all())), None)
    what = f"the loss is {loss} and the gradient's norm {norm} at step {step}"
    if spoilt is not None:
        what += f": the weight '{spoilt}' held a number that is not finite before this step"
        return UserError(what, where="the model's weights", remedy="lower the rate or warm up longer, or start from a sound model")
    where, look = tally.suspects(origins)
    remedy = "lower the rate, or warm up longer" + (f"; look at these rows:{look}" if look else "")
    return UserError(what, where=where, remedy=remedy)


class Spikes:
    """Tells a loss that stands far above those before it.

    The bound is the median of the last losses plus `factor` times their spread: 1.4826 · median absolute deviation, which is the standard
    deviation where they are normal, and at least 1 % of the median, so that a flat curve does not cry at a ripple.
    """

    LEAST = 20
    """Losses that are needed before there is a bound."""

    def __init__(self, window: int, factor: float, before: Iterable[float] = ()) -> None:
        self.factor, self.losses = factor, deque(before, maxlen=window)

    def bound(self) -> float:
        """The highest loss that is no spike."""
        if len(self.losses) < min(self.LEAST, self.losses.maxlen or 0):
            return math.inf
        median = statistics.median(self.losses)
        spread = 1.4826 * statistics.median(abs(x - median) for x in self.losses)
        return median + self.factor * max(spread, 0.01 * abs(median))

    def see(self, loss: float) -> float | None:
        """Take a loss in; the bound, where it stands above."""
        bound = self.bound()
        self.losses.append(loss)
        return bound if loss > bound else None


def spike_text(step: int, loss: float, bound: float) -> str:
    return f"the loss of step {step} is {loss:.4g}, far above the steps before it (bound {bound:.4g})"


@dataclass(frozen=True)
class Work:
    """What a token costs: the model's figures that the 6N rule asks for."""

    matrices: int
    """Parameters in matrices that every token is multiplied with."""
    frozen: int
    """Of them, those that are not trained: they take no product for a gradient of their own, four operations a token instead of six."""
    layers: int
    hidden_size: int
    rate: float
    """Measured GFLOP/s of a matrix product in the precision of the training."""

    @staticmethod
    def of(model: Any, precision: str) -> Work:
        config = model.config.get_text_config(decoder=True)
        inputs, head = model.get_input_embeddings().weight, model.get_output_embeddings()
        tied = head is not None and head.weight is inputs
        matrices = count_weights(model) - (0 if tied else inputs.numel())
        frozen = matrices - sum(p.numel() for p in model.parameters() if p.requires_grad and (tied or p is not inputs))
        return Work(matrices, frozen, config.num_hidden_layers, config.hidden_size, gemm_rate(precision))

    def utilisation(self, tokens: int, mean_length: float, seconds: float) -> float:
        """Model FLOPs utilisation (Chowdhery et al. 2022) against this machine's measured matrix product, not a data sheet's peak."""
        flops = training_flops(self.matrices, tokens, layers=self.layers, hidden_size=self.hidden_size, mean_length=mean_length)
        flops -= 2.0 * self.frozen * tokens
        return flops / max(1e-9, seconds) / (self.rate * 1e9)


class Watch:
    """Writes and shows a training's lines. A context manager: it opens and closes its files.

    Args:
        folder: where `metrics.jsonl` and `logs/` lie.
        config: what is watched for.
        origins: names of sources and rows.
        progress: where it is shown.
        work: for the utilisation.
        steps: (the step that is done already, the step that this run ends at).
        before: losses of the steps before, so that a resumed run has the bound of one that was not stopped.
    """

    def __init__(
        self, folder: Path, config: WatchConfig, origins: Origins, progress: Progress, work: Work, steps: tuple[int, int],
        before: list[float],
    ) -> None:  # fmt: skip
        self.folder, self.config, self.origins, self.progress, self.work = folder, config, origins, progress, work
        self.begin, self.until = steps
        self.spikes = Spikes(config.spike_window, config.spike_factor, before)
        self.recent: deque[tuple[int, int, float, float]] = deque(maxlen=RECENT)
        self.view = View(before)
        self.files = ExitStack()
        self.metrics: IO[str] = StringIO()
        self.speeds: IO[str] = StringIO()
        self.board: Any = None

    def __enter__(self) -> Watch:
        logs = self.folder / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        self.metrics = self.files.enter_context(open(self.folder / "metrics.jsonl", "a", encoding="utf-8"))
        self.speeds = self.files.enter_context(open(logs / "speed.jsonl", "a", encoding="utf-8"))
        if self.config.tensorboard:
            from cairn.train.board import Board

            self.board = Board(logs / "tensorboard", self.begin)
        self.progress.start(self.until, "steps", self.begin)
        self.progress.show(self.view)
        return self

    def __exit__(self, *error: Any) -> None:
        self.progress.show(None)
        if self.board is not None:
            self.board.close()
        self.files.close()

    def flush(self) -> None:
        """Hand the lines to the system: whoever is killed from here on has them."""
        self.metrics.flush()

    def judge(self, step: int, loss: float, tally: Tally) -> None:
        """Look for a spike before the weights move.

        Raises:
            UserError: there is one, and the training is to stop at it.
        """
        if self.config.spike == "off":
            return
        bound = self.spikes.see(loss)
        if bound is None:
            return
        where, look = tally.suspects(self.origins)
        if self.config.spike == "stop":
            remedy = "lower the rate, leave rows out, or set watch.spike to warn and run again"
            raise UserError(spike_text(step, loss, bound), where=where, remedy=remedy + (f"; look at these rows:{look}" if look else ""))
        self.progress.note(f"{spike_text(step, loss, bound)}: {where}")

    def tell(self, line: dict[str, Any], tally: Tally, seconds: float) -> None:
        """Write and show one step's line of metrics, which took `seconds`."""
        tokens, supervised, mean = line["tokens"], line["supervised_tokens"], tally.mean_length
        self.recent.append((tokens, supervised, mean * tokens, seconds))
        all_tokens, all_supervised, lengths, spent = (sum(column) for column in zip(*self.recent, strict=True))
        speed = {
            "step": line["step"], "seconds": round(seconds, 4), "tokens": tokens, "tokens_per_second": round(all_tokens / spent, 1),
            "supervised_per_second": round(all_supervised / spent, 1),
            "mfu": round(self.work.utilisation(all_tokens, lengths / all_tokens, spent), 4),
            "memory_bytes": resident_bytes(), "eta_seconds": round((self.until - line["step"]) * spent / len(self.recent), 1),
        }  # fmt: skip
        self.metrics.write(json.dumps(line) + "\n")
        self.speeds.write(json.dumps(speed) + "\n")
        if self.board is not None:
            self.board.add(line, speed)
        self.view.add(line, speed)
        self.progress.update(
            line["step"], loss=round(line["loss"], 4), norm=line["grad_norm"], rate=line["lr"],
            tokens_per_second=round(speed["tokens_per_second"]), supervised=f"{all_supervised / all_tokens:.0%}", MFU=f"{speed['mfu']:.0%}",
            memory=show_bytes(speed["memory_bytes"]),
        )  # fmt: skip


def resident_bytes() -> int:
    """Memory that this process holds now; where the system does not tell, the most that it ever held."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except OSError:
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024
