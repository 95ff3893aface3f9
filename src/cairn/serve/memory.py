"""The cache of answers beside a served model: exact look-ups, and answers to like texts that the model confirms. Knows no HTTP."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cairn.errors import UserError
from cairn.generate.load import Loaded
from cairn.generate.worker import Busy, Worker
from cairn.model.load import load_model
from cairn.serve.cache import AnswerCache, Held, Question, Replay
from cairn.serve.config import Limits
from cairn.serve.job import Job
from cairn.serve.near import Embedder
from cairn.serve.running import Running
from cairn.tokenizer.load import Tokenizer

MARGIN = 0.05
"""By how much a token's logit must beat the next where an answer's company matters to its last bits. In bf16, ten times as much."""
LONGEST = 2048
"""Tokens of prompt and answer together that are confirmed in one pass."""
SECONDS = 5.0
"""How long to wait for that; afterwards the request is computed like one that nothing is like."""


class Memory:
    """Answers that were given, and how to find them.

    Args:
        loaded: the served model.
        limits: how much is kept, and how alike texts must be.
        near: whether answers to like texts are tried.
        embedder: the folder of a model that makes vectors; None: the served one makes them.

    Raises:
        UserError: a folder without a model.
    """

    def __init__(self, loaded: Loaded, limits: Limits, *, near: bool = False, embedder: Path | None = None) -> None:
        self._cache = AnswerCache(limits.cache_entries, limits.cache_bytes)
        self._limits, self._embedder = limits, None
        self._margin = MARGIN * (1 if next(loaded.engine.model.parameters()).dtype == torch.float32 else 10)
        if not near:
            return
        if embedder is not None and not (embedder / "tokenizer.json").is_file():
            raise UserError("the folder holds no tokenizer", where=str(embedder), remedy="name the folder of a model with its tokenizer")
        model = loaded.engine.model if embedder is None else load_model(embedder, "float32")
        self._embedder = Embedder(model, loaded.tokenizer if embedder is None else Tokenizer.load(embedder))

    def exact(self, asked: Question) -> Replay | None:
        """The answer to the same question."""
        held = self._cache.get(asked.key)
        return None if held is None else Replay(held, {"kind": "exact"})

    def near(self, asked: Question, job: Job, worker: Worker) -> tuple[Replay | None, Tensor | None, int]:
        """(the answer to a like question that is this one's too, this one's vector, answers that were tried in vain)."""
        if self._embedder is None or asked.context is None:
            return None, None, 0
        vector = self._embedder(asked.text)
        if vector is None:
            return None, None, 0
        tried: set[tuple[int, ...]] = set()
        # Several of the likest questions may have had one answer: it is tried once.
        for alike, held in self._cache.nearest(asked.context, vector, self._limits.cache_likeness, 8):
            if len(tried) >= self._limits.cache_tries:
                break
            if tuple(held.ids) in tried:
                continue
            tried.add(tuple(held.ids))
            if self._holds(job, held, worker):
                told: Mapping[str, Any] = {"kind": "near", "likeness": round(alike, 4)}
                return Replay(held, dict(told), job.prompt_tokens), vector, len(tried) - 1
        return None, vector, len(tried)

    def _holds(self, job: Job, held: Held, worker: Worker) -> bool:
        """Whether the engine would have given this very answer: every one of its tokens, and no more."""
        prompt, ids = list(job.requests[0].ids), held.ids
        context = worker.engine.context
        # A pass holds up everybody's next token: what is long is computed in the queue like everything else.
        if not ids or len(prompt) + len(ids) > LONGEST or (context is not None and len(prompt) + len(ids) - 1 > context):
            return False
        try:
            asked = worker.aside(lambda scheduler: scheduler.confirm(prompt, ids, self._margin))
        except Busy:
            return False  # the request itself is told so, when it is handed in
        try:
            return asked.result(SECONDS)
        except (TimeoutError, CancelledError):
            asked.cancel()  # nobody waits for it any more: computed, it would only hold up the others
            return False

    def keep(self, asked: Question, vector: Tensor | None, running: Running) -> None:
        """Keep what was computed."""
        # An answer that was cut off by its length says nothing about a prompt of another length.
        whole = vector is not None and running.answers[0].completion is not None and running.answers[0].completion.reason == "stop"
        near = (asked.context, vector) if whole and asked.context is not None and vector is not None else None
        self._cache.put(asked.key, Held(running.events, running.count, running.prompt_tokens, running.generated, running.ids, near))

    def stats(self) -> dict[str, int]:
        """See `AnswerCache.stats`."""
        return self._cache.stats()
