"""The readers on real files, against counts made without them."""

from __future__ import annotations

import gzip
import json
from itertools import pairwise

import pytest

from cairn.data.check import check_file
from cairn.data.prepare import HeldSource, prepare
from cairn.data.readers import detect_reader, read_outcomes, read_rows
from cairn.data.stats import MixTable

pytestmark = pytest.mark.shared


def records(path):
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    text = data.decode()
    return json.loads(text) if text.startswith("[") else [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize(
    ("file", "reader"),
    [
        ("alpaca_subset/sdft_alpaca_train.json", "alpaca"),
        ("dolly_subset/dolly_3k.json", "dolly"),
        ("dolly_subset/dolly_hhrlhf_train_small.jsonl", "prompt_response"),
        ("gsm8k/test.jsonl", "prompt_response"),
        ("oasst/en_100_tree.jsonl", "oasst"),
        ("oasst/oasstcommitpackftmanual.jsonl", "prompt_response"),
        ("instruction_ja/data.jsonl", "prompt_response"),
        ("openfunctions/openfunction_test.json", "alpaca"),
    ],
)
def test_every_record_becomes_a_row(shared, file, reader):
    assert detect_reader(shared / file) == reader
    rows = list(read_rows(shared / file))
    assert len(rows) == len(records(shared / file))
    assert len({r["id"] for r in rows}) == len(rows)


def test_bad_rows_of_real_files_are_found(shared):
    path = shared / "alpaca_subset" / "random_9k.json"
    empty = [i for i, r in enumerate(records(path), start=1) if not r["output"].strip()]
    report = check_file(path)
    assert [p["row"] for p in report["problems"]] == empty
    assert {p["field"] for p in report["problems"]} == {"output"}
    assert not check_file(shared / "instruction_ja" / "skipped.jsonl")["ok"]


def test_flat_messages_give_a_path_of_each_tree(shared):
    path = shared / "oasst" / "oasst1_en_validation.jsonl"
    messages = {m["message_id"]: m for m in records(path)}
    rows = list(read_rows(path))
    assert len(rows) == sum(m["parent_id"] is None for m in messages.values())
    for row in rows:
        chain = [messages[row["id"]]]
        while chain[0]["parent_id"]:
            chain.insert(0, messages[chain[0]["parent_id"]])
        assert [m["text"] for m in chain] == [m["content"] for m in row["messages"]]
        for before, message in pairwise(chain):
            assert not message["deleted"]
            assert message["review_result"]
            beside = [m for m in messages.values() if m["parent_id"] == before["message_id"] and not m["deleted"] and m["review_result"]]
            ranks = [m["rank"] for m in beside if m["rank"] is not None]
            assert message["rank"] == (min(ranks) if ranks else None)
    assert len(list(read_rows(path, "oasst_all"))) > 2 * len(rows)


def test_transcripts_join_to_what_they_were(shared):
    path = shared / "hh_rlhf" / "test.jsonl.gz"
    whole, found, bad = records(path), 0, 0
    for outcome in read_outcomes(path):
        if outcome.problem:
            bad += 1
            continue
        found += 1
        turns = outcome.row["messages"] + outcome.row["chosen"]
        joined = "".join(f"\n\n{'Human' if m['role'] == 'user' else 'Assistant'}: {m['content']}" for m in turns)
        assert "".join(joined.split()) == "".join(whole[outcome.number - 1]["chosen"].split())
    assert found + bad == len(whole) == 2312
    assert bad == 13


def test_a_table_of_korean_questions(shared):
    rows = list(read_rows(shared / "ko_chatbot" / "ChatbotData.csv"))
    assert len(rows) == 11823
    assert rows[0]["messages"][0]["content"] == "12시 땡!"


def test_books_in_shift_jis_lose_their_marks(shared):
    rows = list(read_rows(shared / "aozora_ja"))
    assert len(rows) == 50
    for row in rows:
        assert not set("《》｜〓") & set(row["text"]), row["id"]
        assert "［＃" not in row["text"]
        assert "底本：" not in row["text"]
        assert "テキスト中に現れる記号について" not in row["text"]
    # A sign takes two bytes there; marks and readings are about a fifth of them.
    signs = sum(p.stat().st_size for p in (shared / "aozora_ja").iterdir()) / 2
    assert 0.7 * signs < sum(len(r["text"]) for r in rows) < signs


def test_english_books_and_stories(shared):
    books = list(read_rows(shared / "books_en"))
    assert len(books) == len(list((shared / "books_en").iterdir()))
    assert {b["source"] for b in books} == {"books_en"}
    stories = list(read_rows(shared / "tinystories_sample" / "tiny_stories.txt", separator="\n"))
    assert len(stories) > 5000


def test_the_mix_table_agrees_with_an_independent_count(shared):
    table = MixTable()
    files = {"gsm8k/train.jsonl": ("question", "answer"), "dolly_subset/dolly_3k.json": ("instruction", "output")}
    for file in files:
        for row in read_rows(shared / file):
            table.add(row, file)
    for subset, (file, (asked, answered)) in zip(table.as_dict()["subsets"], files.items(), strict=True):
        given = records(shared / file)
        query = sum(len(r[asked].split()) + len(r.get("input", "").split()) for r in given)
        reply = sum(len(r[answered].split()) for r in given)
        assert subset["rows"] == len(given)
        assert subset["tokens"] == query + reply
        assert subset["avg_query_length"] == pytest.approx(query / len(given))
        assert subset["avg_reply_length"] == pytest.approx(reply / len(given))


def test_a_train_split_inside_another_set_is_kept_out(shared, tmp_path):
    """The subsets of Alpaca overlap: what one holds out, the other may not train on."""
    names = ("sdft_alpaca_train", "claude_t45")
    sources = [
        (HeldSource(name=n, path="x", holdout=h), shared / "alpaca_subset" / f"{n}.json") for n, h in zip(names, (0, 1), strict=True)
    ]
    summary = prepare(sources, tmp_path, seed=0, holdout=0, dedup=False, bad_rows="drop")
    asked = [{(" ".join((r["instruction"] + " " + r["input"]).split())).casefold() for r in records(path)} for _, path in sources]
    assert len(asked[0] & asked[1]) > 50
    assert summary["overlap"]["removed_from_train"] >= len(asked[0] & asked[1])
    assert summary["overlap"]["questions_on_both_sides"] == 0
