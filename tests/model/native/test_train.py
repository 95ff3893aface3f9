"""The kernels of training: what plain torch gives, up to bf16; the same bits on any number of threads; and no leak between documents."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cairn.model import head as room
from cairn.model import kernels
from cairn.model.fused import fuse, join_weights
from cairn.model.head import Head, cross_entropy
from cairn.model.native import train as native
from cairn.model.native.trial import trial
from cairn.model.packing import Layout, cpu, enable, packed_attention, probe

from ..packing.plain import reference

pytestmark = pytest.mark.skipif(bool(native.missing()), reason=native.missing())

CLOSE = 1.5e-2
"""Of the largest value: bf16 has 8 bits."""


def some(*shape, seed=0, scale=1.0):
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale).to(torch.bfloat16)


def close(mine, wanted, bound=CLOSE):
    mine, wanted = mine.detach().double(), wanted.detach().double()
    assert float((mine - wanted).abs().max()) <= bound * float(wanted.abs().max())


def starts(lengths):
    return Layout.of(lengths).borders_D


@settings(max_examples=25, deadline=None)
@given(lengths=st.lists(st.integers(1, 90), min_size=1, max_size=6), heads=st.sampled_from([(4, 4), (4, 2), (3, 1)]),
       window=st.sampled_from([None, 1, 5, 40]), size=st.sampled_from([32, 64, 96]))  # fmt: skip
def test_attention_is_that_of_each_document_alone(lengths, heads, window, size):
    inputs = [some(sum(lengths), n, size, seed=i) for i, n in enumerate((heads[0], heads[1], heads[1]))]
    g = some(sum(lengths), heads[0], size, seed=9)
    mine, theirs = [x.clone().requires_grad_() for x in inputs], [x.double().requires_grad_() for x in inputs]
    out = native.attention(*mine, starts(lengths), 0.3, window)
    wanted = reference(*theirs, lengths, 0.3, window)
    close(out, wanted)
    largest = max(float(x.abs().max()) for x in torch.autograd.grad(wanted, theirs, g.double(), retain_graph=True))
    for a, b in zip(torch.autograd.grad(out, mine, g), torch.autograd.grad(wanted, theirs, g.double()), strict=True):
        # Of the largest of all: a document of one token has no gradient at its query, and rounding is all there is.
        assert float((a.double() - b).abs().max()) <= CLOSE * largest


def test_long_documents_and_large_scores():
    """More keys than a block of queries, and scores whose exponentials would overflow."""
    lengths = (700, 33)
    inputs = [some(733, n, 32, seed=n, scale=6.0) for n in (2, 1, 1)]
    close(native.attention(*inputs, starts(lengths), 1.0), reference(*(x.double() for x in inputs), lengths, 1.0), 3e-2)


def test_rotation_within_attention_is_rotation_before_it():
    lengths, T = (20, 45), 65
    qkv, g = some(T, 8 * 32), some(T, 4, 32, seed=3)
    angles = torch.linspace(0, 50, T)[:, None] * torch.linspace(1, 0.01, 16)
    angles = torch.cat((angles, angles), -1)
    cosines, sines = angles.cos().to(torch.bfloat16), angles.sin().to(torch.bfloat16)
    mine, theirs = qkv.clone().requires_grad_(), qkv.float().requires_grad_()
    out = native.joined_attention(mine, 4, 2, starts(lengths), 0.2, None, (cosines, sines))
    q, k, v = theirs.view(T, 8, 32).split([4, 2, 2], 1)
    q, k = (kernels.rotate(x, cosines.float(), sines.float()) for x in (q, k))
    wanted = cpu.attend(q, k, v, Layout.of(lengths), cpu.Rules(0.2))
    close(out, wanted)
    close(torch.autograd.grad(out, mine, g)[0], torch.autograd.grad(wanted, theirs, g.float())[0])
    again = mine.detach().view(T, 8, 32).split([4, 2, 2], 1)
    torch.testing.assert_close(native.attention(*again, starts(lengths), 0.2, None, (cosines, sines)), out.detach(), rtol=0, atol=0)


def test_no_document_sees_another():
    lengths = (40, 17, 30)
    q, k, v = (some(87, n, 32, seed=n) for n in (2, 1, 1))
    before = native.attention(q, k, v, starts(lengths), 0.3)
    for x in (q, k, v):
        x[40:57] = 100.0
    after = native.attention(q, k, v, starts(lengths), 0.3)
    assert torch.equal(before[:40], after[:40])
    assert torch.equal(before[57:], after[57:])
    assert not torch.equal(before[40:57], after[40:57])


@pytest.mark.parametrize(
    ("positions", "vocabulary", "z_loss", "counted"), [(37, 48, 0.0, False), (37, 1008, 0.01, True), (291, 80, 0.0, True)]
)
def test_cross_entropy(monkeypatch, positions, vocabulary, z_loss, counted):
    """In chunks too short for our own products, and in others, of which the last one is short."""
    monkeypatch.setattr(room, "LOGITS", 5600 if positions == 37 else 80 * 128)
    h, w = some(positions, 32, scale=0.3), some(vocabulary, 32, seed=1)
    targets = torch.arange(positions) * 5 % vocabulary
    counts = torch.linspace(0, 2, positions) if counted else None
    mine, theirs = [x.clone().requires_grad_() for x in (h, w)], [x.float().requires_grad_() for x in (h, w)]
    used = []
    monkeypatch.setattr(native, "cross_entropy_gradient", lambda *told, own=native.cross_entropy_gradient: (used.append(1), own(*told))[1])
    with native.switched(True):
        total, each = cross_entropy(mine[0], targets, Head(mine[1]), z_loss, counts)
        found = torch.autograd.grad(total, mine)
    assert used
    wanted, alone = cross_entropy(theirs[0], targets, Head(theirs[1]), z_loss, counts)
    close(total[None], wanted[None], 2e-3)
    close(each, alone)
    for a, b in zip(found, torch.autograd.grad(wanted, theirs), strict=True):
        close(a, b)


def test_what_is_not_finite_stays_so():
    """A step whose loss is not a number is stopped and told; a kernel that hid it would go on training."""
    z = some(2, 64)
    z[1, 7] = float("nan")
    nll, _ = native.cross_entropy_gradient(z, torch.tensor([3, 3]), None, 0.0)
    assert nll.isfinite().tolist() == [True, False]
    q = some(40, 1, 32)
    q[35] = float("nan")
    assert native.attention(q, q, q, starts((40,)), 0.3)[35].isnan().all()
    x = some(3, 32)
    x[1, 1] = float("inf")
    assert not native.rms_norm(x, some(32), 1e-5)[0][1].isfinite().all()


def everything(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        qkv = some(600, 8 * 32).requires_grad_()
        angles = torch.linspace(0, 9, 600 * 32).view(600, 32).to(torch.bfloat16)
        out = native.joined_attention(qkv, 4, 2, starts((300, 7, 200, 93)), 0.3, None, (angles.cos(), angles.sin()))
        x, w, g = some(600, 64), some(64), some(600, 64, seed=2)
        y, scale = native.rms_norm(x, w, 1e-5)
        z = some(70, 480)
        figures = native.cross_entropy_gradient(z, torch.arange(70), None, 0.1)
        slopes = (*torch.autograd.grad(out, qkv, some(600, 4, 32)), *native.rms_norm_backward(g, x, w, scale))
        return [out.detach(), *slopes, y, scale, z, *figures]
    finally:
        torch.set_num_threads(before)


def test_threads_change_no_bit():
    for one, three in zip(everything(1), everything(3), strict=True):
        assert torch.equal(one, three)


def test_kernels_are_used_where_they_are_switched_on_and_fit():
    x = some(4, 64)
    assert not native.serves(x)
    with native.switched(True):
        assert native.serves(x)
        assert not native.serves(x.float())
        assert not native.serves(some(4, 24))
        # A row of 48 holds halves of 24.
        assert torch.equal(kernels.gated_silu(some(4, 48)), torch.nn.functional.silu(some(4, 48)[:, :24]) * some(4, 48)[:, 24:])
        rules = cpu.Rules(0.3, softcap=5.0)
        q = some(9, 2, 32)
        close(cpu.attend(q, q, q, Layout.of((9,)), rules), reference(q.double(), q.double(), q.double(), (9,), 0.3, softcap=5.0))


def test_tensors_of_another_type_are_not_read_as_bf16():
    """A stream that is kept in fp32 beside weights in bf16, or the other way round: plain torch takes both."""
    x, weight, g = some(9, 64), some(64, seed=1), some(9, 64, seed=2)
    mixed = [(x.float(), weight), (x, weight.float())]
    scale = kernels.rms_norm(x, weight, 1e-5)[1]
    with native.switched(True):
        for one, gain in mixed:
            wanted = one.float() * torch.rsqrt(one.float().square().mean(-1, keepdim=True) + 1e-5) * gain.float()
            close(kernels.rms_norm(one, gain, 1e-5)[0], wanted)
        plain = kernels.rms_norm_backward(g, x, weight, scale)[0]
        close(kernels.rms_norm_backward(g.float(), x, weight, scale)[0], plain)
        total = torch.zeros(9, 64, dtype=torch.bfloat16)
        kernels.add_to(total, g)
        assert torch.equal(total, g)


def test_a_kernel_that_computes_something_else_is_not_trusted():
    own = {name: kernel.run for name, kernel in native.KERNELS.items()}
    assert trial(own, native.attention) == ""
    assert "a gate differs" in trial({**own, "gated_silu": lambda x: native.gated_silu(x) * 1.1}, native.attention)
    assert "attention in a window differs" in trial(own, lambda q, k, v, starts, scale, _: native.attention(q, k, v, starts, scale))


@pytest.mark.parametrize(("family", "extra"), [("llama", {}), ("qwen3", {}), ("mistral", {"sliding_window": 12}), ("gemma", {})])
def test_a_model_with_kernels_gives_what_it_gave(tiny, family, extra):
    """In bf16, against its own fp32: as near with the kernels as without."""
    lengths = (9, 40, 15)
    ids = torch.arange(64) * 7 % 48
    model = tiny(family=family, extra=extra, head_size=32, vocab=48)
    enable(model, "buckets")
    fuse(model, probe)

    def step():
        model.zero_grad()
        positions = torch.cat([torch.arange(n) for n in lengths])[None]
        layout = Layout.of(lengths)
        h = model.base_model(input_ids=ids[None], position_ids=positions, use_cache=False, packing=layout).last_hidden_state[0]
        loss, _ = cross_entropy(h, ids.roll(-1), room.head_of(model))
        loss.backward()
        return float(loss.detach()), {n: p.grad.float().clone() for n, p in model.named_parameters()}

    wanted, slopes = step()
    for p in model.parameters():
        p.data = p.data.to(torch.bfloat16)
    join_weights(model)
    errors = {}
    for on in (False, True):
        with native.switched(on):
            loss, found = step()
        assert abs(loss - wanted) <= 1e-2 * abs(wanted)
        errors[on] = {n: float((found[n] - g).norm() / g.norm()) for n, g in slopes.items()}
    assert all(errors[True][n] <= 1.5 * errors[False][n] + 5e-3 for n in slopes), errors


def test_packed_attention_takes_them(monkeypatch):
    asked = []
    monkeypatch.setattr(native, "attention", lambda *told: asked.append(1) or torch.zeros(9, 2, 32))
    q = some(9, 2, 32)
    packed_attention(q, q, q, Layout.of((9,)), 0.3)
    assert not asked
    with native.switched(True):
        packed_attention(q, q, q, Layout.of((9,)), 0.3)
        # Of answers that share a prompt the layout is one that they do not know.
        packed_attention(q, q, q, Layout.of((9,), answers=((3, 2),)), 0.3)
    assert len(asked) == 1
