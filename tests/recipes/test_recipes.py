"""The built-in recipe from the outside: from nothing to a release through the command line, at a size of seconds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cairn.ledger.store import Artifact, Store
from cairn.pipeline.recipe import built_in

from .shipped import PEBBLE, cairn, cairn_json, rows_of, sets

TINY = sets("corpus.scale=0.01", *PEBBLE)
EXAMS = ["eval-chat", "eval-preferred", "eval-rewarded", "eval"]
STAGES = ["corpus", "tokenizer", "base", "chat", "ghost", "steady", "preferred", "rewarded", *EXAMS, "card"]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Such models are faster on one thread, and the record holds the number."""
    import torch

    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, dict[str, Any]]:
    """A store in which tiny pebble has run, and what the run printed."""
    store = Store(tmp_path_factory.mktemp("pebble") / "store")
    return store, cairn_json("run", "pebble", *TINY, "--store", str(store.root))


@pytest.fixture(scope="module")
def store(made: tuple[Store, dict[str, Any]]) -> Store:
    return made[0]


def artifact(store: Store, stage: str) -> Artifact:
    return Artifact(store.artifacts / store.named()["pebble"][stage])


def test_the_recipes_that_are_shipped_are_those_that_run_here() -> None:
    # Another one needs its run among these tests.
    assert set(built_in()) == {"pebble", "real"}


def test_all_stages_end_and_a_second_run_does_nothing(made: tuple[Store, dict[str, Any]]) -> None:
    store, first = made
    assert [(s["name"], s["status"]) for s in first["stages"]] == [(name, "ran") for name in STAGES]
    before = {path: path.stat().st_mtime_ns for path in store.root.rglob("*") if path.is_file()}
    second = cairn_json("run", "pebble", *TINY, "--store", str(store.root))
    assert [s["status"] for s in second["stages"]] == ["in store"] * len(STAGES)
    assert [s["digest"] for s in second["stages"]] == [s["digest"] for s in first["stages"]]
    assert {path: path.stat().st_mtime_ns for path in store.root.rglob("*") if path.is_file()} == before
    assert not [path for path in store.drafts.rglob("*") if path.is_file()]


def test_the_lineage_of_the_model_goes_down_to_the_corpus(store: Store) -> None:
    tree = cairn_json("trace", "pebble/chat", "--store", str(store.root))
    assert [one["name"] for one in tree["inputs"]] == ["base", "corpus"]
    (tokenizer,) = (one for one in tree["inputs"][0]["inputs"] if one["name"] == "tokenizer")
    assert [one["name"] for one in tokenizer["inputs"]] == ["corpus"]
    assert tokenizer["inputs"][0]["digest"] == artifact(store, "corpus").record.digest


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_has_the_bytes_of_its_record_and_gives_them_again(store: Store, stage: str) -> None:
    assert cairn_json("verify", f"pebble/{stage}", "--store", str(store.root)) == {"ok": True, "differs": []}
    assert cairn_json("verify", f"pebble/{stage}", "--replay", "--store", str(store.root)) == {"ok": True, "differs": []}


def test_training_again_between_two_checkpoints_gives_the_second(store: Store) -> None:
    kept = sorted(p.name for p in artifact(store, "chat").path("checkpoints").iterdir())
    assert len(kept) >= 2, "there are two to go between"
    a, b = (int(name.rpartition("-")[2]) for name in (kept[0], kept[-1]))
    assert cairn_json("verify", "pebble/chat", "--interval", f"{a}:{b}", "--store", str(store.root))["ok"]


def test_of_two_runs_the_difference_is_the_seed(store: Store) -> None:
    before = {"pebble": dict(store.named()["pebble"])}
    key = before["pebble"]["corpus"]
    other = cairn_json("run", "pebble", *TINY, "--set", "seed=2", "--until", "corpus", "--store", str(store.root))["stages"][0]["key"]
    found = cairn_json("diff", key, other, "--store", str(store.root))
    for stage, one in before["pebble"].items():
        store.name("pebble", stage, one)
    assert found["equal"] is False
    assert found["differences"]["seed"]["left"] == 1
    assert found["differences"]["seed"]["right"] == 2
    assert [found["differences"][aspect] for aspect in ("configuration", "code", "environment")] == [None] * 3
    assert found["differences"]["outputs"]["path"]


def test_the_release_gives_the_logits_of_the_trained_model_to_the_bit(store: Store) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from cairn.model.load import load_model

    release = artifact(store, "card").folder
    model, tokenizer = AutoModelForCausalLM.from_pretrained(release), AutoTokenizer.from_pretrained(release)
    trained = load_model(artifact(store, "steady").path("model"))
    for row in rows_of(artifact(store, "corpus").path("test/facts.jsonl")):
        ids = torch.tensor([tokenizer.apply_chat_template(row["messages"], return_dict=False)])
        with torch.inference_mode():
            assert torch.equal(model(ids).logits, trained(ids).logits)


def test_the_exported_template_gives_the_ids_of_training(store: Store) -> None:
    from transformers import AutoTokenizer

    from cairn.chat.format import load_format
    from cairn.chat.render import Renderer
    from cairn.tokenizer.load import Tokenizer

    release = artifact(store, "card").folder
    tokenizer = AutoTokenizer.from_pretrained(release)
    folder = artifact(store, "chat").path("model")
    renderer = Renderer(load_format(folder), Tokenizer.load(folder))
    seen = tools = steered = 0
    for file in sorted(artifact(store, "corpus").path("train").glob("*.jsonl")):
        for row in rows_of(file):
            more = {key: row[key] for key in ("tools", "attributes") if key in row}
            theirs = tokenizer.apply_chat_template(row["messages"], **more, return_dict=False)
            assert theirs == list(renderer.render(row["messages"], **more).ids), row["id"]
            seen, tools, steered = seen + 1, tools + ("tools" in row), steered + ("attributes" in row)
    assert seen > 100
    assert tools > 10
    assert steered > 10


def test_the_card_is_a_card_of_hugging_face(store: Store) -> None:
    from huggingface_hub import ModelCard

    card = ModelCard.load(artifact(store, "card").path("README.md"))
    assert card.data.license == "apache-2.0"
    assert card.data.language == ["en", "ko", "ja"]
    assert card.data.library_name == "transformers"
    scores = artifact(store, "eval").record.metrics["scores"]
    assert {f"{r.dataset_name} {r.metric_name}": r.metric_value for r in card.data.eval_results} == {
        name: round(score["value"], 6) for name, score in scores.items()
    }


@pytest.mark.parametrize("file", ["model/model.safetensors", "mix.json"])
def test_one_flipped_byte_is_named(store: Store, tmp_path: Path, file: str) -> None:
    copy = tmp_path / "store"
    key = artifact(store, "chat").key
    shutil.copytree(store.artifacts / key, copy / "artifacts" / key)
    data = bytearray((copy / "artifacts" / key / file).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / "artifacts" / key / file).write_bytes(data)
    found = cairn_json("verify", key[:12], "--store", str(copy), status=2)
    assert [one["path"] for one in found["differs"]] == [file]
    assert file in cairn("verify", key[:12], "--store", str(copy), status=2)[0]


def test_the_model_answers_through_every_verb(store: Store, tmp_path: Path) -> None:
    place = ["--store", str(store.root)]
    corpus = artifact(store, "corpus")
    questions, answers = corpus.path("test/functions.jsonl"), tmp_path / "answers.jsonl"
    few = ["--max-new-tokens", "8"]
    report = cairn_json("generate", "pebble/chat", "--in", str(questions), "--out", str(answers), "--limit", "2", *few, *place)
    assert report["rows"] == 2
    assert [row["id"] for row in rows_of(answers)] == [row["id"] for row in rows_of(questions)[:2]]
    answer = cairn_json("chat", "pebble/chat", "--once", "What is the capital of Norway?", *few, *place)
    assert answer["message"]["role"] == "assistant"
    assert 0 < answer["answer_tokens"] <= 8
    found = cairn_json("eval", "pebble/chat", "--suite", "pebble", "--limit", "3", *place)
    assert found["models"] == ["pebble/chat"]
    skills = {path.stem for path in corpus.path("test").glob("*.jsonl")} - {"turns", "orders", "steering", "manners", "stories"}
    assert {row["suite"].rpartition("/")[2] for row in found["rows"]} == skills
    assert all(row["n"] <= 3 for row in found["rows"])


def test_tokens_are_those_that_training_used(store: Store) -> None:
    file = artifact(store, "corpus").path("train/functions.jsonl")
    shown = cairn_json("tokens", "pebble/chat", str(file), "--row", "2", "--store", str(store.root))
    assert len(shown["ids"]) == len(shown["pieces"]) == len(shown["mask"])
    supervised = "".join(piece for piece, on in zip(shown["pieces"], shown["mask"], strict=True) if on)
    assert supervised.endswith("<|endoftext|>")
    assert json.dumps(rows_of(file)[1]["messages"][0]["content"], ensure_ascii=False)[1:-1] not in supervised
    assert shown["text"].endswith("<|endoftext|>")
