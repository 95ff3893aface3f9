"""A tokenizer out of an ordinary Hugging Face folder: text to ids and back. Knows no model, no row and no chat format.

Text that looks like a special token stays text here: only whoever asks for a special token by name (`token_id`) gets its id.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend

from cairn.errors import UserError, did_you_mean

REPLACEMENT = "\ufffd"
LONG = 20_000
"""Characters from which a single text is encoded as a batch of one."""
_KEEPING = {"Sequence", "ByteLevel", "Split", "Digits"}
"""Pre-tokenizers that leave no character out."""
_SHRINKS = {None: 1, "NFC": 4}
"""How many characters a normalizer may turn into one, for those that leave none out."""


class Tokenizer:
    """A thin wrapper over `tokenizers.Tokenizer`.

    Args:
        backend: the tokenizer; this object takes it over and sets it so that text never turns into special tokens.
        config: what `tokenizer_config.json` says (names of the bos, eos and pad tokens, the chat template).
        where: the folder, for errors.
    """

    def __init__(self, backend: Backend, config: dict[str, Any] | None = None, *, where: str = "") -> None:
        self.backend, self.config, self.where = backend, config or {}, where
        backend.encode_special_tokens = True
        backend.no_truncation()
        backend.no_padding()
        added = sorted(backend.get_added_tokens_decoder().items())
        self.special: dict[str, int] = {token.content: i for i, token in added if token.special}
        """Every special token with its id."""
        self.swallows_left = frozenset(token.content for _, token in added if token.special and token.lstrip)
        """Special tokens that take the white space before them along (Hugging Face's `lstrip`)."""
        self.swallows_right = frozenset(token.content for _, token in added if token.special and token.rstrip)
        self.bos, self.eos, self.pad = (_token_name(self.config.get(f"{kind}_token")) for kind in ("bos", "eos", "pad"))
        unknown = _token_name(self.config.get("unk_token"))
        self._special_ids = frozenset(self.special.values()) - {backend.token_to_id(unknown) if unknown else None}
        self._names = {i: name for name, i in self.special.items()}

    @classmethod
    def load(cls, folder: Path | str) -> Tokenizer:
        """Load a folder that holds `tokenizer.json`, or any files that transformers can turn into a fast tokenizer.

        Raises:
            UserError: no folder, no tokenizer in it, or a damaged one.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise UserError("no such folder", where=str(folder), remedy="give the folder of a tokenizer or a checkpoint")
        config = _json_file(folder / "tokenizer_config.json")
        for name, token in _json_file(folder / "special_tokens_map.json").items():
            config.setdefault(name, token)
        file = folder / "tokenizer.json"
        if file.is_file():
            try:
                return cls(Backend.from_file(str(file)), config, where=str(folder))
            except UserError:
                raise
            except Exception as error:  # the library raises bare Exception for every kind of damage
                raise UserError(f"the tokenizer is damaged: {error}", where=str(file), remedy="copy or train it again") from None
        return cls(_converted(folder), config, where=str(folder))

    # Sizes and names

    @property
    def vocab_size(self) -> int:
        """The number of ids, added tokens included: one more than the highest id."""
        return max(self.backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    @property
    def bos_id(self) -> int | None:
        return None if self.bos is None else self.token_id(self.bos)

    @property
    def eos_id(self) -> int | None:
        return None if self.eos is None else self.token_id(self.eos)

    @property
    def pad_id(self) -> int | None:
        return None if self.pad is None else self.token_id(self.pad)

    @property
    def special_ids(self) -> frozenset[int]:
        """The ids that `encode` never yields."""
        return self._special_ids

    def special_name(self, token: int) -> str | None:
        """The special token of an id, or None for an ordinary one."""
        return self._names.get(token)

    def token_id(self, token: str) -> int:
        """The id of a token by its exact name.

        Raises:
            UserError: the vocabulary does not hold it.
        """
        found = self.special.get(token)
        if found is None:
            found = self.backend.token_to_id(token)
        if found is None:
            raise UserError(f"the tokenizer has no token '{token}'", where=self.where, remedy=did_you_mean(token, self.special))
        return int(found)

    # Text to ids

    def encode(self, text: str) -> list[int]:
        """The ids of `text`. Never a special token: what looks like one is text."""
        try:
            # A single text holds Python's lock while it is encoded, so a long one would hold up every other thread; a batch does not.
            if len(text) < LONG:
                ids: list[int] = self.backend.encode(text, add_special_tokens=False).ids
            else:
                ids = self.backend.encode_batch_fast([text], add_special_tokens=False)[0].ids
        except (TypeError, UnicodeEncodeError):
            raise UserError("text holds a lone surrogate, which is not Unicode", remedy="repair the text's encoding") from None
        if self._special_ids.isdisjoint(ids):
            return ids
        return self._encode_apart(text)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of many texts; faster than one by one where there are many."""
        try:
            found = [e.ids for e in self.backend.encode_batch_fast(list(texts), add_special_tokens=False)]
        except (TypeError, UnicodeEncodeError):
            return [self.encode(text) for text in texts]
        return [ids if self._special_ids.isdisjoint(ids) else self._encode_apart(text) for ids, text in zip(found, texts, strict=True)]

    def least_tokens(self, characters: int) -> int:
        """A number of tokens that so many characters have for sure, told without encoding them; 0 where it cannot be told."""
        return characters // self._longest if self._longest else 0

    def encode_continued(self, text: str) -> list[int]:
        """The ids of `text` inside a longer text: without the space that some tokenizers put in front of a text."""
        if not self._prefixes_space or not text:
            return self.encode(text)
        line, ids = self.encode("\n"), self.encode("\n" + text)
        return ids[len(line) :] if ids[: len(line)] == line else self.encode(text)

    def encode_after_special(self, text: str) -> list[int]:
        """The ids of `text` that follows a special token, as Hugging Face's tokenizer gives them for the whole text."""
        return self.encode_continued(text) if self._special_continues else self.encode(text)

    def _encode_apart(self, text: str) -> list[int]:
        """Encode text whose look-alikes are ordinary pieces of the vocabulary as well (unigram models): cut inside each look-alike."""
        starts = sorted({at + 1 for name in self.special for at in _occurrences(text, name) if len(name) > 1})
        ids: list[int] = []
        for a, b in zip([0, *starts], [*starts, len(text)], strict=True):
            ids += self.backend.encode(text[a:b], add_special_tokens=False).ids
        return ids

    @cached_property
    def _longest(self) -> int:
        """The most characters that one id can take in; 0 where there is no knowing: text may vanish in front of the vocabulary."""
        if self._bytes is None:
            return 0
        parts = json.loads(self.backend.to_str())
        cut, normal = parts["pre_tokenizer"], parts["normalizer"]
        kinds = {one["type"] for one in (cut or {}).get("pretokenizers", [cut]) if one}
        keeps = kinds <= _KEEPING and '"Removed"' not in json.dumps(cut)
        swallows = any(t.lstrip or t.rstrip for t in self.backend.get_added_tokens_decoder().values())
        table = set(self._bytes.values())
        if not keeps or swallows or any(bytes([b]) not in table for b in range(256)):
            return 0
        return _SHRINKS.get(normal and normal["type"], 0) * max(map(len, table))

    @cached_property
    def _prefixes_space(self) -> bool:
        line, alone = self.encode("\n"), self.encode("a")
        return self.encode("\na") != line + alone

    @cached_property
    def _special_continues(self) -> bool:
        if not self._prefixes_space or not self.special:
            return False
        name, token = next(iter(self.special.items()))
        self.backend.encode_special_tokens = False
        try:
            ids = self.backend.encode(name + "a", add_special_tokens=False).ids
        finally:
            self.backend.encode_special_tokens = True
        return ids == [token, *self.encode_continued("a")]

    # Ids to text

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; special tokens appear by name. Exact for byte-level vocabularies."""
        if self._bytes is None:
            return str(self.backend.decode(list(ids), skip_special_tokens=False))
        return b"".join(self.token_bytes(i) for i in ids).decode("utf-8", errors="replace")

    def token_bytes(self, token: int) -> bytes:
        """The bytes that an id stands for. A streaming decoder feeds them to an incremental UTF-8 decoder."""
        if self._bytes is None:
            return str(self.backend.decode([token], skip_special_tokens=False)).encode()
        found = self._bytes.get(token)
        if found is None:
            raise UserError(
                f"the tokenizer has no id {token}",
                where=self.where,
                remedy="use the tokenizer that belongs to the model",
            )
        return found

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """The text of each id, such that together they are the decoded text: a character belongs to the id that completes it."""
        if self._bytes is None:
            return self.labels(ids)
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        out = [decoder.decode(self.token_bytes(i)) for i in ids]
        rest = decoder.decode(b"", final=True)
        if rest:
            out[-1] += rest
        return out

    def labels(self, ids: Iterable[int]) -> list[str]:
        """The text of each id by itself; bytes that are no whole character appear as <0xE2>."""
        out = []
        for i in ids:
            if self._bytes is None:
                out.append(self._names.get(i) or str(self.backend.id_to_token(i)).replace("▁", " "))
            else:
                out.append(_printable(self.token_bytes(i)))
        return out

    @cached_property
    def _bytes(self) -> dict[int, bytes] | None:
        """The bytes of every id of a byte-level vocabulary, or None for another kind."""
        if '"ByteLevel"' not in json.dumps(json.loads(self.backend.to_str()).get("decoder")):
            return None
        alphabet = _byte_alphabet()
        added = {i: token.content for i, token in self.backend.get_added_tokens_decoder().items()}
        table = {i: name.encode() for i, name in added.items()}
        for name, i in self.backend.get_vocab(with_added_tokens=False).items():
            if i not in table:
                table[i] = bytes(alphabet[c] for c in name) if all(c in alphabet for c in name) else name.encode()
        return table


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's table of printable signs that stand for the 256 bytes: the printable ones for themselves, the rest from U+0100 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in set(printable)]
    return {chr(b): b for b in printable} | {chr(0x100 + n): b for n, b in enumerate(others)}


def _printable(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return "".join(
            part if part.isprintable() or part.isspace() else f"<0x{ord(part) - 0xDC00:02X}>"
            for part in data.decode("utf-8", "surrogateescape")
        )


def _occurrences(text: str, part: str) -> list[int]:
    out, at = [], text.find(part)
    while at >= 0:
        out.append(at)
        at = text.find(part, at + 1)
    return out


def _token_name(value: Any) -> str | None:
    """The token that a configuration names: plain text, or an object with its content."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) and value else None


def _json_file(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"not valid JSON: {error}", where=str(path), remedy="copy the tokenizer again") from None
    return value if isinstance(value, dict) else {}


def _converted(folder: Path) -> Backend:
    """The fast tokenizer that transformers makes of older files (sentencepiece models, vocab.json with merges.txt)."""
    known = ("tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tokenizer.tiktoken", "tekken.json")
    if not any((folder / name).exists() for name in known):
        raise UserError("the folder holds no tokenizer", where=str(folder), remedy="give a folder with tokenizer.json")
    from transformers import AutoTokenizer

    try:
        backend = AutoTokenizer.from_pretrained(str(folder), use_fast=True, trust_remote_code=False).backend_tokenizer
    except Exception as error:  # transformers raises many kinds, for missing packages as well as for damaged files
        raise UserError(
            f"transformers cannot turn these files into a fast tokenizer: {str(error)[:300]}",
            where=str(folder),
            remedy="save the tokenizer as tokenizer.json (AutoTokenizer.from_pretrained(…).save_pretrained(…))",
        ) from None
    return Backend.from_str(backend.to_str())
