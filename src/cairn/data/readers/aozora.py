"""The reader of Aozora Bunko's texts: Shift_JIS, with readings, notes and a header that no reader of the book sees."""

from __future__ import annotations

import re

from cairn.data.readers.base import document_reader
from cairn.data.rows import Row

MARK = "【テキスト中に現れる記号について】"
"""Stands in the header that explains the marks."""

_HEADER = re.compile(r"^-{20,}\n.*?^-{20,}\n", re.DOTALL | re.MULTILINE)
_FOOTER = re.compile(r"^底本：.*\Z", re.DOTALL | re.MULTILINE)
_UNICODE = re.compile(r"※［＃[^］]*?U\+([0-9A-Fa-f]{4,6})[^］]*］")
_SIGN = re.compile(r"※［＃[^］]*?(?<![0-9-])(?:第[34]水準)?([12])-(\d{1,2})-(\d{1,2})[^］]*］")
_SMALL = re.compile(r"※［＃小書き[平片]仮名(.)、[^］]*］")
_NOTE = re.compile(r"※?［＃[^］]*］")
_READING = re.compile(r"《[^》]*》")


@document_reader("aozora", help="Aozora Bunko: Shift_JIS text without its readings, notes, header and colophon", encoding="cp932")
def aozora(document: str) -> Row:
    """Title and author stay as the first lines; signs outside Shift_JIS that a note names by their code become the sign itself."""
    text = _HEADER.sub("", document, count=1)
    text = _FOOTER.sub("", text)
    text = _UNICODE.sub(lambda found: chr(int(found[1], 16)), text)
    text = _SIGN.sub(_jis_sign, text)
    text = _SMALL.sub(r"\1", text)  # small kana that only a note can name: the full-sized one reads the same
    text = _NOTE.sub("", text)
    text = _READING.sub("", text).replace("｜", "")
    return {"text": re.sub(r"\n{3,}", "\n\n", text).strip()}


def _jis_sign(found: re.Match[str]) -> str:
    """The sign at a plane, row and cell of JIS X 0213; the geta mark, which printers put for a missing sign, where there is none."""
    plane, row, cell = (int(g) for g in found.groups())
    if not (1 <= row <= 94 and 1 <= cell <= 94):
        return "〓"
    code = bytes([row + 0xA0, cell + 0xA0])
    try:
        return (code if plane == 1 else b"\x8f" + code).decode("euc_jis_2004")
    except UnicodeDecodeError:
        return "〓"
