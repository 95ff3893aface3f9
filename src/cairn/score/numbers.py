"""The last number of a text. Knows nothing of arithmetic, units or models.

Limits: a comma groups thousands only in the English way (1,234,567); scientific notation and fractions are read as
their digits; numbers written as words are not read.
"""

from __future__ import annotations

import re
import unicodedata
from decimal import Decimal

from cairn.score.metric import Metric, words

_NUMBER = re.compile(
    r"(?<![\w.,])(?P<sign>-)?"  # a minus after a letter or digit is a hyphen or a subtraction, not a sign
    r"(?P<digits>[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?(?![0-9]|,[0-9])|[0-9]+(?:\.[0-9]+)?|\.[0-9]+)"
    r"|(?P<bare>[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?(?![0-9]|,[0-9])|[0-9]+(?:\.[0-9]+)?)"
)


def last_number(text: str) -> Decimal | None:
    """The last number that stands in `text`, exactly, or None.

    Reads `1,234`, `-5`, `−5` (the typographic minus), `3.50`, `.5`, full-width digits, and a number that ends a
    sentence (`It is 46.`). In `7-3` the last number is 3: the sign there belongs to the subtraction.
    """
    plain = unicodedata.normalize("NFKC", text).replace("−", "-")
    last = None
    for last in _NUMBER.finditer(plain):  # noqa: B007 - only the last match counts
        pass
    if last is None:
        return None
    digits = (last["digits"] or last["bare"]).replace(",", "")
    return Decimal(f"{last['sign'] or ''}{digits}")


def number_match(expected: object, answer: str) -> bool:
    """Whether the last number of `answer` equals `expected` (a number, or a text whose last number counts)."""
    found = last_number(answer)
    wanted = last_number(format(Decimal(repr(expected)), "f") if isinstance(expected, float) else str(expected))
    return found is not None and wanted is not None and found == wanted


METRICS = {
    "number": Metric(
        "the last number of the text equals the expected one",
        lambda expected, answer, meta: float(number_match(expected, words(answer))),
    )
}
