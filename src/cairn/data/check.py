"""What is wrong with a file of rows, all of it and not only the first. Knows readers; changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cairn.data.readers import read_outcomes
from cairn.data.rows import WHOLE


def check_file(path: Path | str, reader: str = "auto", *, encoding: str | None = None, separator: str | None = None) -> dict[str, Any]:
    """Check every row of a file, or of the files of a folder.

    Returns:
        {"rows": how many records there are, "ok": whether all are good, "problems": [{"row", "field", "problem",
        "remedy"}]}. Row 0 is the file as a whole; the problems of a folder's files begin with the file's name.

    Raises:
        UserError: a missing file, an unknown reader, or a file that `auto` does not know.
    """
    rows, used, problems = 0, 0, []
    for outcome in read_outcomes(path, reader, encoding=encoding, separator=separator):
        rows += outcome.number > 0
        used += outcome.row is not None
        for _, field, problem, remedy in (outcome.problem, *outcome.more) if outcome.problem else ():
            told = f"{outcome.file}: {problem}" if outcome.file else problem
            problems.append({"row": outcome.number, "field": field, "problem": told, "remedy": remedy})
    if not used and not problems:
        remedy = "check the file, or name its reader"
        problems.append({"row": 0, "field": WHOLE, "problem": "the file holds no rows to use", "remedy": remedy})
    return {"rows": rows, "ok": not problems, "problems": problems}
