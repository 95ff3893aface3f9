"""What a user types finds one artifact or folder, or an answer that says what there is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cairn.errors import UserError
from cairn.ledger.store import Artifact, Store
from cairn.pipeline.recipe import load_recipe
from cairn.pipeline.resolve import locate, model_folder, resolve, resolve_artifact, tokenizer_folder
from cairn.pipeline.run import run_recipe

Write = Callable[..., str]


@pytest.fixture
def artifact(write_recipe: Write, store: Store) -> Artifact:
    return run_recipe(load_recipe(write_recipe("  one: {kind: lines}\n  chat: {kind: lines, after: one}\n")), store).stages[-1].artifact


def test_name_key_and_folder_find_the_same(artifact: Artifact, store: Store) -> None:
    for ref in ("small/chat", artifact.key[:8], artifact.key, str(artifact.folder)):
        found = resolve(ref, store)
        assert isinstance(found, Artifact)
        assert found.key == artifact.key
    assert resolve(str(artifact.path("out")), store) == artifact.path("out")


def test_the_name_refers_to_the_last_run(artifact: Artifact, store: Store, write_recipe: Write) -> None:
    again = run_recipe(load_recipe(write_recipe("  chat: {kind: lines, word: new}\n")), store).stages[0].artifact
    assert resolve_artifact("small/chat", store).key == again.key != artifact.key


@pytest.mark.parametrize(
    ("ref", "what", "remedy"),
    [
        ("small/chta", "nothing is called 'small/chta'", "'small/chat'"),
        ("samll/chat", "nothing is called", "'small/chat'"),
        ("ffff", "nothing is called", "known: small/chat, small/one"),
    ],
)
def test_an_unknown_name_gets_the_nearest(artifact: Artifact, store: Store, ref: str, what: str, remedy: str) -> None:
    with pytest.raises(UserError) as caught:
        resolve(ref, store, hub=False)
    assert what in caught.value.what
    assert remedy in caught.value.remedy


def test_a_stage_of_a_built_in_recipe_that_is_still_to_run(store: Store, write_recipe: Write) -> None:
    path = Path(write_recipe("  corpus: {kind: lines}\n"))
    path.write_text(path.read_text().replace("recipe: small", "recipe: pebble"))
    run_recipe(load_recipe(str(path)), store)
    with pytest.raises(UserError, match="'pebble/chat' was not run") as caught:
        resolve("pebble/chat", store, hub=False)
    assert "cairn run pebble" in caught.value.remedy
    with pytest.raises(UserError, match="nothing is called 'pebble/chta'"):
        resolve("pebble/chta", store, hub=False)


def test_an_ambiguous_key_an_empty_store_and_a_file(store: Store, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the store is empty"):
        resolve("abcd", store)
    for key in ("abcd" + "0" * 60, "abcd" + "1" * 60):
        (store.artifacts / key).mkdir(parents=True)
    with pytest.raises(UserError, match="2 artifacts"):
        resolve("abcd", store)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="this is a file"):
        resolve(str(tmp_path / "file"), store)
    with pytest.raises(UserError, match="no artifact"):
        resolve_artifact(str(tmp_path), store)


def test_a_name_whose_artifact_was_deleted(artifact: Artifact, store: Store) -> None:
    artifact.folder.rename(store.root / "away")
    with pytest.raises(UserError, match="no longer in the store") as caught:
        locate("small/chat", store)
    assert "cairn run small" in caught.value.remedy


def test_model_and_tokenizer_folders(artifact: Artifact, store: Store, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="of kind 'lines' and holds no model") as caught:
        model_folder("small/chat", store)
    assert "cairn list" in caught.value.remedy
    (artifact.path("model")).mkdir()
    for name in ("config.json", "tokenizer.json"):
        artifact.path(f"model/{name}").write_text("{}")
    assert model_folder("small/chat", store) == tokenizer_folder("small/chat", store) == artifact.path("model")
    with pytest.raises(UserError) as caught:
        model_folder("small/one", store)
    assert "small/chat" in caught.value.remedy
    (tmp_path / "hf").mkdir()
    with pytest.raises(UserError, match=r"no config\.json"):
        model_folder(str(tmp_path / "hf"), store)
    (tmp_path / "hf" / "config.json").write_text("{}")
    assert model_folder(str(tmp_path / "hf"), store) == tmp_path / "hf"


def test_a_hub_name_is_looked_up_in_the_cache(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, bool]] = []

    def download(name: str, *, local_files_only: bool, allow_patterns: list[str]) -> str:
        asked.append((name, local_files_only))
        assert not any(p.endswith((".bin", ".pt", "*", ".py")) for p in allow_patterns), "pickles and code are never fetched"
        if name != "maker/model":
            raise OSError("offline")
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert resolve("maker/model", store) == tmp_path
    assert asked == [("maker/model", True)]
    with pytest.raises(UserError, match="nothing is called"):
        resolve("maker/other", store)


@pytest.mark.parametrize(("how", "told"), [("offline", "cannot be reached"), ("unknown", "no such"), ("gated", "asks for access")])
def test_why_the_hub_gave_nothing_is_told(store: Store, monkeypatch: pytest.MonkeyPatch, how: str, told: str) -> None:
    from huggingface_hub import errors

    def download(name: str, *, local_files_only: bool, allow_patterns: list[str]) -> str:
        if local_files_only:
            raise errors.LocalEntryNotFoundError("not in the cache")
        if how == "unknown":
            raise errors.RepositoryNotFoundError.__new__(errors.RepositoryNotFoundError, "401 Client Error")
        if how == "gated":
            raise errors.GatedRepoError.__new__(errors.GatedRepoError, "403 Client Error")
        raise errors.LocalEntryNotFoundError("cannot be reached: Name or service not known")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(UserError, match="nothing is called 'maker/model'") as caught:
        resolve("maker/model", store)
    assert told in str(caught.value)


def test_a_full_disk_while_fetching_is_no_unknown_name(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(name: str, **_: object) -> str:
        raise OSError(28, "No space left on device", "/cache/blob")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(UserError, match="No space left on device") as caught:
        resolve("maker/model", store)
    assert caught.value.where == "/cache/blob"
