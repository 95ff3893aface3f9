"""The stage `evaluate`: a model and held-out rows in, numbers with their samples out. Knows no suite in particular.

Outputs: `results.json` (`{"rows"}`, one row a number, with the digest of its samples) and `samples/*.jsonl`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Annotated, Any

from pydantic import Field, model_validator

from cairn.config import Config, checked
from cairn.data.sources import Source
from cairn.errors import UserError
from cairn.evaluate.suite import Suite, load_suite
from cairn.ledger.progress import Progress
from cairn.ledger.refs import StageRef
from cairn.model.adapter_config import MODEL_FILES, model_place
from cairn.pipeline.drafts import empty
from cairn.pipeline.stage import Context, Stage, register


def _check_suite(suite: str | Suite) -> None:
    if isinstance(suite, str) and suite.endswith((".yaml", ".yml")):
        what = f"'{suite}' is a file, and its content would not be in the key"
        raise UserError(what, remedy="a recipe's suite is a built-in name or is written out in the recipe")
    loaded = load_suite(suite)
    if not loaded.data:
        raise UserError(f"the suite '{loaded.name}' names no data files", remedy="name them under `data`")


class EvaluateConfig(Config):
    """What is examined, and with what."""

    model: StageRef
    """The train stage whose model is examined."""
    data: StageRef | None = None
    """The stage that wrote the suites' questions; needed where there are suites."""
    suites: list[Annotated[str, checked(_check_suite)] | Annotated[Suite, checked(_check_suite)]] = Field(default_factory=list)
    """Names of built-in suites, or suites written here."""
    likelihood: list[Source] = Field(default_factory=list)
    """Held-out rows whose perplexity and bits per byte are measured, one number of each a source; weights do not count."""
    context: int | None = Field(default=None, ge=2)
    """Longest window of a likelihood, in tokens; None: the model's context, at most 1024."""
    max_batch: int = Field(default=64, ge=1)
    """Questions that are answered together at most. Memory grows with it; another value may change a near tie."""

    @model_validator(mode="after")
    def _something_to_measure(self) -> EvaluateConfig:
        if not self.suites and not self.likelihood:
            raise ValueError("nothing is measured: give suites or likelihood")
        if self.suites and self.data is None:
            raise ValueError("suites need `data`, the stage that wrote their questions")
        names = [load_suite(suite).name for suite in self.suites] + [source.name for source in self.likelihood]
        if len(set(names)) != len(names):
            raise ValueError("two measurements of one name")
        return self


@register
class Evaluate(Stage):
    """Examine a model."""

    kind = "evaluate"
    config = EvaluateConfig
    code = ("cairn.evaluate.run", "cairn.evaluate.likelihood")

    def run(self, context: Context) -> dict[str, Any]:
        from cairn.evaluate.likelihood import read_likelihood
        from cairn.evaluate.question import read_questions
        from cairn.evaluate.run import run_suite
        from cairn.evaluate.subject import load_subject
        from cairn.ledger.store import write_atomically

        config: EvaluateConfig = context.config
        empty(context.draft)
        suites = [load_suite(suite) for suite in config.suites]
        # Rows are read before the model is: a bad row is told at once.
        asked = [read_questions(suite, context.inputs[str(config.data)].path()) for suite in suites]
        held_out = [list(source.read(context.place(source))) for source in config.likelihood]
        subject = load_subject(model_place(context.inputs[config.model].path()))
        results = []
        for suite, questions in zip(suites, asked, strict=True):
            context.progress.start(len(questions.rows), f"questions of {suite.name}")
            results += run_suite(
                subject, suite, questions.rows, context.draft, examples=questions.examples, max_batch=config.max_batch,
                on_progress=lambda done, total, tokens: context.progress.update(done, tokens=tokens),
            )  # fmt: skip
        for source, rows in zip(config.likelihood, held_out, strict=True):
            results += read_likelihood(
                subject, source.name, rows, context.draft, context=config.context,
                on_progress=count_tokens(context.progress, f"tokens of {source.name}"),
            )  # fmt: skip
        rows = [result.model_dump(mode="json") for result in results]
        text = json.dumps({"rows": rows}, indent=1, ensure_ascii=False) + "\n"
        write_atomically(context.draft / "results.json", text)
        return {"scores": {f"{r.suite} {r.metric}": {"value": r.value, "low": r.low, "high": r.high, "n": r.n} for r in results}}

    def outputs(self, config: EvaluateConfig) -> set[str]:
        names = [load_suite(suite).name for suite in config.suites] + [source.name for source in config.likelihood]
        return {"results.json", *(f"samples/{name}.jsonl" for name in names)}

    def needs(self, config: EvaluateConfig) -> Iterator[tuple[tuple[str | int, ...], str, tuple[str, ...]]]:
        yield ("model",), config.model, MODEL_FILES
        for number, suite in enumerate(config.suites):
            yield from ((("suites", number), str(config.data), (name,)) for name in load_suite(suite).files())

    def summarize(self, artifact: Any) -> Any:
        """A table of what the model can do, and three dialogues."""
        from rich.console import Group

        from cairn.pipeline.results import dialogues, scores_table

        found = json.loads(artifact.path("results.json").read_text(encoding="utf-8"))
        return Group(scores_table(found["rows"]), *dialogues([artifact.path()]))


def count_tokens(progress: Progress, unit: str) -> Callable[[int, int], None]:
    """What a likelihood reports to, which knows its total only after encoding: begins the count then, so that time left is shown."""

    def told(done: int, total: int) -> None:
        if done == 0:
            progress.start(total, unit)
        progress.update(done)

    return told
