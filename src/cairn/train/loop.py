"""The one training loop. Knows an objective, batches, an optimiser and checkpoints; no rows, no recipe, no stage graph.

Every step is a function of the weights, the optimiser's state and the step's number: batches come by number, and dropout is drawn from
a seed of its own at every micro-batch. So a run that was killed and goes on gives the bytes of one that was not. `metrics.jsonl` holds
what is a function of the run; seconds and tokens/s go to `logs/`, which no digest covers.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from cairn.data.batches import make_batch
from cairn.data.encode import Encoded
from cairn.errors import UserError
from cairn.ledger import seeds
from cairn.ledger.progress import Progress
from cairn.ledger.store import show_bytes, write_atomically
from cairn.model import kernels
from cairn.model.fused import fuse, restore
from cairn.model.head import head_agrees
from cairn.model.load import dtype_of
from cairn.model.mup import scales_of
from cairn.model.native import train as native
from cairn.model.nf4 import count_weights
from cairn.model.packing import Verdict, answers_agree, probe, try_packing
from cairn.model.recompute import keep_all, recompute
from cairn.model.speed import keep_freed_memory
from cairn.train import checkpoint
from cairn.train.config import COMPILE_FLOPS, Training
from cairn.train.ema import Average, is_average
from cairn.train.forward import TorchBatch
from cairn.train.masters import clipping
from cairn.train.objectives import load_objective
from cairn.train.optim import Optimizer, embedding_names
from cairn.train.preference import Adviser
from cairn.train.ranks import ALONE, Ranks
from cairn.train.reference import documents_digest, load, measure, save
from cairn.train.schedule import factor
from cairn.train.sharding import fit, lay_out
from cairn.train.watch import Origins, Tally, Watch, Work, stop_not_finite, stop_without_targets


class Stream(Protocol):
    """Batches by step; its place can be saved and restored."""

    def __next__(self) -> Any: ...
    def state(self) -> dict[str, int]: ...
    def restore(self, state: dict[str, int]) -> None: ...


class Trainer:
    """One run of training.

    Args:
        model: a transformers causal LM in fp32 whose weights it moves.
        stream: batches of `config.step_tokens` capacity.
        config: how to train.
        folder: where `metrics.jsonl`, `checkpoints/`, `resume/` and `logs/` are written; what lies there is resumed.
        progress: who is told.
        ranks: the processes that train together. Each makes the same calls; rank 0 alone writes.
        seed: of what is drawn in training itself: a model's dropout, and roundings by chance.
        origins: names of sources and rows, for lines and messages.
    """

    def __init__(
        self, model: Any, stream: Stream, config: Training, folder: Path, progress: Progress, ranks: Ranks = ALONE, seed: int = 0,
        origins: Origins | None = None,
    ) -> None:  # fmt: skip
        keep_freed_memory()
        self.seed = seed
        self.config, self.folder, self.progress, self.ranks, self.device = config, folder, progress, ranks, ranks.device
        self.origins = origins or Origins()
        self.model = model.to(self.device).train()
        self.stream, self.total = stream, config.total_steps
        self.objective = load_objective(config.objective, config)
        self.adviser = self._adviser()
        if self.objective.head == "language" and not head_agrees(self.model.eval()):
            raise UserError(
                f"the family '{model.config.model_type}' scales its logits in a way that is not known here", where="model",
                remedy="use another family",
            )  # fmt: skip
        if _switch_off_dropout(self.model):
            progress.note("the model's dropout is switched off: its draws depend on a state that a resumed run does not have")
        self.plain_attention = model.config._attn_implementation
        verdict = try_packing(self.model, config.attention, longest=config.sequence_length, dtype=dtype_of(config.compute))
        self.packed = verdict.packs
        if self.packed and self.objective.targets == "answers" and not answers_agree(self.model):
            verdict, self.packed = Verdict(False, "its second answers would not stand right behind the prompt"), False
            self.model.set_attn_implementation(self.plain_attention)
        if verdict.note:
            progress.note(f"'{model.config.model_type}' {verdict.note}")
        fused = fuse(self.model, partial(probe, longest=config.sequence_length)) if self.packed else []
        self.model.train()
        embeddings, scales = embedding_names(self.model), scales_of(self.model)
        layout = fit(config, self.model, ranks, fused="feed-forward" in fused)
        if layout.recomputed:
            recompute(self.model, layout.recomputed)
            progress.note(f"{layout.recomputed} blocks compute their activations again in the backward, to stay within memory")
        self.sharding = lay_out(self.model, self.objective, ranks, config, layout.sharding)
        self.masters = self.sharding.masters
        if fused:
            self.sharding.join_weights()
        self.native = bool(fused) and self._has_kernels()
        self.compiled = bool(fused) and not self.native and self._pays_to_compile()
        if self.compiled:
            self._compile()
        spread = self.sharding.spread
        low = self.masters.low if self.native else None
        self.optimizer = Optimizer(config.optimizer, self.masters.named, *embeddings, seed=seed, scales=scales, spread=spread, low=low)
        if config.optimizer.state != "float32":
            sizes = [show_bytes(self.optimizer.planned_bytes(coded=coded)) for coded in (True, False)]
            progress.note(f"optimiser states take {sizes[0]} in {config.optimizer.state}, and would take {sizes[1]} in float32")
        self.average = Average(config.ema) if config.ema is not None else None
        self.last_save, self.save_due = time.monotonic(), False
        self.step, self.seen = 0, {"tokens": 0, "supervised_tokens": 0}
        self.writer = checkpoint.Writer(folder / "metrics.jsonl")
        self.watch: Watch | None = None

    @property
    def formulas(self) -> str:
        """What computes a block: `native` (our own kernels), or torch with its formulas `compiled` or `plain`."""
        return "native" if self.native else "compiled" if self.compiled else "plain"

    def _adviser(self) -> Adviser | None:
        return Adviser(self.objective.rules) if self.objective.rules else None

    def _has_kernels(self) -> bool:
        """Whether our own kernels compute what lies between products: on a CPU in bf16, where this machine can build them."""
        config = self.config
        if config.compile == "off" or dtype_of(config.compute) != torch.bfloat16 or not self.device.startswith("cpu"):
            return False
        if reason := native.missing():
            self.progress.note(f"kernels for training are not used: {reason}")
        return not native.missing()

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
        answers = (length // 4, length // 4) if self.objective.targets == "answers" else ()
        documents = [Encoded(ids[:n], np.ones(n, np.uint8), answers) for n in lengths]
        rehearsal = replace(TorchBatch.of(make_batch(documents, [0] * count), self.device, packed=True), measured=(0.0, 1.0))
        with kernels.compiled(True), self.objective.rehearsing(documents):
            self.sharding.loss(rehearsal).total.backward()
        self.model.zero_grad()
        self.progress.note(f"formulas compiled in {time.monotonic() - begun:.0f} s")

    def take_reference(self, documents: Sequence[Sequence[Encoded]], path: Path, base: Callable[[], Any] = nullcontext) -> None:
        """Give the objective the log-probabilities of its reference: those in `path`, or else of the weights as they are, kept there.

        Args:
            documents: all documents of each source.
            path: the file.
            base: a context in which the model is its own reference (an adapter is off).
        """
        digest = documents_digest(documents)
        if not self.ranks.agree(path.is_file() if self.ranks.first else None):
            self.progress.start(sum(map(len, documents)), "documents for the reference")
            capacity = self.config.sequence_length * self.config.batch_sequences
            self.model.eval()
            with self._quickened(), base():
                found = measure(
                    documents, capacity, self.sharding.measure, self.ranks, packed=self.packed, even=self.sharding.even,
                    on_progress=lambda done, total: self.progress.update(done),
                )  # fmt: skip
            self.model.train()
            if self.ranks.first:
                save(found, digest, path)
            self.ranks.barrier()
        self.objective.reference = load(path, digest)

    # -- going on ---------------------------------------------------------------------------------------------------

    def resume(self) -> int:
        """Go on from the latest checkpoint in the folder, if there is one; returns the step."""
        lines = self._metric_lines()
        latest = self.ranks.agree(self._latest() if self.ranks.first else None)
        if latest is not None:
            self.restore(checkpoint.load(Path(latest)))
        if len(lines) < self.step:
            raise UserError("the draft's metrics are shorter than its checkpoint", where=str(self.folder), remedy="delete this draft")
        # Only when all have read what is there.
        self.ranks.barrier()
        if self.ranks.first:
            # Never truncated in place: a kill between that and the writing would leave a checkpoint without its lines.
            write_atomically(self.folder / "metrics.jsonl", "".join(lines[: self.step]))
        return self.step

    def _latest(self) -> str | None:
        """The folder of the latest usable checkpoint; what a kill left over is deleted."""
        places = [self.folder / where for where in ("resume", "checkpoints")]
        for place, keep in zip(places, (1, self.config.checkpoints.keep), strict=True):
            # A kill between a save and its clean-up would leave one checkpoint more than an undisturbed run keeps.
            checkpoint.retain(place, keep)
        usable = [(s, place / checkpoint.name_of(s)) for place in places for s in checkpoint.steps_in(place) if s <= self.total]
        return str(max(usable)[1]) if usable else None

    def restore(self, state: checkpoint.State) -> None:
        """Take over a checkpoint's state.

        Raises:
            UserError: it is of another shape than this model.
        """
        for name, shape in self.sharding.shapes().items():
            saved = state.weights.get(name)
            if saved is None or tuple(saved.shape) != shape:
                found = "missing" if saved is None else f"of shape {tuple(saved.shape)}"
                what = f"the checkpoint's weight '{name}' is {found}, the model's is {shape}"
                raise UserError(what, remedy="give a checkpoint of this model")
        owners = {*state.weights, *(path.rsplit("/", 1)[0] for path in state.optimizer)}
        strange = sorted(owners - set(self.masters.named))
        if strange:
            what = f"the checkpoint has '{strange[0]}', which the model has not ({len(strange)} such weights)"
            raise UserError(what, remedy="give a checkpoint of this model")
        self.masters.load(self.sharding.own(state.weights))
        kept = self.sharding.own(state.optimizer)
        self.optimizer.load({path: value for path, value in kept.items() if not is_average(path)})
        if self.average is not None:
            self.average.load(kept, int(state.place["step"]))
        self.stream.restore(state.place["stream"])
        self.step, self.seen = int(state.place["step"]), dict(state.place["seen"])

    def state(self) -> checkpoint.State:
        """What a checkpoint holds. All ranks must ask; it is whole on rank 0."""
        place = {"step": self.step, "seen": self.seen, "stream": self.stream.state()}
        kept = self.optimizer.state() | (self.average.state() if self.average is not None else {})
        return checkpoint.State(self.sharding.gather(dict(self.masters.named)), self.sharding.gather(kept), place)

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
        keep, self.last_save = self.config.checkpoints, time.monotonic()
        before = [json.loads(line) for line in self._metric_lines()[: self.step]]
        losses = [line["loss"] for line in before]
        self.adviser = self._adviser()
        if self.adviser is not None:
            for line in before:
                self.adviser.see(line["objective"])
        with self._watching(until, losses), checkpoint.closing(self.writer):
            while self.step < until:
                self.writer.check()
                line = self.one_step()
                self.ranks.stepped()
                losses.append(line["loss"])
                if keep.every and self.step % keep.every == 0 and self.step < self.total:
                    self._save("checkpoints", keep.keep)
                elif self.step < until and self.save_due:
                    self._save("resume", 1)
                    self.last_save = time.monotonic()
        self.watch = None
        tail = losses[-max(1, len(losses) // 20) :]
        figures = {"final_loss": losses[-1], "mean_loss_last_5_percent": sum(tail) / len(tail)}
        advice = {"warnings": self.adviser.told} if self.adviser is not None else {}
        return {"steps": self.step, **self.seen, **figures, "packed": self.packed, **advice}

    def needed_bytes(self) -> int:
        """Disk that the checkpoints still to come and the final model take, from the parameters: the optimiser's state is made later."""
        one = self.config.checkpoint_bytes * sum(map(math.prod, self.sharding.shapes().values()))
        # The model is saved in fp32, frozen weights included.
        return checkpoint.planned_bytes(self.folder, round(one), self.config.kept_checkpoints) + 4 * count_weights(self.model)

    def _watching(self, until: int, losses: list[float]) -> AbstractContextManager[Any]:
        """The watch over this run's steps, on rank 0."""
        if not self.ranks.first:
            return nullcontext()
        work = Work.of(self.model, self.config.compute)
        # Measured with this rank's threads, on its device; the tokens are those of all.
        work = replace(work, rate=work.rate * self.ranks.world)
        self.watch = Watch(self.folder, self.config.watch, self.origins, self.progress, work, (self.step, until), losses[:])
        return self.watch

    def _save(self, place: str, keep: int) -> None:
        state = self.state()
        if self.watch is not None:
            with self.ranks.busy():
                # The checkpoint must not be ahead of the metrics: after a kill the lines up to its step have to be there.
                self.watch.flush()
                self.writer.save(self.folder / place, self.step, state, keep)

    def one_step(self) -> dict[str, Any]:
        """One optimiser step; returns its line of metrics."""
        with self._quickened():
            return self._one_step()

    @contextmanager
    def _quickened(self) -> Iterator[None]:
        """Our own kernels, or compiled formulas, where this run has them."""
        with native.switched(self.native), kernels.compiled(self.compiled):
            yield

    def _one_step(self) -> dict[str, Any]:
        begun, tally = time.monotonic(), Tally()
        whole = next(self.stream)
        capacity = self.config.sequence_length * self.config.batch_sequences
        parts, idle = self.ranks.share(whole, capacity, even=self.sharding.even)
        batches = self._batches([*parts, *idle], max(1, capacity // 32))
        # Of the whole step: every rank has read it, so nobody needs to ask.
        supervised, terms = whole.predicted, self.objective.count(whole)
        if supervised == 0:
            for part, batch in zip(parts, batches, strict=False):
                tally.add(part, batch)
            raise stop_without_targets(self.step + 1, tally, self.origins)
        total = 0.0
        for number, batch in enumerate(batches):
            # Of a rank's own: two ranks must not drop the same places. The first rank draws as a single process does.
            stream = f"dropout/{number}" if self.ranks.first else f"dropout/{self.ranks.rank}.{number}"
            with _drawing(seeds.seed(self.seed, stream, self.step), self.device):
                loss = self.sharding.loss(batch)
                # Divided by the count of the whole step, so that accumulation and ranks change nothing but rounding.
                (loss.total / terms).backward()
            self.sharding.collect()
            total += float(loss.total.detach())
            if number < len(parts):
                tally.add(parts[number], batch, loss)
        # When to save is rank 0's clock to say: two clocks would part, and one rank wait in a save for the other.
        total, due = self.sharding.add_up([total, float(self._is_late())])
        self.save_due, tally = bool(due), Tally.merged(self.ranks.collect(tally))
        norm, shrink = clipping(self.masters.gradients, self.config.clip, self.sharding.total_square, own=self.native)
        mean = total / terms
        if not math.isfinite(total) or not math.isfinite(norm):
            raise stop_not_finite(self.step + 1, mean, norm, tally, self.origins, self.masters.named.items())
        if self.watch is not None:
            self.watch.judge(self.step + 1, mean, tally)
        rate = factor(self.config.schedule, self.step, self.total)
        # From here on weights move: a checkpoint that is still being written keeps the old ones.
        self.writer.release()
        published = self.optimizer.step(rate, self.step, self.masters.gradients, shrink)
        self.sharding.publish(published)
        self.step += 1
        if self.average is not None:
            self.average.update(self.step, self.masters.named)
        self.seen["tokens"] += whole.tokens
        self.seen["supervised_tokens"] += supervised
        line = {
            "step": self.step, "loss": mean, "lr": rate * self.config.optimizer.lr, "grad_norm": norm,
            "tokens": whole.tokens, "supervised_tokens": supervised, **tally.line(self.origins),
        }  # fmt: skip
        if "objective" in line:
            line["objective"] = self.objective.figures(line["objective"])
        if self.watch is not None:
            self.watch.tell(line, tally, time.monotonic() - begun)
            for text in self.adviser.see(line["objective"]) if self.adviser is not None else ():
                self.progress.note(f"step {self.step}: {text}")
        return line

    def _batches(self, parts: list[Any], multiple: int) -> list[TorchBatch]:
        """A rank's passes as tensors; what the objective has to know of the whole step is measured first, over all ranks."""
        extra = self.objective.extra
        if not extra:
            return [TorchBatch.of(part, self.device, packed=self.packed, multiple=multiple) for part in parts]
        alone = [TorchBatch.of(part.answer_range(-extra, None), self.device, packed=self.packed, multiple=multiple) for part in parts]
        # Without an adapter's dropout: outside of `_drawing` it would draw from a state that a resumed run does not have.
        self.model.eval()
        gathered = [self.objective.gather(self.sharding.measure(batch), batch) for batch in alone]
        self.model.train()
        measured = tuple(self.ranks.total([sum(column) for column in zip(*gathered, strict=True)]))
        rest = [TorchBatch.of(part.answer_range(None, -extra), self.device, packed=self.packed, multiple=multiple) for part in parts]
        return [replace(batch, measured=measured) for batch in rest]

    def _is_late(self) -> bool:
        """Whether a resume point is due; rank 0 knows."""
        waited, seconds = time.monotonic() - self.last_save, self.config.checkpoints.resume_seconds
        return self.ranks.first and not self.writer.busy() and waited >= self.writer.rest(seconds)

    def finished_weights(self, *, last: bool = False) -> dict[str, Tensor]:
        """What was trained, by name: the average where one is kept, unless the last weights are asked for."""
        return self.masters.named if last or self.average is None else self.average.named

    def finished_model(self, *, last: bool = False) -> Any:
        """The model with its `finished_weights` in fp32, ready to be saved on rank 0. All ranks must ask."""
        restore(self.model)
        keep_all(self.model)
        if self.packed:
            self.model.set_attn_implementation(self.plain_attention)
        return self.sharding.finished(self.finished_weights(last=last))


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


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a metrics file."""
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)
