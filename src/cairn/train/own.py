"""Dialogues whose last answer the student gives itself: what a distillation on policy learns from. Knows batches and the engine; no text.

Generalised knowledge distillation (GKD, Agarwal et al. 2023): what the student would say is scored by the teacher, so that it learns
where it really goes. Which dialogues, and every draw, is a function of (seed, step, place in the step); answers are one of the weights too.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cairn.data.batches import Batch, PackedStream, make_batch
from cairn.data.encode import Encoded
from cairn.errors import UserError
from cairn.generate.engine import Request
from cairn.generate.live import Live
from cairn.generate.sampling import Sampling
from cairn.ledger import seeds
from cairn.train.distillation import DistillationConfig
from cairn.train.ranks import ALONE, Ranks

AT_ONCE = 64
"""Answers that are generated together at most."""
APART = 1 << 20
"""Places between two steps in the numbering of draws."""


class OwnAnswers:
    """The batches of another stream, in which the student's own answers stand. `bind` it to its trainer before the first.

    Args:
        stream: dialogues and texts with their masks.
        config: how many dialogues, and how long answers get.
        stop_ids: tokens that end an answer.
        vocab_size: ids from here on are never drawn.
        seed: of choice and draws.
        ranks: the processes that take part; each answers its share.
    """

    def __init__(
        self, stream: PackedStream, config: DistillationConfig, *, stop_ids: frozenset[int], vocab_size: int, seed: int,
        ranks: Ranks = ALONE,
    ) -> None:  # fmt: skip
        self.stream, self.config, self.seed, self.ranks = stream, config, seed, ranks
        self.stop_ids, self.vocab_size = stop_ids, vocab_size
        self.sampling = Sampling(max_new_tokens=config.max_new_tokens, temperature=1.0, seed=seeds.seed(seed, "on_policy/draws"))

    def bind(self, trainer: Any) -> None:
        """Ask the model of this trainer from now on.

        Raises:
            UserError: weights that are divided over ranks; see `Live` for others.
        """
        if trainer.sharding.even:
            what = "answers cannot be generated while the weights are divided over ranks"
            raise UserError(what, where="memory.sharding", remedy="set sharding: replicate")
        self.longest = trainer.config.sequence_length
        self.live = Live(
            trainer.model, attention=trainer.plain_attention, max_batch=AT_ONCE, longest=self.longest, vocab_size=self.vocab_size,
            say=trainer.progress.note,
        )  # fmt: skip

    def state(self) -> dict[str, int]:
        """Where the stream stands, for a checkpoint."""
        return self.stream.state()

    def restore(self, state: dict[str, int]) -> None:
        """Go on from where `state` was taken."""
        self.stream.restore(state)

    def __next__(self) -> Batch:
        step = self.stream.step
        batch = next(self.stream)
        documents = list(_documents(batch))
        prompts = {i: prompt for i, one in enumerate(documents) if (prompt := prompt_of(one)) and len(prompt) < self.longest}
        numbers = [i for i in prompts if seeds.uniform(self.seed, "on_policy", step * APART + i) < self.config.on_policy]
        own = numbers[self.ranks.rank :: self.ranks.world]
        requests = [self._request(prompts[i], step * APART + i) for i in own]
        answers = self.live.generate(requests)[0] if requests else []
        found = {i: list(answer.ids) for i, answer in zip(own, answers, strict=True)}
        for part in self.ranks.collect(found):
            for i, ids in part.items():
                whole, mask = [*prompts[i], *ids], [0] * len(prompts[i]) + [1] * len(ids)
                documents[i] = Encoded(np.asarray(whole, np.int32), np.asarray(mask, np.uint8))
        return make_batch(documents, batch.sources, batch.documents)

    def _request(self, prompt: list[int], number: int) -> Request:
        room = min(self.config.max_new_tokens, self.longest - len(prompt))
        return Request(prompt, self.sampling.model_copy(update={"max_new_tokens": room}), self.stop_ids, index=number)


def prompt_of(document: Encoded) -> list[int]:
    """What stands before a dialogue's last answer; nothing for a text, which has no prompt."""
    targets = np.flatnonzero(document.mask)
    if not len(targets):
        return []
    # The last run of targets: behind the last gap between two of them.
    gaps = np.flatnonzero(np.diff(targets) > 1)
    start = int(targets[gaps[-1] + 1] if len(gaps) else targets[0])
    return [int(i) for i in document.ids[:start]] if start > 1 else []


def _documents(batch: Batch) -> list[Encoded]:
    ends = np.cumsum(batch.doc_lengths)
    cuts = zip(ends - np.asarray(batch.doc_lengths), ends, strict=True)
    return [Encoded(batch.ids[a:b].astype(np.int32), batch.mask[a:b]) for a, b in cuts]
