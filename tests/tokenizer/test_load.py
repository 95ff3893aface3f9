"""Loading folders of several kinds, and what an id stands for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import AddedToken, models, pre_tokenizers
from tokenizers import Tokenizer as Backend

from cairn.chat.format import load_format
from cairn.errors import UserError
from cairn.tokenizer.load import Tokenizer
from cairn.tokenizer.train import TokenizerConfig, train_tokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    train_tokenizer(iter(["hello world"] * 3), TokenizerConfig(vocab_size=300), load_format("k2"), tmp_path / "t")
    return tmp_path / "t"


def test_names_and_ids(folder: Path) -> None:
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.eos_id == tokenizer.token_id("<|endoftext|>") == tokenizer.special["<|endoftext|>"]
    assert tokenizer.bos_id is None
    assert tokenizer.special_name(tokenizer.special["<|pad|>"]) == "<|pad|>"
    assert tokenizer.special_name(tokenizer.encode("a")[0]) is None
    with pytest.raises(UserError, match=r"has no token '<\|endoftex\|>'") as error:
        tokenizer.token_id("<|endoftex|>")
    assert "'<|endoftext|>'" in error.value.remedy


def test_lookalikes_stay_text(folder: Path) -> None:
    tokenizer = Tokenizer.load(folder)
    ids = tokenizer.encode("a<|endoftext|>b<|pad|>")
    assert not tokenizer.special_ids & set(ids)
    assert tokenizer.decode(ids) == "a<|endoftext|>b<|pad|>"
    assert tokenizer.decode([*ids, tokenizer.special["<|pad|>"]]) == "a<|endoftext|>b<|pad|><|pad|>"


def test_pieces_and_labels_of_split_characters(folder: Path) -> None:
    tokenizer = Tokenizer.load(folder)
    ids = tokenizer.encode("é!")
    assert tokenizer.pieces(ids) == ["", "é", "!"]
    assert tokenizer.labels(ids) == ["<0xC3>", "<0xA9>", "!"]
    assert tokenizer.pieces(ids[:1]) == ["\ufffd"]
    assert b"".join(map(tokenizer.token_bytes, ids)) == "é!".encode()
    with pytest.raises(UserError, match="no id 9999"):
        tokenizer.decode([9999])


def test_settings_of_the_folder_are_read_in_every_shape(folder: Path) -> None:
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["eos_token"] = {"content": "<|endoftext|>", "lstrip": False}
    config.pop("pad_token")
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "special_tokens_map.json").write_text('{"pad_token": {"content": "<|pad|>"}, "eos_token": "<|beginofuser|>"}')
    tokenizer = Tokenizer.load(folder)
    assert (tokenizer.eos, tokenizer.pad) == ("<|endoftext|>", "<|pad|>")


def test_truncation_and_padding_of_a_saved_tokenizer_are_off(folder: Path) -> None:
    backend = Backend.from_file(str(folder / "tokenizer.json"))
    backend.enable_truncation(2)
    backend.enable_padding(length=4)
    backend.save(str(folder / "tokenizer.json"))
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.decode(tokenizer.encode("hello hello hello")) == "hello hello hello"


def test_added_tokens_that_are_not_special_are_text(folder: Path) -> None:
    backend = Backend.from_file(str(folder / "tokenizer.json"))
    backend.add_tokens([AddedToken("<think>", special=False, normalized=False)])
    backend.save(str(folder / "tokenizer.json"))
    tokenizer = Tokenizer.load(folder)
    assert "<think>" not in tokenizer.special
    assert tokenizer.pieces(tokenizer.encode("a<think>b")) == ["a", "<think>", "b"]


def test_a_vocabulary_that_holds_special_tokens_as_pieces_cannot_be_tricked(tmp_path: Path) -> None:
    pieces = [("<unk>", 0.0), ("</s>", -1.0), *((c, -2.0) for c in "<>/sab ")]
    backend = Backend(models.Unigram(pieces, unk_id=0))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(["<unk>", "</s>"])
    backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "</s>", "unk_token": "<unk>"}')
    tokenizer = Tokenizer.load(tmp_path)
    for text in ("</s>", "a</s>b</s>", "</s></s"):
        ids = tokenizer.encode(text)
        assert tokenizer.eos_id not in ids
        assert "".join(tokenizer.labels(ids)) == text
        assert tokenizer.encode_batch([text]) == [ids]


def test_older_files_are_converted(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text(json.dumps({"a": 0, "b": 1, "ab": 2, "<|endoftext|>": 3}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer", "eos_token": "<|endoftext|>"}')
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.encode("abba") == [2, 1, 0]
    assert tokenizer.decode([2, 1, 0]) == "abba"
    assert tokenizer.eos_id == 3


def test_folders_that_hold_none(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        Tokenizer.load(tmp_path / "nowhere")
    with pytest.raises(UserError, match="holds no tokenizer"):
        Tokenizer.load(tmp_path)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="damaged") as error:
        Tokenizer.load(folder)
    assert error.value.where.endswith("tokenizer.json")
    (folder / "tokenizer_config.json").write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        Tokenizer.load(folder)


def test_lone_surrogates_are_refused(folder: Path) -> None:
    tokenizer = Tokenizer.load(folder)
    for encode in (tokenizer.encode, lambda text: tokenizer.encode_batch([text])):
        with pytest.raises(UserError, match="lone surrogate"):
            encode("a\ud800")
