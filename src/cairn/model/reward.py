"""Reward models and attribute predictors: transformers' sequence classifiers whose numbers are read off the last hidden state.

A reward model has one label, a predictor one for each attribute, by name. A number is read where transformers reads it: at the last
token that is no padding. Makes one out of a causal LM. Knows transformers; no chat, no loss.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cairn.errors import UserError
from cairn.ledger import seeds
from cairn.model.attention import keep_caps
from cairn.model.folder import refuse_pickles
from cairn.model.load import dtype_of, load_model, no_report

HEAD = "score"
"""What transformers calls the layer that makes a reward out of a hidden state, in the families that have it as one matrix."""


def reward_from(folder: Path, *, seed: int, pad_id: int, labels: Sequence[str] | None = None) -> Any:
    """A fresh reward model in fp32 on the body of a causal LM; its head is a function of `seed`.

    Args:
        folder: the causal LM's.
        seed: of the head: normal, with a spread of 1/√(width + 1), so that first rewards are of the size of 1 (Ouyang et al. 2022).
        pad_id: the id that pads; best one that no answer ends with.
        labels: the attributes of a predictor, each with a row of the head; None: one reward without a name.

    Raises:
        UserError: the family has no such classifier in transformers, or as `load_model`.
    """
    from transformers import AutoModelForSequenceClassification

    language = load_model(folder, "float32")
    count = 1 if labels is None else len(labels)
    language.config.num_labels, language.config.pad_token_id = count, pad_id
    if labels is not None:
        language.config.id2label, language.config.label2id = dict(enumerate(labels)), {name: i for i, name in enumerate(labels)}
        language.config.problem_type = "regression"
    try:
        with torch.device("meta"):
            model: Any = AutoModelForSequenceClassification.from_config(language.config, dtype=torch.float32)
    except ValueError:
        what = f"transformers has no sequence classifier of the family '{language.config.model_type}'"
        raise UserError(what, where=str(folder), remedy="train the reward on a model of another family, such as llama or qwen3") from None
    if isinstance(getattr(model, HEAD, None), torch.nn.Linear):
        draw, width = torch.Generator().manual_seed(seeds.seed(seed, "reward head") % (1 << 63)), model.score.weight.shape[1]
        model.score = torch.nn.Linear(width, count, bias=False)
        model.score.weight.data = torch.randn(count, width, generator=draw) / (width + 1) ** 0.5
    # The body itself moves over: a second one would double the memory.
    body = language.base_model
    setattr(model, model.base_model_prefix, body)
    for module in body.modules():
        if getattr(module, "config", None) is language.config:
            module.config = model.config
    _check(model.eval())
    return model


def load_reward(folder: Path, dtype: str = "float32", *, labels: Sequence[str] | None = None) -> Any:
    """A saved reward model in evaluation mode; with `labels` a predictor of these attributes.

    Raises:
        UserError: the folder holds none, one of other attributes, or pickled weights.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForSequenceClassification

    refuse_pickles(Path(folder))
    try:
        with no_report():
            model, found = AutoModelForSequenceClassification.from_pretrained(
                str(folder), dtype=dtype_of(dtype), use_safetensors=True, trust_remote_code=False, output_loading_info=True
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"cannot load the reward model: {reason}", where=str(folder), remedy="check the folder") from error
    names = [model.config.id2label[i] for i in range(model.config.num_labels)]
    # A language model would get a head of random numbers, and its rewards would look like any others.
    if found["missing_keys"] or (labels is None and len(names) != 1):
        what = "this is no reward model: it has no trained head with one label"
        made = "a train stage with objective: reward, or the folder of a sequence classifier with one label"
        remedy = f"name {made}" if labels is None else "name a label stage"
        raise UserError(what, where=str(folder), remedy=remedy)
    if labels is not None and names != list(labels):
        what = f"the predictor knows the attributes {', '.join(names)}, and {', '.join(labels)} are asked for"
        raise UserError(what, where=str(folder), remedy="name the stage that learnt these attributes, in the same order")
    _check(keep_caps(model))
    return model.eval()


def rewards_at(model: Any, h_TD: Tensor, ids_T: Tensor, ends_A: Tensor) -> Tensor:
    """The reward of each answer, fp32, from the hidden states of packed rows; see `scores_at`."""
    return scores_at(model, h_TD, ids_T, ends_A)[:, 0]


def scores_at(model: Any, h_TD: Tensor, ids_T: Tensor, ends_A: Tensor) -> Tensor:
    """The numbers of each answer (A, labels), fp32, from the hidden states of packed rows.

    Args:
        model: a reward model or a predictor.
        h_TD: its last hidden states.
        ids_T: the tokens; where an answer ends with padding ids, the last one before them counts, as in transformers.
        ends_A: the last token of each answer.
    """
    pad = model.config.pad_token_id
    while bool((padding := ids_T[ends_A] == pad).any()):
        ends_A = ends_A - padding.long()
    return torch.nn.functional.linear(h_TD[ends_A].float(), model.score.weight.float())


def rewards(model: Any, rows: Sequence[Sequence[int]], *, batch: int = 16) -> list[float]:
    """The reward of each row of ids, in their order; see `scores`."""
    return [values[0] for values in scores(model, rows, batch=batch)]


@torch.no_grad()
def scores(
    model: Any, rows: Sequence[Sequence[int]], *, batch: int = 16, on_progress: Callable[[int], None] = lambda done: None
) -> list[list[float]]:
    """The numbers of each row of ids, in their order; rows of like length run together."""
    order = sorted(range(len(rows)), key=lambda i: (len(rows[i]), i))
    pad, device = model.config.pad_token_id, next(model.parameters()).device
    found: list[list[float]] = [[] for _ in rows]
    for start in range(0, len(order), batch):
        part = order[start : start + batch]
        longest = max(len(rows[i]) for i in part)
        ids = torch.tensor([[*rows[i], *[pad] * (longest - len(rows[i]))] for i in part], device=device)
        real = torch.tensor([[1] * len(rows[i]) + [0] * (longest - len(rows[i])) for i in part], device=device)
        values = model(input_ids=ids, attention_mask=real, use_cache=False).logits.float().tolist()
        for i, own in zip(part, values, strict=True):
            found[i] = own
        on_progress(start + len(part))
    return found


@torch.no_grad()
def _check(model: Any) -> None:
    """Raises:
    UserError: rewards are not read off the last hidden state by one matrix.
    """
    layer = getattr(model, HEAD, None)
    ids = (torch.arange(7)[None] * 3 + 1) % model.get_input_embeddings().weight.shape[0]
    training = model.training
    model.eval()
    fits = isinstance(layer, torch.nn.Linear) and layer.bias is None and layer.out_features == model.config.num_labels
    if fits:
        states = model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0]
        own = model(input_ids=ids, use_cache=False).logits[0].float()
        fits = bool(torch.allclose(scores_at(model, states, ids[0], torch.tensor([6])), own, atol=1e-4, rtol=1e-3))
        fits = fits and model.config.pad_token_id is not None
    model.train(training)
    if not fits:
        what = f"the classifier of the family '{model.config.model_type}' is not read off the last hidden state"
        raise UserError(what, remedy="train the reward on a model of another family, such as llama or qwen3")
