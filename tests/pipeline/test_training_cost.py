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
    whole, few = (planned(*started, f"chat.adapter={{targets: {names}}}")["memory_bytes"] for names in ("all-linear", "[q_proj]"))
    # What it trains is nothing here, and every matrix that is adapted keeps its input.
    assert few < 0.8 * whole < whole == pytest.approx(further["memory_bytes"], rel=0.4)
    # A base that is large beside its rows: in 4 bits it takes less, and merging writes it out again.
    small = (*started, "chat.batch_sequences=1", "chat.model=null")
    kept, rounded = (planned(*small, f"chat.adapter={{base: {held}, merge: false}}")["memory_bytes"] for held in ("full", "nf4"))
    assert rounded < kept <= planned(*small, "chat.adapter={}")["memory_bytes"]
