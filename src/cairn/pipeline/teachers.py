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


def teacher_of(context: Context, tokenizer: Path, documents: Sequence[Sequence[Any]], student: Any, device: str) -> Any:
    """The teacher that the training's `distillation` names (`cairn.train.teacher.Teacher`).

    Args:
        context: of the training.
        tokenizer: the folder of the student's.
        documents: the documents of each source.
        student: its model.
        device: where that is.

    Raises:
        UserError: a teacher of another vocabulary, one that was heard on other documents, or one that lacks what is compared.
    """
    from cairn.model.head import head_of
    from cairn.train.teacher import load

    told = context.config.distillation
    if told.teacher is not None and (file := context.inputs[told.teacher].path(TEACHER)).is_file():
        if told.on_policy:
            what = "what was kept of a teacher says nothing of answers that the student gives itself"
            raise UserError(what, where="distillation.teacher", remedy="name the stage of the teacher's model: it computes at every step")
        if told.hidden:
            what = "what was kept of a teacher has no hidden states"
            raise UserError(what, where="distillation.hidden", remedy="name the stage of the teacher's model: it computes at every step")
        return load(file, documents, told.temperature)
    folder = model_place(context.inputs[told.teacher].path()) if told.teacher is not None else Path(str(told.checkpoint))
    check_tokenizers([tokenizer, folder], "name a teacher of the student's own tokenizer: both give probabilities of the same ids")
    teacher = online(folder, context.config, device)
    widths = [head_of(model).weight_VD.shape[1] for model in (student, teacher.model)]
    if told.hidden and widths[0] != widths[1]:
        what = f"the student's hidden states have {widths[0]} numbers and the teacher's {widths[1]}: they cannot be compared"
        raise UserError(what, where="distillation.hidden", remedy="cut the student in depth alone, or leave hidden away")
    return teacher


def online(folder: Path, training: Any, device: str) -> Any:
    """The model in `folder` as a teacher, computing as the training does."""
    from cairn.model.load import load_model
    from cairn.train.reference import prepare
    from cairn.train.teacher import Online

    model = load_model(folder, "float32").to(device)
    packed = prepare(model, training.compute, training.sequence_length)
    return Online(model, packed=packed)
