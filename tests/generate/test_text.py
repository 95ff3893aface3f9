"""Streaming text: the pieces make up the whole, no half characters, and stop strings that no cut of the text can hide."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

from cairn.chat.format import load_format
from cairn.errors import UserError
from cairn.generate.text import Detokenizer, StopStrings, TextStop
from cairn.tokenizer.load import Tokenizer
from cairn.tokenizer.train import byte_tokenizer

TEXTS = st.text(alphabet=st.sampled_from("ab<|>\né한국日👍🏽 \u2060\ufffd"), max_size=24)


@functools.cache
def byte_level() -> Tokenizer:
    return byte_tokenizer(load_format("k2"))


@functools.cache
def with_spaces() -> Tokenizer:
    """A tokenizer in the manner of sentencepiece: word starts are marked, the first mark vanishes, unknown signs are bytes."""
    pieces = ["▁", "▁a", "▁ab", "a", "b", "<", "▁<", *(f"<0x{byte:02X}>" for byte in range(256))]
    backend = Backend(models.BPE({piece: i for i, piece in enumerate(pieces)}, [("▁", "a"), ("▁a", "b"), ("▁", "<")], byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return Tokenizer(backend)


@functools.cache
def of_byte(tokenizer: Tokenizer) -> dict[int, int]:
    """The id of each byte."""
    found = {tokenizer.token_bytes(i): i for i in range(tokenizer.vocab_size)}
    return {byte: found[bytes([byte])] for byte in range(256)}


def pieces(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    detokenizer = Detokenizer(tokenizer)
    return [*(detokenizer.feed(i) for i in ids), detokenizer.finish()]


@given(TEXTS)
def test_pieces_of_text_make_up_the_text(text: str) -> None:
    assert "".join(pieces(byte_level(), byte_level().encode(text))) == text


@given(st.lists(st.integers(0, 260), max_size=30))
def test_pieces_of_any_ids_make_up_their_decoding(ids: list[int]) -> None:
    assert "".join(pieces(byte_level(), ids)) == byte_level().decode(ids)


@given(st.lists(st.sampled_from([0x80, 0xE2, 0x94, 0xF0, 0x9F, 0x91, 0xBD, 0xEF, 0xBF, 0x61]), min_size=20, max_size=80))
def test_pieces_of_long_runs_of_broken_bytes_make_up_their_decoding(data: list[int]) -> None:
    ids = [of_byte(byte_level())[byte] for byte in data]
    assert "".join(pieces(byte_level(), ids)) == byte_level().decode(ids)


@given(st.text(alphabet="ab< é日", max_size=20))
def test_pieces_keep_the_spaces_of_tokenizers_that_mark_words(text: str) -> None:
    ids = with_spaces().encode(text)
    assert "".join(pieces(with_spaces(), ids)) == with_spaces().decode(ids)


class Counted:
    """A tokenizer that counts the ids it decodes."""

    def __init__(self, inner: Tokenizer) -> None:
        self.inner, self.ids = inner, 0

    def decode(self, ids: Sequence[int], /) -> str:
        self.ids += len(ids)
        return self.inner.decode(ids)


def test_a_long_run_of_signs_that_look_broken_costs_what_other_text_does() -> None:
    """A caller's expression can ask for thousands of U+FFFD: decoded anew with each id, they would hold up all other answers."""
    counted = Counted(byte_level())
    detokenizer = Detokenizer(counted)
    ids = byte_level().encode("\ufffd" * 1000)
    assert "".join([*(detokenizer.feed(i) for i in ids), detokenizer.finish()]) == "\ufffd" * 1000
    assert counted.ids < 64 * len(ids)


def test_a_character_comes_when_its_last_byte_does() -> None:
    ids = byte_level().encode("é한")
    assert pieces(byte_level(), ids) == ["", "é", "", "", "한", ""]
    assert pieces(byte_level(), ids[:-1]) == ["", "é", "", "", "\ufffd"]


def cut(text: str, stops: list[str]) -> tuple[str, str | None]:
    """The text in front of the stop string that is complete first; of two that end together the longer."""
    found = [(text.index(s) + len(s), -len(s), s) for s in stops if s in text]
    return (text[: (best := min(found))[0] - len(best[2])], best[2]) if found else (text, None)


@given(st.text("ab<", max_size=20), st.lists(st.text("ab<", min_size=1, max_size=4), max_size=3), st.lists(st.integers(0, 20)))
def test_stop_strings_cut_the_same_however_the_text_comes(text: str, stops: list[str], borders: list[int]) -> None:
    reader = StopStrings(stops)
    edges = [0, *sorted(b for b in borders if b < len(text)), len(text)]
    shown = "".join(reader.feed(text[a:b]) for a, b in itertools.pairwise(edges)) + reader.finish()
    assert (shown, reader.stopped) == cut(text, stops)


@given(st.text("ab<", max_size=20), st.lists(st.text("ab<", min_size=1, max_size=4), max_size=3))
def test_nothing_that_may_begin_a_stop_string_is_shown(text: str, stops: list[str]) -> None:
    reader = StopStrings(stops)
    shown = ""
    for n, sign in enumerate(text, 1):
        shown += reader.feed(sign)
        if reader.stopped is None:
            held = text[len(shown) : n]
            assert not held or any(stop.startswith(held) for stop in stops), "held back for no reason"
            assert not any(shown.endswith(stop[:k]) and text[:n] == shown for stop in stops for k in range(1, len(stop)))


def test_a_stop_string_over_the_border_of_two_tokens() -> None:
    ids = byte_level().encode("one</s>two")
    stop = TextStop(byte_level(), ["</s>"])
    ends = [n for n in range(1, len(ids) + 1) if stop(ids[:n])]
    assert ends[0] == len("one</s>")
    assert (stop.text, stop.stopped) == ("one", "</s>")


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(UserError, match="empty"):
        StopStrings(["ok", ""])
