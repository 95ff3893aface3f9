"""The calculator: its arithmetic, what grows with what, and the choice of blocks to compute again."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

from cairn.errors import UserError
from cairn.model import cost
from cairn.model.config import ModelConfig, count_parameters
from cairn.model.cost import Dimensions, Run, flops, memory, recomputed_blocks, traffic

SEVEN = Dimensions(layers=32, hidden=4096, heads=32, kv_heads=32, head_size=128, intermediate=11008, vocabulary=32000)
RUN = Run(tokens=4096, document=1024, precision="bfloat16", optimizer="adamw", device="cuda")


def test_weights_are_counted_as_llama_has_them():
    assert SEVEN.total == 6_738_415_616  # Touvron et al. 2023
    for tied in (True, False):
        shape = ModelConfig(hidden_size=64, layers=3, heads=4, kv_heads=2, intermediate_size=160, tied=tied)
        ours = Dimensions.of(shape, vocabulary=500)
        assert (ours.total, ours.multiplied) == count_parameters(shape, 500)


def test_state_of_bf16_with_adamw_is_eighteen_bytes_and_more_a_weight():
    found = memory(SEVEN, RUN)
    assert found.weights + found.gradients + found.optimizer == pytest.approx(20 * SEVEN.total)
    muon = memory(SEVEN, replace(RUN, optimizer="muon"))
    assert found.optimizer > muon.optimizer > 0.5 * found.optimizer


def test_slices_divide_the_state_and_nothing_else():
    whole, eight = memory(SEVEN, RUN), memory(SEVEN, replace(RUN, ranks=8, sharding="full"))
    assert eight.weights + eight.gradients + eight.optimizer == pytest.approx(16 * SEVEN.total / 8)
    assert eight.activations == whole.activations
    assert eight.exchange > 0
    assert eight.peak < whole.peak / 3


def test_the_fewest_blocks_are_computed_again_that_keep_the_budget():
    run = replace(RUN, ranks=8, sharding="full", tokens=16384)
    full, least = memory(SEVEN, run).peak, memory(SEVEN, replace(run, recomputed=32)).peak
    assert least < 0.6 * full
    assert recomputed_blocks(SEVEN, run, full) == 0
    some = recomputed_blocks(SEVEN, run, (full + least) / 2)
    assert 0 < some < 32
    assert memory(SEVEN, replace(run, recomputed=some)).peak <= (full + least) / 2 < memory(SEVEN, replace(run, recomputed=some - 1)).peak
    with pytest.raises(UserError, match=r"budget is 1\.0 GB"):
        recomputed_blocks(SEVEN, run, 1e9)


def test_operations_and_traffic():
    assert flops(SEVEN, 1e6, document=0) == pytest.approx(6e6 * (SEVEN.total - 32000 * 4096))
    assert 1.25 < flops(SEVEN, 1e6, document=1024, recomputed=32) / flops(SEVEN, 1e6, document=1024) < 1.34
    assert traffic(SEVEN, RUN) == 0
    assert traffic(SEVEN, replace(RUN, ranks=2)) == pytest.approx(4 * SEVEN.total)
    assert traffic(SEVEN, replace(RUN, ranks=2, sharding="full", passes=3)) == pytest.approx(3 * 4 * SEVEN.total)


def test_the_calculator_needs_no_torch():
    subprocess.run([sys.executable, "-c", "import sys, cairn.model.cost; sys.exit('torch' in sys.modules)"], check=True)


def test_cudas_libraries_take_memory_without_a_gpu_too(monkeypatch):
    import torch

    assert cost.cuda_build() == (torch.version.cuda is not None)
    found = {}
    for built in (False, True):
        monkeypatch.setattr(cost, "cuda_build", lambda built=built: built)
        found[built] = [memory(SEVEN, replace(RUN, device=device)).runtime for device in ("cpu", "cuda")]
    assert [b - a for a, b in zip(found[False], found[True], strict=True)] == [cost.CUDA_LIBRARIES, 0]


def test_a_frozen_base_takes_its_weights_and_no_more():
    """QLoRA's measure: 65 B parameters in 4 bits on one GPU of 48 GB (Dettmers et al. 2023)."""
    large = Dimensions(layers=80, hidden=8192, heads=64, kv_heads=64, head_size=128, intermediate=22016, vocabulary=32000)
    beside = cost.Beside(kind="lora", trained=400_000_000, low_rank=7 * 32, four_bits=True)
    run = replace(RUN, tokens=512, recomputed=80, adapter=beside)
    found = memory(large, run)
    assert 0.5 * large.total < found.weights - 6 * beside.trained < 0.6 * large.total
    assert found.peak < 48e9 < memory(large, replace(run, adapter=replace(beside, four_bits=False))).peak
    assert found.gradients + found.optimizer == pytest.approx(14 * beside.trained)
    # Read in 16 bits, and merged in 32: on a CPU both are this process's memory.
    assert found.reading == found.merging == 0
    small = replace(run, device="cpu", tokens=16)
    assert 2.4 * large.total < memory(large, small).reading < 2.7 * large.total
    assert memory(large, small).merging == 0
    assert memory(large, replace(small, merges=True)).peak == memory(large, replace(small, merges=True)).merging > 4.5 * large.total
    # More ranks divide nothing of it.
    with pytest.raises(UserError) as caught:
        recomputed_blocks(large, run, 1e9)
    assert "sharding" not in caught.value.remedy


def test_muon_takes_time_whatever_the_tokens():
    """Five rounds of three products (Jordan et al. 2024): of n x n matrices 30 n³ each."""
    square = Dimensions(layers=2, hidden=64, heads=4, kv_heads=4, head_size=16, intermediate=64, vocabulary=100)
    assert cost.muon_flops(square) == 2 * 7 * 30 * 64**3
    wide = replace(square, intermediate=128)
    assert cost.muon_flops(wide) - cost.muon_flops(square) == 2 * 3 * 5 * 4 * 64**2 * 64
    assert cost.muon_seconds(square, 100.0) == pytest.approx(cost.muon_flops(square) / 80e9)


def test_an_adapter_on_every_matrix_is_slower_than_one_in_attention():
    told = cost.Beside(kind="lora", trained=10)
    adapters = (None, replace(told, feed_forward=False), told, replace(told, kind="dora"))
    times = [cost.seconds(1e12, 100.0, hidden=256, adapter=adapter) for adapter in adapters]
    assert times[0] == times[1] < times[2] < times[3]
