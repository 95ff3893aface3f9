"""The stage `train`: rows and a model in, a trained model with its tokenizer and format out. Knows how the rooms fit together.

Outputs: `model/` (an ordinary Hugging Face folder), `adapter/` (peft's layout, if one was trained), `model-last/` or `adapter-last/` (if
the former are averages and both are asked for), `metrics.jsonl`, `mix.json` (the table of the data), `checkpoints/`.
"""

from __future__ import annotations

import contextlib
import json
import shlex
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from cairn.chat.format import load_format
from cairn.data.mix import passes, show_passes
from cairn.data.sources import Source
from cairn.errors import UserError
from cairn.model.adapter_config import MODEL_FILES, model_place
from cairn.pipeline.companions import give_tokenizer
from cairn.pipeline.documents import REFERENCE, TEACHER, Look, encode_sources, reference_place
from cairn.pipeline.stage import Context, Estimate, Stage, register
from cairn.pipeline.training import TrainConfig, check_vocabulary, format_of
from cairn.pipeline.training_cost import estimate
from cairn.train.board import require_tensorboard

if TYPE_CHECKING:
    from cairn.train.loop import Trainer
    from cairn.train.ranks import Ranks


def _reached(context: Context) -> dict[str, Any]:
    """The shares of the drawn tokens that were asked for, as the run drew them."""
    from cairn.data.shares import reached
    from cairn.train.loop import read_metrics

    drawn: dict[str, int] = {}
    for line in read_metrics(context.draft / "metrics.jsonl"):
        for name, one in line["sources"].items():
            drawn[name] = drawn.get(name, 0) + one["tokens"]
    groups = json.loads((context.draft / "mix.json").read_text(encoding="utf-8"))["groups"]
    return reached(drawn, groups, context.config.shares)


class Rows(NamedTuple):
    """What became of the sources' rows; see `Parts`."""

    encoded: list[list[Any]]
    origins: Any
    counters: dict[str, Any]
    weights: list[float]


@dataclass
class Parts:
    """What a training is built from."""

    folder: Path
    """The tokenizer's."""
    renderer: Any
    model: Any
    adapted: Any
    """The adapter, or None."""
    encoded: list[list[Any]]
    """Documents of each source."""
    origins: Any
    """Where they came from; without rows on a rank that read prepared documents."""
    counters: dict[str, Any]
    """What became of the rows of each source; empty on such a rank."""
    weights: list[float]
    """How often a row of each source is drawn."""
    parameters: int
    trained: int


@register
class Train(Stage):
    """Train a model."""

    kind = "train"
    config: ClassVar[type[TrainConfig]] = TrainConfig

    def resolve(self, config: Any, others: Mapping[str, Any]) -> Any:
        return config.resolved(getattr(others.get(config.tokenizer), "vocab_size", None))

    def chosen(self, config: Any) -> dict[str, Any]:
        if config.budget is None:
            return {}
        shape, optimizer = config.model, config.optimizer
        return {
            "budget": config.budget.flops, "family": shape.family, "hidden_size": shape.hidden_size, "layers": shape.layers,
            "heads": shape.heads, "intermediate_size": shape.intermediate_size, "steps": config.total_steps,
            "step_tokens": config.step_tokens, "lr": optimizer.lr, "adam_lr": optimizer.adam_lr, "embedding_lr": optimizer.embedding_lr,
            "rates_hold_at_width": shape.mup.base_width if shape.mup else shape.hidden_size,
        }  # fmt: skip

    def run(self, context: Context) -> dict[str, Any]:
        if context.config.watch.tensorboard:
            require_tensorboard()
        if context.several:
            context.team.summon(context.draft / "logs")
        parts = self._prepare(context)
        with _together(context) as ranks:
            trainer = self._trainer(context, parts, ranks)
            if context.first:
                context.store.test_save(trainer.needed_bytes())
            self._equip(context, parts, trainer)
            resumed = trainer.resume()
            if resumed:
                context.progress.note(f"goes on from step {resumed}")
            figures = trainer.run()
            save = self._save_model if parts.adapted is None else self._save_adapter
            figures |= save(context, trainer, parts)
        counts = {"parameters": parts.parameters, "trained_parameters": parts.trained}
        # Frozen weights take no product for a gradient of their own: four operations a token instead of six.
        flops = (4.0 * parts.parameters + 2.0 * parts.trained) * figures["tokens"]
        told = {"shares": _reached(context)} if context.config.shares is not None and context.first else {}
        return {**figures, **counts, "flops": flops, "sources": parts.counters, **told}

    def replay_interval(self, context: Context, a: int, b: int) -> list[dict[str, str]]:
        """Train again from the recorded checkpoint of step `a` (0: the beginning) to `b`, and compare that checkpoint's bytes."""
        from cairn.ledger.digest import file_digest
        from cairn.train import checkpoint

        recorded = context.recorded
        assert recorded is not None
        known = [0, *checkpoint.steps_in(recorded.path("checkpoints"))]
        for step in (a, b):
            if step not in known:
                raise UserError(f"no checkpoint of step {step} was kept", where=str(recorded.folder), remedy=f"kept: {known}")
        if b <= a:
            raise UserError(f"the interval {a}:{b} is empty", remedy="give A:B with A < B")
        parts = self._prepare(context)
        trainer = self._trainer(context, parts)
        self._equip(context, parts, trainer)
        if a:
            trainer.restore(checkpoint.load(recorded.path("checkpoints") / checkpoint.name_of(a)))
        trainer.run(until=b)
        again = checkpoint.save(context.draft / "checkpoints", b, trainer.state())
        found = []
        for file in sorted(p.name for p in again.iterdir()):
            relative = f"checkpoints/{again.name}/{file}"
            if file_digest(again / file) != file_digest(recorded.path(relative)):
                found.append({"path": relative, "why": f"steps {a} to {b} gave other bytes"})
        return found

    def outputs(self, config: Any) -> set[str]:
        alone = config.adapter is not None and not config.adapter.merge
        own = config.needs_reference and config.reference is None
        return {MODEL_FILES[alone], "metrics.jsonl", "mix.json"} | ({REFERENCE} if own else set())

    def needs(self, config: Any) -> list[tuple[tuple[str, ...], str, tuple[str, ...]]]:
        taught = config.distillation.teacher if config.distillation is not None else None
        asked: tuple[tuple[tuple[str, ...], str | None, tuple[str, ...]], ...] = (
            (("init",), config.init, MODEL_FILES), (("tokenizer",), config.tokenizer, ("tokenizer.json",)),
            (("reference",), config.reference, (REFERENCE,)), (("distillation", "teacher"), taught, (TEACHER, *MODEL_FILES)),
        )  # fmt: skip
        return [(place, stage, files) for place, stage, files in asked if stage is not None]

    def estimate(self, config: Any, inputs: dict[str, Any]) -> Estimate:
        return estimate(config, inputs)

    # -- parts ------------------------------------------------------------------------------------------------------

    def _prepare(self, context: Context) -> Parts:
        """Everything that is checked and built before ranks come together; rank 0 encodes the rows, the others read what it wrote."""
        from cairn.chat.render import Renderer
        from cairn.model.adapter import attach
        from cairn.model.determinism import deterministic
        from cairn.model.nf4 import count_weights
        from cairn.tokenizer.load import Tokenizer
        from cairn.train.optim import check_groups

        config: TrainConfig = context.config
        deterministic()
        folder = self._tokenizer_folder(context)
        tokenizer = Tokenizer.load(folder)
        renderer = Renderer(format_of(config) or load_format(folder), tokenizer)
        model = self._model(context, tokenizer)
        adapted = attach(model, config.adapter, context.seed) if config.adapter is not None else None
        parameters, trained = count_weights(model), sum(p.numel() for p in model.parameters() if p.requires_grad)
        context.progress.note(f"model: {parameters:,} parameters" + (f", {trained:,} of them trained" if adapted else ""))
        # Before the rows are read, which may take long.
        check_groups(config.optimizer.groups, [name for name, p in model.named_parameters() if p.requires_grad])
        rows = self._rows(context, folder, renderer, tokenizer)
        return Parts(folder, renderer, model, adapted, *rows, parameters, trained)

    def _rows(self, context: Context, folder: Path, renderer: Any, tokenizer: Any) -> Rows:
        """The documents of each source."""
        from cairn.data import shelf
        from cairn.train.objectives import load_objective
        from cairn.train.watch import Origins

        config: TrainConfig = context.config
        shelved, rows = context.draft / "resume" / "rows", None
        counters: dict[str, Any] = {}
        if context.first:
            targets = load_objective(config.objective, config).targets
            kind = {"all": "language_model", "mask": "supervised", "answers": "answers"}[targets]
            margins = config.reward is not None and config.reward.margin == "rows"
            look = Look(config.labelled, renderer.format.attributes or {}, margins)
            encoded, rows, table, counters = encode_sources(context, renderer, tokenizer, kind, mismatched=config.mismatched, on_row=look)
            weights = look.weights(config, encoded)
            if config.shares is not None:
                table |= {"weights": dict(zip((s.name for s in config.data), weights, strict=True)), "groups": look.groups()}
            (context.draft / "mix.json").write_text(json.dumps(table, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
            if not config.asks:
                told = passes(config.total_steps * config.step_tokens, *_sizes(encoded), weights)
                shown = ", ".join(f"{s.name} {show_passes(n)}" for s, n in zip(config.data, told, strict=True))
                context.progress.note(f"goes through its data: {shown}")
            if context.several:
                shelf.put(shelved, encoded)
        else:
            encoded = shelf.take(shelved)
            told = json.loads((context.draft / "mix.json").read_text(encoding="utf-8")).get("weights", {})
            weights = [told.get(s.name, s.weight) for s in config.data]
        names = [s.name for s in config.data]
        origins = Origins(names, rows, lambda source, row: show_row(context, folder, config.data[source], row))
        return Rows(encoded, origins, counters, weights)

    def _trainer(self, context: Context, parts: Parts, ranks: Ranks | None = None) -> Trainer:
        from cairn.ledger import seeds
        from cairn.model.determinism import deterministic
        from cairn.train.loop import Trainer
        from cairn.train.ranks import alone

        config: TrainConfig = context.config
        ranks = ranks or alone()
        if ranks.threads is not None:
            deterministic(ranks.threads)
        seed = seeds.seed(context.seed, "train")
        stream = self._stream(context, parts, ranks, seed)
        trainer = Trainer(parts.model, stream, config, context.draft, context.progress, ranks, seed=seed, origins=parts.origins)
        context.environment["formulas"] = trainer.formulas
        return trainer

    def _stream(self, context: Context, parts: Parts, ranks: Ranks, seed: int) -> Any:
        """The batches, one a step."""
        from cairn.data.batches import PackedStream

        config: TrainConfig = context.config
        stream = PackedStream(parts.encoded, parts.weights, seed, config.sequence_length, config.batch_sequences * config.accumulate)
        if config.distillation is None or not config.distillation.on_policy:
            return stream
        from cairn.tokenizer.load import Tokenizer
        from cairn.train.own import OwnAnswers

        told: dict[str, Any] = {"stop_ids": frozenset(parts.renderer.stop_ids), "vocab_size": Tokenizer.load(parts.folder).vocab_size}
        return OwnAnswers(stream, config.distillation, seed=seed, ranks=ranks, **told)

    def _equip(self, context: Context, parts: Parts, trainer: Trainer) -> None:
        """The teacher, where the objective learns from one; the reference's log-probabilities, where the loss asks for them: of a stage, or
        of the weights before the first step."""
        config: TrainConfig = context.config
        if any(source.loss_weight != 1.0 for source in config.data):
            trainer.objective.of_source = [source.loss_weight for source in config.data]
        if config.distillation is not None:
            from cairn.pipeline.teachers import teacher_of

            trainer.objective.teacher = teacher_of(context, parts.folder, parts.encoded, trainer.model, trainer.ranks.device)
            if config.distillation.on_policy:
                stream: Any = trainer.stream
                stream.bind(trainer)
        if not config.needs_reference:
            return
        place = reference_place(context.inputs[config.reference] if config.reference is not None else None, context.draft)
        if parts.adapted is None:
            trainer.take_reference(parts.encoded, place)
        else:
            trainer.take_reference(parts.encoded, place, parts.adapted.peft.disable_adapter)

    def _tokenizer_folder(self, context: Context) -> Path:
        config: TrainConfig = context.config
        if config.tokenizer is not None:
            return context.inputs[config.tokenizer].path()
        return self._start(context)

    def _start(self, context: Context) -> Path:
        """The folder of the model that is trained further."""
        config: TrainConfig = context.config
        return model_place(context.inputs[config.init].path()) if config.init is not None else Path(str(config.checkpoint))

    def _model(self, context: Context, tokenizer: Any) -> Any:
        from cairn.model.adapter import base_config, grow_vocabulary, load_base, plan_adapter
        from cairn.model.context import check_length
        from cairn.model.load import load_model, new_model
        from cairn.model.reward import reward_from

        config: TrainConfig = context.config
        if config.model is not None:
            ids = {"bos_id": tokenizer.bos_id, "eos_id": tokenizer.eos_id, "pad_id": tokenizer.pad_id}
            return new_model(config.model, vocab_size=tokenizer.vocab_size, seed=context.seed, **ids)
        folder = self._start(context)
        if config.objective == "reward":
            pad = tokenizer.pad_id if tokenizer.pad_id is not None else tokenizer.eos_id
            model = reward_from(folder, seed=context.seed, pad_id=0 if pad is None else pad)
        elif config.adapter is not None:
            plan_adapter(base_config(folder), config.adapter)
            model = load_base(folder, config.adapter.base)
        else:
            model = load_model(folder, "float32", eval_mode=False)
        have = model.get_input_embeddings().weight.shape[0]
        if have < tokenizer.vocab_size:
            head = model.get_output_embeddings()
            tied = head is None or head.weight is model.get_input_embeddings().weight
            check_vocabulary(config, tokenizer.vocab_size, have, tied=tied, where=str(folder))
            grow_vocabulary(model, tokenizer.vocab_size)
        check_length(model.config, config.sequence_length)
        return model

    def _save_model(self, context: Context, trainer: Trainer, parts: Parts) -> dict[str, Any]:
        from cairn.model.load import save_model

        for name, last in _folders(context.config, "model"):
            model = trainer.finished_model(last=last)  # every rank takes part
            if not context.first:
                continue
            out = context.draft / name
            shutil.rmtree(out, ignore_errors=True)
            with trainer.ranks.busy():
                save_model(model, out, stop_ids=sorted(parts.renderer.stop_ids))
                give_tokenizer(parts.folder, out, format_of(context.config))
        return {}

    def _save_adapter(self, context: Context, trainer: Trainer, parts: Parts) -> dict[str, Any]:
        """Write `adapter/` and, unless the recipe says no, `model/` merged; figures for the record."""
        from cairn.ledger.digest import folder_digest
        from cairn.model.adapter import merge_folder, save_adapter

        if not context.first:
            return {}
        merged, base = context.draft / "model", self._start(context)
        shutil.rmtree(merged, ignore_errors=True)
        vocabulary = int(trainer.model.get_input_embeddings().weight.shape[0])
        with trainer.ranks.busy():
            told = {"digest": folder_digest(base), "held": context.config.adapter.base, "vocabulary": vocabulary}
            stop_ids = sorted(parts.renderer.stop_ids)
            for name, last in _folders(context.config, "adapter"):
                out = context.draft / name
                shutil.rmtree(out, ignore_errors=True)
                save_adapter(parts.adapted, trainer.finished_weights(last=last), out, told, stop_ids=stop_ids)
                give_tokenizer(parts.folder, out, format_of(context.config))
            if not context.config.adapter.merge:
                return {}
            difference = merge_folder(out, base, merged)
            give_tokenizer(parts.folder, merged, format_of(context.config))
        return {"merge_difference": difference}


def _sizes(encoded: list[list[Any]]) -> tuple[list[float], list[float]]:
    """How many documents each source has, and their mean length."""
    return [float(len(own)) for own in encoded], [sum(map(len, own)) / len(own) for own in encoded]


def _folders(config: TrainConfig, name: str) -> list[tuple[str, bool]]:
    """Where what was trained is written, and whether as the last weights; the one that counts comes last."""
    both = config.ema is not None and config.ema.use == "both"
    return [*([(f"{name}-last", True)] if both else []), (name, False)]


@contextlib.contextmanager
def _together(context: Context) -> Iterator[Ranks]:
    """All ranks of the run; this process alone where there is one."""
    from cairn.train.ranks import alone

    if not context.several:
        yield alone()
        return
    with context.team.together(context.name, context.key, context.draft, context.progress.close) as ranks:
        context.environment.update(world_size=ranks.world, threads=ranks.threads)
        yield ranks


def show_row(context: Context, tokenizer: Path, source: Source, row: int) -> str:
    """The command that shows a row of a source as training saw it."""
    words = ["cairn", "tokens", str(tokenizer), str(context.place(source)), "--row", str(row)]
    words += ["--reader", source.reader] if source.reader != "auto" else []
    for option, value in (("encoding", source.encoding), ("separator", source.separator), ("format", context.config.format)):
        words += [f"--{option}", value] if value else []
    return shlex.join(words)
