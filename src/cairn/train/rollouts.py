"""The stream of a training by rewards: prompts are asked of the very weights that are trained, answers are scored, groups become batches.

Which prompt is asked when, and every draw, is a function of (seed, stream, index). A round's groups are written to `rollouts.jsonl` before
anything is learnt from them, and a run that goes on in the middle of a round reads them there. Knows requests, groups and batches; text and
metrics only through the function that scores. Rows to practise (`PracticeConfig`) stand behind the groups in each step's batch.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cairn.data.batches import Batch, PackedStream, join, make_batch
from cairn.data.encode import Encoded
from cairn.data.mix import Mix
from cairn.errors import UserError
from cairn.generate.engine import Request
from cairn.generate.live import Live
from cairn.generate.sampling import Sampling
from cairn.ledger import seeds
from cairn.ledger.progress import Progress
from cairn.ledger.store import write_atomically
from cairn.train.forward import TorchBatch
from cairn.train.loop import Trainer
from cairn.train.objectives.grpo import Objective
from cairn.train.policy import PolicyConfig, RolloutConfig, advantages, alike
from cairn.train.ranks import ALONE, Ranks

FILE = "rollouts.jsonl"
PATIENCE = 3
"""Rounds at the beginning in which every answer may have the same reward."""


@dataclass(frozen=True)
class Prompt:
    """What is asked.

    Attributes:
        source, row: where it stands: the source's number, and the row in there, counted from 1.
        id: the row's own name.
        ids: its tokens, up to where the answer begins.
        given: what the scoring function wants to know of it.
    """

    source: int
    row: int
    id: str
    ids: list[int]
    given: Any


@dataclass(frozen=True)
class Answer:
    """One answer: its tokens (the stop token included), why it ended, what it was worth, and its text for people."""

    ids: list[int]
    reason: str
    reward: float
    text: str


@dataclass
class Group:
    """A prompt's answers.

    Attributes:
        number: of the prompt in the whole run, from 0.
        prompt: what was asked.
        answers: in the order of their streams of draws.
        advantages: of each answer.
        logp, reference: log p of each token of all answers, by the policy that answered and by the reference; None where not needed.
    """

    number: int
    prompt: Prompt
    answers: list[Answer]
    advantages: list[float]
    logp: list[float] | None = None
    reference: list[float] | None = None

    @cached_property
    def alike(self) -> bool:
        """Whether all answers have the same reward."""
        return alike([answer.reward for answer in self.answers])

    def encoded(self) -> Encoded:
        """The prompt once, with all answers behind it."""
        whole = [i for answer in self.answers for i in answer.ids]
        ids, mask = [*self.prompt.ids, *whole], [0] * len(self.prompt.ids) + [1] * len(whole)
        return Encoded(np.asarray(ids, np.int32), np.asarray(mask, np.uint8), tuple(len(answer.ids) for answer in self.answers))


Score = Callable[[Prompt, Sequence[int], str], tuple[float, str]]
"""(the prompt, the answer's ids, why it ended) → what it is worth, and its text."""
Reference = Callable[[], AbstractContextManager[Any]]
"""A context that gives the reference model."""


@dataclass(frozen=True, kw_only=True)
class Asking:
    """What a stream of rollouts is made from.

    Attributes:
        prompts: of each source.
        weights: how often a prompt of each source is drawn.
        names: of the sources.
        seed: of order and draws.
        rollouts, policy: how answers are asked for and learnt from.
        score: what an answer is worth.
        stop_ids: tokens that end an answer.
        vocab_size: ids from here on are never drawn.
        folder: where `rollouts.jsonl` lies.
        progress: who is told.
        ranks: the processes that take part; each asks its share of the prompts.
        practice: the batches of what is practised in each step, and how much it counts; None: nothing is.
    """

    prompts: Sequence[Sequence[Prompt]]
    weights: Sequence[float]
    names: Sequence[str]
    seed: int
    rollouts: RolloutConfig
    policy: PolicyConfig
    score: Score
    stop_ids: frozenset[int]
    vocab_size: int
    folder: Path
    progress: Progress
    ranks: Ranks = field(default=ALONE)
    practice: tuple[PackedStream, float] | None = None


class Rollouts:
    """The batches of a training by rewards, one a step. `bind` it to its trainer before the first.

    Args:
        asking: what is asked, and how.

    Raises:
        UserError: a source without prompts.
    """

    def __init__(self, asking: Asking) -> None:
        self.asking, self.rollouts = asking, asking.rollouts
        self.mix = Mix([len(source) for source in asking.prompts], asking.weights, seeds.seed(asking.seed, "prompts"))
        self.sampling = Sampling(
            max_new_tokens=self.rollouts.max_new_tokens, temperature=self.rollouts.temperature, seed=seeds.seed(asking.seed, "rollouts")
        )
        self.path = asking.folder / FILE
        self.step = 0
        self._held: list[Group] | None = None
        """The groups of the round that is being learnt from; None: not yet looked up."""
        self._varied = False
        """Whether any group so far had answers of different rewards."""
        self._reference: Reference | None = None

    def bind(self, trainer: Trainer, reference: Reference | None = None) -> None:
        """Ask the model of this trainer from now on.

        Args:
            trainer: it steps through this stream, with the objective grpo.
            reference: gives the model whose distance `policy.kl` weighs.

        Raises:
            UserError: weights that are divided over ranks, or logits that no temperature divides; see `Live` for others.
        """
        if trainer.sharding.even:
            what = "answers cannot be generated while the weights are divided over ranks"
            raise UserError(what, where="memory.sharding", remedy="set sharding: replicate")
        assert isinstance(trainer.objective, Objective)
        assert (reference is not None) == bool(self.asking.policy.kl)
        self.trainer, self.objective, self._reference = trainer, trainer.objective, reference
        self.objective.config, self.objective.temperature = self.asking.policy, self.rollouts.temperature
        self.objective.policy_head(trainer.model)  # refuses a temperature before anything is asked
        self.live = Live(
            trainer.model, attention=trainer.plain_attention, max_batch=self.rollouts.max_batch, longest=trainer.config.sequence_length,
            vocab_size=self.asking.vocab_size, forward=self.rollouts.forward, say=self.asking.progress.note,
        )  # fmt: skip

    # -- the stream -------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, int]:
        """Where the stream stands, for a checkpoint."""
        return {"step": self.step}

    def restore(self, state: dict[str, int]) -> None:
        """Go on from where `state` was taken."""
        self.step, self._held = int(state["step"]), None

    def __next__(self) -> Batch:
        if self._held is None:
            self._held, self._varied = self._open()
        number, part = divmod(self.step, self.rollouts.updates)
        if part == 0:
            self._held = self._round(number)
        groups = self._held[part :: self.rollouts.updates]
        step, self.step = self.step, self.step + 1
        self.objective.groups = {group.number: group for group in groups}
        # Without a reference a group that has nothing to compare has no gradient; a step needs one document all the same.
        kept = [g for g in groups if self.asking.policy.kl or not g.alike] or [min(groups, key=lambda g: len(g.encoded()))]
        batch = make_batch([g.encoded() for g in kept], [g.prompt.source for g in kept], [g.number for g in kept])
        return batch if self.asking.practice is None else join(batch, self._practised(step))

    def _practised(self, step: int) -> Batch:
        """What is practised in a step, its sources counted on from those of the prompts."""
        assert self.asking.practice is not None
        stream, weight = self.asking.practice
        batch = stream.batch_at(step)
        self.objective.practice, self.objective.practised = weight, batch.predicted
        return replace(batch, sources=[len(self.asking.prompts) + source for source in batch.sources])

    def row(self, source: int, number: int) -> int:
        """The row (from 1) of the prompt with that number in the run."""
        return self.asking.prompts[source][self.mix.row_at(number)[1]].row

    # -- a round ----------------------------------------------------------------------------------------------------

    def _round(self, number: int) -> list[Group]:
        """Ask, score, measure and write down."""
        asking, count = self.asking, self.rollouts.prompts
        numbers = range(number * count, (number + 1) * count)
        own = [(n, *self.mix.row_at(n)) for n in numbers[asking.ranks.rank :: asking.ranks.world]]
        asked = [(n, asking.prompts[source][row]) for n, source, row in own]
        each = range(self.rollouts.answers)
        requests = [Request(prompt.ids, self.sampling, asking.stop_ids, index=n, sample=k) for n, prompt in asked for k in each]
        completions, weights = self.live.generate(requests)
        answered = iter(completions)
        groups = []
        for n, prompt in asked:
            answers = [self._answer(prompt, next(answered), k) for k in each]
            groups.append(Group(n, prompt, answers, advantages([answer.reward for answer in answers], asking.policy)))
        self._measure(groups)
        every = sorted((group for part in asking.ranks.collect(groups) for group in part), key=lambda group: group.number)
        self._judge(number, every)
        if asking.ranks.first:
            self._write(self._line(number, weights, group) for group in every)
        return every

    def _answer(self, prompt: Prompt, completion: Any, number: int) -> Answer:
        """Raises:
        UserError: a reward that is no finite number.
        """
        reward, text = self.asking.score(prompt, completion.ids, completion.reason)
        reward = float(reward)
        if not math.isfinite(reward):
            where = f"{self.asking.names[prompt.source]}, row {prompt.row} (id {prompt.id}), answer {number + 1}"
            raise UserError(f"the reward of an answer is {reward}", where=where, remedy="correct the metric: a reward is a finite number")
        if completion.reason == "length" and self.rollouts.unfinished == "zero":
            reward = 0.0
        return Answer(list(completion.ids), completion.reason, reward, text)

    def _judge(self, number: int, groups: Sequence[Group]) -> None:
        """Say how many groups teach nothing.

        Raises:
            UserError: no answer of the first rounds was worth more than another.
        """
        silent = sum(group.alike for group in groups)
        self._varied |= silent < len(groups)
        reward = groups[0].answers[0].reward
        if not self._varied:
            what = f"in {number + 1} rounds of {len(groups)} prompts all {self.rollouts.answers} answers to each got the same reward"
            what += f", such as {reward:g}"
            if number + 1 >= PATIENCE:
                remedy = "look at the rollouts: is the metric the right one, are the prompts too hard or too easy, max_new_tokens too few?"
                raise UserError(what, where=str(self.path), remedy=remedy)
            self.asking.progress.note(f"{what}: there is nothing to learn")

    @torch.no_grad()
    def _measure(self, groups: Sequence[Group]) -> None:
        """How likely each token is before the round's updates, where these are several, and under the reference."""
        if self.rollouts.updates > 1:
            self._fill(groups, self.trainer.model, "logp")
        if self._reference is not None:
            with self._reference() as model:
                self._fill(groups, model, "reference")

    def _fill(self, groups: Sequence[Group], model: Any, what: str) -> None:
        if not groups:
            return
        config, by_number = self.trainer.config, {group.number: group for group in groups}
        capacity = config.sequence_length * config.batch_sequences
        batch = make_batch([g.encoded() for g in groups], [g.prompt.source for g in groups], [g.number for g in groups])
        training = model.training
        model.eval()
        for part in batch.split(capacity):
            tensors = TorchBatch.of(part, self.trainer.device, packed=self.trainer.packed, multiple=max(1, capacity // 32))
            values_N = self.objective.log_probabilities(model, tensors).float().cpu()
            for number, own in zip(part.documents, values_N.split([sum(answers) for answers in part.answers]), strict=True):
                setattr(by_number[number], what, own.tolist())
        model.train(training)

    # -- the file ---------------------------------------------------------------------------------------------------

    def _line(self, number: int, weights: str, group: Group) -> dict[str, Any]:
        prompt = group.prompt
        found = [asdict(answer) | {"advantage": a} for answer, a in zip(group.answers, group.advantages, strict=True)]
        told = {"round": number, "prompt": group.number, "source": self.asking.names[prompt.source], "row": prompt.row, "id": prompt.id}
        measured = {name: value for name in ("logp", "reference") if (value := getattr(group, name)) is not None}
        return {**told, "weights": weights, "prompt_ids": prompt.ids, "answers": found, **measured}

    def _write(self, lines: Iterable[dict[str, Any]]) -> None:
        """Append a round, and see it on the disk: a checkpoint that is made of it must not be there without it."""
        with open(self.path, "a", encoding="utf-8") as file:
            file.write("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
            file.flush()
            os.fsync(file.fileno())

    def _open(self) -> tuple[list[Group], bool]:
        """Cut the file to the rounds that were begun; the groups of the one that is going on, and whether any had a variance."""
        rounds, begun = divmod(self.step, self.rollouts.updates)
        rounds += begun > 0
        first = self.asking.ranks.first
        kept = [line for line in read_rollouts(self.path) if line["round"] < rounds] if first else []
        if first:
            if len(kept) != rounds * self.rollouts.prompts:
                raise UserError("the draft's rollouts are not those of its checkpoint", where=str(self.path), remedy="delete this draft")
            write_atomically(self.path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept))
        varied = any(not alike([answer["reward"] for answer in line["answers"]]) for line in kept)
        going_on = [line for line in kept if begun and line["round"] == rounds - 1]
        lines, varied = self.asking.ranks.agree((going_on, varied))
        return [self._group(line) for line in lines], varied

    def _group(self, line: dict[str, Any]) -> Group:
        source, row = self.mix.row_at(line["prompt"])
        answers = [Answer(a["ids"], a["reason"], a["reward"], a["text"]) for a in line["answers"]]
        told = [a["advantage"] for a in line["answers"]]
        return Group(line["prompt"], self.asking.prompts[source][row], answers, told, line.get("logp"), line.get("reference"))


def read_rollouts(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a file of rollouts, one a group."""
    if path.is_file():
        with open(path, encoding="utf-8") as file:
            # A kill can leave half of the last line.
            yield from (json.loads(line) for line in file if line.endswith("\n"))


def summarise(path: Path) -> dict[str, Any]:
    """Groups of a whole run, how many of them taught nothing, and mean rewards of the first and the last tenth of its rounds."""
    rounds: dict[int, list[float]] = {}
    groups = silent = 0
    for line in read_rollouts(path):
        rewards = [answer["reward"] for answer in line["answers"]]
        rounds.setdefault(line["round"], []).extend(rewards)
        groups, silent = groups + 1, silent + alike(rewards)
    tenth = max(1, len(rounds) // 10)
    first, last = ([r for n in part for r in rounds[n]] for part in (sorted(rounds)[:tenth], sorted(rounds)[-tenth:]))
    return {
        "groups": groups, "groups_without_variance": silent, "answers": sum(map(len, rounds.values())),
        "reward_first": sum(first) / len(first), "reward_last": sum(last) / len(last),
    }  # fmt: skip
