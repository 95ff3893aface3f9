"""The generation benchmark: its works, its rows, and the whole on a model of 35 thousand weights."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from cairn.errors import UserError
from cairn.pipeline.bench import load_benchmark, make_options


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    return load_benchmark("generate")


def options(bench: ModuleType, **given: Any) -> Any:
    return make_options("generate", bench, {"shapes": ["tiny"], **given})


def test_works_are_what_the_bounds_are_about(bench: ModuleType, tmp_path: Path) -> None:
    one = bench.Bench(options(bench), tmp_path)
    works = one.works("tiny")
    assert works == bench.Bench(options(bench), tmp_path).works("tiny")
    assert [len(works[w]) for w in ("one", "sixteen", "mixed")] == [1, 16, 32]
    assert {(len(ids), want) for ids, want in works["sixteen"]} == {(32, 128)}
    sizes = [n for ids, want in works["mixed"] for n in (len(ids), want)]
    assert min(sizes) < 24
    assert 350 < max(sizes) <= 512
    for (text, want), answer in zip(works["copying"], one.answers("tiny", works), strict=True):
        assert len(answer) == want
        same = sum(a == b for a, b in zip(text, answer, strict=True))
        assert 0.8 * want < same < want, "it copies, but not all"


@pytest.mark.parametrize("given", [{"shapes": ["26M"]}, {"peers": ["vllm"]}])
def test_unknown_names_are_refused(bench: ModuleType, tmp_path: Path, given: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"no (shape|peer) is called"):
        bench.Bench(options(bench, **given), tmp_path)


@pytest.mark.slow
def test_the_whole_on_a_tiny_model(bench: ModuleType, tmp_path: Path) -> None:
    missing = tmp_path / "python"
    missing.write_text('#!/bin/sh\necho \'{"missing": "x is not installed"}\'\n')
    missing.chmod(0o755)
    given = {"rounds": 1, "seconds": 0.01, "longest": 16, "answer": 16, "prompt": 16, "llama_python": missing, "vllm_python": missing}
    rows = bench.run(options(bench, store=tmp_path / "store", **given))
    by = {row["measure"]: row for row in rows}
    first = by["tiny bfloat16: tokens/s of one request, ours / transformers bf16"]
    assert first["must"] == ">= 2.5"
    assert first["ours"] > 0
    assert first["peer"] > 0
    skipped = [row for row in rows if "x is not installed" in row["measure"]]
    assert [row["must"] for row in skipped] == [">= 1", "", ">= 1.2", ">= 0.8"]
    assert all(row["ok"] is None for row in skipped)
    assert any("weight bytes over memory bandwidth" in row["measure"] for row in rows)
    assert any("prompt lookup / plain" in row["measure"] for row in rows)
    assert 0.9 < by["tiny int8: perplexity over 512 tokens of the bf16 model's own, int8 / bf16"]["ratio"] < 1.1
