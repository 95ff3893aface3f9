"""Plain text to be continued, without a chat format: prompt ids, an optional constraint, a border that can be healed.

Knows tokenizers and constraints; no model. Chat prompts are `cairn.generate.session`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from cairn.generate.constrain import Constrainer
from cairn.generate.grammar import Grammar
from cairn.generate.healing import HealingMatcher, heal
from cairn.generate.matcher import Matcher
from cairn.generate.request import Completion, Request
from cairn.generate.sampling import Sampling
from cairn.generate.text import TextStop
from cairn.tokenizer.load import Tokenizer


@dataclass(frozen=True)
class Continuation:
    """A request that continues a text, and how to read its answer.

    Attributes:
        request: for the engine.
        stop: the request's stop strings, where it has some.
        taken: prompt ids that the answer writes again, because the border between prompt and answer was healed.
    """

    request: Request
    stop: TextStop | None
    taken: tuple[int, ...]
    _tokenizer: Tokenizer

    def answer(self, completion: Completion) -> str:
        """The text that continues the prompt, in front of a stop string."""
        if self.stop is not None and self.stop.stopped is not None:
            return self.stop.text
        if not self.taken:
            return self._tokenizer.decode(completion.content_ids)
        decode, prompt = self._tokenizer.decode, list(self.request.ids)
        return decode(prompt + completion.content_ids)[len(decode(prompt + list(self.taken))) :]


def continuation(
    tokenizer: Tokenizer,
    constrainer: Constrainer,
    text: str,
    sampling: Sampling,
    *,
    index: int = 0,
    stop_strings: Sequence[str] = (),
    constraint: Grammar | None = None,
    healed: bool = False,
) -> Continuation:
    """Ask for the continuation of a text.

    Args:
        tokenizer: the model's.
        constrainer: compiles constraints for it; its stop ids end the answer.
        text: the prompt.
        sampling: how tokens are chosen.
        index: names the stream of draws.
        stop_strings: texts that end the answer.
        constraint: what the answer must look like.
        healed: let the answer begin inside of the prompt's last word, where a longer token begins so (`cairn.generate.healing`).

    Raises:
        UserError: a constraint that cannot be used, or an empty stop string.
    """
    ids = ([] if tokenizer.bos_id is None else [tokenizer.bos_id]) + tokenizer.encode(text)
    vocabulary = constrainer.vocabulary
    taken: list[int] = []
    before = ""
    if healed:
        found = heal(vocabulary, ids)
        ids, taken, before = found.ids, found.taken, found.text
    stop = TextStop(tokenizer, stop_strings, before) if stop_strings else None
    made: Callable[[], Matcher] | None = None
    if constraint is not None:
        made = constrainer.compile(replace(constraint, head=before))
    elif taken:
        made = partial(HealingMatcher, vocabulary, before)
    # What is written again is not what was asked for; the prompt is as much shorter.
    sampling = sampling.model_copy(update={"max_new_tokens": sampling.max_new_tokens + len(taken)})
    request = Request(ids, sampling, vocabulary.stop_ids, stop, index, constraint=made)
    return Continuation(request, stop, tuple(taken), tokenizer)
