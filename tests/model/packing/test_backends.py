"""Which backend attends: the fastest that can, tried before it is trusted, and never one that gives other values."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from cairn.errors import UserError
from cairn.model.packing import backends, cpu
from cairn.model.packing.rules import Case, Rules

CASE = Case("cpu", torch.float32, 4, 2, 8, 8, True, 0.5, True)


@pytest.fixture(autouse=True)
def _forget():
    """A choice is kept for good; one made with a stand-in must not be."""
    backends.choose.cache_clear()
    yield
    backends.choose.cache_clear()


def test_on_a_cpu_buckets_attend_and_nothing_slower_is_said():
    assert backends.choose(CASE) == ("buckets", "")


@pytest.mark.parametrize("backend", ["varlen", "flex"])
def test_a_backend_asked_for_by_name_that_cannot_serve_is_an_error(backend):
    with pytest.raises(UserError, match=f"'{backend}' cannot serve this model.*CUDA") as caught:
        backends.choose(CASE, backend)
    assert "auto" in str(caught.value.remedy)


def test_a_head_size_that_flash_attention_lacks_goes_to_the_next_backend_and_is_told(monkeypatch):
    """As on CUDA, whose kernels do not run here: their trials are taken as passed."""
    monkeypatch.setattr(backends, "trial", lambda name, case: "")
    name, why = backends.choose(replace(CASE, device="cuda", dtype=torch.bfloat16, key_size=320, value_size=320, softcap=None, sinks=False))
    assert name == "flex"
    assert "no heads of size 320" in why
    tiny = replace(CASE, device="cuda", dtype=torch.bfloat16, key_size=12, value_size=12)
    assert backends.choose(tiny)[0] == "buckets"
    with pytest.raises(UserError, match="no heads of size 12"):
        backends.choose(tiny, "varlen")


RULES = {
    "window": lambda r: Rules(r.scale, None, r.softcap, r.sinks_H),
    "wider": lambda r: Rules(r.scale, r.window + 1, r.softcap, r.sinks_H),
    "softcap": lambda r: Rules(r.scale, r.window, None, r.sinks_H),
    "scale": lambda r: Rules(1.0, r.window, r.softcap, r.sinks_H),
}


@pytest.mark.parametrize("forgotten", RULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_backend_that_forgets_a_rule_fails_its_trial(monkeypatch, forgotten, dtype):
    wrong = SimpleNamespace(lacks=lambda case: "", attend=lambda q, k, v, layout, r: cpu.attend(q, k, v, layout, RULES[forgotten](r)))
    monkeypatch.setitem(backends.BACKENDS, "flex", wrong)
    assert "differs" in backends.trial("flex", replace(CASE, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_right_backend_passes_its_trial(monkeypatch, dtype):
    monkeypatch.setitem(backends.BACKENDS, "flex", SimpleNamespace(attend=cpu.attend))
    for case in (CASE, replace(CASE, softcap=None), replace(CASE, windowed=False, sinks=False)):
        assert backends.trial("flex", replace(case, dtype=dtype)) == ""


def test_a_backend_that_breaks_is_told_with_its_own_words(monkeypatch):
    def broken(*_):
        raise RuntimeError("no kernel image is available\nand more")

    monkeypatch.setitem(backends.BACKENDS, "flex", SimpleNamespace(lacks=lambda case: "", attend=broken))
    assert backends.trial("flex", CASE) == "'flex' fails here (no kernel image is available)"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "change", [{}, {"windowed": True}, {"softcap": 50.0}, {"sinks": True}, {"value_size": 64}, {"groups": 8}, {"groups": 1}]
)
def test_on_cuda_what_does_not_say_that_it_lacks_something_is_right(dtype, change):
    case = replace(Case("cuda", dtype, 8, 2, 128, 128, False, None, False), **change)
    for name in ("varlen", "flex"):
        assert backends.BACKENDS[name].lacks(case) or backends.trial(name, case) == ""
