"""From what a user types to an artifact or a folder. Knows the store and Hugging Face's cache; loads no model.

A REF is `recipe/stage` (its last run), a folder, the start of a key, or the name of a checkpoint on the Hugging Face hub.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection
from pathlib import Path

from cairn.errors import UserError, did_you_mean
from cairn.ledger.record import RECORD
from cairn.ledger.store import Artifact, Store

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_KEY = re.compile(r"[0-9a-f]{4,64}")


def resolve(ref: str, store: Store, *, hub: bool = True) -> Artifact | Path:
    """What `ref` names: an artifact, or else a folder.

    Args:
        ref: what the user typed.
        store: where to look for artifacts.
        hub: whether the name of a checkpoint on the hub is good too.

    Raises:
        UserError: nothing or several things go by that name.
    """
    folder = locate(ref, store, hub=hub)
    return Artifact(folder) if (folder / RECORD).is_file() else folder


def resolve_artifact(ref: str, store: Store) -> Artifact:
    """Like `resolve`, for what needs a record.

    Raises:
        UserError: as `resolve`, and for a folder without a record.
    """
    found = resolve(ref, store, hub=False)
    if isinstance(found, Artifact):
        return found
    raise UserError("this folder is no artifact: it has no record.json", where=str(found), remedy="name an artifact, such as recipe/stage")


def locate(ref: str, store: Store, *, hub: bool = True) -> Path:
    """The folder that `ref` names; its record is not read, so a damaged artifact is found as well."""
    path = Path(ref).expanduser()
    if path.is_dir():
        return path.absolute()
    if path.exists():
        raise UserError("this is a file, and a folder or an artifact is needed", where=ref, remedy="name the folder around it")
    named = store.named()
    recipe, slash, stage = ref.partition("/")
    if slash and stage in named.get(recipe, {}):
        folder = store.artifacts / named[recipe][stage]
        if folder.is_dir():
            return folder
        raise UserError(f"the artifact of {ref} is no longer in the store", where=str(folder), remedy=f"run it again: cairn run {recipe}")
    if _KEY.fullmatch(ref):
        keys = store.keys(ref)
        if len(keys) == 1:
            return store.artifacts / keys[0]
        if keys:
            raise UserError(f"{len(keys)} artifacts have keys that start with {ref}", where=str(store.root), remedy="type more of the key")
    if hub and slash and recipe not in named and _HUB_NAME.fullmatch(ref):
        found, reason = _from_hub(ref)
        if found is not None:
            return found
        error = _unknown(ref, store, named)
        raise UserError(f"{error.what}, and the hub gave none: {reason}", where=error.where, remedy=error.remedy)
    raise _unknown(ref, store, named)


def model_folder(ref: str, store: Store) -> Path:
    """The folder of the model that `ref` names: one with a config.json, or else an adapter that lies in the artifact of its training.

    Raises:
        UserError: there is none.
    """
    folder = locate(ref, store)
    for place in (folder / "adapter", folder):
        if (place / "adapter_config.json").is_file() and not any((folder / p / "config.json").is_file() for p in ("model", ".")):
            return place
    return _folder_with(ref, store, "config.json", ("model", "."), "model")


def tokenizer_folder(ref: str, store: Store) -> Path:
    """The folder of the tokenizer that `ref` names: one with a tokenizer.json.

    Raises:
        UserError: there is none.
    """
    return _folder_with(ref, store, "tokenizer.json", ("tokenizer", "model", "."), "tokenizer")


def _folder_with(ref: str, store: Store, file: str, places: tuple[str, ...], what: str) -> Path:
    folder = locate(ref, store)
    for place in places:
        if (folder / place / file).is_file():
            return folder / place if place != "." else folder
    if (folder / RECORD).is_file():
        kind = Artifact(folder).record.kind
        raise UserError(f"'{ref}' is an artifact of kind '{kind}' and holds no {what}", where=str(folder), remedy=_which(what, store))
    raise UserError(f"the folder holds no {what}: there is no {file} in it", where=str(folder), remedy="name the folder with that file")


def _which(what: str, store: Store) -> str:
    """Names of artifacts that do hold a model or tokenizer."""
    file = {"model": "model/config.json", "tokenizer": "tokenizer.json"}[what]
    fit = []
    for recipe, stages in store.named().items():
        for stage, key in stages.items():
            if any((store.artifacts / key / place / file).is_file() for place in ("", "model", "tokenizer")):
                fit.append(f"{recipe}/{stage}")
    return f"these hold one: {', '.join(sorted(fit))}" if fit else "name one that does; `cairn list` shows what there is"


def _unknown(ref: str, store: Store, named: dict[str, dict[str, str]]) -> UserError:
    from cairn.pipeline.recipe import built_in

    known = [f"{recipe}/{stage}" for recipe, stages in named.items() for stage in stages]
    recipe = ref.partition("/")[0]
    where = str(store.root)
    if recipe in named:
        if ref.partition("/")[2] in _stages_of(recipe):
            what, remedy = f"the stage '{ref}' was not run to its end in this store yet", f"run it: cairn run {recipe}"
            return UserError(what, where=where, remedy=remedy)
        near = [name for name in known if name.startswith(recipe + "/")]
        return UserError(f"nothing is called '{ref}'", where=where, remedy=did_you_mean(ref, near))
    if recipe in built_in():
        return UserError(f"the recipe '{recipe}' has no artifact in this store", where=where, remedy=f"run it first: cairn run {recipe}")
    if not known:
        remedy = "run a recipe first, or name another store with --store"
        return UserError(f"nothing is called '{ref}': the store is empty", where=where, remedy=remedy)
    return UserError(f"nothing is called '{ref}'", where=where, remedy=did_you_mean(ref, known))


def _stages_of(recipe: str) -> Collection[str]:
    """The stages of a built-in recipe that needs nothing from its user; none of any other."""
    from cairn.pipeline.recipe import built_in, load_recipe

    try:
        return load_recipe(recipe, []).stages if recipe in built_in() else ()
    except UserError:
        return ()  # it asks for data: which stages it has is no news then


def _from_hub(name: str) -> tuple[Path | None, str]:
    """The local folder of a checkpoint on the hub, from the cache or else fetched; without one, the reason.

    Raises:
        UserError: the cache cannot be written.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

    patterns = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "*.md"]
    with contextlib.suppress(Exception):  # not in the cache: each way of not being there has a type of its own
        return Path(snapshot_download(name, local_files_only=True, allow_patterns=patterns)), ""
    try:
        return Path(snapshot_download(name, local_files_only=False, allow_patterns=patterns)), ""
    except GatedRepoError:
        return None, f"it asks for access first (request it at https://huggingface.co/{name}, then `hf auth login`)"
    except RepositoryNotFoundError:
        return None, "there is no such model there, or it is private"
    except HFValidationError as error:
        return None, _first_line(error)
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
            what = f"cannot keep '{name}': {error.strerror}"
            raise UserError(what, where=str(error.filename), remedy="check the disk, or set HF_HOME to another") from None
        return None, f"it cannot be reached, or it refuses ({_first_line(error)})"


def _first_line(error: Exception) -> str:
    """What an exception of another library says, in one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
