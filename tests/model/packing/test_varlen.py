"""FlashAttention's interface: what is handed to each library, by stand-ins that read their arguments as the libraries document them."""

from __future__ import annotations

import pytest
import torch

from cairn.model.packing import Layout, varlen
from cairn.model.packing.rules import Case, Rules

from .plain import reference, tensors

LENGTHS = [13, 1, 8]
CASE = Case("cuda", torch.bfloat16, 8, 2, 64, 64, False, None, False)


def documented(q, k, v, borders, left, right, scale, softcap):
    """Query i of a document sees its keys i - left to i + right; -1 for all."""
    outs = []
    for a, b in zip(borders[:-1].tolist(), borders[1:].tolist(), strict=True):
        assert right == 0
        outs.append(reference(q[a:b], k[a:b], v[a:b], [b - a], scale, None if left < 0 else left + 1, softcap or None))
    return torch.cat(outs).float()


def dao(q, k, v, *, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, softmax_scale, causal, window_size, softcap, deterministic):
    assert cu_seqlens_q.dtype == torch.int32
    assert (max_seqlen_q, max_seqlen_k) == (13, 13)
    return documented(q, k, v, cu_seqlens_k, window_size[0], 0 if causal else window_size[1], softmax_scale, softcap)


def of_torch(q, k, v, cu_q, cu_k, max_q, max_k, *, scale, window_size, enable_gqa):
    assert enable_gqa
    assert (max_q, max_k) == (13, 13)
    return documented(q, k, v, cu_k, *window_size, scale, None)


def of_older_torch(q, k, v, cu_q, cu_k, max_q, max_k, *, scale, window_size):
    assert q.shape == k.shape == v.shape
    return of_torch(q, k, v, cu_q, cu_k, max_q, max_k, scale=scale, window_size=window_size, enable_gqa=True)


KERNELS = [varlen.Kernel("a", True, varlen._dao(dao)), *(varlen.Kernel("b", False, varlen._torch(f)) for f in (of_torch, of_older_torch))]


@pytest.mark.parametrize("window", [None, 1, 5])
@pytest.mark.parametrize("kernel", KERNELS)
def test_windows_and_borders_arrive(monkeypatch, kernel, window):
    monkeypatch.setattr(varlen, "kernels", lambda: (kernel,))
    q, k, v = (x.detach() for x in tensors(sum(LENGTHS), 4, 2))
    softcap = 0.7 if kernel.softcap else None
    got = varlen.attend(q, k, v, Layout.of(LENGTHS), Rules(0.3, window, softcap))
    torch.testing.assert_close(got, reference(q, k, v, LENGTHS, 0.3, window, softcap).float(), atol=2e-5, rtol=1e-4)


def test_what_torch_offers_has_the_arguments_that_are_given_to_it():
    """The function that is installed, not a stand-in: a renamed keyword shows here and not on a GPU."""
    import inspect

    from torch.nn.attention.varlen import varlen_attn

    signature = inspect.signature(varlen_attn)
    signature.bind(*range(7), scale=1.0, window_size=(-1, 0), **({"enable_gqa": True} if "enable_gqa" in signature.parameters else {}))
    assert any(k.name.startswith("torch") for k in varlen.kernels())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"device": "cpu"}, "CUDA"), ({"dtype": torch.float32}, "not in float32"), ({"key_size": 320, "value_size": 320}, "size 320"),
        ({"key_size": 60, "value_size": 60}, "size 60"), ({"value_size": 128}, "values of size 128"), ({"sinks": True}, "sinks"),
        ({"softcap": 50.0}, "soft cap"),
    ],
)  # fmt: skip
def test_what_it_lacks_is_told(monkeypatch, change, said):
    from dataclasses import replace

    monkeypatch.setattr(varlen, "kernels", lambda: (varlen.Kernel("b", False, varlen._torch(of_torch)),))
    assert varlen.lacks(CASE) == ""
    assert said in varlen.lacks(replace(CASE, **change))
    monkeypatch.setattr(varlen, "kernels", lambda: ())
    assert "installed" in varlen.lacks(CASE)
