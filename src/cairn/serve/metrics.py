"""Counters and histograms in Prometheus' text format. Knows no route; whoever answers requests calls it."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Mapping
from typing import Any

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
"""Upper bounds of the histograms' buckets."""
WINDOW = 10.0
"""Seconds over which tokens per second are told."""


class _Histogram:
    def __init__(self) -> None:
        self.buckets = [0] * len(SECONDS)
        self.total, self.count = 0.0, 0

    def observe(self, seconds: float) -> None:
        self.count += 1
        self.total += seconds
        for i, bound in enumerate(SECONDS):
            self.buckets[i] += seconds <= bound

    def lines(self, name: str) -> list[str]:
        bounds = [*zip((f"{bound:g}" for bound in SECONDS), self.buckets, strict=True), ("+Inf", self.count)]
        told = [f'{name}_bucket{{le="{bound}"}} {n}' for bound, n in bounds]
        return [*told, f"{name}_sum {self.total:.6f}", f"{name}_count {self.count}"]


class Metrics:
    """What a server counts. Safe to call from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: Counter[tuple[str, int]] = Counter()
        self._finished: Counter[str] = Counter()
        self._tokens: Counter[str] = Counter()
        self._first, self._whole = _Histogram(), _Histogram()
        self._answers: Counter[str] = Counter()
        self._recent: deque[tuple[float, int]] = deque()

    def request(self, path: str, status: int) -> None:
        """A request was answered with a status. `path` must be a route's, never the caller's text: each is a series of its own."""
        with self._lock:
            self._requests[path, status] += 1

    def first_token(self, seconds: float) -> None:
        """An answer's first token came so long after its request."""
        with self._lock:
            self._first.observe(seconds)

    def generated(self, tokens: int) -> None:
        """So many tokens were generated."""
        now = time.monotonic()
        with self._lock:
            self._tokens["generated"] += tokens
            self._recent.append((now, tokens))
            self._forget(now)

    def prompt(self, tokens: int, cached: int) -> None:
        """A prompt of so many tokens was read, of which so many were there already."""
        with self._lock:
            self._tokens["prompt"] += tokens
            self._tokens["cached"] += cached

    def looked_up(self, result: str) -> None:
        """The cache of answers was asked: "exact", "near", or "miss"; "refused" counts answers to like texts that did not hold."""
        with self._lock:
            self._answers[result] += 1

    def finished(self, reason: str, seconds: float) -> None:
        """A request's answers have ended."""
        with self._lock:
            self._finished[reason] += 1
            self._whole.observe(seconds)

    def _forget(self, now: float) -> None:
        while self._recent and self._recent[0][0] < now - WINDOW:
            self._recent.popleft()

    def text(self, worker: Mapping[str, Any], in_flight: int, cache: Mapping[str, int] | None = None) -> str:
        """Everything, as Prometheus reads it.

        Args:
            worker: the engine's own figures.
            in_flight: requests that are being answered or wait.
            cache: how much the cache of answers holds; None where there is none.
        """
        with self._lock:
            self._forget(time.monotonic())
            speed = sum(tokens for _, tokens in self._recent) / WINDOW
            prompt, cached = self._tokens["prompt"], self._tokens["cached"]
            parts = [
                _block("requests_total", "counter", "HTTP requests by path and status.", [
                    f'cairn_requests_total{{path="{path}",status="{status}"}} {n}' for (path, status), n in sorted(self._requests.items())
                ]),
                _block("answers_total", "counter", "Requests for answers by how they ended.", [
                    f'cairn_answers_total{{reason="{reason}"}} {n}' for reason, n in sorted(self._finished.items())
                ]),
                _block("tokens_total", "counter", "Tokens: of prompts, of these taken from a cache, generated.", [
                    f'cairn_tokens_total{{kind="{kind}"}} {self._tokens[kind]}' for kind in ("prompt", "cached", "generated")
                ]),
                _block("in_flight", "gauge", "Requests being answered or waiting.", [f"cairn_in_flight {in_flight}"]),
                _block("tokens_per_second", "gauge", "Generated tokens a second, over the last 10 s.", [
                    f"cairn_tokens_per_second {speed:.3f}"
                ]),
                _block("cache_hit_ratio", "gauge", "Share of prompt tokens that a cache gave.", [
                    f"cairn_cache_hit_ratio {cached / prompt if prompt else 0.0:.6f}"
                ]),
                _block("time_to_first_token_seconds", "histogram", "From a request's arrival to its first token.",
                       self._first.lines("cairn_time_to_first_token_seconds")),
                _block("request_seconds", "histogram", "From a request's arrival to the end of its answers.",
                       self._whole.lines("cairn_request_seconds")),
            ]  # fmt: skip
        parts += [] if cache is None else self._cache_parts(cache)
        for key, value in sorted(worker.items()):
            if isinstance(value, (int, float)):
                parts.append(_block(f"engine_{key}", "gauge", "The engine's own figure.", [f"cairn_engine_{key} {value:g}"]))
        return "".join(parts)

    def _cache_parts(self, cache: Mapping[str, int]) -> list[str]:
        with self._lock:
            found = {name: self._answers[name] for name in ("exact", "near", "miss", "refused")}
        asked, hits = found["exact"] + found["near"] + found["miss"], found["exact"] + found["near"]
        ratio = hits / asked if asked else 0.0
        return [
            _block("response_cache_total", "counter", "Look-ups in the cache of answers, and answers to like texts that did not hold.", [
                f'cairn_response_cache_total{{result="{name}"}} {n}' for name, n in found.items()
            ]),
            _block("response_cache_hit_ratio", "gauge", "Share of look-ups that found an answer.", [
                f"cairn_response_cache_hit_ratio {ratio:.6f}"
            ]),
            *(_block(f"response_cache_{name}", "gauge", "What the cache of answers holds.", [f"cairn_response_cache_{name} {n}"])
              for name, n in cache.items()),
        ]  # fmt: skip


def _block(name: str, kind: str, help: str, lines: list[str]) -> str:
    return f"# HELP cairn_{name} {help}\n# TYPE cairn_{name} {kind}\n" + "".join(f"{line}\n" for line in lines)
