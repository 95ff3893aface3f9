"""What a plan says of a training that starts from a checkpoint: the same as of one that begins fresh with the same sizes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from cairn.cli.main import main
from cairn.ledger.store import Artifact, Store

RECIPE = """\
recipe: small
stages:
  tokenizer: {kind: tokenizer, vocab_size: 270, data: [{name: texts, path: texts.jsonl}]}
  chat:
    kind: train
    tokenizer: tokenizer
    objective: language_model
    model: {family: FAMILY, hidden_size: 32, layers: 2, heads: 4, kv_heads: KEYS, intermediate_size: 64, context: 64, tied: TIED}
    data: [{name: texts, path: texts.jsonl}]
    steps: 1
    sequence_length: 64
    batch_sequences: 4096
"""


@pytest.mark.parametrize(("family", "keys", "tied"), [("qwen3", "2", "true"), ("llama", "null", "false")])
def test_a_checkpoint_takes_the_memory_of_its_sizes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], family: str, keys: str, tied: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CAIRN_STORE", str(tmp_path / "store"))
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": f"A stone and {i} more."}) + "\n" for i in range(60)))
    (tmp_path / "small.yaml").write_text(RECIPE.replace("FAMILY", family).replace("KEYS", keys).replace("TIED", tied))

    def planned(*overrides: str) -> dict[str, float]:
        assert main(["plan", "small.yaml", "--json", *(word for one in overrides for word in ("--set", one))]) == 0
        found: dict[str, float] = json.loads(capsys.readouterr().out)["stages"][-1]
        return found

    assert main(["run", "small.yaml", "--json", "--set", "chat.batch_sequences=1"]) == 0
    key = json.loads(capsys.readouterr().out)["stages"][-1]["key"]
    shutil.copytree(Artifact(Store(tmp_path / "store").artifacts / key).path("model"), tmp_path / "model")
    fresh, further = planned(), planned("chat.model=null", "chat.checkpoint=model")
    assert fresh["parameters"] == further["parameters"]
    assert further["memory_bytes"] == pytest.approx(fresh["memory_bytes"], rel=0.01)
    assert fresh["memory_bytes"] > 1.5 * planned("chat.batch_sequences=2")["memory_bytes"], "else the sizes do not show"
    started = ("chat.model=null", "chat.checkpoint=model")
    few, whole, wide = (
        planned(*started, f"chat.adapter={told}")["memory_bytes"]
        for told in ("{targets: [q_proj]}", "{targets: all-linear}", "{targets: all-linear, rank: 256}")
    )
    # Every matrix that is adapted keeps its input, and every rank a number for each token.
    assert few < 0.8 * whole < whole < 0.8 * wide


def test_a_large_base_is_read_and_merged_and_trained_whole_where_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": f"A stone and {i} more."}) + "\n" for i in range(60)))
    recipe = RECIPE.replace("FAMILY", "llama").replace("KEYS", "null").replace("TIED", "true")
    recipe = recipe.replace("batch_sequences: 4096", "batch_sequences: 1")
    recipe = recipe.replace("hidden_size: 32", "hidden_size: 2048").replace("intermediate_size: 64", "intermediate_size: 8192")
    more = "  more: {kind: train, init: chat, objective: language_model, adapter: ADAPTER, data: [{name: t, path: texts.jsonl}], steps: 1,"
    (tmp_path / "small.yaml").write_text(recipe + more + " sequence_length: 64, batch_sequences: 1, precision: bfloat16}\n")
    rows = {}
    for name, told in {
        "alone": "{merge: false}", "merged": "{}", "four": "{merge: false, base: nf4}",
        "whole": "{merge: false, train: [embeddings, head]}",
    }.items():  # fmt: skip
        assert main(["plan", "small.yaml", "--store", "none", "--json", "--set", f"more.adapter={told}"]) == 0
        rows[name] = json.loads(capsys.readouterr().out)["stages"][-1]
    size, took = rows["alone"]["parameters"], {name: row["memory_bytes"] for name, row in rows.items()}
    assert took["merged"] - took["alone"] > 3 * size
    assert took["four"] > took["alone"], "its 4 bits are made beside the 16 that are read"
    # A model that is still to be made has the vocabulary that its tokenizer is to have: 270.
    assert rows["whole"]["parameters"] - size == 270 * 2048
