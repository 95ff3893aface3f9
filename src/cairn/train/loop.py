"""The one training loop. Knows an objective, batches, an optimiser and checkpoints; no rows, no recipe, no stage graph.

Every step is a function of the weights, the optimiser's state and the step's number: batches come by number, and dropout is drawn from
a seed of its own at every micro-batch. So a run that was killed and goes on gives the bytes of one that was not. `metrics.jsonl` holds
what is a function of the run; seconds and tokens/s go to `logs/`, which no digest covers.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from cairn.data.batches import make_batch
from cairn.data.encode import Encoded
from cairn.errors import UserError
from cairn.ledger import seeds
from cairn.ledger.progress import Progress
from cairn.ledger.store import show_bytes
from cairn.model import kernels
from cairn.model.fused import fuse, join_weights, restore
from cairn.model.head import head_agrees
from cairn.model.load import dtype_of
from cairn.model.packing import probe, try_packing
from cairn.model.speed import keep_freed_memory
from cairn.train import checkpoint
from cairn.train.config import COMPILE_FLOPS, Training
from cairn.train.ema import Average, is_average
from cairn.train.forward import TorchBatch
from cairn.train.masters import Masters, clip_gradients, is_plain
from cairn.train.objectives import load_objective
from cairn.train.optim import Optimizer, embedding_names
from cairn.train.schedule import factor


class Stream(Protocol):
    """Batches by step; its place can be saved and restored."""

    def __next__(self) -> Any: ...
    def state(self) -> dict[str, int]: ...
    def restore(self, state: dict[str, int]) -> None: ...


def deterministic(threads: int) -> None:
    """Make torch repeat itself bit for bit in one environment: fixed threads, deterministic kernels."""
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    # Filling fresh memory with NaN guards against reading it; it costs 4 % of a step, and nothing here reads what it did not write.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    keep_freed_memory()
    if torch.cuda.is_available():
        # cuBLAS picks its workspace at run time otherwise, and sums in another order.
        torch.backends.cuda.matmul.allow_tf32 = False


class Trainer:
    """One run of training.

    Args:
        model: a transformers causal LM in fp32 whose weights it moves.
        stream: batches of `config.step_tokens` capacity.
        config: how to train.
        folder: where `metrics.jsonl`, `checkpoints/`, `resume/` and `logs/` are written; what lies there is resumed.
        progress: who is told.
        device: where it runs.
        seed: of what is drawn in training itself: a model's dropout, and roundings by chance.
    """

    def __init__(
        self, model: Any, stream: Stream, config: Training, folder: Path, progress: Progress, device: str = "cpu", seed: int = 0
    ) -> None:
        self.seed = seed
        self.config, self.folder, self.progress, self.device = config, folder, progress, device
        self.model = model.to(device).train()
        self.stream, self.total = stream, config.total_steps
        self.objective = load_objective(config.objective)
        if not head_agrees(self.model.eval()):
            raise UserError(
                f"the family '{model.config.model_type}' scales its logits in a way that is not known here", where="model",
                remedy="use another family",
            )  # fmt: skip
        if _switch_off_dropout(self.model):
            progress.note("the model's dropout is switched off: its draws depend on a state that a resumed run does not have")
        self.plain_attention = model.config._attn_implementation
        verdict = try_packing(self.model, config.attention, longest=config.sequence_length, dtype=dtype_of(config.compute))
        self.packed = verdict.packs
        if verdict.note:
            progress.note(f"'{model.config.model_type}' {verdict.note}")
        fused = fuse(self.model, probe) if self.packed else []
        self.model.train()
        self.masters = Masters(self.model, dtype_of(config.compute), pure=config.pure)
        if fused:
            join_weights(self.model)
        self.compiled = bool(fused) and self._pays_to_compile()
        if self.compiled:
            self._compile()
        self.optimizer = Optimizer(config.optimizer, self.masters.named, *embedding_names(self.model), seed=seed)
        if config.optimizer.state != "float32":
            sizes = [show_bytes(self.optimizer.planned_bytes(coded=coded)) for coded in (True, False)]
            progress.note(f"optimiser states take {sizes[0]} in {config.optimizer.state}, and would take {sizes[1]} in float32")
        self.average = Average(config.ema) if config.ema is not None else None
        self.step, self.seen = 0, {"tokens": 0, "supervised_tokens": 0}

    def _pays_to_compile(self) -> bool:
        """Whether the formulas are compiled: a function of the configuration, and of whether this machine can."""
        config = self.config
        work = 6.0 * sum(p.numel() for p in self.model.parameters()) * self.total * config.step_tokens
        if config.compile == "off" or (config.compile == "auto" and work < COMPILE_FLOPS):
            return False
        if kernels.compiler_found():
            return True
        if config.compile == "on":
            what = "there is no C++ compiler for torch's compiler to use"
            raise UserError(what, where="compile", remedy="install g++, or set compile: off")
        self.progress.note("no C++ compiler found: formulas are not compiled, which is slower")
        return False

    def _compile(self) -> None:
        """Compile on documents that are always the same: the compiler tunes its code to the sizes that it sees first, and a run that
        goes on would see others than the run that it continues."""
        begun, length = time.monotonic(), min(256, self.config.sequence_length)
        count = max(2, self.config.sequence_length * self.config.batch_sequences // length)
        ids = np.arange(count * length) % self.model.get_input_embeddings().weight.shape[0]
        lengths = [length - i % 3 for i in range(count)]
        batch = make_batch([Encoded(ids[:n], np.ones(n, np.uint8)) for n in lengths], [0] * count)
        with kernels.compiled(True):
            self.objective.loss(self.model, TorchBatch.of(batch, self.device, packed=True)).total.backward()
        self.model.zero_grad()
        self.progress.note(f"formulas compiled in {time.monotonic() - begun:.0f} s")

    # -- going on ---------------------------------------------------------------------------------------------------

    def resume(self) -> int:
        """Go on from the latest checkpoint in the folder, if there is one; returns the step."""
        places = [self.folder / where for where in ("resume", "checkpoints")]
        for place, keep in zip(places, (1, self.config.checkpoints.keep), strict=True):
            # A kill between a save and its clean-up would leave one checkpoint more than an undisturbed run keeps.
            checkpoint.retain(place, keep)
        usable = [(s, place / checkpoint.name_of(s)) for place in places for s in checkpoint.steps_in(place) if s <= self.total]
        if usable:
            self.restore(checkpoint.load(max(usable)[1]))
        lines = self._metric_lines()
        (self.folder / "metrics.jsonl").write_text("".join(lines[: self.step]), encoding="utf-8")
        if len(lines) < self.step:
            raise UserError("the draft's metrics are shorter than its checkpoint", where=str(self.folder), remedy="delete this draft")
        return self.step

    def restore(self, state: checkpoint.State) -> None:
        """Take over a checkpoint's state.

        Raises:
            UserError: it is of another shape than this model.
        """
        for name, tensor in self.masters.named.items():
            saved = state.weights.get(name)
            if saved is None or saved.shape != tensor.shape:
                shape = "missing" if saved is None else f"of shape {tuple(saved.shape)}"
                what = f"the checkpoint's weight '{name}' is {shape}, the model's is {tuple(tensor.shape)}"
                raise UserError(what, remedy="give a checkpoint of this model")
        self.masters.load(state.weights)
        self.optimizer.load({path: value for path, value in state.optimizer.items() if not is_average(path)})
        if self.average is not None:
            self.average.load(state.optimizer, int(state.place["step"]))
        self.stream.restore(state.place["stream"])
        self.step, self.seen = int(state.place["step"]), dict(state.place["seen"])

    def state(self) -> checkpoint.State:
        place = {"step": self.step, "seen": self.seen, "stream": self.stream.state()}
        kept = self.optimizer.state() | (self.average.state() if self.average is not None else {})
        return checkpoint.State(dict(self.masters.named), kept, place)

    def _metric_lines(self) -> list[str]:
        path = self.folder / "metrics.jsonl"
        if not path.exists():
            return []
        # A kill can leave half of the last line; only whole ones count.
        return [line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]

    # -- steps ------------------------------------------------------------------------------------------------------

    def run(self, until: int | None = None) -> dict[str, Any]:
        """Train up to step `until` (None: the end of the budget), writing metrics and checkpoints.

        Returns:
            Figures that are a function of the run: steps, tokens, supervised_tokens, final and mean last loss.

        Raises:
            UserError: a loss that is not finite, or a step without any supervised token.
        """
        until = self.total if until is None else until
        keep = self.config.checkpoints
        self.progress.start(until, "steps")
        (self.folder / "logs").mkdir(parents=True, exist_ok=True)
        last_save, recent = time.monotonic(), _Speed()
        with _appending(self.folder / "metrics.jsonl") as metrics, _appending(self.folder / "logs" / "speed.jsonl") as speed:
            while self.step < until:
                begun = time.monotonic()
                line = self.one_step()
                metrics.write(json.dumps(line) + "\n")
                seconds = time.monotonic() - begun
                speed.write(json.dumps({"step": self.step, "seconds": round(seconds, 4), "tokens": line["tokens"]}) + "\n")
                self.progress.update(self.step, loss=round(line["loss"], 4), tokens_per_second=recent.add(line["tokens"], seconds))
                if keep.every and self.step % keep.every == 0 and self.step < self.total:
                    self._save(metrics, self.folder / "checkpoints", keep.keep)
                elif self.step < until and time.monotonic() - last_save >= keep.resume_seconds:
                    self._save(metrics, self.folder / "resume", 1)
                    last_save = time.monotonic()
        losses = [json.loads(x)["loss"] for x in self._metric_lines()]
        tail = losses[-max(1, len(losses) // 20) :]
        figures = {"final_loss": losses[-1], "mean_loss_last_5_percent": sum(tail) / len(tail)}
        return {"steps": self.step, **self.seen, **figures, "packed": self.packed}

    def _save(self, metrics: Any, folder: Path, keep: int) -> None:
        # The checkpoint must not be ahead of the metrics: after a kill the lines up to its step have to be there.
        metrics.flush()
        checkpoint.save(folder, self.step, self.state())
        checkpoint.retain(folder, keep)

    def one_step(self) -> dict[str, Any]:
        """One optimiser step; returns its line of metrics."""
        with kernels.compiled(self.compiled):
            return self._one_step(next(self.stream))

    def _one_step(self, whole: Any) -> dict[str, Any]:
        capacity = self.config.sequence_length * self.config.batch_sequences
        parts = [TorchBatch.of(b, self.device, packed=self.packed) for b in whole.split(capacity)]
        supervised = sum(int(p.predict_N.numel()) for p in parts)
        if supervised == 0:
            what = f"step {self.step + 1} has no supervised token in {whole.tokens} tokens"
            raise UserError(what, remedy="look at the rows with `cairn tokens`")
        total = 0.0
        for number, part in enumerate(parts):
            with _drawing(seeds.seed(self.seed, f"dropout/{number}", self.step), self.device):
                loss = self.objective.loss(self.model, part)
                # Divided by the count of the whole step, so that accumulation changes nothing but rounding.
                (loss.total / supervised).backward()
            self.masters.collect()
            total += float(loss.total.detach())
        norm = clip_gradients(self.masters.named, self.config.clip)
        if not math.isfinite(total) or not math.isfinite(norm):
            raise UserError(
                f"the loss is {total / supervised} and the gradient's norm {norm} at step {self.step + 1}",
                where=f"documents of sources {sorted(set(whole.sources))}, {len(whole.doc_lengths)} of them",
                remedy="lower the rate, or warm up longer",
            )  # fmt: skip
        rate = factor(self.config.schedule, self.step, self.total)
        self.optimizer.step(rate, self.step)
        self.masters.publish()
        self.masters.clear()
        self.step += 1
        if self.average is not None:
            self.average.update(self.step, self.masters.named)
        self.seen["tokens"] += whole.tokens
        self.seen["supervised_tokens"] += supervised
        return {
            "step": self.step, "loss": total / supervised, "lr": rate * self.config.optimizer.lr, "grad_norm": norm,
            "tokens": whole.tokens, "supervised_tokens": supervised,
        }  # fmt: skip

    def finished_weights(self, *, last: bool = False) -> dict[str, Tensor]:
        """What was trained, by name: the average where one is kept, unless the last weights are asked for."""
        return self.masters.named if last or self.average is None else self.average.named

    def finished_model(self, *, last: bool = False) -> Any:
        """The model with its `finished_weights` in fp32, ready to be saved."""
        weights = self.finished_weights(last=last)
        for name, p in self.model.named_parameters():
            if name in weights:
                # A copy, for the weights that compute may be the very ones that are moved.
                p.data = weights[name].detach().float().clone()
            elif is_plain(p):
                p.data = p.data.float()
        restore(self.model)
        if self.packed:
            self.model.set_attn_implementation(self.plain_attention)
        return self.model.cpu().eval()


def _switch_off_dropout(model: Any) -> bool:
    """Set every rate of dropout, of skipped layers and of router noise to zero, in the modules only; whether any was above.

    An adapter's dropout stays: it was asked for in the recipe, and `_drawing` makes it repeatable.
    """
    found = False
    for module in model.modules():
        if getattr(module, "seeded", False):
            continue
        for name, value in list(vars(module).items()):
            random = any(word in name for word in ("drop", "jitter")) or (name == "p" and isinstance(module, torch.nn.Dropout))
            if random and isinstance(value, float) and value > 0:
                setattr(module, name, 0.0)
                found = True
    return found


@contextmanager
def _drawing(seed: int, device: str) -> Iterator[None]:
    """Let dropout draw from `seed`: torch draws from a global generator, whose state a resumed run could not have."""
    with torch.random.fork_rng(devices=[] if device == "cpu" else None):
        torch.manual_seed(seed)
        yield


def _appending(path: Path) -> IO[str]:
    return open(path, "a", encoding="utf-8")


class _Speed:
    """Tokens/s over the last twenty steps, for the eye only."""

    def __init__(self) -> None:
        self.items: list[tuple[int, float]] = []

    def add(self, tokens: int, seconds: float) -> int:
        self.items = [*self.items[-19:], (tokens, seconds)]
        return round(sum(t for t, _ in self.items) / max(1e-9, sum(s for _, s in self.items)))


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a metrics file."""
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)
