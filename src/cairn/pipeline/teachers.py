"""Where a distillation's teacher comes from: the numbers of a stage, or a model beside the student. Knows folders and the train room."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cairn.errors import UserError
from cairn.model.adapter_config import model_place
from cairn.pipeline.companions import check_tokenizers
from cairn.pipeline.documents import TEACHER
from cairn.pipeline.stage import Context


def teacher_of(context: Context, tokenizer: Path, documents: Sequence[Sequence[Any]], device: str) -> Any:
    """The teacher that the training's `distillation` names (`cairn.train.teacher.Teacher`).

    Args:
        context: of the training.
        tokenizer: the folder of the student's.
        documents: the documents of each source.
        device: where the student is.

    Raises:
        UserError: a teacher of another vocabulary, or one that was heard on other documents.
    """
    from cairn.train.teacher import load

    told = context.config.distillation
    if told.teacher is not None and (file := context.inputs[told.teacher].path(TEACHER)).is_file():
        if told.on_policy:
            what = "what was kept of a teacher says nothing of answers that the student gives itself"
            raise UserError(what, where="distillation.teacher", remedy="name the stage of the teacher's model: it computes at every step")
        return load(file, documents, told.temperature)
    folder = model_place(context.inputs[told.teacher].path()) if told.teacher is not None else Path(str(told.checkpoint))
    check_tokenizers([tokenizer, folder], "name a teacher of the student's own tokenizer: both give probabilities of the same ids")
    return online(folder, context.config, device)


def online(folder: Path, training: Any, device: str) -> Any:
    """The model in `folder` as a teacher, computing as the training does."""
    from cairn.model.load import load_model
    from cairn.train.reference import prepare
    from cairn.train.teacher import Online

    model = load_model(folder, "float32").to(device)
    packed = prepare(model, training.compute, training.sequence_length)
    return Online(model, packed=packed)
