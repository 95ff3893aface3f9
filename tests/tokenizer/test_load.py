"""Loading folders of several kinds, and what an id stands for."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

from cairn.chat.format import load_format
from cairn.errors import UserError
from cairn.tokenizer.load import LONG, Tokenizer
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


@pytest.fixture(scope="module")
def changed(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Tokenizer]:
    """A trained tokenizer whose backend was changed."""
    folder = tmp_path_factory.mktemp("changed")
    train_tokenizer(iter(["hello world    "] * 3), TokenizerConfig(vocab_size=300), load_format("k2"), folder)

    def make(change: Callable[[Backend], object] = lambda backend: None) -> Tokenizer:
        backend = Backend.from_file(str(folder / "tokenizer.json"))
        change(backend)
        return Tokenizer(backend)

    return make


def normalized(how: normalizers.Normalizer) -> Callable[[Backend], None]:
    return lambda backend: setattr(backend, "normalizer", how)


PARTS = [*"helo wrd 한", "\u00e9", "e\u0301", "\u1f82", "\u03b1\u0313\u0300\u0345", "<|endoftext|>", "hello world"]


@given(text=st.lists(st.sampled_from(PARTS), max_size=40).map("".join))
@pytest.mark.parametrize("how", [None, normalizers.NFC()])
def test_so_many_characters_never_have_fewer_tokens(
    changed: Callable[..., Tokenizer], how: normalizers.Normalizer | None, text: str
) -> None:
    tokenizer = changed(normalized(how)) if how else changed()
    for characters in (text, text * 50):
        assert tokenizer.least_tokens(len(characters)) <= len(tokenizer.encode(characters))
    assert tokenizer.least_tokens(10**6) > 1000


def test_where_text_may_vanish_nothing_is_known_of_its_tokens(changed: Callable[..., Tokenizer]) -> None:
    def cut(backend: Backend) -> None:
        backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(" ", "removed"), backend.pre_tokenizer])

    swallow = AddedToken("<think>", special=False, rstrip=True)
    for change in (cut, normalized(normalizers.NFKC()), lambda backend: backend.add_tokens([swallow])):
        tokenizer = changed(change)
        assert len(tokenizer.encode("<think>" + " " * 1000)) >= 0
        assert tokenizer.least_tokens(10**6) == 0
    assert Tokenizer(Backend(models.Unigram([("<unk>", 0.0), ("a", -1.0)], unk_id=0))).least_tokens(10**6) == 0


def test_a_long_text_is_encoded_as_a_short_one_is_and_holds_nobody_up(changed: Callable[..., Tokenizer]) -> None:
    """Under Python's lock a server could send no token meanwhile."""
    tokenizer = changed()
    unit = "hello <|endoftext|> wörld 한 "
    text = unit * (LONG // len(unit) * 150)
    running, turns = threading.Event(), 0

    def count() -> None:
        nonlocal turns
        while running.is_set():
            time.sleep(0.001)
            turns += 1

    running.set()
    other = threading.Thread(target=count)
    other.start()
    before = turns
    ids = tokenizer.encode(text)
    between = turns - before
    running.clear()
    other.join()
    assert between >= 5
    assert ids == tokenizer.backend.encode(text, add_special_tokens=False).ids
    assert not tokenizer.special_ids & set(ids)
