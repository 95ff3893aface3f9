"""The stage `data`: rows from files or other stages in, checked and deduplicated training and held-out files out.
Knows how the rooms fit together; no reader and no filter.

Outputs: `<source>.train.jsonl`, `<source>.heldout.jsonl`, `dropped.jsonl` (what was left out, and why), `summary.json`.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from cairn.config import Config
from cairn.data.prepare import DROPPED, SUMMARY, HeldSource, prepare
from cairn.errors import UserError
from cairn.pipeline.sizes import source_bytes
from cairn.pipeline.stage import Context, Estimate, PlannedInputs, Stage, register


class DataConfig(Config):
    """What is read, and what of it is held out. Weights count where rows are mixed, which is in training."""

    sources: list[HeldSource] = Field(min_length=1)
    """The rows. Each source gets its own files, under its name."""
    holdout: float = Field(default=0.0, ge=0, le=1)
    """The share of rows held out, of sources that name none of their own. Equal questions fall on one side."""
    dedup: bool = True
    """Drop a row whose content came before in any source, up to letter case, width and white space."""
    bad_rows: Literal["refuse", "drop"] = "refuse"
    """Stop at a row with something wrong, or drop it, count it and write it down."""

    @model_validator(mode="after")
    def _names_differ(self) -> DataConfig:
        names = [source.name for source in self.sources]
        if len(set(names)) != len(names):
            raise ValueError("two sources of one name")
        return self


@register
class Data(Stage):
    """Checks, deduplicates, splits."""

    kind = "data"
    config = DataConfig

    def run(self, context: Context) -> dict[str, Any]:
        """In one go: it streams, so a draft is not resumed but written over."""
        config: DataConfig = context.config
        places = [(source, context.place(source)) for source in config.sources]
        context.progress.start(None, "rows")
        summary = prepare(
            places,
            context.draft,
            seed=context.seed,
            holdout=config.holdout,
            dedup=config.dedup,
            bad_rows=config.bad_rows,
            on_row=context.progress.update,
        )
        context.progress.close()
        for source in config.sources:
            share = config.holdout if source.holdout is None else source.holdout
            if share > 0 and not summary["sources"][source.name]["heldout"]:
                # An evaluation would meet the empty file only after all training.
                what = f"a share of {share} of {summary['sources'][source.name]['rows']} rows holds none out"
                remedy = "raise the share, get more rows, or keep all for training: holdout: 0 beside the source's path"
                raise UserError(what, where=f"stage '{context.name}', source '{source.name}': holdout", remedy=remedy)
        return summary

    def estimate(self, config: DataConfig, inputs: PlannedInputs) -> Estimate:
        """About 10 MB of rows a second, measured on one core of a laptop; training rows are written twice."""
        size = source_bytes(config, inputs)
        return Estimate() if size is None else Estimate(disk_bytes=2 * size, seconds=size / 10e6)

    def outputs(self, config: DataConfig) -> set[str]:
        """Each source's sides, as its share held out makes them."""
        shares = {source.name: config.holdout if source.holdout is None else source.holdout for source in config.sources}
        train = {f"{name}.train.jsonl" for name, share in shares.items() if share < 1}
        return train | {f"{name}.heldout.jsonl" for name, share in shares.items() if share > 0} | {DROPPED, SUMMARY}

    def stops_at_bad_rows(self, config: DataConfig) -> bool:
        return config.bad_rows == "refuse"

    def summarize(self, artifact: Any) -> str:
        """One line: how much there is, what was left out, and that the sides share no question."""
        metrics = artifact.record.metrics
        both = metrics["overlap"]["questions_on_both_sides"]
        total = {key: sum(counts[key] for counts in metrics["sources"].values()) for key in next(iter(metrics["sources"].values()))}
        left_out = ", ".join(f"{total[key]} {name}" for key, name in _LEFT_OUT.items() if total[key])
        told = f"{total['train']} rows to train on, {total['heldout']} held out; {both} questions on both sides"
        return told + (f"; left out: {left_out}" if left_out else "")


_LEFT_OUT = {"bad": "bad", "skipped": "marked as not to be used", "duplicates": "duplicates", "overlap": "with a held-out question"}

