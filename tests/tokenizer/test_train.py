"""Training gives an exact, deterministic, ordinary tokenizer that respects a format's borders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cairn.chat.format import load_format
from cairn.errors import UserError
from cairn.tokenizer.load import Tokenizer
from cairn.tokenizer.train import PAD, Borders, TokenizerConfig, byte_tokenizer, special_tokens, train_tokenizer, untrained

LINES = [
    "The answer is 42, not 1234567890.\n",
    "서울은 대한민국의 수도이다.",
    "東京は日本の首都です。東京は広い。",
    "नमस्ते दुनिया",
    "<b>x</b>  \n\n",
]
FILES = {"tokenizer.json", "tokenizer_config.json", "chat_format.yaml"}


def train(out: Path, name: str = "k2", size: int = 340, texts: list[str] | None = None) -> dict[str, object]:
    config = TokenizerConfig(vocab_size=size, format=name)
    return train_tokenizer(iter(LINES * 3 if texts is None else texts), config, load_format(name), out)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tokenizer")
    train(out)
    return out


def test_what_is_written(folder: Path, tmp_path: Path) -> None:
    metrics = train(tmp_path / "a" / "b")
    assert {p.name for p in (tmp_path / "a" / "b").iterdir()} == FILES
    assert metrics["documents"] == 15
    assert metrics["characters"] == 3 * sum(map(len, LINES))
    assert metrics["vocab_size"] == 340
    assert metrics["special_tokens"] == 5
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert (config["eos_token"], config["pad_token"], "bos_token" in config) == ("<|endoftext|>", PAD, False)
    assert config["chat_template"] == load_format("k2").template == load_format(folder).template
    assert load_format(folder).model_dump() == load_format("k2").model_dump()


def test_the_same_text_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    for n in range(3):
        train(tmp_path / str(n))
        assert all((tmp_path / str(n) / name).read_bytes() == (folder / name).read_bytes() for name in FILES)


@settings(max_examples=200, deadline=None)
@given(text=st.one_of(st.text(), st.text(alphabet="aé한東 \n\t0\u0301\u200d🙂<|>endoftxbigur", max_size=40)))
def test_any_text_comes_back(folder: Path, text: str) -> None:
    tokenizer = _loaded(folder)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert "".join(tokenizer.pieces(ids)) == text
    assert not tokenizer.special_ids & set(ids)
    assert tokenizer.encode_batch([text, text]) == [ids, ids]


_cache: dict[Path, Tokenizer] = {}


def _loaded(folder: Path) -> Tokenizer:
    return _cache.setdefault(folder, Tokenizer.load(folder))


def test_digits_stand_alone_and_nothing_is_normalised(folder: Path) -> None:
    tokenizer = _loaded(folder)
    assert [p for p in tokenizer.pieces(tokenizer.encode("in 1234")) if p.strip().isdigit()] == list("1234")
    decomposed = "e\u0301 가\u1100\u1161"
    assert tokenizer.decode(tokenizer.encode(decomposed)) == decomposed


def test_frequent_words_become_tokens(folder: Path) -> None:
    tokenizer = _loaded(folder)
    assert tokenizer.pieces(tokenizer.encode("東京は")) == ["東京は"]
    assert len(tokenizer.encode("대한민국의")) < len("대한민국의".encode())


def test_transformers_loads_the_folder(folder: Path) -> None:
    from transformers import AutoTokenizer

    theirs, ours = AutoTokenizer.from_pretrained(str(folder)), _loaded(folder)
    for text in [*LINES, " a  b ", "\n\n x", "it's 7"]:
        assert theirs(text)["input_ids"] == ours.encode(text)
        assert theirs.decode(ours.encode(text)) == text
    assert len(theirs) == ours.vocab_size == 340
    assert (theirs.eos_token_id, theirs.pad_token_id, theirs.bos_token_id) == (ours.eos_id, ours.pad_id, None)


def test_borders_cut_tokens() -> None:
    class Stub:
        name, special_tokens, bos, eos, template = "stub", (), None, "</s>", ""
        borders = Borders(start=(" ", "go\n"), end=("!",), anywhere=("\n\n### Say: ", ("[/X]", " ")))

        def to_yaml(self) -> str:
            return ""

    cut = untrained(Stub()).pre_tokenizer
    assert cut is not None

    def pieces(text: str) -> list[str]:
        return [text[a:b] for _, (a, b) in cut.pre_tokenize_str(text)]

    assert pieces(" hi there") == [" ", "hi", " there"]
    assert pieces("go\n go\n") == ["go\n", " go", "\n"]
    assert pieces("stop!!") == ["stop", "!", "!"]
    assert pieces("a.\n\n\n### Say:  b") == ["a", ".", "\n", "\n\n### Say: ", " b"]
    assert pieces("a [/X] [/X]b c") == ["a", " ", "[/X]", " ", "[/X]", "b", " c"]


def test_the_tokens_of_a_format_come_first_and_padding_is_its_own() -> None:
    assert special_tokens(load_format("crystal")) == ["<|sys_start|>", "<|sys_end|>", "<|im_start|>", "<|im_end|>", "<s>", "</s>", PAD]
    tokenizer = byte_tokenizer(load_format("chatml"))
    assert tokenizer.special == {"<|im_start|>": 0, "<|im_end|>": 1, PAD: 2}
    assert tokenizer.vocab_size == 259
    assert tokenizer.pad_id != tokenizer.eos_id
    assert [tokenizer.decode([i]) for i in tokenizer.encode("ab")] == ["a", "b"]


def test_bad_input(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no text to train"):
        train(tmp_path / "a", texts=[])
    with pytest.raises(UserError, match="no text to train"):
        train(tmp_path / "a", texts=["", ""])
    with pytest.raises(UserError, match="cannot hold 256 bytes and 5 special tokens") as error:
        train(tmp_path / "a", size=260)
    assert "261" in error.value.remedy
    with pytest.raises(UserError, match="lone surrogate"):
        train(tmp_path / "a", texts=["ok", "bad \ud800"])
    assert not (tmp_path / "a").exists()
