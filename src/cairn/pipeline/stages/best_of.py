"""The stage `best_of`: prompts, a model and a score in, each prompt's best of N sampled answers out, and pairs for preference training.

Rejection sampling as in Llama 2 and 3; the pairs are Zephyr's AI feedback, from a judge, a reward model or a function of score/. Knows how
the rooms fit together; how an answer is scored is not its business.

Outputs: `best.jsonl`, `samples.jsonl` (every answer with its score), `pairs.jsonl` where pairs are asked for, `replies.jsonl` of a judge.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from cairn.config import Config, checked
from cairn.data.rows import reply_text
from cairn.data.sources import Prompts
from cairn.errors import UserError
from cairn.evaluate.judge import JudgeConfig
from cairn.generate.sampling import Sampling
from cairn.ledger.refs import InputPath, StageRef
from cairn.model.adapter_config import MODEL_FILES, model_place
from cairn.pipeline.stage import Context, Stage, register
from cairn.score.registry import get_metric

BEST, SAMPLES, PAIRS, REPLIES = "best.jsonl", "samples.jsonl", "pairs.jsonl", "replies.jsonl"
Row = dict[str, Any]
Score = Callable[[Sequence[Row], Sequence[Row]], tuple[Sequence[float | None], dict[str, Any]]]
"""(prompts' rows, answered rows, one an answer) → a score each, None where there is none, and figures for the record."""


class BestOfConfig(Config):
    """Who answers what, and what an answer is worth."""

    model: StageRef | None = None
    """The stage whose model answers. Give this or `checkpoint`."""
    checkpoint: InputPath | None = None
    """A Hugging Face folder with tokenizer and chat template, in its place."""
    data: list[Prompts] = Field(min_length=1)
    """Prompts: dialogues that end with a question, or with an answer, which is taken off; weights do not count."""
    answers: int = Field(default=8, ge=2)
    """N: answers sampled for each prompt."""
    sampling: Sampling = Sampling(temperature=1.0)
    """How tokens are chosen; the seed is the recipe's."""
    reward: StageRef | None = None
    """A train stage with objective reward. Give this, `reward_checkpoint`, `metric` or `judge`."""
    reward_checkpoint: InputPath | None = None
    """A reward model in a Hugging Face folder with tokenizer and chat template, in its place."""
    metric: Annotated[str, checked(get_metric)] | None = None
    """A function of score/, against the row's `meta.expected` or else its own last answer."""
    judge: JudgeConfig | None = None
    """A model that rates each answer, at an endpoint that speaks OpenAI's API or on this machine. An answer without a rating has no score
    and is no candidate."""
    least: float | None = None
    """A best answer with a lower score is left out."""
    pairs: Literal["off", "worst", "random", "ranked"] = "off"
    """worst: the best answer against the worst. random: against one of the others, drawn (Zephyr). ranked: all answers with different
    scores, in their order."""
    gap: float = Field(default=0.0, ge=0)
    """A pair whose scores lie closer together, or not apart at all, is left out."""
    unfinished: Literal["drop", "keep"] = "drop"
    """Answers that were cut at max_new_tokens have no stop token: drop takes them for no candidates."""
    max_batch: int = Field(default=64, ge=1)
    """Answers that are generated, or scored, together at most."""

    @model_validator(mode="after")
    def _one_score(self) -> BestOfConfig:
        if (self.model is None) == (self.checkpoint is None):
            raise ValueError("give either model or checkpoint: who answers")
        if sum(x is not None for x in (self.reward, self.reward_checkpoint, self.metric, self.judge)) != 1:
            raise ValueError("give either reward, reward_checkpoint, metric or judge: what an answer is worth")
        if self.sampling.greedy:
            raise ValueError("at temperature 0 all answers to a prompt are the same: give sampling.temperature above 0")
        return self

    @property
    def worth(self) -> str:
        """What tells an answer's score, for people."""
        return self.judge.who if self.judge is not None else str(self.metric or self.reward or self.reward_checkpoint)


@register
class BestOf(Stage):
    """Sample, score, keep the best."""

    kind = "best_of"
    config = BestOfConfig
    code = ("cairn.score.registry",)

    def run(self, context: Context) -> dict[str, Any]:
        from cairn.data.write import write_rows
        from cairn.generate.load import load_chat
        from cairn.generate.rows import answer_rows
        from cairn.ledger import seeds
        from cairn.model.determinism import deterministic

        config: BestOfConfig = context.config
        for path in context.draft.iterdir():
            # What a judge said in a run that failed or was killed need not be asked, and paid, again.
            if path.name != REPLIES:
                path.unlink()
        rows = [row for source in config.data for row in _prompts(source, context)]
        deterministic()
        score = self._score(context)
        loaded = load_chat(_place(context, config), max_batch=config.max_batch)
        _check_prompts(loaded, rows)
        sampling = config.sampling.model_copy(update={"seed": seeds.seed(context.seed, "best_of")})
        context.progress.start(len(rows) * config.answers, "answers")
        many = (row for row in rows for _ in range(config.answers))
        answered = answer_rows(loaded, many, sampling, on_progress=lambda done, tokens: context.progress.update(done, tokens=tokens))
        groups = list(_groups(rows, answered, config.answers))
        del loaded  # a judge on this machine wants its memory
        scores, figures = score([row for row, answers in groups for _ in answers], [answer for _, answers in groups for answer in answers])
        each = range(0, len(scores), config.answers)
        scored = [Group(*group, scores[at : at + config.answers]) for group, at in zip(groups, each, strict=True)]
        for group in scored:
            group.check()
        counts, best, pairs = choose(scored, config, context.seed)
        if not any(any(group.known) for group in scored):
            remedy = f"read {context.draft / REPLIES}, or take another judge"
            raise UserError("the judge gave no rating for any answer", where=config.worth, remedy=remedy)
        if counts["same_score"] == len(scored):
            what = f"every prompt's {config.answers} answers all have the same score: there is nothing to choose"
            remedy = "raise sampling.temperature, or take another score"
            raise UserError(what, where=config.worth, remedy=remedy)
        write_rows((row for group in scored for row in group.lines()), context.draft / SAMPLES)
        write_rows(best, context.draft / BEST)
        if config.pairs != "off":
            write_rows(pairs, context.draft / PAIRS)
        if counts["same_score"]:
            context.progress.note(f"{counts['same_score']} of {len(scored)} prompts: all answers have the same score")
        return {**counts, **figures}

    def _score(self, context: Context) -> Score:
        config: BestOfConfig = context.config
        if config.judge is not None:
            return _judged(context, config.judge)
        if config.metric is not None:
            from cairn.evaluate.run import expected_of

            metric = get_metric(config.metric)

            def compare(rows: Sequence[Row], answers: Sequence[Row]) -> tuple[list[float], dict[str, Any]]:
                both = zip(rows, answers, strict=True)
                return [metric.score(expected_of(row), answer["messages"][-1], row.get("meta") or {}) for row, answer in both], {}

            return compare
        from cairn.chat.format import load_format
        from cairn.chat.render import Renderer
        from cairn.model.reward import load_reward, rewards
        from cairn.tokenizer.load import Tokenizer

        folder = context.inputs[config.reward].path("model") if config.reward is not None else Path(str(config.reward_checkpoint))
        model, renderer = load_reward(folder), Renderer(load_format(str(folder)), Tokenizer.load(folder))

        def reward(rows: Sequence[Row], answers: Sequence[Row]) -> tuple[list[float], dict[str, Any]]:
            told = [{key: row[key] for key in ("tools", "attributes") if key in row} for row in rows]
            ids = [renderer.render(answer["messages"], **more).ids for answer, more in zip(answers, told, strict=True)]
            return rewards(model, ids, batch=config.max_batch), {}

        return reward

    def outputs(self, config: BestOfConfig) -> set[str]:
        return {BEST, SAMPLES} | ({PAIRS} if config.pairs != "off" else set()) | ({REPLIES} if config.judge is not None else set())

    def needs(self, config: BestOfConfig) -> Iterator[tuple[tuple[str, ...], str, tuple[str, ...]]]:
        if config.model is not None:
            yield ("model",), config.model, MODEL_FILES
        if config.reward is not None:
            yield ("reward",), config.reward, ("model/config.json",)
        if config.judge is not None and config.judge.model is not None:
            yield ("judge", "model"), config.judge.model, MODEL_FILES


def _place(context: Context, who: BestOfConfig | JudgeConfig) -> Path:
    """The folder of who answers, or of who judges."""
    return model_place(context.inputs[who.model].path()) if who.model is not None else Path(str(who.checkpoint))


def _judged(context: Context, config: JudgeConfig) -> Score:
    """Scores by a judge; whether one is there is looked up now."""
    from cairn.evaluate.judge import Ask, Replies, judge, local_judge

    recorded = context.recorded.path(REPLIES) if context.recorded is not None else None
    ask: Ask
    if config.endpoint is None:
        ask = local_judge(config, _place(context, config), context.config.max_batch)
    else:
        from cairn.evaluate.endpoint import Endpoint

        ask = endpoint = Endpoint(config)
        if recorded is None:
            endpoint.check()

    def rate(rows: Sequence[Row], answers: Sequence[Row]) -> tuple[list[float | None], dict[str, Any]]:
        context.progress.start(len(answers), "replies")
        both = [(answer["messages"][:-1], answer["messages"][-1]) for answer in answers]
        found = judge(config, both, Replies(context.draft / REPLIES, recorded), ask, context.progress.update)
        if found.unparsed:
            what = f"the judge gave no rating for {found.unparsed} of {len(both)} answers ({found.unanswered} got no reply)"
            context.progress.note(f"{what}, such as {found.why}: they have no score and are no candidates")
        return found.scores, {"unparsed": found.unparsed, "unanswered": found.unanswered}

    return rate


class Group:
    """A prompt's answers and their scores, in the order in which they were drawn."""

    def __init__(self, row: Row, answers: Sequence[Row], scores: Sequence[float | None]) -> None:
        self.row, self.answers, self.scores = row, list(answers), [math.nan if score is None else float(score) for score in scores]
        self.known = [score is not None for score in scores]
        """Whether each answer has a score."""

    def check(self) -> None:
        """Raises:
        UserError: a score that is no finite number.
        """
        for number, score in enumerate(self.scores):
            if self.known[number] and not math.isfinite(score):
                where = f"row {self.row.get('id', '?')}, answer {number + 1}"
                remedy = "a reward model that gives this is broken: train it anew"
                raise UserError(f"the score of an answer is {score}", where=where, remedy=remedy)

    def candidates(self, unfinished: str) -> list[int]:
        """The answers that may be chosen, the best one first; of equal scores the one drawn first. Answers without content are none."""
        fit = [
            i for i, one in enumerate(self.answers)
            if self.known[i] and (one["reason"] != "length" or unfinished == "keep") and reply_text(one["messages"][-1]).strip()
        ]  # fmt: skip
        return sorted(fit, key=lambda i: (-self.scores[i], i))

    def answer(self, i: int) -> dict[str, Any]:
        message: dict[str, Any] = self.answers[i]["messages"][-1]
        return message

    @property
    def prompt(self) -> list[dict[str, Any]]:
        return list(self.answers[0]["messages"][:-1])

    def made(self, **parts: Any) -> Row:
        """A row of this prompt."""
        return parts | {key: self.row[key] for key in ("tools", "attributes", "source", "language", "id") if key in self.row}

    def lines(self) -> Iterator[Row]:
        """Every answer as a row with its score."""
        for i, score in enumerate(self.scores):
            meta = {"answer": i, "score": score if self.known[i] else None, "reason": self.answers[i]["reason"]}
            yield self.made(messages=self.answers[i]["messages"], meta=meta)

    @property
    def alike(self) -> bool:
        """Whether there is nothing to choose among."""
        return len({score for score, known in zip(self.scores, self.known, strict=True) if known}) < 2


def choose(groups: Sequence[Group], config: BestOfConfig, seed: int) -> tuple[dict[str, Any], list[Row], list[Row]]:
    """(what became of the prompts, the best answers' rows, the pairs)."""
    best, pairs = [], []
    counts = {"prompts": len(groups), "answers": 0, "unfinished": 0, "without_candidate": 0, "below_least": 0, "same_score": 0}
    tops = []
    for number, group in enumerate(groups):
        order = group.candidates(config.unfinished)
        counts["answers"] += len(group.answers)
        counts["unfinished"] += sum(one["reason"] == "length" for one in group.answers)
        counts["same_score"] += group.alike
        if not order:
            counts["without_candidate"] += 1
            continue
        top = order[0]
        tops.append(group.scores[top])
        if config.least is not None and group.scores[top] < config.least:
            counts["below_least"] += 1
            continue
        best.append(group.made(messages=[*group.prompt, group.answer(top)], meta={"score": group.scores[top], "answer": top}))
        pair = _pair(group, order, config, seed, number)
        pairs += [pair] if pair is not None else []
    every = [score for group in groups for score, known in zip(group.scores, group.known, strict=True) if known]
    means = {"mean_score": sum(every) / max(1, len(every)), "mean_best": sum(tops) / max(1, len(tops))}
    return {**counts, "kept": len(best), "pairs": len(pairs), **means}, best, pairs


def _pair(group: Group, order: list[int], config: BestOfConfig, seed: int, number: int) -> Row | None:
    from cairn.ledger import seeds

    if config.pairs == "off":
        return None
    top = order[0]
    lower: list[int] = []
    for i in order[1:]:
        above = group.scores[lower[-1] if config.pairs == "ranked" and lower else top]
        # Equal scores are no preference, whatever the gap.
        apart = above - group.scores[i] > 0 and above - group.scores[i] >= config.gap and group.answer(i) != group.answer(top)
        # One text may be scored twice, in batches that round it otherwise; a ranking that holds it twice is refused by its reader.
        twice = config.pairs == "ranked" and any(group.answer(i) == group.answer(j) for j in lower)
        if apart and not twice:
            lower.append(i)
    if not lower:
        return None
    if config.pairs == "ranked":
        ranked = [top, *lower]
        meta = {"scores": [group.scores[i] for i in ranked]}
        return group.made(messages=group.prompt, ranked=[[group.answer(i)] for i in ranked], meta=meta)
    other = lower[-1] if config.pairs == "worst" else seeds.pick(lower, seed, "best_of/rejected", number)
    meta = {"scores": [group.scores[top], group.scores[other]]}
    return group.made(messages=group.prompt, chosen=[group.answer(top)], rejected=[group.answer(other)], meta=meta)


def _prompts(source: Prompts, context: Context) -> Iterator[Row]:
    """Raises:
    UserError: a row that asks nothing, or has no expected answer where one is needed.
    """
    from cairn.evaluate.run import expected_of

    for row in source.read(context.place(source)):
        if "messages" not in row:
            raise UserError("plain text asks nothing", where=f"{source.name}, row {row.get('id', '?')}", remedy="give rows with messages")
        if context.config.metric is not None:
            expected_of(row, source.name)
        yield row


def _check_prompts(loaded: Any, rows: Sequence[Row]) -> None:
    """See, before any is answered, that every prompt can be asked.

    Raises:
        UserError: one that does not fit into the model's context, or that the format cannot render.
    """
    context = loaded.engine.context
    for row in rows:
        messages = row["messages"][:-1] if row["messages"][-1]["role"] == "assistant" else row["messages"]
        where = f"{row.get('source', 'data')}, row {row.get('id', '?')}"
        try:
            asked = loaded.session.renderer.render(
                messages, tools=row.get("tools"), attributes=row.get("attributes"), add_generation_prompt=True
            )
        except UserError as error:
            raise UserError(error.what, where=f"{where}, {error.where}" if error.where else where, remedy=error.remedy) from None
        if context is not None and len(asked.ids) > context:
            what = f"the prompt has {len(asked.ids)} tokens, and the model's context {context}"
            raise UserError(what, where=where, remedy="remove the row, or shorten it")


def _groups(rows: Sequence[Row], answered: Iterator[Row], size: int) -> Iterator[tuple[Row, list[Row]]]:
    """Each row with its answers."""
    for row in rows:
        yield row, [next(answered) for _ in range(size)]
