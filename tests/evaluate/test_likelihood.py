"""Perplexity and bits per byte."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cairn.errors import UserError
from cairn.evaluate.likelihood import Document, _results, read_likelihood, windows
from cairn.evaluate.result import Result
from cairn.evaluate.subject import Subject
from cairn.ledger.digest import file_digest

Row = dict[str, Any]
TEXTS = ["The capital of Norway is Oslo.", "일본의 수도는 도쿄입니다.", "A short one.", "The capital of Norway is Oslo, and so on."]


@given(st.integers(2, 9), st.lists(st.booleans(), min_size=1, max_size=60))
def test_every_token_is_scored_once_with_half_a_window_before_it(context: int, mask: list[bool]) -> None:
    ids = list(range(len(mask)))
    seen: list[int] = []
    for window in windows(3, ids, [int(m) for m in mask], context):
        assert window.document == 3
        assert 1 <= len(window.ids) <= context
        assert len(window.scored) == len(window.ids)
        for place, (token, scored) in enumerate(zip(window.ids, window.scored, strict=True)):
            if scored:
                seen.append(token)
                assert place >= min(token, context // 2), "too little stands before the token"
    assert seen == [i for i in ids[1:] if mask[i]]


def by_metric(results: list[Result]) -> dict[str, Result]:
    return {r.metric: r for r in results}


def direct(subject: Subject, ids: list[int], mask: list[int]) -> float:
    """Negative log likelihood the plain way: the whole document at once."""
    with torch.inference_mode():
        scores = subject.model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return -sum(float(scores[i - 1, ids[i]]) for i in range(1, len(ids)) if mask[i])


def test_text_agrees_with_the_plain_way(subject: Subject, tmp_path: Path) -> None:
    rows = [{"text": text, "id": str(i), "source": "s"} for i, text in enumerate(TEXTS)]
    found = by_metric(read_likelihood(subject, "texts", rows, tmp_path))
    nats, tokens, size = 0.0, 0, 0
    for text in TEXTS:
        ids = [*([subject.tokenizer.bos_id] if subject.tokenizer.bos_id is not None else []), *subject.tokenizer.encode(text)]
        ids += [subject.tokenizer.eos_id] if subject.tokenizer.eos_id is not None else []
        nats += direct(subject, ids, [1] * len(ids))
        tokens += len(ids) - 1
        size += len(subject.tokenizer.decode([i for i in ids[1:] if i not in subject.tokenizer.special_ids]).encode(errors="replace"))
    assert found["perplexity"].value == pytest.approx(math.exp(nats / tokens), rel=1e-5)
    assert found["perplexity"].detail["tokens"] == tokens
    # Up to a character that was cut at the first token.
    assert found["bits_per_byte"].detail["bytes"] == pytest.approx(size, abs=2 * len(TEXTS))
    assert found["bits_per_byte"].value == pytest.approx(nats / math.log(2) / found["bits_per_byte"].detail["bytes"], rel=1e-5)
    assert all(r.n == len(TEXTS) and r.low <= r.value <= r.high for r in found.values())


def test_dialogues_count_the_assistants_words_alone(subject: Subject, rows: list[Row], tmp_path: Path) -> None:
    chosen = rows[2:9]
    found = by_metric(read_likelihood(subject, "chats", chosen, tmp_path))
    nats, tokens, size = 0.0, 0, 0
    for row in chosen:
        rendered = subject.renderer.render(row["messages"])
        nats += direct(subject, list(rendered.ids), list(rendered.mask))
        tokens += sum(rendered.mask)
        size += len(row["messages"][-1]["content"].encode())
    assert found["perplexity"].value == pytest.approx(math.exp(nats / tokens), rel=1e-5)
    assert found["bits_per_byte"].detail == {"tokens": tokens, "bytes": size}


def test_a_model_that_knows_nothing_is_as_perplexed_as_its_vocabulary_is_large(model_folder: Path, tmp_path: Path) -> None:
    from cairn.evaluate.subject import load_subject

    blank = load_subject(model_folder)
    with torch.no_grad():
        for parameter in blank.model.parameters():
            parameter.zero_()
    rows = [{"text": text, "id": str(i), "source": "s"} for i, text in enumerate(TEXTS)]
    found = by_metric(read_likelihood(blank, "texts", rows, tmp_path, context=5))
    assert found["perplexity"].value == pytest.approx(blank.model.config.vocab_size, rel=1e-9)
    assert found["perplexity"].high == pytest.approx(found["perplexity"].low)


def test_windows_change_nothing_where_documents_fit_and_something_where_not(subject: Subject, tmp_path: Path) -> None:
    rows = [{"text": TEXTS[0] * 3, "id": "0", "source": "s"}]
    whole = by_metric(read_likelihood(subject, "a", rows, tmp_path))
    wide = by_metric(read_likelihood(subject, "b", rows, tmp_path, context=1024))
    narrow = by_metric(read_likelihood(subject, "c", rows, tmp_path, context=8))
    assert whole["perplexity"].value == wide["perplexity"].value
    assert narrow["perplexity"].detail == whole["perplexity"].detail, "every token counts once, however it is cut"
    assert narrow["perplexity"].value != whole["perplexity"].value


def test_samples_hold_every_document(subject: Subject, tmp_path: Path) -> None:
    rows = [{"text": text, "id": f"row-{i}", "source": "s"} for i, text in enumerate(TEXTS)]
    found = by_metric(read_likelihood(subject, "texts", rows, tmp_path))
    path = tmp_path / "samples" / "texts.jsonl"
    samples = [json.loads(line) for line in path.read_text().splitlines()]
    assert [s["id"] for s in samples] == [r["id"] for r in rows]
    nats, tokens = math.fsum(s["nats"] for s in samples), sum(s["tokens"] for s in samples)
    assert math.exp(nats / tokens) == pytest.approx(found["perplexity"].value, rel=1e-12)
    assert found["perplexity"].samples_sha256 == file_digest(path)


def test_nothing_to_score(subject: Subject, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no token to score"):
        read_likelihood(subject, "none", [], tmp_path)


def test_one_document_has_no_interval(subject: Subject, tmp_path: Path) -> None:
    for result in read_likelihood(subject, "one", [{"text": TEXTS[0], "id": "a", "source": "s"}], tmp_path):
        assert (result.n, result.low, result.high) == (1, None, None)
    read = json.loads((tmp_path / "samples" / "one.jsonl").read_text())
    assert read["tokens"] > 0


def test_no_interval_goes_below_what_the_metric_can_be(tmp_path: Path) -> None:
    # Two documents as unlike as can be: the normal interval of the mean goes far below zero nats a token.
    documents = [Document("a", tokens=10, bytes=10, nats=0.0), Document("b", tokens=10, bytes=10, nats=50.0)]
    found = {r.metric: r for r in _results("x", documents, tmp_path)}
    assert found["perplexity"].low == 1.0
    assert found["bits_per_byte"].low == 0.0
