"""Checkpoints: written in the background without a torn byte, killed at any instant, and on a disk that runs full."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import threading
import time
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from cairn.errors import UserError
from cairn.ledger.digest import folder_digest
from cairn.ledger.store import Store
from cairn.train import checkpoint
from cairn.train.checkpoint import State, Writer

DTYPES = [torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.int32, torch.uint8, torch.bool]


def state_of(value: float = 1.0, count: int = 3) -> State:
    weights = {f"w{i}": torch.full((40, 7), value + i) for i in range(count)}
    return State(weights, {"w0/step": torch.tensor(value), "w0/average": torch.full((7,), value, dtype=torch.bfloat16)}, {"step": 1})


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 5), max_size=3)), max_size=6), st.booleans())
def test_any_tensors_come_back_as_they_were(tmp_path_factory, shapes, turned):
    tensors = {}
    for i, (dtype, shape) in enumerate(shapes):
        t = (torch.arange(max(1, int(torch.tensor(shape).prod()))) % 2 * 3)[: int(torch.tensor(shape).prod())].view(shape).to(dtype)
        tensors[f"t{i} ü"] = t.transpose(0, 1) if turned and t.ndim > 1 else t
    folder = tmp_path_factory.mktemp("c")
    checkpoint.save(folder, 3, State(tensors, {}, {"step": 3}))
    found = load_file(folder / "step-000003" / "weights.safetensors")
    assert set(found) == set(tensors)
    assert all(found[n].dtype == t.dtype and torch.equal(found[n], t) for n, t in tensors.items())
    assert checkpoint.load(folder / "step-000003").place == {"step": 3}


@pytest.mark.parametrize("before", range(8))
def test_weights_that_move_during_a_write_are_written_as_they_were(tmp_path, monkeypatch, before):
    """The thread is stopped in front of its n-th write; then the weights move."""
    reached, go, count, real = threading.Event(), threading.Event(), [0], checkpoint._write_all

    def slow(out, data):
        if count[0] == before:
            reached.set()
            assert go.wait(10)
        count[0] += 1
        real(out, data)

    monkeypatch.setattr(checkpoint, "_write_all", slow)
    monkeypatch.setattr(checkpoint, "_PIECE", 512)  # several pieces a tensor
    state, writer = state_of(), Writer(tmp_path / "none")
    writer.save(tmp_path / "c", 1, state, 0)
    assert reached.wait(10)
    assert writer.busy()
    writer.release()
    for part in (state.weights, state.optimizer):
        for tensor in part.values():
            tensor.fill_(-9)
    go.set()
    writer.close()
    found, want = checkpoint.load(tmp_path / "c" / "step-000001"), state_of()
    assert all(torch.equal(found.weights[n], t) for n, t in want.weights.items())
    assert all(torch.equal(found.optimizer[n], t) for n, t in want.optimizer.items())


def test_the_metrics_are_on_the_disk_before_the_checkpoint_is(tmp_path, monkeypatch):
    order, fsync, rename = [], os.fsync, os.rename

    def synced(handle):
        order.append(os.path.basename(os.readlink(f"/proc/self/fd/{handle}")))
        fsync(handle)

    def renamed(a, b):
        order.append("rename")
        rename(a, b)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "rename", renamed)
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    writer = Writer(tmp_path / "metrics.jsonl")
    writer.save(tmp_path / "c", 1, state_of(), 0)
    writer.close()
    end = order.index("rename")
    assert {"metrics.jsonl", "weights.safetensors", "optimizer.safetensors", "place.json"} <= set(order[:end])
    assert order[-1] == "c", "the renaming itself is synced"


def test_a_failed_write_is_told_at_the_next_step_and_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    writer = Writer(tmp_path / "none")
    writer.save(tmp_path, 1, state_of(1.0), 1)
    writer.close()
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_write_all", lambda out, data: (_ for _ in ()).throw(OSError(errno.EIO, "bad sector")))
        writer.save(tmp_path, 2, state_of(2.0), 1)
        writer._thread.join()
        with pytest.raises(OSError, match="bad sector"):
            writer.check()
    writer.check()
    assert [p.name for p in tmp_path.iterdir()] == ["step-000001"]
    assert float(checkpoint.load(tmp_path / "step-000001").weights["w0"][0, 0]) == 1.0


def test_a_deletion_that_is_cut_short_leaves_nothing_that_looks_whole(tmp_path, monkeypatch):
    for step in (1, 2, 3):
        checkpoint.save(tmp_path, step, state_of())

    def cut(path, **_):
        if path.exists():
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", cut)
        with pytest.raises(KeyboardInterrupt):
            checkpoint.retain(tmp_path, 2)
    assert checkpoint.steps_in(tmp_path) == [2, 3]
    checkpoint.retain(tmp_path, 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000002", "step-000003"]


def test_resume_points_rest_until_they_cost_one_percent(tmp_path):
    writer = Writer(tmp_path / "none")
    assert writer.rest(20) == 20
    writer.cost = 1.5
    assert writer.rest(20) == pytest.approx(150)


def test_a_checkpoint_with_weights_that_the_model_has_not_is_refused(tmp_path, make_trainer):
    trainer = make_trainer(tmp_path)
    state = trainer.state()
    for more in ({"weights": {**state.weights, "extra.weight": torch.zeros(2)}}, {"optimizer": {"extra.weight/step": torch.zeros(())}}):
        with pytest.raises(UserError, match=r"'extra\.weight'"):
            trainer.restore(State(**{"weights": state.weights, "optimizer": state.optimizer, "place": state.place, **more}))


def test_steps_that_overtake_a_slow_write_change_no_byte_of_it(tmp_path, make_trainer, monkeypatch):
    settings = {"checkpoints": {"every": 1}, "precision": "float32"}
    real = checkpoint._write_all

    def slow(out, data):
        time.sleep(0.003)
        real(out, data)

    for name in ("quick", "slow"):
        with monkeypatch.context() as patch:
            if name == "slow":
                patch.setattr(checkpoint, "_write_all", slow)
            trainer = make_trainer(tmp_path / name, steps=5, **settings)
            trainer.resume()
            trainer.run()
            assert trainer.writer.close() is None
    for step in checkpoint.steps_in(tmp_path / "quick" / "checkpoints"):
        # Each is what a run that ends at this step holds.
        alone = make_trainer(tmp_path / f"alone-{step}", steps=5)
        alone.resume()
        alone.run(until=step)
        for name in ("quick", "slow"):
            found = checkpoint.load(tmp_path / name / "checkpoints" / checkpoint.name_of(step))
            assert all(torch.equal(found.weights[n], t) for n, t in alone.masters.named.items())
            assert all(torch.equal(found.optimizer[n], t) for n, t in alone.optimizer.state().items())


# Killed

KILLED = {"checkpoints": {"every": 4, "keep": 2, "resume_seconds": 1e-9}}


def events(monkeypatch, limit: int) -> None:
    """From the `limit`-th call that touches the disk on, this process is dead."""
    left, lock = [limit], threading.Lock()

    def dying(real):
        def call(*words, **options):
            with lock:
                left[0] -= 1
                if left[0] < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
            return real(*words, **options)

        return call

    for module, name in ((os, "fsync"), (os, "rename"), (os, "replace"), (os, "unlink"), (os, "rmdir"), (checkpoint, "_write_all")):
        monkeypatch.setattr(module, name, dying(getattr(module, name)))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are killed in Unix's way")
def test_killed_again_and_again_it_ends_with_the_same_bytes(tmp_path, make_trainer, monkeypatch):
    monkeypatch.setattr(checkpoint, "_SHARE", float("inf"))  # a resume point at every step
    whole = make_trainer(tmp_path / "whole", **KILLED)
    whole.resume()
    figures = whole.run()
    kills, limit = 0, 4
    while True:
        child = os.fork()
        if child == 0:
            try:
                events(monkeypatch, limit)
                trainer = make_trainer(tmp_path / "cut", **KILLED)
                trainer.resume()
                trainer.run()
            finally:
                os._exit(0)
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
            break
        kills, limit = kills + 1, limit + 5
    assert kills >= 8
    second = make_trainer(tmp_path / "cut", **KILLED)
    assert second.resume() >= 8
    assert second.run() == figures
    assert (tmp_path / "cut" / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()
    assert folder_digest(tmp_path / "cut" / "checkpoints") == folder_digest(tmp_path / "whole" / "checkpoints")
    assert all(torch.equal(whole.masters.named[n], t) for n, t in second.masters.named.items())
    end, want = second.optimizer.state(), whole.optimizer.state()
    assert all(torch.equal(want[n], t) for n, t in end.items())
    assert not list((tmp_path / "cut").rglob(".step-*"))


# A full disk


@contextmanager
def small_disk(folder, size: int):
    """A disk of `size` bytes at `folder`; skips where this user may not mount one."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)]
    if os.geteuid() != 0 or shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no disk can be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("told", ["before", "during"])
def test_a_disk_that_runs_full_stops_the_run_and_room_lets_it_go_on_to_the_same_bytes(tmp_path, make_trainer, monkeypatch, told):
    """`before`: the system tells that the next checkpoint does not fit. `during`: it does not, and the write itself fails."""
    kept = {"checkpoints": {"every": 2, "keep": 0, "resume_seconds": 1e9}}
    whole = make_trainer(tmp_path / "whole", **kept)
    whole.resume()
    figures = whole.run()
    one = sum(f.stat().st_size for f in (tmp_path / "whole" / "checkpoints" / "step-000002").iterdir())
    with small_disk(tmp_path / "disk", 6 * one + 200_000) as disk:
        ballast, store = disk / "ballast", Store(disk / "store")
        ballast.write_bytes(b"x" * (3 * one))
        cut = make_trainer(disk / "cut", **kept)
        cut.resume()
        if told == "during":
            monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1 << 60, 0, 1 << 60))
        with pytest.raises(UserError) as caught, store.guard():
            cut.run()
        monkeypatch.undo()
        assert ("the disk has no room for the checkpoint of step" if told == "before" else "the disk is full") in caught.value.what
        assert "run again" in caught.value.remedy
        steps = checkpoint.steps_in(disk / "cut" / "checkpoints")
        assert steps
        assert steps[-1] < 10
        assert sorted(p.name for p in (disk / "cut" / "checkpoints").iterdir()) == [checkpoint.name_of(s) for s in steps], "no half one"
        ballast.unlink()
        second = make_trainer(disk / "cut", **kept)
        assert second.resume() == steps[-1]
        assert second.run() == figures
        assert folder_digest(disk / "cut" / "checkpoints") == folder_digest(tmp_path / "whole" / "checkpoints")
        assert (disk / "cut" / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()


def test_what_the_checkpoints_will_take_is_known_before_and_less_what_is_there(tmp_path, make_trainer):
    settings = {"checkpoints": {"every": 4, "keep": 1, "resume_seconds": 1e9}, "optimizer": {"kind": "adamw"}}
    trainer = make_trainer(tmp_path, **settings)
    before = trainer.needed_bytes()
    trainer.resume()
    trainer.run()
    took = trainer.state().bytes
    model = sum(p.numel() * 4 for p in trainer.model.parameters())
    assert 3 * took + model * 0.9 <= before <= 3.1 * took + model * 1.1
    assert before - trainer.needed_bytes() == pytest.approx(took, rel=0.02)
