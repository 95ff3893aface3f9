"""Cards made again, outside of a recipe. Knows the store and `report/`."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

from cairn.errors import UserError
from cairn.ledger.store import Artifact, Store
from cairn.pipeline.names import NamedStore
from cairn.pipeline.resolve import resolve
from cairn.report.release import CARD, CardInfo, Evaluation, Material, read_evaluation, write_release


def material_of(artifact: Artifact, store: Store) -> Material:
    """What the card of an artifact is made of: for a card what its record says, for a model what the store knows of it.

    Raises:
        UserError: the artifact is neither, or an input is not in the store.
    """
    record = artifact.record
    if record.kind == "card":
        store = NamedStore(store, record.names)
        by_name = {name: _get(store, name, source.key) for name, source in record.inputs.items()}
        config = record.config
        evaluations = {by_name[name].key: by_name[name] for name in config["evaluations"]}
        return Material(
            model=by_name[config["model"]],
            store=store,
            info=CardInfo.model_validate({name: config[name] for name in CardInfo.model_fields}),
            evaluations=[read_evaluation(one) for one in evaluations.values()],
            data=by_name[config["data"]] if config["data"] else None,
            recipe=record.recipe,
            command=record.command,
        )
    if not artifact.path("model/config.json").is_file():
        what = f"an artifact of kind '{record.kind}' has no card"
        raise UserError(what, where=str(artifact.folder), remedy="name a trained model or a card, such as pebble/card")
    return Material(model=artifact, store=store, evaluations=_evaluations(artifact, store), recipe=record.recipe, command=record.command)


def card_of(ref: str, store: Store) -> str:
    """The text of a card: made again from the records, or for a folder without a record its README.md.

    Raises:
        UserError: there is none.
    """
    from cairn.report.card import card_text

    found = resolve(ref, store)
    if isinstance(found, Artifact):
        return card_text(material_of(found, store))
    if not (found / CARD).is_file():
        raise UserError("the folder has no card", where=str(found), remedy="name an artifact, such as recipe/stage")
    return (found / CARD).read_text(encoding="utf-8")


def release_to(ref: str, store: Store, folder: Path) -> None:
    """Write the release of a card or model into a new folder; it appears whole or not at all.

    Raises:
        UserError: the folder is there already, or there is nothing to release.
    """
    if folder.exists():
        raise UserError("the folder is there already", where=str(folder), remedy="name a new one with --out")
    found = resolve(ref, store)
    if not isinstance(found, Artifact):
        what = "only an artifact has the records that a release is made of"
        raise UserError(what, where=str(found), remedy="name one, such as recipe/stage")
    material = material_of(found, store)
    aside = folder.parent / f".{folder.name}.{os.getpid()}.tmp"
    aside.mkdir(parents=True)
    try:
        write_release(aside, material, link=False)
        os.rename(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _get(store: Store, name: str, key: str) -> Artifact:
    found = store.get(key)
    if found is None:
        raise UserError(f"the input '{name}' is not in the store", where=str(store.artifacts / key), remedy="run the recipe again")
    return found


def _evaluations(model: Artifact, store: Store) -> list[Evaluation]:
    """The evaluations of a model that stand in the store, in the order of their names and keys.

    Raises:
        UserError: one of them is damaged. What is wrong with other artifacts is no concern of this model's card.
    """
    found = []
    for key in sorted(store.keys()):
        with contextlib.suppress(UserError):
            record = Artifact(store.artifacts / key).record
            source = record.inputs.get(str(record.config.get("model")))
            if record.kind == "evaluate" and source is not None and source.key == model.key:
                found.append(record)
    names = [record.name for record in found]
    return [
        # Two of one name would lie in one folder, and the second one's samples replace the evidence of the first.
        read_evaluation(_get(store, record.name, record.key), f"{record.name}-{record.key[:8]}" if names.count(record.name) > 1 else "")
        for record in sorted(found, key=lambda record: (record.name, record.key))
    ]
