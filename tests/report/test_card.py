"""The card, out of hand-made records."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from cairn.errors import UserError
from cairn.ledger.digest import file_digest, folder_digest
from cairn.ledger.store import Artifact, write_atomically
from cairn.report.card import card_text
from cairn.report.release import CardInfo, Material, read_evaluation, write_release

INFO = CardInfo(
    title="Pebble",
    license="apache-2.0",
    languages=["en", "ko"],
    summary="A small model.",
    notes=["Numbers are written digit by digit."],
    limits=["It knows little."],
    tags=["tiny"],
)


@pytest.fixture
def material(small: dict[str, Artifact], put: Any) -> Material:
    return Material(
        model=small["chat"],
        store=put.store,
        info=INFO,
        evaluations=[read_evaluation(small["scores"])],
        data=small["corpus"],
        recipe="small",
        command="cairn run small --set a=1",
    )


def section(card: str, title: str) -> str:
    found = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", card, re.DOTALL | re.MULTILINE)
    assert found, f"no section '{title}'"
    return found[1]


def test_hugging_face_reads_the_metadata(material: Material) -> None:
    card = ModelCard(card_text(material))
    data = card.data
    assert (data.license, data.language) == ("apache-2.0", ["en", "ko"])
    assert (data.library_name, data.pipeline_tag) == ("transformers", "text-generation")
    assert data.tags == ["cairn", "conversational", "tiny"]
    assert data.model_name == "Pebble"
    results = {(r.dataset_name, r.metric_type): r.metric_value for r in data.eval_results}
    assert results == {("pebble/facts", "exact_match"): 0.975, ("held-out", "perplexity"): 12.3456}


def test_metadata_without_results_or_languages(small: dict[str, Artifact], put: Any) -> None:
    card = ModelCard(card_text(Material(model=small["chat"], store=put.store)))
    assert card.data.eval_results is None
    assert card.data.language is None
    assert card.data.license == "other"


def test_the_numbers_of_another_model_stand_beside_but_are_not_declared_as_this_ones(small, put):
    results = json.loads(small["scores"].path("results.json").read_text())
    for row in results["rows"]:
        row["value"] = 0.123
    samples = small["scores"].path("samples/pebble.jsonl").read_text()
    files = {"results.json": results, "samples/pebble.jsonl": samples}
    before = put("before", "evaluate", files, (small["base"], small["corpus"]), config={"model": "base"})
    found = [read_evaluation(small["scores"]), read_evaluation(before)]
    text = card_text(Material(model=small["chat"], store=put.store, evaluations=found))
    declared = ModelCard(text).data.eval_results
    assert len(declared) == 2
    assert 0.123 not in [result.metric_value for result in declared]
    assert "12.3 %" in text.partition("### Side by side")[2].partition("###")[0]


def test_mix_table_of_every_training(material: Material) -> None:
    data = section(card_text(material), "Data")
    assert data.count("| Subset | #Tokens | Avg. #Q | Avg. Query Len | Avg. #R | Avg. Reply Len |") == 2
    assert "| books | 1,200 | not instruction data |" in data
    assert "| chats | 340 | 1.50 | 7.25 | 1.50 | 9.00 |" in data
    assert "| **Total** | **1,540** |" in data


def test_results_stand_with_their_evidence(material: Material, small: dict[str, Artifact]) -> None:
    results = section(card_text(material), "Results")
    assert "| pebble/facts | `exact`: it is the expected one | 200 | 97.5 % | 94.3 to 98.9 % |" in results
    assert "| held-out | perplexity | 20 | 4,000 tokens, 16,000 bytes | 12.346 | 11.000 to 14.000 |" in results
    assert file_digest(small["scores"].path("samples/pebble.jsonl")) in results
    assert "message v1" in results
    assert "Each share above is the mean score" in results
    assert "perplexity is e to the power of all nats over all tokens" in results


def test_lineage_overlap_environment_and_commands(material: Material, small: dict[str, Artifact]) -> None:
    card = card_text(material)
    lineage = section(card, "Lineage")
    for artifact in small.values():
        assert artifact.key[:16] in lineage
        assert artifact.record.digest[:16] in lineage
    assert "train texts: 1,234" in section(card, "Training and test")
    assert "shared: 0" in section(card, "Training and test")
    assert "| cpu | A CPU \\| of 2 cores |" in section(card, "Environment")
    commands = section(card, "Make it again, and check it")
    for command in ("cairn run small --set a=1", "cairn verify small/chat --replay", "cairn verify small/scores --replay"):
        assert command in commands
    assert "Numbers are written digit by digit." in section(card, "Good to know")
    assert "It knows little." in section(card, "Limits")
    assert "stays text only in Cairn's renderer" in section(card, "Use")
    assert "| `chat` | supervised | 30 | 1,920 | 700 | muon, 0.02 | wsd | float32 | 0.2500 |" in section(card, "Training")


def test_overlap_that_a_data_stage_removed_is_told(small: dict[str, Artifact], put: Any) -> None:
    rows = put("rows", "data", {"a.train.jsonl": "{}\n"}, metrics={"overlap": {"removed_from_train": 7, "questions_on_both_sides": 0}})
    card = card_text(Material(model=small["chat"], store=put.store, data=rows))
    assert "`rows`" in section(card, "Training and test")
    assert "removed from train: 7" in section(card, "Training and test")


def test_rows_that_were_compared_with_nothing_are_told(small: dict[str, Artifact], put: Any) -> None:
    other = put("other", "corpus", {"x.jsonl": "{}\n"})
    checked = {"name": "good", "path": None, "stage": "corpus", "file": "train/a.jsonl"}
    data = [checked, {"name": "mine", "path": "/x.jsonl", "stage": None}, {"name": "theirs", "stage": "other", "file": "x.jsonl"}]
    files = {"model/config.json": {"model_type": "llama"}, "metrics.jsonl": '{"step": 1, "loss": 1.0}\n'}
    tuned = put("tuned", "train", files, (small["corpus"], other), config={"data": data, "checkpoint": "/y"})
    text = section(card_text(Material(model=tuned, store=put.store, data=small["corpus"])), "Training and test")
    assert "with no others" in text
    assert "`tuned` reads `mine`, a file from outside" in text
    assert "`tuned` reads `theirs` of `other`" in text
    assert "`tuned` starts from a checkpoint from outside" in text
    assert "good" not in text
    assert "/x.jsonl" not in text
    clean = put("clean", "train", files, (small["corpus"],), config={"data": [checked]})
    whole = card_text(Material(model=clean, store=put.store, data=small["corpus"]))
    assert "elsewhere" not in section(whole, "Training and test")


def test_unchecked_overlap_is_admitted(small: dict[str, Artifact], put: Any) -> None:
    alone = put("lonely", "train", {"model/config.json": {"model_type": "llama"}})
    assert "nothing was checked" in section(card_text(Material(model=alone, store=put.store)), "Training and test")


def test_the_usage_snippet_is_python(material: Material) -> None:
    snippet = re.search(r"```python\n(.*?)```", card_text(material), re.DOTALL)
    assert snippet
    compile(snippet[1], "snippet", "exec")


def test_release_holds_model_card_curve_evidence_and_lineage(material: Material, tmp_path: Path, small: dict[str, Artifact]) -> None:
    out = tmp_path / "release"
    out.mkdir()
    figures = write_release(out, material)
    assert figures == {"model_files": 3, "results": 2, "artifacts": 4}
    for name in ("config.json", "model.safetensors", "chat_format.yaml"):
        assert (out / name).read_bytes() == small["chat"].path(f"model/{name}").read_bytes()
    card = (out / "README.md").read_text()
    for link in re.findall(r"\]\(([^)#]+)\)", card):
        assert (out / link).is_file(), f"the card links to {link}"
    assert (out / "training-curve.png").read_bytes().startswith(b"\x89PNG")
    lineage = json.loads((out / "lineage.json").read_text())
    assert [record["name"] for record in lineage] == ["corpus", "base", "chat", "scores"]


def test_no_clock_and_no_path_reaches_a_release(material: Material, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    write_release(tmp_path / "a", material)
    for path in (tmp_path / "a").rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert b"2001-02-03" not in content, path
            assert b"77.7" not in content, path
            assert str(tmp_path).encode() not in content, path


def test_written_twice_gives_the_same_bytes(material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, link in (("a", True), ("b", False)):
        (tmp_path / name).mkdir()
        write_release(tmp_path / name, material, link=link)
        # Another day, another style of pictures.
        monkeypatch.setenv("SOURCE_DATE_EPOCH", "12345")
        import matplotlib as mpl

        monkeypatch.setitem(mpl.rcParams, "axes.facecolor", "black")
    assert folder_digest(tmp_path / "a") == folder_digest(tmp_path / "b")


def test_results_that_name_other_samples_are_refused(small: dict[str, Artifact]) -> None:
    scores = small["scores"]
    results = json.loads(scores.path("results.json").read_text())
    results["rows"][0]["samples_sha256"] = "0" * 64
    write_atomically(scores.path("results.json"), json.dumps(results))
    with pytest.raises(UserError, match="another digest"):
        read_evaluation(scores)


def test_what_is_no_evaluation_or_no_model(small: dict[str, Artifact], put: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no results"):
        read_evaluation(small["corpus"])
    with pytest.raises(UserError, match="no model"):
        write_release(tmp_path, Material(model=small["corpus"], store=put.store))


def test_without_the_drawing_library(material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cairn.report.plot.can_plot", lambda: False)
    with pytest.raises(UserError, match="matplotlib is not installed") as error:
        write_release(tmp_path, material)
    assert "cairn-llm[plot]" in error.value.remedy


def test_report_knows_no_torch() -> None:
    code = "import sys, cairn.report.card, cairn.report.plot; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_metadata_is_the_first_thing_in_the_file(material: Material) -> None:
    card = card_text(material)
    assert card.startswith("---\nlicense: apache-2.0\n")
    assert yaml.safe_load(card.split("---\n")[1])["model-index"][0]["name"] == "Pebble"


def test_two_evaluations_of_the_same_questions_stand_side_by_side(material: Material, small: dict[str, Artifact], put: Any) -> None:
    results = json.loads(small["scores"].path("results.json").read_text())
    for row in results["rows"]:
        row |= {"value": row["value"] / 2, "low": 0.0, "high": 1.0}
    evidence = small["scores"].path("samples/pebble.jsonl").read_text()
    files = {"results.json": results, "samples/pebble.jsonl": evidence}
    before = put("before", "evaluate", files, (small["base"],), config={"model": "base"})
    card = card_text(replace(material, evaluations=[read_evaluation(before), *material.evaluations]))
    table = section(card, "Results").partition("### Side by side")[2].partition("###")[0]
    assert "| Suite | Metric | n | `base` | `chat` |" in table
    assert "| pebble/facts | `exact` | 200 | 48.8 % (0.0 to 100.0 %) | 97.5 % (94.3 to 98.9 %) |" in table
    assert "held-out" in table
    assert "Side by side" not in card_text(material)


def test_each_model_beside_the_released_one_stands_before_or_after_it(material: Material, small: dict[str, Artifact], put: Any) -> None:
    results = json.loads(small["scores"].path("results.json").read_text())
    evidence = small["scores"].path("samples/pebble.jsonl").read_text()
    model = {"model/config.json": {"model_type": "llama"}}
    tuned = put("tuned", "train", model, (small["chat"],))

    def examined(name: str, row: int, of: Artifact, value: float) -> Any:
        rows = [{**results["rows"][row], "value": value, "low": None, "high": None}]
        files = {"results.json": {"rows": rows}, "samples/pebble.jsonl": evidence, "samples/held-out.jsonl": ""}
        kept = {path: text for path, text in files.items() if path in ("results.json", rows[0]["samples"])}
        return read_evaluation(put(name, "evaluate", kept, (of,), config={"model": of.record.name}))

    first, other = examined("before", 0, small["base"], 0.25), examined("after", 0, tuned, 0.5)
    unlike = examined("unlike", 0, tuned, 0.75)
    unlike.results["rows"][0]["suite"] = "another/question"
    found = section(card_text(replace(material, evaluations=[*material.evaluations, other, first, unlike])), "Results")
    assert "Side by side" not in found
    titles = re.findall(r"^### (Before.*)$", found, re.MULTILINE)
    assert titles == ["Before and after `tuned`", "Before and after `chat`"]
    after, before = (found.partition(f"### {title}")[2].partition("###")[0] for title in titles)
    assert "| Suite | Metric | n | `chat` | `tuned` |" in after
    assert "| 97.5 % (94.3 to 98.9 %) | 50.0 % (–) |" in after
    assert "| Suite | Metric | n | `base` | `chat` |" in before
    assert "| 25.0 % (–) | 97.5 % (94.3 to 98.9 %) |" in before


def test_rank_correlations_have_a_table_of_their_own(material: Material, small: dict[str, Artifact], put: Any) -> None:
    results = json.loads(small["scores"].path("results.json").read_text())
    ranks = {**results["rows"][0], "suite": "s/humor", "metric": "spearman", "right": "order", "value": 0.9876, "low": 0.9, "high": 0.99}
    files = {"results.json": {"rows": [ranks]}, "samples/pebble.jsonl": small["scores"].path("samples/pebble.jsonl").read_text()}
    steered = read_evaluation(put("steered", "evaluate", files, (small["chat"],), config={"model": "chat"}))
    card = card_text(replace(material, evaluations=[steered]))
    found = section(card, "Results")
    assert "| s/humor | `spearman`: order | 200 | 0.988 | 0.900 to 0.990 |" in found
    assert "Fisher" in found
    assert "Perplexity is over" not in found
    assert "Wilson" not in found
    assert [(r.metric_type, r.metric_value) for r in ModelCard(card).data.eval_results] == [("spearmanr", 0.9876)]
