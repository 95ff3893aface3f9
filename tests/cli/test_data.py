"""`cairn data`: the mix table, and conversion there and back."""

from __future__ import annotations

import json

import pytest

from cairn.cli.main import main
from cairn.data.readers import read_rows

ALPACA = [{"instruction": "one two", "input": "", "output": "three"}, {"instruction": "four", "input": "five", "output": "six seven"}]


@pytest.fixture
def alpaca(tmp_path):
    path = tmp_path / "alpaca.json"
    path.write_text(json.dumps(ALPACA))
    return path


def test_stats_of_several_files(alpaca, tmp_path, capsys):
    (tmp_path / "book.txt").write_text("some words here")
    assert main(["data", "stats", str(alpaca), str(tmp_path / "book.txt"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["unit"] == "words"
    assert [(s["subset"], s["tokens"], s["avg_query_length"]) for s in found["subsets"]] == [("alpaca", 7, 2.0), ("book", 3, None)]
    assert found["total"]["tokens"] == 10
    assert main(["data", "stats", str(alpaca), str(tmp_path / "book.txt")]) == 0
    shown = capsys.readouterr().out
    assert "#Words" in shown
    assert "not instruction data" in shown
    assert main(["data", "stats", str(alpaca), "--markdown"]) == 0
    assert capsys.readouterr().out.startswith("| Subset | #Words |")


def test_stats_with_a_tokenizer_and_a_format(alpaca, tmp_path, capsys):
    from cairn.chat.format import load_format
    from cairn.chat.render import Renderer
    from cairn.tokenizer.load import Tokenizer
    from cairn.tokenizer.train import TokenizerConfig, train_tokenizer

    folder = tmp_path / "tokenizer"
    train_tokenizer(
        iter(["one two three four five six seven"] * 9), TokenizerConfig(vocab_size=300, format="k2"), load_format("k2"), folder
    )
    tokenizer = Tokenizer.load(folder)
    assert main(["data", "stats", str(alpaca), "--tokenizer", str(folder), "--format", "k2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    rows = list(read_rows(alpaca))
    renderer = Renderer(load_format("k2"), tokenizer)
    assert found["unit"] == "tokens"
    assert found["total"]["tokens"] == sum(len(renderer.render(r["messages"]).ids) for r in rows)
    assert found["total"]["avg_query_length"] == sum(len(tokenizer.encode(r["messages"][0]["content"])) for r in rows) / 2
    assert main(["data", "stats", str(alpaca), "--format", "k2"]) == 2
    assert "--tokenizer" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".parquet"])
def test_conversion_reads_back(alpaca, tmp_path, capsys, suffix):
    target = tmp_path / f"out{suffix}"
    assert main(["data", "convert", str(alpaca), str(target)]) == 0
    assert "2 rows" in capsys.readouterr().out
    assert list(read_rows(target, source="alpaca")) == list(read_rows(alpaca))
    before = target.read_bytes()
    assert main(["data", "convert", str(target), str(target)]) == 2
    assert "--force" in capsys.readouterr().err
    assert main(["data", "convert", str(target), str(target), "--force", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 2
    assert target.read_bytes() == before


def test_conversion_of_bad_rows(tmp_path, capsys):
    path, target = tmp_path / "x.json", tmp_path / "y.jsonl"
    path.write_text(json.dumps([*ALPACA, {**ALPACA[0], "output": ""}]))
    assert main(["data", "convert", str(path), str(target)]) == 2
    assert f"{path}, row 3, output" in capsys.readouterr().err
    assert not target.exists()
    assert main(["data", "convert", str(path), str(target), "--drop-bad"]) == 0
    assert "1 records that are bad" in capsys.readouterr().err
    assert len(list(read_rows(target))) == 2
    assert main(["data", "convert", str(path), str(tmp_path / "y.doc"), "--drop-bad"]) == 2
    assert ".parquet" in capsys.readouterr().err
