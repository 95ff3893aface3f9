"""The stage `grpo`: prompts with checkable answers and a model in, the model trained by rewards out. Knows how the rooms fit together.

Outputs beside those of a training: `rollouts.jsonl`, every prompt of every round with its answers, their rewards and the checksum of the
weights that answered.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from cairn.config import checked
from cairn.data.sources import Prompts
from cairn.errors import UserError
from cairn.model.adapter_config import MODEL_FILES
from cairn.pipeline.documents import encode_sources
from cairn.pipeline.stage import Context, Estimate, register
from cairn.pipeline.stages.train import Parts, Rows, Train, show_row
from cairn.pipeline.training import TrainConfig
from cairn.score.registry import get_metric
from cairn.train.config import OptimizerConfig, ScheduleConfig, WatchConfig
from cairn.train.policy import PolicyConfig, PracticeConfig, RolloutConfig

if TYPE_CHECKING:
    from cairn.data.batches import PackedStream
    from cairn.train.loop import Trainer
    from cairn.train.ranks import Ranks
    from cairn.train.rollouts import Reference

ROLLOUTS = "rollouts.jsonl"
ELSEWHERE = (
    "model", "budget", "tokenizer", "tokens", "accumulate", "overlong", "reference", "preference", "reward", "distillation", "attributes",
    "labelled", "shares",
)  # fmt: skip
"""Keys of a training that have no meaning here."""
MetricName = Annotated[str, checked(get_metric)]


class GrpoConfig(TrainConfig):
    """A training by rewards: who answers what, what an answer is worth, and how that is learnt."""

    asks: ClassVar[bool] = True
    objective: Literal["grpo"] = "grpo"
    data: list[Prompts]  # type: ignore[assignment]
    """Dialogues that end with a question and have `meta.expected`, or with the right answer, and how often one of each source is asked."""
    metric: MetricName | dict[str, MetricName]
    """A function of score/ that gives an answer its reward, against the row's `meta.expected` or else its own last answer; or one a source,
    by its name."""
    rollouts: RolloutConfig = RolloutConfig()
    """How answers are asked for."""
    policy: PolicyConfig = PolicyConfig()
    """How they are learnt from. With kl above 0 and an adapter the reference is the same weights with the adapter off; without one a frozen
    copy of the model is held."""
    practice: PracticeConfig | None = None
    """Rows that are learnt beside the rewards in every step; None: none."""
    sequence_length: int = Field(default=512, gt=0)
    """A prompt with its longest answer, in tokens. A prompt that leaves no room for `rollouts.max_new_tokens` is left out."""
    optimizer: OptimizerConfig = OptimizerConfig(kind="adamw", lr=1e-5)
    schedule: ScheduleConfig = ScheduleConfig(kind="constant", warmup=0.0)
    watch: WatchConfig = Field(default=WatchConfig(spike="off"), exclude=True)

    @model_validator(mode="after")
    def _fits_rewards(self) -> GrpoConfig:
        for name in ELSEWHERE:
            # By their values: a configuration that comes back from a record names every key.
            if getattr(self, name) != type(self).model_fields[name].get_default(call_default_factory=True):
                raise ValueError(f"a stage of kind grpo has no {name}")
        if self.rollouts.max_new_tokens >= self.sequence_length:
            raise ValueError(f"answers of {self.rollouts.max_new_tokens} tokens leave no room for a prompt in {self.sequence_length}")
        if self.policy.kl and self.adapter is not None and self.adapter.train:
            # With the adapter off they are not what they were: the reference would follow the policy.
            raise ValueError(f"kl needs a reference that stands still, and adapter.train moves the model's own {self.adapter.train[0]}")
        if isinstance(self.metric, dict):
            names = {source.name for source in self.data}
            if missing := names - set(self.metric):
                raise ValueError(f"the source '{min(missing)}' has no metric")
            if strange := set(self.metric) - names:
                raise ValueError(f"a metric for '{min(strange)}', which is no source")
        return self

    @property
    def step_tokens(self) -> int:
        """The most tokens that a step's answers have, and what is practised."""
        return self.answer_tokens + (self.practice.sequences * self.sequence_length if self.practice is not None else 0)

    @property
    def answer_tokens(self) -> int:
        """The most tokens that a step's answers have."""
        return self.rollouts.prompts // self.rollouts.updates * self.rollouts.answers * self.rollouts.max_new_tokens

    def metric_of(self, source: str) -> str:
        return self.metric[source] if isinstance(self.metric, dict) else self.metric


@dataclass(frozen=True)
class _Asked:
    """What the score of an answer is made from."""

    metric: str
    expected: Any
    meta: dict[str, Any]


@register
class Grpo(Train):
    """Train a model by rewards."""

    kind = "grpo"
    config = GrpoConfig
    code = ("cairn.train.objectives.grpo", "cairn.train.rollouts", "cairn.score.registry")

    def run(self, context: Context) -> dict[str, Any]:
        from cairn.train.rollouts import summarise

        figures = super().run(context)
        if not context.first:
            return figures
        told = summarise(context.draft / ROLLOUTS)
        if told["groups_without_variance"]:
            share = f"{told['groups_without_variance']:,} of {told['groups']:,} groups"
            context.progress.note(f"{share} had answers of one reward only, and taught nothing")
        return {**figures, **told}

    def replay_interval(self, context: Context, a: int, b: int) -> list[dict[str, str]]:
        assert context.recorded is not None
        # A checkpoint in the middle of a round goes on with the answers that were given before it.
        shutil.copyfile(context.recorded.path(ROLLOUTS), context.draft / ROLLOUTS)
        return super().replay_interval(context, a, b)

    def outputs(self, config: GrpoConfig) -> set[str]:
        alone = config.adapter is not None and not config.adapter.merge
        return {MODEL_FILES[alone], "metrics.jsonl", ROLLOUTS}

    def estimate(self, config: GrpoConfig, inputs: dict[str, Any]) -> Estimate:
        from cairn.model.cost import seconds
        from cairn.model.speed import gemm_rate

        found = super().estimate(config, inputs)
        if found.parameters is None or found.flops is None:
            return found
        # Every answer's tokens are generated before they are learnt from.
        asked = 2.0 * found.parameters * config.total_steps * config.answer_tokens
        took = found.seconds and found.seconds + seconds(asked, gemm_rate(config.compute), hidden=1024, compute=config.compute)
        return replace(found, flops=found.flops + asked, seconds=took)

    # -- parts ------------------------------------------------------------------------------------------------------

    def _rows(self, context: Context, folder: Path, renderer: Any, tokenizer: Any) -> Rows:
        """Prompts of each source in place of documents."""
        from cairn.train.watch import Origins

        config: GrpoConfig = context.config
        room = config.sequence_length - config.rollouts.max_new_tokens
        prompts, counters = [], {}
        for number, source in enumerate(config.data):
            found, rows = [], 0
            for rows, row in enumerate(source.read(context.place(source)), 1):
                prompt = _prompt(number, rows, row, renderer, config.metric_of(source.name), source.name)
                if len(prompt.ids) <= room:
                    found.append(prompt)
            if not found:
                remedy = "raise sequence_length, or lower rollouts.max_new_tokens"
                raise UserError(f"no prompt leaves room for {config.rollouts.max_new_tokens} tokens", where=source.name, remedy=remedy)
            if rows > len(found):
                context.progress.note(f"{source.name}: {rows - len(found):,} of {rows:,} prompts left out, being longer than {room} tokens")
            prompts.append(found)
            counters[source.name] = {"rows": rows, "kept": len(found), "dropped_overlong": rows - len(found)}
        origins = Origins([s.name for s in config.data], None, lambda s, row: show_row(context, folder, config.data[s], row))
        return Rows(prompts, origins, counters, [s.weight for s in config.data])

    def _stream(self, context: Context, parts: Parts, ranks: Ranks, seed: int) -> Any:
        from cairn.chat.parse import parse_answer
        from cairn.tokenizer.load import Tokenizer
        from cairn.train.rollouts import Asking, Prompt, Rollouts

        config: GrpoConfig = context.config
        tokenizer, chat_format = Tokenizer.load(parts.folder), parts.renderer.format

        def score(prompt: Prompt, ids: Sequence[int], reason: str) -> tuple[float, str]:
            given: _Asked = prompt.given
            message = parse_answer(chat_format, tokenizer, ids)
            return get_metric(given.metric).score(given.expected, message, given.meta), tokenizer.decode(list(ids))

        stream = Rollouts(
            Asking(
                prompts=parts.encoded, weights=parts.weights, names=[s.name for s in config.data], seed=seed,
                rollouts=config.rollouts, policy=config.policy, score=score, stop_ids=frozenset(parts.renderer.stop_ids),
                vocab_size=tokenizer.vocab_size, folder=context.draft, progress=context.progress, ranks=ranks,
                practice=self._practice(context, parts, tokenizer, seed),
            )
        )  # fmt: skip
        # Documents are counted over the run; a message names the row of the file.
        rows: list[Any] = [_Rows(stream.row, number) for number in range(len(config.data))]
        parts.origins = replace(parts.origins, rows=[*rows, *(parts.origins.rows or ())])
        return stream

    def _practice(self, context: Context, parts: Parts, tokenizer: Any, seed: int) -> tuple[PackedStream, float] | None:
        """The batches of what is practised, and how much it counts; its sources' names and rows are added to the parts."""
        from cairn.data.batches import PackedStream
        from cairn.ledger import seeds
        from cairn.train.watch import Origins

        config: GrpoConfig = context.config
        if config.practice is None:
            return None
        sources = config.practice.data
        encoded, rows, _, counters = encode_sources(context, parts.renderer, tokenizer, "supervised", sources=sources)
        # A source may be rewarded and practised.
        names = [f"practice/{source.name}" for source in sources]
        parts.counters |= {name: counters[source.name] for name, source in zip(names, sources, strict=True)}
        every = [*config.data, *sources]
        parts.origins = Origins([*parts.origins.names, *names], rows, lambda s, row: show_row(context, parts.folder, every[s], row))
        weights, place = [source.weight for source in sources], seeds.seed(seed, "practice")
        return PackedStream(encoded, weights, place, config.sequence_length, config.practice.sequences), config.practice.weight

    def _equip(self, context: Context, parts: Parts, trainer: Trainer) -> None:
        """Let the stream ask the trained model, and measure its distance from where it started."""
        config: GrpoConfig = context.config
        stream: Any = trainer.stream
        stream.bind(trainer, self._reference(context, parts, trainer) if config.policy.kl else None)

    def _reference(self, context: Context, parts: Parts, trainer: Trainer) -> Reference:
        from cairn.ledger.store import show_bytes
        from cairn.model.load import load_model
        from cairn.train.reference import prepare

        if parts.adapted is not None:
            peft = parts.adapted.peft

            @contextlib.contextmanager
            def base() -> Iterator[Any]:
                with peft.disable_adapter():
                    yield trainer.model

            return base
        model = load_model(self._start(context), "float32").to(trainer.device)
        assert prepare(model, trainer.config.compute, trainer.config.sequence_length) == trainer.packed
        size = show_bytes(sum(p.numel() * p.element_size() for p in model.parameters()))
        context.progress.note(f"policy.kl: a frozen copy of the model, {size}, is held as the reference; an adapter would need none")
        return lambda: contextlib.nullcontext(model)


@dataclass(frozen=True)
class _Rows(Sequence[int]):
    """The row of each prompt of a source, by the prompt's number in the run."""

    row: Callable[[int, int], int]
    source: int

    def __getitem__(self, number: Any) -> Any:
        return self.row(self.source, number)

    def __len__(self) -> int:
        raise TypeError("a run has no last prompt")


def _prompt(source: int, number: int, row: dict[str, Any], renderer: Any, metric: str, name: str) -> Any:
    """Raises:
    UserError: a row that asks nothing, tells no right answer, or cannot be rendered.
    """
    from cairn.evaluate.question import question_of
    from cairn.evaluate.run import expected_of
    from cairn.train.rollouts import Prompt

    where = f"{name}, row {number} (id {row.get('id', '?')})"
    if "messages" not in row:
        raise UserError("plain text asks nothing", where=where, remedy="give rows with messages")
    asked = question_of(row)[0]
    if not asked:
        raise UserError("the row asks nothing", where=where, remedy="begin it with a question")
    ids = renderer.render(asked, tools=row.get("tools"), attributes=row.get("attributes"), add_generation_prompt=True).ids
    return Prompt(source, number, str(row.get("id", number)), list(ids), _Asked(metric, expected_of(row, name), row.get("meta") or {}))
