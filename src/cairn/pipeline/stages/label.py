"""The stage `label`: labelled rows and a model in, an attribute predictor and newly labelled rows out. Knows how the rooms fit together.

Outputs: `model/` (the predictor: transformers' sequence classifier, a number for each attribute), `metrics.jsonl`, `heldout.jsonl` (labels
held out and what was predicted for them), `labelled/<source>.jsonl` (rows with every attribute at every user turn that is answered).
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from cairn.chat.attributes import Attributes, built_in, nearest
from cairn.chat.format import Attribute, check_format
from cairn.config import checked
from cairn.data.sources import Source
from cairn.errors import UserError
from cairn.ledger.refs import InputPath, StageRef
from cairn.model.adapter_config import MODEL_FILES, model_place
from cairn.pipeline.stage import Context, Stage, register
from cairn.train.config import Training

HELDOUT, LABELLED, NAME = "heldout.jsonl", "labelled", "attributes"
Row = dict[str, Any]


class LabelConfig(Training):
    """What is learnt from, what is labelled, and how the predictor is trained."""

    objective: str = NAME
    """Always `attributes`: squared distances to the labels."""
    init: StageRef | None = None
    """The train stage whose model the predictor is made from. Give this, `checkpoint` or `predictor`."""
    checkpoint: InputPath | None = None
    """A Hugging Face folder with tokenizer, in its place."""
    predictor: StageRef | None = None
    """A label stage whose predictor labels here too; nothing is trained, and all labels in `data` are held out."""
    attributes: Attributes | None = None
    """The attributes in their order: {name: {default, minimum, maximum}}. None: the nine of karakuri."""
    format: Annotated[str, checked(check_format)] | None = None
    """Chat format that the predictor reads; None means the one that lies with the model. It never shows attributes of the row."""
    data: list[Source] = Field(default_factory=list)
    """Labelled rows; an answer may have labels of some attributes only. A row without any is refused."""
    label: list[Source] = Field(default_factory=list)
    """Rows to label, which may be those of `data`: labels that are there stay. Weights do not count."""
    holdout: float = Field(default=0.1, gt=0, lt=1)
    """The share of labelled questions that agreement is measured on and nothing is learnt from."""

    @model_validator(mode="after")
    def _fits(self) -> LabelConfig:
        if sum(x is not None for x in (self.init, self.checkpoint, self.predictor)) != 1:
            raise ValueError("give exactly one of init, checkpoint and predictor")
        if self.objective != NAME or self.compile == "on":
            raise ValueError("a predictor has the objective attributes, and is not compiled")
        if self.predictor is not None and (self.steps is not None or self.tokens is not None):
            raise ValueError("with a predictor nothing is trained: leave steps and tokens out")
        if self.predictor is None and not self.data:
            raise ValueError("a predictor needs labelled rows: give data")
        if not self.data and not self.label:
            raise ValueError("there is nothing to do: give data or label")
        for sources in (self.data, self.label):
            if len({source.name for source in sources}) != len(sources):
                raise ValueError("two sources of one name")
        return self

    def _length_is_chosen(self) -> bool:
        return self.predictor is not None

    @property
    def asked(self) -> dict[str, Attribute]:
        """The attributes."""
        return self.attributes.root if self.attributes is not None else built_in()


@dataclass
class _Labels:
    """Labelled answers of one side of one source."""

    ids: list[list[int]] = field(default_factory=list)
    values: list[list[float]] = field(default_factory=list)
    """A number for each attribute, NaN where there is none."""
    rows: list[int] = field(default_factory=list)
    """Which row each came from, from 1."""
    names: list[str] = field(default_factory=list)
    """Which answer each is, for people."""


class _Reader:
    """Dialogues to ids, as the predictor sees them: without attributes, and of what is too long the end."""

    def __init__(self, config: LabelConfig, folder: Path) -> None:
        from cairn.chat.format import load_format
        from cairn.chat.render import Renderer
        from cairn.tokenizer.load import Tokenizer

        self.config, self.schema, self.cut = config, config.asked, 0
        self.tokenizer = Tokenizer.load(folder)
        self.renderer = Renderer(load_format(config.format or str(folder)), self.tokenizer)

    def ids(self, row: Row, answer: Any) -> list[int]:
        """The ids of the dialogue up to the answer's end; at most `sequence_length`, the last ones."""
        from cairn.data.encode import render_row
        from cairn.data.labels import bare

        plain = {key: value for key, value in row.items() if key != "attributes"}
        ids: list[int] = render_row(self.renderer, plain, bare(row, answer)).ids
        self.cut += len(ids) > self.config.sequence_length
        return ids[-self.config.sequence_length :]

    def sides(self, context: Context, source: Source) -> tuple[_Labels, _Labels]:
        """A labelled source's answers: those to learn from, and those held out.

        Raises:
            UserError: a row without any label, or with one that the schema does not have or allow.
        """
        from cairn.data.labels import answers
        from cairn.data.rows import content_key, question_key
        from cairn.ledger import seeds

        train, held = _Labels(), _Labels()
        for number, row in enumerate(source.read(context.place(source)), 1):
            found = [answer for answer in answers(row, self.schema) if answer.labels]
            if not found:
                remedy = "read it with a reader that knows its labels (helpsteer, oasst_labelled), or list the source under label"
                raise UserError("the row has no attribute", where=f"{source.name}, row {row.get('id', number)}", remedy=remedy)
            key = question_key(row) or content_key(row)
            share = 1.0 if self.config.predictor is not None else self.config.holdout
            side = held if seeds.uniform(context.seed, "label/holdout", int(key[:16], 16)) < share else train
            for answer in found:
                side.ids.append(self.ids(row, answer))
                side.values.append([float(answer.labels.get(name, math.nan)) for name in self.schema])
                side.rows.append(number)
                side.names.append(f"{row.get('id', number)}:{answer.end - 1}")
        return train, held


@register
class Label(Stage):
    """Learn attributes from labelled rows, and label others."""

    kind = "label"
    config = LabelConfig
    code = ("cairn.train.objectives.attributes",)

    def run(self, context: Context) -> dict[str, Any]:
        from cairn.model.adapter import base_config
        from cairn.model.context import check_length
        from cairn.model.determinism import deterministic
        from cairn.model.reward import load_reward

        config: LabelConfig = context.config
        deterministic()
        check_length(base_config(self._folder(context)), config.sequence_length)
        reader = _Reader(config, self._folder(context))
        context.progress.start(len(config.data), "labelled sources")
        sides = []
        for number, source in enumerate(config.data):
            sides.append(reader.sides(context, source))
            context.progress.update(number + 1)
        held, learnt = [side[1] for side in sides], sum(len(side[0].ids) for side in sides)
        if config.data:
            _check_sides(config, [side[0] for side in sides], held)
        figures: dict[str, Any] = {}
        if config.predictor is None:
            figures = self._train(context, reader, [side[0] for side in sides])
        place = context.draft / "model" if config.predictor is None else self._folder(context)
        model = load_reward(place, labels=list(config.asked))
        agreement = self._agreement(context, model, held) if config.data else {}
        counts = self._label(context, reader, model)
        if reader.cut:
            context.progress.note(f"of {reader.cut} answers only the last {config.sequence_length} tokens were read")
        return {
            **figures, "learnt_answers": learnt, "agreement": agreement, "labelled": counts, "cut": reader.cut,
        }  # fmt: skip

    def _folder(self, context: Context) -> Path:
        """The model that the predictor is made from, or the predictor."""
        config: LabelConfig = context.config
        if config.predictor is not None:
            return context.inputs[config.predictor].path("model")
        return model_place(context.inputs[config.init].path()) if config.init is not None else Path(str(config.checkpoint))

    def _train(self, context: Context, reader: _Reader, sides: Sequence[_Labels]) -> dict[str, Any]:
        """Train the predictor and save it as `model/`."""
        from cairn.data.batches import PackedStream
        from cairn.data.encode import document
        from cairn.ledger import seeds
        from cairn.model.load import save_model
        from cairn.model.reward import reward_from
        from cairn.pipeline.companions import TOKENIZER_FILES
        from cairn.train.loop import Trainer
        from cairn.train.objectives.attributes import Objective
        from cairn.train.ranks import alone
        from cairn.train.watch import Origins

        config: LabelConfig = context.config.model_copy(update={"compile": "off"})
        folder, tokenizer = self._folder(context), reader.tokenizer
        pad = tokenizer.pad_id if tokenizer.pad_id is not None else tokenizer.eos_id
        model = reward_from(folder, seed=context.seed, pad_id=0 if pad is None else pad, labels=list(config.asked))
        used = [(source, side) for source, side in zip(config.data, sides, strict=True) if side.ids]
        documents = [[document(ids, [1] * len(ids)) for ids in side.ids] for _, side in used]
        seed = seeds.seed(context.seed, "label")
        weights = [source.weight for source, _ in used]
        stream = PackedStream(documents, weights, seed, config.sequence_length, config.batch_sequences * config.accumulate)
        origins = Origins([source.name for source, _ in used], [side.rows for _, side in used])
        trainer = Trainer(model, stream, config, context.draft, context.progress, alone(), seed=seed, origins=origins)
        context.environment["formulas"] = trainer.formulas
        assert isinstance(trainer.objective, Objective)
        trainer.objective.give([side.values for _, side in used], [a.maximum - a.minimum for a in config.asked.values()])
        context.store.test_save(trainer.needed_bytes())
        trainer.resume()
        figures = trainer.run()
        out = context.draft / "model"
        shutil.rmtree(out, ignore_errors=True)
        save_model(trainer.finished_model(), out, stop_ids=sorted(reader.renderer.stop_ids))
        for name in TOKENIZER_FILES:
            if (folder / name).is_file():
                shutil.copyfile(folder / name, out / name)
        return figures

    def _agreement(self, context: Context, model: Any, held: Sequence[_Labels]) -> dict[str, Any]:
        """How near the predictor comes to the labels held out, and every one of them in `heldout.jsonl`."""
        from cairn.data.write import write_rows

        config: LabelConfig = context.config
        ids, names = ([x for side in held for x in getattr(side, key)] for key in ("ids", "names"))
        values = [row for side in held for row in side.values]
        found = _predict(context, model, ids, "held-out answers")
        lines = (
            {"id": name, "labels": _known(config.asked, value), "predicted": dict(zip(config.asked, guess, strict=True))}
            for name, value, guess in zip(names, values, found, strict=True)
        )
        write_rows(lines, context.draft / HELDOUT)
        return {
            name: agreement([v[i] for v in values], [g[i] for g in found], one) for i, (name, one) in enumerate(config.asked.items())
        }

    def _label(self, context: Context, reader: _Reader, model: Any) -> dict[str, Any]:
        """Write `labelled/`; {source: how many answers and labels were there, and how often each number was predicted}."""
        from cairn.data.labels import answers, labelled
        from cairn.data.write import write_rows

        config: LabelConfig = context.config
        counts: dict[str, Any] = {}
        shutil.rmtree(context.draft / LABELLED, ignore_errors=True)
        for source in config.label:
            rows = list(source.read(context.place(source)))
            asked = [(row, answer) for row in rows for answer in answers(row, config.asked)]
            guesses = _predict(context, model, [reader.ids(row, answer) for row, answer in asked], f"answers of {source.name}")
            new: list[dict[int, dict[str, int]]] = [{} for _ in rows]
            place = {id(row): number for number, row in enumerate(rows)}
            told: dict[str, dict[str, int]] = {name: {} for name in config.asked}
            for (row, answer), guess in zip(asked, guesses, strict=True):
                values = {name: nearest(value, one) for (name, one), value in zip(config.asked.items(), guess, strict=True)}
                new[place[id(row)]][answer.user] = values
                for name in config.asked.keys() - answer.labels.keys():
                    told[name][str(values[name])] = told[name].get(str(values[name]), 0) + 1
            (context.draft / LABELLED).mkdir(exist_ok=True)
            file = context.draft / LABELLED / f"{source.name}.jsonl"
            write_rows((labelled(row, found, config.asked) for row, found in zip(rows, new, strict=True)), file)
            predicted = {name: dict(sorted(levels.items())) for name, levels in told.items()}
            counts[source.name] = {"rows": len(rows), "answers": len(asked), "predicted": predicted}
        return counts

    def outputs(self, config: LabelConfig) -> set[str]:
        trained = {"model/config.json", "metrics.jsonl"} if config.predictor is None else set()
        return trained | ({HELDOUT} if config.data else set()) | {f"{LABELLED}/{source.name}.jsonl" for source in config.label}

    def needs(self, config: LabelConfig) -> Iterator[tuple[tuple[str, ...], str, tuple[str, ...]]]:
        if config.init is not None:
            yield ("init",), config.init, MODEL_FILES
        if config.predictor is not None:
            yield ("predictor",), config.predictor, ("model/config.json",)

    def summarize(self, artifact: Any) -> str:
        """One line: how well the predictor agrees with people, and how much was labelled."""
        found = artifact.record.metrics
        parts = [f"{name} {one['spearman']:.2f}" for name, one in found["agreement"].items() if one.get("spearman") is not None]
        answers = sum(one["answers"] for one in found["labelled"].values())
        told = f"rank correlation with held-out labels: {', '.join(parts)}; " if parts else ""
        return f"{told}{answers} answers labelled"


def agreement(labels: Sequence[float], predicted: Sequence[float], attribute: Attribute) -> dict[str, Any]:
    """How predictions agree with labels, of which NaN is none.

    Returns:
        {"n", "distance": mean absolute distance, "of_mean": that of the labels' own mean (what knows nothing reaches), "exact": share whose
        nearest whole number is the label, "spearman"}; without labels {"n": 0}. `spearman` is None where one side is constant.
    """
    from cairn.score.ranks import spearman

    pairs = [(label, value) for label, value in zip(labels, predicted, strict=True) if not math.isnan(label)]
    if not pairs:
        return {"n": 0}
    mean = math.fsum(label for label, _ in pairs) / len(pairs)
    return {
        "n": len(pairs),
        "distance": math.fsum(abs(label - value) for label, value in pairs) / len(pairs),
        "of_mean": math.fsum(abs(label - mean) for label, _ in pairs) / len(pairs),
        "exact": sum(nearest(value, attribute) == label for label, value in pairs) / len(pairs),
        "spearman": spearman([label for label, _ in pairs], [value for _, value in pairs]),
    }


def _check_sides(config: LabelConfig, train: Sequence[_Labels], held: Sequence[_Labels]) -> None:
    """Raises:
    UserError: one side has no answers, or nobody labelled an attribute.
    """
    if not any(side.ids for side in held):
        raise UserError("no labelled answer is held out: nothing would tell how good the predictor is", where="holdout", remedy="raise it")
    if config.predictor is not None:
        return
    for i, name in enumerate(config.asked):
        if all(math.isnan(values[i]) for side in train for values in side.values):
            remedy = "add rows that have it, or name the attributes that there are under attributes"
            raise UserError(f"no row to learn from has the attribute '{name}'", where=f"attributes.{name}", remedy=remedy)


def _predict(context: Context, model: Any, ids: Sequence[Sequence[int]], what: str) -> list[list[float]]:
    from cairn.model.reward import scores

    context.progress.start(len(ids), what)
    return scores(model, ids, batch=context.config.batch_sequences, on_progress=lambda done: context.progress.update(done))


def _known(schema: Mapping[str, Attribute], values: Sequence[float]) -> dict[str, int]:
    return {name: int(value) for name, value in zip(schema, values, strict=True) if not math.isnan(value)}
