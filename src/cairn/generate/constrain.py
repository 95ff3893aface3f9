"""Constraints on answers: grammars compiled for a tokenizer, and matchers that hold an answer to one until it is complete.

llguidance (guidance-ai, an Earley parser over derivatives of regular expressions) says which ids may come next. Beside it
walks a `Closer` that always knows an ending; an id after which the ending no longer fits into the tokens that are left is
refused when it is chosen. So every answer that ends is complete, whatever its budget. Where llguidance gives up in the
middle of an answer (its bounds on work in one state), the answer takes the known ending. Knows no model and no chat format.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Collection, Sequence
from threading import Lock
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cairn.errors import UserError
from cairn.generate import closing
from cairn.generate.closing import Closer, Effort
from cairn.generate.examine import CPU_SECONDS, Examiner, Refused, build
from cairn.generate.grammar import Grammar
from cairn.generate.json_shape import JsonShape
from cairn.generate.matcher import Matcher
from cairn.generate.vocabulary import END, Vocabulary
from cairn.tokenizer.load import Tokenizer

REFUSALS = 8
"""So many ids may be refused at one place; then only the known ending's next id is allowed."""
KEPT = 64
"""Compiled grammars that are kept, the latest used ones."""
Plan = list[tuple[int, int]]
"""For every place of an ending: the tokens from there to its end, and the first of them (-1 at the end)."""


class Constrainer:
    """Compiles grammars for one tokenizer.

    Args:
        tokenizer: the model's.
        stop_ids: ids that end its answers.
        cpu_seconds: processor time that a grammar may take to compile.
    """

    def __init__(self, tokenizer: Tokenizer, stop_ids: Collection[int], cpu_seconds: float = CPU_SECONDS) -> None:
        # What looks like a special token in text is text (`encode_special_tokens`), also to llguidance, which sees bytes alone.
        self.vocabulary = Vocabulary(tokenizer.backend.to_str(), tokenizer.vocab_size, tokenizer.special, stop_ids)
        self._examiner = Examiner(self.vocabulary, cpu_seconds)
        self._kept: OrderedDict[Grammar, Compiled | str] = OrderedDict()
        self._lock = Lock()

    def compile(self, grammar: Grammar) -> Compiled:
        """A constraint for requests.

        Raises:
            UserError: it cannot be compiled, nothing satisfies it, or it takes too much time or memory.
        """
        with self._lock:
            found = self._kept.get(grammar)
        if found is None:
            try:
                found = self._compiled(grammar)
            except Refused as refused:
                found = str(refused)
        with self._lock:
            self._kept[grammar] = found
            self._kept.move_to_end(grammar)
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        if isinstance(found, str):
            raise UserError(f"{grammar.what} cannot be used: {found}", where="constraint", remedy="change or simplify it")
        return found

    def _compiled(self, grammar: Grammar) -> Compiled:
        source = grammar.source()
        ending = self._examiner.ending(source, grammar.hints)
        matcher, closer = build(self.vocabulary, source, grammar.hints, ending)
        return Compiled(grammar, self.vocabulary, matcher, closer)

    def close(self) -> None:
        """End the process that tries grammars out; it starts again when it is needed."""
        self._examiner.close()


class Compiled:
    """A constraint: called, it gives a matcher for one answer.

    Attributes:
        shortest: tokens of the shortest known answer.
    """

    def __init__(self, grammar: Grammar, vocabulary: Vocabulary, matcher: Any, closer: Closer) -> None:
        self.grammar = grammar
        self._vocabulary, self._matcher, self._closer = vocabulary, matcher, closer
        plan = vocabulary.write(closer.ending)
        if plan is None:
            raise Refused("the tokenizer cannot write it")
        self._plan = plan
        self.shortest = plan[0][0]

    def __call__(self) -> LlMatcher:
        # A copy shares the lexer's states with its source, which every answer adds to; the parser's are its own.
        grammar = self.grammar
        shape = None if grammar.json_after is None else JsonShape(waiting=(grammar.json_after or grammar.head).encode())
        closer = self._closer.fork(Effort(closing.SECONDS))
        return LlMatcher(self._vocabulary, self._matcher.deep_copy(), closer, self._plan, shape)

    def check(self, limit: int) -> None:
        """Refuse a budget that no known answer fits into.

        Raises:
            UserError: the shortest known answer takes more than `limit` tokens.
        """
        if self.shortest > limit:
            raise _too_short(self.grammar.what, self.shortest, limit)


class LlMatcher(Matcher):
    """One answer under one constraint; see `cairn.generate.matcher.Matcher`.

    Where only one text can come next, llguidance allows only the ids with which the tokenizer writes it, so the model need not be asked.
    """

    def __init__(self, vocabulary: Vocabulary, matcher: Any, closer: Closer, plan: Plan, shape: JsonShape | None) -> None:
        self.finished = False
        self._vocabulary, self._matcher = vocabulary, matcher
        self._closer: Closer | None = closer
        # What is known of the ending: its symbols, how to write them from each place on, and the place.
        self._route, self._plan, self._at = closer.route, plan, closer.at
        self._shape = shape
        self._refused: list[int] = []
        self._forced: list[int] | None = None
        self._asked_V: NDArray[np.bool_] | None = None
        """The mask of this place, once it was asked for."""
        self._bits = np.zeros(-(-vocabulary.size // 32), np.int32)
        """llguidance writes its masks here, a bit an id."""

    def fork(self) -> LlMatcher:
        """See `Matcher`."""
        other = copy.copy(self)
        other._matcher, other._closer = self._matcher.deep_copy(), self._closer and self._closer.fork()
        other._refused, other._bits = list(self._refused), self._bits.copy()
        other._asked_V = None  # a refusal changes it
        return other

    def allowed(self, left: int) -> Tensor:
        """bool_V; see `Matcher`.

        Raises:
            UserError: not even the shortest known answer fits into `left` tokens; only before an answer's first token.
        """
        tokens, next_id = self._plan[self._at]
        if tokens > left:
            raise _too_short("the constraint", tokens, left)
        stops = sorted(self._vocabulary.stop_ids)
        if len(self._refused) < REFUSALS or (next_id < 0 and not stops):
            mask_V = self._mask()
            if mask_V is not None:
                return torch.from_numpy(mask_V)
        # Too many refusals, or llguidance gave up: along the known ending.
        mask_V = np.zeros(self._vocabulary.size, np.bool_)
        mask_V[stops if next_id < 0 else [next_id]] = True
        return torch.from_numpy(mask_V)

    def forced(self, left: int) -> Sequence[int]:
        """See `Matcher`."""
        if self._closer is None or self._refused or self.finished or self._matcher.is_error():
            return ()  # where the tokenizer's own way does not fit into the tokens left, there may be a shorter one
        if self._forced is None:
            found = self._matcher.compute_ff_tokens()
            self._forced = found if self._vocabulary.unused not in found else found[: found.index(self._vocabulary.unused)]
        return self._forced

    def _mask(self) -> NDArray[np.bool_] | None:
        """What llguidance allows, without what was refused here; None where it gave up or nothing is left."""
        if self._closer is None or self._matcher.is_error():
            return None
        if self._asked_V is not None:
            return self._asked_V
        self._matcher.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)
        if self._matcher.is_error():
            return None
        mask_V = np.unpackbits(self._bits.view(np.uint8), count=self._vocabulary.size, bitorder="little").view(np.bool_)
        mask_V[self._refused] = False
        if self._vocabulary.unused is not None:
            mask_V[self._vocabulary.unused] = False
        if not mask_V.any():
            return None
        self._asked_V = mask_V
        return mask_V

    def accept(self, id: int, left: int) -> bool:
        """Take an id, or refuse it; see `Matcher`."""
        forced = self.forced(left)
        if forced and id != forced[0]:
            return False  # it may be the same text, which alone is what `_accept` looks at
        taken = self._accept(id, left)
        # An id beyond the tokenizer's, of a model whose vocabulary is padded, is in no mask.
        if not taken and id < self._vocabulary.size:
            self._refused.append(id)
            if self._asked_V is not None:
                self._asked_V[id] = False
        return taken

    def _accept(self, id: int, left: int) -> bool:
        symbols, planned = self._vocabulary.symbols(id), id == self._plan[self._at][1]
        if symbols == (END,):
            self.finished = self._may_end(id)
            return self.finished
        if not planned and not self._may_come(id):
            return False
        closer = self._closer and symbols and self._closer.after(symbols)
        shape = self._shape and self._shape.after(symbols)
        if planned:
            # The known ending goes on even where a bound is passed on the way, or where nothing can follow it any more.
            self._take(id, closer or None, self._plan, self._at + len(symbols), shape or self._shape)
            return True
        plan = self._planned(closer) if closer and self._fits(shape, closer) else None
        if not closer or plan is None or plan[closer.at][0] > left - 1:
            return False
        self._take(id, closer, plan, closer.at, shape)
        return True

    def _may_come(self, id: int) -> bool:
        """Whether llguidance takes an id."""
        if self._closer is None or id >= self._vocabulary.size:
            return False
        if self._asked_V is not None:
            return bool(self._asked_V[id])
        return bool(self._matcher.validate_tokens([id]) == 1)

    def _may_end(self, id: int) -> bool:
        """Whether a stop token may come: behind the known ending, or where llguidance says so."""
        if self._at == len(self._route):
            return True
        mask_V = self._mask()
        return mask_V is not None and bool(mask_V[id])

    def _fits(self, shape: JsonShape | None, closer: Closer) -> bool:
        """Whether the JSON so far, and with its ending, is what readers take."""
        if self._shape is None:
            return True
        if shape is None:
            return False
        # An ending can only repeat a key where it completes one, or where it is a new one.
        known = closer.route is self._route and shape.key is None and not shape.expects_key
        return known or shape.after(closer.ending) is not None

    def _planned(self, closer: Closer) -> Plan | None:
        return self._plan if closer.route is self._route else self._vocabulary.write(closer.ending, self._route, self._plan)

    def _take(self, id: int, closer: Closer | None, plan: Plan, at: int, shape: JsonShape | None) -> None:
        self._closer, self._plan, self._at, self._shape = closer, plan, at, shape
        self._route = self._route if closer is None else closer.route
        self._refused, self._asked_V = [], None
        self._forced = self._forced[1:] or None if self._forced else None
        self._matcher.consume_token(id)
        ended = at == len(self._route)
        if closer is None or self._matcher.is_error():
            self.finished = ended
        elif ended:
            # Without a stop token an answer that nothing can follow must end by itself.
            self.finished = self._matcher.is_stopped() or not (self._vocabulary.stop_ids or self._continues())

    def _continues(self) -> bool:
        return self._mask() is not None


def _too_short(what: str, needed: int, limit: int) -> UserError:
    return UserError(
        f"{what} needs at least {needed} tokens, the answer may have {limit}",
        where="constraint",
        remedy=f"allow at least {needed} tokens, or ask for less",
    )
