"""The way out of a constrained answer: bytes that complete it from wherever it stands. Knows llguidance's matchers; no model.

llguidance says what may come next, not how to come to an end. A `Closer` walks beside the answer, byte by byte, and always
holds one ending that the grammar accepts. While the ending stays valid nothing is searched; else a short one is looked for,
greedily at first (quotes and brackets close), then best-first with few departures from that. All of it is counted in steps
and never in seconds: the same answer has the same ending on every machine. Only where an answer's searches take seconds (an
ambiguous grammar, whose every step is slow) it is given up, with an error: it would hold up all other answers.
"""

from __future__ import annotations

import heapq
import math
import time
from collections import Counter
from collections.abc import Iterator
from itertools import count

from llguidance import LLMatcher, LLParserLimits

from cairn.errors import UserError
from cairn.generate.vocabulary import END, Symbols

GREEDY_STEPS = 1500
"""Choices that the greedy search makes at most (0.3 ms each)."""
SEARCH_STEPS = 300
"""States that the best-first search opens at most (3 ms each)."""
PATIENCE = 4
"""So often a state is come back to before others are preferred."""
FEW = 48
"""Where more symbols are allowed it is inside of a text, and the greedy search looks at `_USUAL` ones alone."""
_USUAL = frozenset(b'"}]019aAzZ-./:_@#, ')
SECONDS = 3.0
"""Processor time that the searches of one answer may take together. A usual answer's take milliseconds."""
MAX_ENDING = 65_536
"""Longest ending, in bytes."""
_CLOSERS = tuple(b'}]"')
_LATE = frozenset(b"\\ \t\r\n") | frozenset(range(0x80, 0x100))
"""Bytes that an ending hardly needs: escapes, white space, parts of other characters."""
_PROBES = tuple([*text, end] for text in (b"", b"a", b"aa", b"aaaa", b"A", b"0", b"00", b"0000") for end in (ord('"'), END))
"""How much of these a state accepts tells states apart that allow the same next symbols, as before and after a point in
`[a-z.]+\\.[a-z]{2}`."""


def limits(eager: bool) -> LLParserLimits:
    """What a grammar may cost; by llguidance's own figures some 20 ms for its first expressions, 15 ms in any state, 100 MB in all."""
    return LLParserLimits(
        initial_lexer_fuel=1_000_000,
        step_lexer_fuel=200_000,
        step_max_items=50_000,
        max_lexer_states=50_000,
        max_grammar_size=200_000,
        precompute_large_lexemes=eager,
        verbose_errors=False,
    )


class Effort:
    """The processor time that one answer's searches may still take.

    Args:
        seconds: how much.
    """

    def __init__(self, seconds: float = math.inf) -> None:
        self._left, self._begun = seconds, 0.0

    def __enter__(self) -> None:
        self._begun = time.thread_time()

    def __exit__(self, *_: object) -> None:
        self._left -= time.thread_time() - self._begun

    def check(self) -> None:
        """Called at every step of a search.

        Raises:
            UserError: it took too long.
        """
        if time.thread_time() - self._begun > self._left:
            raise UserError(
                "the constraint takes too long to follow: no way out of this answer was found in time",
                where="constraint",
                remedy="simplify it: an ambiguous grammar, which reads one text in many ways, is slow",
            )


class Closer:
    """One answer's ending.

    Args:
        matcher: stands at the answer's beginning, over the vocabulary of bytes; this object takes it over.
        hints: texts that the grammar may ask for: they are tried as one step where anything may come.
        ending: an ending that is known already.
        effort: what searches may take; shared by all that come of this object.
    """

    def __init__(
        self, matcher: LLMatcher, hints: tuple[Symbols, ...] = (), ending: Symbols | None = None, effort: Effort | None = None
    ) -> None:  # fmt: skip
        self._matcher, self._hints, self._effort = matcher, hints, effort or Effort()
        self.route = ending or ()
        """A known ending of this place or of one before it; the same object until another one is found."""
        self.at = 0
        """Where in it this place stands."""

    def fork(self, effort: Effort | None = None) -> Closer:
        """One more at the same place; with an effort of its own where one is given."""
        other = Closer(self._matcher.deep_copy(), self._hints, effort=effort or self._effort)
        other.route, other.at = self.route, self.at
        return other

    @property
    def ending(self) -> Symbols:
        """What completes the answer from here."""
        return self.route[self.at :]

    def begin(self) -> bool:
        """Find the first ending; false where none is found: the grammar has no finite text, or only very long ones."""
        found = self._search(self._matcher)
        if found is not None:
            self.route = found
        return found is not None

    def after(self, symbols: Symbols) -> Closer | None:
        """This object once the symbols are taken, or None where they lead nowhere or no way out is found.

        Raises:
            UserError: looking for one took too long.
        """
        matcher = self._matcher.deep_copy()
        if matcher.try_consume_tokens(list(symbols)) != len(symbols) or matcher.is_error():
            return None
        other = Closer(matcher, self._hints, effort=self._effort)
        at = self.at + len(symbols)
        if self.route[self.at : at] == symbols:
            other.route, other.at = self.route, at
            return other
        # Inside of a text or a number the ending stays as it was; a choice that it did not foresee often leads back to it soon.
        for start in dict.fromkeys((self.at, at, *range(self.at + 1, self.at + 8))):
            if start <= len(self.route) and _completes(matcher, self.route[start:]):
                other.route, other.at = self.route, start
                return other
        found = self._search(matcher, self.route[max(0, self.at - 4) : self.at + 64], self.route[self.at + 64 :])
        if found is None:
            return None
        other.route = found
        return other

    def _search(self, matcher: LLMatcher, near: Symbols = (), far: Symbols = ()) -> Symbols | None:
        """A short ending from a state, or None.

        Args:
            matcher: the state; it is left as it is.
            near, far: an ending of another state of the same answer; the way back to any place of its near part is looked for too.
        """
        with self._effort:
            begin = _Node(matcher, (), self._effort)
            found = _greedy(begin.copy(), self._hints, near, far)
            return _best_first(begin, self._hints, near, far) if found is None else found


def _completes(matcher: LLMatcher, symbols: Symbols) -> bool:
    return bool(matcher.validate_tokens([*symbols, END]) == len(symbols) + 1)


def _greedy(node: _Node, hints: tuple[Symbols, ...], near: Symbols, far: Symbols) -> Symbols | None:
    """Follow the first child of every state. Hints: texts to try as one step."""
    visits: Counter[_Signature] = Counter()
    for _ in range(GREEDY_STEPS):
        done = node.settle(near, far)
        if done is not None or len(node.path) > MAX_ENDING:
            return done
        child = next(node.children(visits, hints, eager=True), None)
        if child is None:
            return None
        node = child
    return None


def _best_first(begin: _Node, hints: tuple[Symbols, ...], near: Symbols, far: Symbols) -> Symbols | None:
    """Short endings first, counting every departure from the first child as eight bytes."""
    order = count()
    heap: list[tuple[int, int, int, _Node]] = [(0, next(order), 0, begin.copy())]
    for _ in range(SEARCH_STEPS):
        if not heap:
            return None
        _, _, departures, node = heapq.heappop(heap)
        done = node.settle(near, far)
        if done is not None:
            return done
        if len(node.path) > MAX_ENDING:
            continue
        for rank, child in enumerate(node.children(Counter(), hints)):
            heapq.heappush(heap, (8 * (departures + rank) + len(child.path), next(order), departures + rank, child))
    return None


class _Node:
    """A state of the search: a matcher and the symbols that led to it."""

    def __init__(self, matcher: LLMatcher, path: Symbols, effort: Effort) -> None:
        self.matcher, self.path, self._effort = matcher, path, effort

    def copy(self) -> _Node:
        """One more of this state."""
        return _Node(self.matcher.deep_copy(), self.path, self._effort)

    def settle(self, near: Symbols, far: Symbols) -> Symbols | None:
        """Take what is forced; the whole ending, where this state completes the answer or rejoins a known ending.

        None too where the ending is too long: its path is then.
        """
        forced = self.matcher.compute_ff_tokens()
        if forced and forced[-1] == END:
            forced = forced[:-1]
        if forced:
            self.matcher.consume_tokens(forced)
            self.path += tuple(forced)
        if self.matcher.is_error() or len(self.path) > MAX_ENDING:
            return None
        if self.matcher.is_accepting():
            return self.path
        for start in range(min(len(near), 12)):
            if _completes(self.matcher, near[start:] + far):
                return self.path + near[start:] + far
        return None

    def children(self, visits: Counter[_Signature], hints: tuple[Symbols, ...], eager: bool = False) -> Iterator[_Node]:
        """The states that one more symbol leads to, promising ones first; of several that look alike only the first.

        Args:
            visits: how often such states were on the way; rarely visited ones come first. The first child is counted.
            hints: texts to try as one step.
            eager: stop at the first one that closes something, and look at few where many are allowed.
        """
        mask = self.matcher.compute_logit_bias()
        if self.matcher.is_error():
            return
        allowed = [symbol for symbol, value in enumerate(mask) if value and symbol != END]
        texts = len(allowed) > FEW
        if eager:
            for symbol in _CLOSERS:
                closed = self._child((symbol,)) if mask[symbol] else None
                if closed is not None and not (texts and _alike(self.matcher, mask, closed.matcher)):
                    yield closed
                    return
        own = _signature(self.matcher)
        tried = [hint for hint in hints if mask[hint[0]]] if len(allowed) > 1 else []
        if eager and texts:
            allowed = [symbol for symbol in allowed if symbol in _USUAL] or allowed
        here: set[_Signature] = set()
        others: list[tuple[tuple[bool, int, int], _Signature, _Node]] = []
        for step in (*((symbol,) for symbol in sorted(allowed, key=_rank)), *tried):
            child = self._child(step)
            if child is None:
                continue
            follows, symbol = _signature(child.matcher), step[0]
            if child.matcher.is_error() or follows in here:
                continue
            here.add(follows)
            # Inside of a text a bracket closes nothing; behind a value it does, though what may follow often looks the same.
            if len(step) == 1 and symbol in _CLOSERS and not (texts and follows == own):
                yield child
                continue
            # What changes nothing leads on only where symbols are counted.
            late = follows == own or (symbol in _LATE and len(step) == 1)
            others.append(((late, visits[follows] // PATIENCE, len(others)), follows, child))
            if eager and others[-1][0][:2] == (False, 0):
                break  # none is better
        others.sort(key=lambda item: item[0])
        if others:
            visits[others[0][1]] += 1
        yield from (child for _, _, child in others)

    def _child(self, step: Symbols) -> _Node | None:
        """The state that symbols lead to."""
        self._effort.check()
        node = self.copy()
        if node.matcher.try_consume_tokens(list(step)) != len(step) or node.matcher.is_error():
            return None
        node.path += step
        return node


def _rank(symbol: int) -> tuple[int, int]:
    """Closers first, then what is plain, then what an ending hardly needs."""
    if symbol in _CLOSERS:
        return 0, _CLOSERS.index(symbol)
    return (2 if symbol in _LATE else 1), symbol


_Signature = tuple[bytes, tuple[int, ...]]


def _alike(one: LLMatcher, mask: bytes, other: LLMatcher) -> bool:
    """Whether two states have equal signatures, where a mask differs at the price of one."""
    return bool(mask == other.compute_logit_bias() and _signature(one) == _signature(other))


def _signature(matcher: LLMatcher) -> _Signature:
    """What may follow, as far as it is looked at: equal ones are taken for the same state."""
    return matcher.compute_logit_bias(), tuple(matcher.validate_tokens(probe) for probe in _PROBES)
