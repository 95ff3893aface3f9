"""The engine: token ids in, token ids out, for any transformers causal language model. Knows no text, chat or HTTP.

Requests of similar prompt length run together, padded on the left; a row that ends leaves the batch, so that one long
answer does not keep the others computing. Which requests run together depends on the requests alone and not on the
order in which they are given. Models whose forward takes no padding run in batches of equal length; models whose state
is not a key-value cache (Mamba, RWKV, …) are run without one: slow, and right.

A draw is a function of (sampling seed, request index, step), never of a generator. Logits of a row differ in the last
bits with the shape of its batch, so a near tie may fall otherwise in other company: of 200 answers of 40 tokens of a random
model with 0.5 M parameters none did in float32 and 68 did in bfloat16. `deterministic=True` runs every request alone, which
leaves nothing to depend on, and is slower.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from cairn.errors import UserError
from cairn.generate.draw import NOT_FINITE, Chooser
from cairn.generate.sampling import Sampling
from cairn.ledger import seeds

Reason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True)
class Request:
    """One prompt to be continued.

    Attributes:
        ids: the prompt's token ids, at least one.
        sampling: how tokens are chosen, and how many at most.
        stop_ids: tokens that end the answer.
        stop: called with the ids generated so far after each token; true ends the answer.
        index: names the request's stream of draws; give distinct ones to distinct requests of one seed.
    """

    ids: Sequence[int]
    sampling: Sampling = field(default_factory=Sampling)
    stop_ids: frozenset[int] = frozenset()
    stop: Callable[[list[int]], bool] | None = None
    index: int = 0


@dataclass
class Completion:
    """The tokens that continue a prompt.

    Attributes:
        ids: every generated id, the stop token included where one ended the answer.
        reason: "stop" (stop token or stop function), "length" (max_new_tokens or the model's context), "cancelled".
        stop_id: the stop token, where one ended the answer.
    """

    ids: list[int]
    reason: Reason
    stop_id: int | None = None

    @property
    def content_ids(self) -> list[int]:
        """The ids without the stop token."""
        return self.ids if self.stop_id is None else self.ids[:-1]


class Engine:
    """Continues prompts with a model.

    Args:
        model: a transformers causal language model.
        pad_id: id that fills the left of shorter prompts; any id within the vocabulary does, it is never attended to.
        max_batch: requests that run together at most.
        max_batch_tokens: prompt and answer tokens (padding counted) that run together at most; bounds the cache's memory. A single
            request above it runs alone.
        vocab_size: ids from here on are never chosen (rows that pad the model's head beyond the tokenizer's vocabulary).
        deterministic: run every request alone, so that its answer cannot depend on its company.
    """

    def __init__(
        self,
        model: Any,
        *,
        pad_id: int = 0,
        max_batch: int = 64,
        max_batch_tokens: int = 32768,
        vocab_size: int | None = None,
        deterministic: bool = False,
    ) -> None:
        if getattr(model.config, "is_encoder_decoder", False):
            raise UserError("the model has an encoder; only causal language models generate here", remedy="give a decoder-only model")
        self.model = model
        self.pad_id = pad_id
        self.max_batch = 1 if deterministic else max_batch
        self.max_batch_tokens = max_batch_tokens
        self.deterministic = deterministic
        self.rows = int(model.get_input_embeddings().weight.shape[0])
        self.vocab_size = vocab_size
        self.config = model.config.get_text_config(decoder=True)
        self.context: int | None = _context_length(self.config)
        parameters = inspect.signature(model.forward).parameters
        self.cached = "past_key_values" in parameters and not getattr(model, "_is_stateful", False) and _takes_dynamic_cache(model)
        self.padded = self.cached and "attention_mask" in parameters and "position_ids" in parameters
        self._keeps_logits = "logits_to_keep" in parameters
        self._takes_positions = "position_ids" in parameters

    def check(self, request: Request) -> None:
        """Refuse a request that the model cannot run.

        Raises:
            UserError: an empty prompt, an id outside of the vocabulary, or a prompt longer than the model's context.
        """
        where = f"request {request.index}"
        if not request.ids:
            raise UserError("the prompt has no token", where=where, remedy="begin it with the tokenizer's first token or some text")
        if min(request.ids) < 0 or max(request.ids) >= self.rows:
            bad = next(i for i in request.ids if not 0 <= i < self.rows)
            raise UserError(
                f"the prompt holds id {bad}, the model knows 0 to {self.rows - 1}", where=where, remedy="use the model's own tokenizer"
            )
        if self.context is not None and len(request.ids) > self.context:
            raise UserError(
                f"the prompt has {len(request.ids)} tokens, the model's context holds {self.context}",
                where=where,
                remedy="shorten the prompt, or begin a new conversation",
            )

    def limit(self, request: Request) -> int:
        """How many tokens the request may generate: its own limit, or what the model's context leaves (the last token needs no place)."""
        most = request.sampling.max_new_tokens
        return most if self.context is None else min(most, self.context - len(request.ids) + 1)

    def generate(
        self,
        requests: Sequence[Request],
        on_progress: Callable[[int, int], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> list[Completion]:
        """Answer all requests; the answers stand in the order of the requests.

        Args:
            requests: any number, of any lengths.
            on_progress: called after every step with (finished requests, tokens generated).
            cancelled: asked before every step; once true, what is not finished ends with reason "cancelled".

        Raises:
            UserError: see `check`; nothing is run then.
        """
        for request in requests:
            self.check(request)
        done: dict[int, Completion] = {}
        tokens = 0
        with _evaluating(self.model):
            for group in self._groups(requests):
                batch = _Batch(self, [requests[i] for i in group])
                while batch.alive and not (cancelled and cancelled()):
                    tokens += len(batch.step())
                    if on_progress:
                        on_progress(len(done) + len(group) - len(batch.alive), tokens)
                done.update(zip(group, batch.completions(), strict=True))
        return [done[i] for i in range(len(requests))]

    def stream(self, request: Request, cancelled: Callable[[], bool] | None = None) -> Generator[int, None, Completion]:
        """Yield the ids of one answer as they come; the generator's value is the completion."""
        self.check(request)
        with _evaluating(self.model):
            batch = _Batch(self, [request])
            while batch.alive and not (cancelled and cancelled()):
                yield from batch.step()
        return batch.completions()[0]

    def _groups(self, requests: Sequence[Request]) -> Iterator[list[int]]:
        """Positions of the requests that run together: a function of the set of requests, not of their order."""
        order = sorted(range(len(requests)), key=lambda i: (len(requests[i].ids), requests[i].index, tuple(requests[i].ids)))
        group: list[int] = []
        answer = 0
        for i in order:
            length, most = len(requests[i].ids), self.limit(requests[i])
            if group:
                shortest = len(requests[group[0]].ids)
                # Padding a 16 token prompt to 512 computes 496 tokens for nothing; a second batch is cheaper.
                near = length <= 2 * shortest + 32 if self.padded else length == shortest
                fits = (len(group) + 1) * (length + max(answer, most)) <= self.max_batch_tokens
                if not near or not fits or len(group) >= self.max_batch:
                    yield group
                    group, answer = [], 0
            group.append(i)
            answer = max(answer, most)
        if group:
            yield group


class _Batch:
    """Requests that run together, from the prompt to the last token. `alive` holds the numbers of the rows still running."""

    def __init__(self, engine: Engine, requests: Sequence[Request]) -> None:
        self._engine = engine
        self._requests = requests
        self._answers: list[list[int]] = [[] for _ in requests]
        self._ends: list[tuple[Reason, int | None] | None] = [None] * len(requests)
        self._limits = [engine.limit(r) for r in requests]
        self.alive = list(range(len(requests)))
        device = engine.model.device
        longest = max(len(r.ids) for r in requests)
        pads = [longest - len(r.ids) for r in requests]
        self._ids_BT = torch.tensor([[engine.pad_id] * p + list(r.ids) for p, r in zip(pads, requests, strict=True)], device=device)
        self._chooser = Chooser([r.sampling for r in requests], device)
        self._cache: Any = None
        self._mask_BT: Tensor | None = None
        if engine.cached:
            from transformers import DynamicCache

            self._cache = DynamicCache(config=engine.config)
        positions_BT = torch.arange(longest, device=device).expand(len(requests), -1)
        if any(pads):
            offset_B1 = torch.tensor(pads, device=device)[:, None]
            self._mask_BT = (positions_BT >= offset_B1).long()
            positions_BT = (positions_BT - offset_B1).clamp(min=0)
        self._positions_BT = positions_BT
        self._seen_BV = self._mark_seen() if self._chooser.needs_seen else None

    def _mark_seen(self) -> Tensor:
        """Which ids each prompt holds; padding is not seen."""
        seen_BV = torch.zeros(len(self._requests), self._engine.rows, dtype=torch.bool, device=self._ids_BT.device)
        for row, request in enumerate(self._requests):
            seen_BV[row, torch.tensor(list(request.ids), device=seen_BV.device)] = True
        return seen_BV

    def completions(self) -> list[Completion]:
        """The answers so far; a row that is still running counts as cancelled."""
        ends = [end or ("cancelled", None) for end in self._ends]
        return [Completion(ids, reason, stop_id) for ids, (reason, stop_id) in zip(self._answers, ends, strict=True)]

    @torch.inference_mode()
    def step(self) -> list[int]:
        """Generate one token for every running row; gives them in the order of the rows."""
        logits_BV = self._forward()
        if self._engine.vocab_size is not None:
            logits_BV = logits_BV[:, : self._engine.vocab_size]
        seen_BV = None if self._seen_BV is None else self._seen_BV[:, : logits_BV.shape[1]]
        ids_B = self._chooser.choose(logits_BV, uniform_B=self._uniforms(), seen_BV=seen_BV)
        tokens: list[int] = ids_B.tolist()
        if NOT_FINITE in tokens:
            remedy = "load it in float32; if that fails too, its weights are damaged"
            raise UserError("the model's logits are not finite numbers", remedy=remedy)
        stay = [place for place, token in enumerate(tokens) if not self._take(self.alive[place], token)]
        self._advance(ids_B, stay)
        return tokens

    def _forward(self) -> Tensor:
        """Logits of the last position."""
        engine = self._engine
        inputs: dict[str, Any] = {"input_ids": self._ids_BT, "use_cache": engine.cached}
        if engine.cached:
            inputs["past_key_values"] = self._cache
            if engine._takes_positions:
                inputs["position_ids"] = self._positions_BT
        if self._mask_BT is not None:
            inputs["attention_mask"] = self._mask_BT
        if engine._keeps_logits:
            inputs["logits_to_keep"] = 1
        return engine.model(**inputs, return_dict=True).logits[:, -1]

    def _uniforms(self) -> Tensor | None:
        if not self._chooser.needs_uniforms:
            return None
        rows = [(self._requests[r].sampling.seed, self._requests[r].index, len(self._answers[r])) for r in self.alive]
        draws = [seeds.uniform(seed, f"sample/{index}", step) for seed, index, step in rows]
        return torch.tensor(draws, dtype=torch.float64, device=self._ids_BT.device)

    def _take(self, row: int, token: int) -> bool:
        """Add a token to a row's answer; true where the row ends with it."""
        request, answer = self._requests[row], self._answers[row]
        answer.append(token)
        if token in request.stop_ids:
            self._ends[row] = ("stop", token)
        elif request.stop is not None and request.stop(answer):
            self._ends[row] = ("stop", None)
        elif len(answer) >= self._limits[row]:
            self._ends[row] = ("length", None)
        return self._ends[row] is not None

    def _advance(self, ids_B: Tensor, stay: list[int]) -> None:
        """Make the chosen ids the next input, and drop the rows that ended from everything that is kept a row."""
        next_B1 = ids_B[:, None]
        if self._engine.cached:
            self._ids_BT = next_B1
            self._positions_BT = self._positions_BT[:, -1:] + 1
            if self._mask_BT is not None:
                self._mask_BT = torch.cat([self._mask_BT, torch.ones_like(next_B1)], dim=1)
        else:
            self._ids_BT = torch.cat([self._ids_BT, next_B1], dim=1)
        if self._seen_BV is not None:
            self._seen_BV.scatter_(1, next_B1, True)
        if len(stay) == len(self.alive):
            return
        self.alive = [self.alive[place] for place in stay]
        if not stay:
            self._cache = None
            return
        keep_N = torch.tensor(stay, device=ids_B.device)
        self._ids_BT, self._positions_BT = self._ids_BT[keep_N], self._positions_BT[keep_N]
        if self._mask_BT is not None:
            self._mask_BT = self._mask_BT[keep_N]
        if self._seen_BV is not None:
            self._seen_BV = self._seen_BV[keep_N]
        if self._cache is not None:
            self._cache.reorder_cache(keep_N)
        self._chooser.select(keep_N)


class _evaluating:
    """Puts the model into evaluation mode for a while (dropout off) and back afterwards."""

    def __init__(self, model: Any) -> None:
        self._model, self._training = model, model.training

    def __enter__(self) -> None:
        if self._training:
            self._model.eval()

    def __exit__(self, *_: object) -> None:
        if self._training:
            self._model.train()


def _context_length(config: Any) -> int | None:
    """The number of positions that the model was made for, or None where it has no bound."""
    for name in ("max_position_embeddings", "max_seq_len"):
        value = getattr(config, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return None


def _takes_dynamic_cache(model: Any) -> bool:
    """Whether the model's family works with transformers' growing key-value cache."""
    probe = getattr(type(model), "_supports_default_dynamic_cache", None)
    return bool(probe()) if probe is not None else False
