"""The benchmark of the server under load: its judgement, and the whole with few clients."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest

from cairn.pipeline.bench import load_benchmark, make_options, missed


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    return load_benchmark("serve")


def options(bench: ModuleType, **given: Any) -> Any:
    return make_options("serve", bench, {"clients": 8, "seconds": 2, "requests": 6, "longest": 24, **given})


def load(bench: ModuleType, **given: Any) -> Any:
    alone = [bench.Heard("a", "length", 5), bench.Heard("b", "stop", 3)]
    memory = [(float(at), 100.0) for at in range(9)]
    heard = [(0, alone[0]), (1, alone[1])] * 4
    return bench.Load(**{"alone": alone, "heard": heard, "generated": 32, "memory": memory, "seconds": 1.0, **given})


def test_each_failure_is_seen(bench: ModuleType) -> None:
    good = load(bench)
    assert not missed(bench.judged(good, options(bench)))
    heard = good.heard
    for broken, word in (
        (replace(good, heard=heard[:5]), "streamed"),
        (replace(good, heard=[*heard[:-1], (1, bench.Heard(error="no"))]), "errors"),
        (replace(good, heard=[*heard[:-1], (1, replace(heard[-1][1], text="c"))]), "differ"),
        (replace(good, heard=[*heard[:-1], (1, replace(heard[-1][1], finish="length"))]), "differ"),
        (replace(good, generated=33), "not heard"),
        (replace(good, memory=[(float(at), 100.0 + 2 * at) for at in range(9)]), "memory"),
        (replace(good, left=1), "in flight"),
    ):
        assert any(word in one["measure"] for one in missed(bench.judged(broken, options(bench)))), word
    assert any("log" in one["measure"] for one in missed(bench.judged(good, options(bench), "Traceback (most recent")))


def test_requests_are_a_function_of_the_seed(bench: ModuleType) -> None:
    asked = bench.bodies(options(bench, requests=30))
    assert asked == bench.bodies(options(bench, requests=30))
    assert len({str(body["messages"]) for body in asked}) == 30
    assert {body["temperature"] for body in asked} == {0.0, 0.8}
    assert all(16 <= body["max_completion_tokens"] <= 24 for body in asked)


def test_few_clients_for_two_seconds(bench: ModuleType) -> None:
    rows = bench.run(options(bench))
    # Two seconds say nothing about memory: buffers are still growing to their size.
    assert [one["measure"] for one in missed(rows) if "memory" not in one["measure"]] == []
