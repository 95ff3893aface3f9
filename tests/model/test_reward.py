"""Reward models: transformers loads them with equal scores, and neither padding nor company changes one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from cairn.data.batches import make_batch
from cairn.data.encode import Encoded
from cairn.errors import UserError
from cairn.model.config import ModelConfig
from cairn.model.load import new_model, save_model
from cairn.model.packing import try_packing
from cairn.model.reward import load_reward, reward_from, rewards, scores
from cairn.train.forward import TorchBatch
from cairn.train.objectives.reward import Objective

ROWS = [[5, 6, 7, 8, 9, 2], [4] * 3 + [2], [11, 12, 13, 14, 15, 16, 17, 18, 19, 2], [3, 2], [7, 3, 0, 9, 0]]
"""The fourth is short; the last ends with a padding id, which transformers does not count."""


def language(folder, family="llama"):
    sizes = {"hidden_size": 32, "layers": 2, "heads": 4, "kv_heads": 2, "intermediate_size": 48, "context": 64}
    shape = ModelConfig(family=family, initializer_range=0.2, **sizes)
    save_model(new_model(shape, vocab_size=40, bos_id=None, eos_id=2, pad_id=0, seed=4), folder)
    return folder


@pytest.fixture
def folder(tmp_path):
    save_model(reward_from(language(tmp_path / "lm"), seed=3, pad_id=0), tmp_path / "reward")
    return tmp_path / "reward"


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2"])
def test_transformers_loads_it_with_equal_scores(tmp_path, family):
    made = reward_from(language(tmp_path / "lm", family), seed=3, pad_id=0)
    save_model(made, tmp_path / "reward")
    # By name: left to itself, transformers 5.17 takes an attention that drops Gemma 2's soft cap.
    attention = made.config._attn_implementation
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward", attn_implementation=attention).eval()
    assert theirs.config.num_labels == 1
    for row in ROWS:
        with torch.no_grad():
            wanted = float(theirs(torch.tensor([row])).logits)
        assert rewards(made.eval(), [row])[0] == pytest.approx(wanted, abs=1e-6)


def test_padding_and_company_change_no_score(folder):
    model = load_reward(folder)
    alone = [rewards(model, [row])[0] for row in ROWS]
    assert len({round(x, 4) for x in alone}) == len(ROWS)
    for size in (2, 3, 5):
        assert rewards(model, ROWS, batch=size) == pytest.approx(alone, abs=1e-5)
        assert rewards(model, ROWS[::-1], batch=size)[::-1] == pytest.approx(alone, abs=1e-5)
    longest = 16
    for side in ("left", "right"):
        ids = [[0] * (longest - len(r)) + r if side == "left" else r + [0] * (longest - len(r)) for r in ROWS]
        real = [[0] * (longest - len(r)) + [1] * len(r) if side == "left" else [1] * len(r) + [0] * (longest - len(r)) for r in ROWS]
        with torch.no_grad():
            found = model(input_ids=torch.tensor(ids), attention_mask=torch.tensor(real)).logits[:, 0].tolist()
        assert found == pytest.approx(alone, abs=1e-5)


def test_answers_behind_one_prompt_score_as_each_alone(folder):
    model, plain = load_reward(folder), load_reward(folder)
    assert try_packing(model).packs
    prompt, answers = [5, 9, 11], [[4, 4, 2], [8, 2], [7, 0, 0]]
    ids = np.array([*prompt, *(i for answer in answers for i in answer)], np.int32)
    document = Encoded(ids, np.r_[np.zeros(3), np.ones(8)].astype(np.uint8), (3, 2, 3))
    batch = TorchBatch.of(make_batch([document], [0]), "cpu", packed=True)
    with torch.no_grad():
        found = Objective().measure(model, batch).tolist()
    assert found == pytest.approx([rewards(plain, [prompt + a])[0] for a in answers], abs=1e-5)


def test_the_head_is_a_function_of_the_seed(tmp_path):
    place = language(tmp_path / "lm")
    heads = [reward_from(place, seed=seed, pad_id=0).score.weight.detach() for seed in (1, 1, 2)]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_a_language_model_is_no_reward_model(tmp_path):
    with pytest.raises(UserError, match="no reward model"):
        load_reward(language(tmp_path / "lm"))


def test_a_family_without_classifier_is_refused(tmp_path):
    with pytest.raises(UserError, match="sequence classifier"):
        reward_from(language(tmp_path / "lm", "granite"), seed=1, pad_id=0)


def test_a_predictor_has_a_number_for_each_name(tmp_path):
    made = reward_from(language(tmp_path / "lm"), seed=3, pad_id=0, labels=["humor", "quality", "toxicity"])
    save_model(made, tmp_path / "predictor")
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "predictor").eval()
    assert theirs.config.id2label == {0: "humor", 1: "quality", 2: "toxicity"}
    assert theirs.config.problem_type == "regression"
    ours = load_reward(tmp_path / "predictor", labels=["humor", "quality", "toxicity"])
    for row, found in zip(ROWS, scores(ours, ROWS, batch=2), strict=True):
        with torch.no_grad():
            assert found == pytest.approx(theirs(torch.tensor([row])).logits[0].tolist(), abs=1e-5)
    assert len({round(x, 4) for x in found}) == 3
    for labels, what in ((["quality", "humor", "toxicity"], "knows the attributes humor, quality"), (None, "no reward model")):
        with pytest.raises(UserError, match=what):
            load_reward(tmp_path / "predictor", labels=labels)


def test_a_language_model_is_no_predictor(tmp_path):
    with pytest.raises(UserError, match="no reward model"):
        load_reward(language(tmp_path / "lm"), labels=["humor"])


@pytest.mark.parametrize("tied", [False, True])
def test_a_reward_model_is_no_model_that_answers(tmp_path, tied):
    """With one matrix for both embeddings transformers would miss nothing."""
    from cairn.model.load import load_model

    shape = ModelConfig(hidden_size=32, layers=2, heads=4, intermediate_size=48, context=64, tied=tied)
    save_model(new_model(shape, vocab_size=40, bos_id=None, eos_id=2, pad_id=0, seed=4), tmp_path / "lm")
    save_model(reward_from(tmp_path / "lm", seed=1, pad_id=0), tmp_path / "reward", stop_ids=[2])
    with pytest.raises(UserError, match="it gives numbers, and no text"):
        load_model(tmp_path / "reward")
