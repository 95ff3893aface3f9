"""The recipe on real data, at a size of seconds: its parts, its two sides, and its card's table against a count of our own."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from cairn.ledger.store import Artifact, Store

from .shipped import SMALL, cairn_json, rows_of, sets, shared_data

SOURCES = {"books": 30, "stories": 150, "alpaca": 150, "alpaca-long": 60, "dolly": 60, "gsm8k": 80, "gsm8k-test": 40, "korean": 200}
LIMITS = [f"rows.sources.{name}.limit={limit}" for name, limit in {**SOURCES, "japanese": 60}.items()]
CHAT = ["alpaca", "alpaca-long", "dolly", "gsm8k", "korean", "japanese", "books", "stories"]

pytestmark = pytest.mark.shared


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """The artifacts of a small run."""
    data = shared_data()
    if not data.is_dir():
        pytest.skip(f"the shared data are not here: no folder {data}")
    store = Store(tmp_path_factory.mktemp("real") / "store")
    # One share for all, so that every source has rows on both sides even where it is cut short.
    small = sets(f"data={data}", *SMALL, *LIMITS, "rows.holdout=0.2", "rows.sources.japanese.holdout=0.2")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        ran = cairn_json("run", "real", *small, "--store", str(store.root))
    assert [s["name"] for s in ran["stages"]] == ["rows", "tokenizer", "base", "chat", "eval", "card"]
    return {s["name"]: Artifact(store.artifacts / s["key"]) for s in ran["stages"]}


def table_of(card: str) -> dict[str, list[str]]:
    """The mix table of the chat stage: {subset: the other columns}."""
    lines = [line for line in card.splitlines() if line.startswith("| ")]
    start = max(i for i, line in enumerate(lines) if line.startswith("| Subset"))
    rows: dict[str, list[str]] = {}
    for line in lines[start + 2 :]:
        name, *cells = (cell.strip(" *") for cell in line.strip("|").split("|"))
        rows[name] = cells
        if name == "Total":
            break
    return rows


def counted(tokenizer: Any, rows: list[dict[str, Any]]) -> list[float]:
    """#Tokens, and sums: dialogues, queries, their tokens, replies, their tokens. Written without Cairn's own counting."""

    def size(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False).input_ids)

    sums = [0.0] * 6
    for row in rows:
        if "text" in row:
            sums[0] += size(row["text"]) + (tokenizer.bos_token is not None) + (tokenizer.eos_token is not None)
            continue
        sums[0] += len(tokenizer.apply_chat_template(row["messages"], return_dict=False))
        sums[1] += 1
        for message in row["messages"]:
            for role, at in (("user", 2), ("assistant", 4)):
                if message["role"] == role:
                    sums[at] += 1
                    sums[at + 1] += size(message["content"])
    return sums


def cells(sums: list[float]) -> list[str]:
    tokens, dialogues, queries, asked, replies, said = sums
    if not dialogues:
        return [f"{tokens:,.0f}", "not instruction data", "", "", ""]
    return [f"{tokens:,.0f}", *(f"{value:.2f}" for value in (queries / dialogues, asked / queries, replies / dialogues, said / replies))]


def test_the_cards_mix_table_agrees_with_an_independent_count(stages: dict[str, Artifact]) -> None:
    from transformers import AutoTokenizer

    release = stages["card"].folder
    tokenizer = AutoTokenizer.from_pretrained(release)
    table = table_of((release / "README.md").read_text(encoding="utf-8"))
    assert list(table) == [*CHAT, "Total"]
    total = [0.0] * 6
    for name in CHAT:
        sums = counted(tokenizer, rows_of(stages["rows"].path(f"{name}.train.jsonl")))
        assert table[name] == cells(sums), name
        total = [a + b for a, b in zip(total, sums, strict=True)]
    assert table["Total"] == cells(total)


def test_no_held_out_question_is_trained_on(stages: dict[str, Artifact]) -> None:
    def questions(side: str) -> set[str]:
        files = stages["rows"].folder.glob(f"*.{side}.jsonl")
        asked = ((row.get("messages") or [{"content": row.get("text")}]) for file in files for row in rows_of(file))
        return {" ".join(next(m["content"] for m in messages if m.get("role") != "system").split()).casefold() for messages in asked}

    held, trained = questions("heldout"), questions("train")
    assert len(held) > 50
    assert not held & trained
    assert not stages["rows"].path("gsm8k-test.train.jsonl").exists()
    assert stages["rows"].record.metrics["overlap"]["questions_on_both_sides"] == 0


def test_every_source_has_its_perplexity_and_bits(stages: dict[str, Artifact]) -> None:
    scores = stages["eval"].record.metrics["scores"]
    measured = {name.partition(" ")[0] for name in scores}
    assert measured == {*CHAT, "gsm8k-test"} - {"gsm8k"}
    for name in measured:
        assert scores[f"{name} perplexity"]["value"] > 1
        assert 0 < scores[f"{name} bits_per_byte"]["value"] < 16
    card = stages["card"].path("README.md").read_text(encoding="utf-8")
    assert re.search(r"^license: other$", card, re.M)
    assert "non-commercial" in card


def test_the_recipe_asks_for_its_folder(tmp_path: Path) -> None:
    from .shipped import cairn

    err = cairn("run", "real", "--store", str(tmp_path / "store"), status=2)[1]
    assert "--set data=" in err
    assert not (tmp_path / "store").exists()
