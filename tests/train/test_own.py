"""A student's own answers: at the right place, drawn by seed and step from the weights of that step, and learnt from."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from cairn.data.batches import PackedStream
from cairn.data.encode import Encoded, document
from cairn.train.distillation import DistillationConfig
from cairn.train.loop import read_metrics
from cairn.train.own import OwnAnswers, prompt_of
from cairn.train.teacher import Online

from .conftest import documents


def test_the_prompt_ends_before_the_last_answer():
    assert prompt_of(document([1, 2, 3, 4, 5, 6, 7], [0, 0, 1, 1, 0, 0, 1])) == [1, 2, 3, 4, 5, 6]
    assert prompt_of(document([1, 2, 3, 4], [0, 0, 1, 1])) == [1, 2]
    assert prompt_of(document([1, 2, 3], [1, 1, 1])) == []
    assert prompt_of(document([1, 2, 3], [0, 0, 0])) == []


@pytest.fixture
def own(make_trainer, tmp_path):
    """own(share, …) → a trainer on the student's answers."""
    def make(share=1.0, folder="run", rows=None, **settings):
        rows = rows if rows is not None else documents()
        told = {"checkpoint": "somewhere", "loss": "reverse", "on_policy": share, "max_new_tokens": 6}
        more = {"objective": "distillation", "distillation": told, "compile": "off", "optimizer": {"kind": "adamw", "lr": 0.01}} | settings
        trainer = make_trainer(tmp_path / folder, sources=[rows], **more)
        config = DistillationConfig(**told)
        stream = PackedStream([rows], [1.0], 7, trainer.config.sequence_length, trainer.config.batch_sequences)
        trainer.stream = OwnAnswers(stream, config, stop_ids=frozenset({0}), vocab_size=50, seed=3)
        trainer.stream.bind(trainer)
        # One that the student can become in a few steps: itself, moved away.
        teacher, draw = copy.deepcopy(trainer.model), torch.Generator().manual_seed(5)
        with torch.no_grad():
            for p in teacher.parameters():
                p.add_(torch.randn(p.shape, generator=draw) * 0.1)
        trainer.objective.teacher = Online(teacher, packed=trainer.packed)
        return trainer

    return make


def whole(batch) -> list[Encoded]:
    ends = np.cumsum(batch.doc_lengths)
    return [Encoded(batch.ids[b - n : b], batch.mask[b - n : b]) for n, b in zip(batch.doc_lengths, ends, strict=True)]


def test_answers_follow_their_prompts_and_change_with_the_weights(own):
    rows = documents()
    trainer = own(rows=rows)
    plain = trainer.stream.stream.batch_at(0)
    trainer.stream.restore({"step": 0, "cursor": 0})
    first = next(trainer.stream)
    assert (first.sources, first.documents) == (plain.sources, plain.documents)
    for one, number in zip(whole(first), first.documents, strict=True):
        prompt = prompt_of(rows[number])
        assert one.ids[: len(prompt)].tolist() == prompt
        answer = one.ids[len(prompt) :].tolist()
        assert 1 <= len(answer) <= 6
        assert len(answer) == 6 or answer[-1] == 0 or len(one) == trainer.config.sequence_length
        assert one.mask.tolist() == [0] * len(prompt) + [1] * len(answer)
    trainer.stream.restore({"step": 0, "cursor": 0})
    assert np.array_equal(next(trainer.stream).ids, first.ids)
    with torch.no_grad():
        for p in trainer.model.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    trainer.stream.restore({"step": 0, "cursor": 0})
    assert not np.array_equal(next(trainer.stream).ids, first.ids)


def test_a_share_of_the_dialogues_is_answered_and_no_text(own):
    texts = [document([i, 5, 6, 7, 8], [1] * 5) for i in range(20)]
    rows = [*documents(60), *texts]
    trainer = own(0.5, rows=rows)
    changed = dialogues = 0
    for _ in range(20):
        batch = next(trainer.stream)
        for one, number in zip(whole(batch), batch.documents, strict=True):
            same = len(one) == len(rows[number]) and bool((one.ids == rows[number].ids).all())
            assert same or number < 60
            dialogues, changed = dialogues + (number < 60), changed + (not same)
    assert 0.3 < changed / dialogues < 0.7


def test_a_student_learns_from_its_own_answers_and_goes_on_from_a_checkpoint(own):
    more = {"steps": 40, "checkpoints": {"every": 20}}
    trainer = own(folder="whole", **more)
    trainer.run()
    apart = [line["objective"]["divergence"] for line in read_metrics(trainer.folder / "metrics.jsonl")]
    assert np.mean(apart[-5:]) < 0.8 * np.mean(apart[:5])
    cut = own(folder="cut", **more)
    cut.run(until=25)
    again = own(folder="cut", **more)
    assert again.resume() == 20
    again.run()
    for name, weight in trainer.masters.named.items():
        assert torch.equal(weight, again.masters.named[name]), name


@pytest.mark.parametrize(("told", "what"), [({"hard": 0.1}, "no hard labels"), ({"targets": "language_model"}, "about answers")])
def test_what_does_not_go_with_own_answers(told, what):
    with pytest.raises(ValueError, match=what):
        DistillationConfig(checkpoint="x", on_policy=0.5, **told)
