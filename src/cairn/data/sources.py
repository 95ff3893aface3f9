"""What a recipe says of one source of rows. Knows readers; the pipeline finds the file that a stage wrote."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated, ClassVar, Self

from pydantic import Field, model_validator

from cairn.config import Config, Invalid, checked
from cairn.data.readers import check_encoding, check_reader, read_rows
from cairn.data.rows import Row
from cairn.ledger.refs import InputPath, StageRef


class Source(Config):
    """Rows from a file of the user's (`path`), or from a file that another stage wrote (`stage` and `file`)."""

    prompts: ClassVar[bool] = False
    """Whether its dialogues are there to be answered, so that they may lack an answer."""
    name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    """The source's name in tables, and the `source` of rows that name none: letters, digits, `_`, `.` and `-`."""
    path: InputPath | None = None
    """A file, or a folder of files (read in the order of their names)."""
    stage: StageRef | None = None
    """The stage that wrote the rows, instead of `path`."""
    file: str | None = None
    """The file inside that stage's artifact."""
    reader: Annotated[str, checked(check_reader)] = "auto"
    """How the file is read; `auto` looks at its first row."""
    weight: float = Field(default=1.0, allow_inf_nan=False)
    """How often a row of this source is drawn, against the other sources' weights. Above 0."""
    loss_weight: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """How much a target of this source counts in the loss, against the others' targets: C-RLFT's weight of a class of data (OpenChat)."""
    attributes: dict[str, int] | None = None
    """Attributes of dialogues that name none, such as `{class: 0}`: what the prompt says of a class of data."""
    language: str | None = None
    """The language of rows that name none, such as `en`."""
    limit: int | None = Field(default=None, ge=1)
    """Read at most this many rows, the first ones."""
    encoding: Annotated[str, checked(check_encoding)] | None = None
    """The text encoding, such as `shift_jis`; UTF-8 unless given (the reader `aozora`: Shift_JIS)."""
    separator: str | None = None
    """What stands between two documents of plain text, such as two newlines for an empty line; unless given, a file is one document."""

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if self.weight <= 0:
            raise Invalid(f"a mix weight must be above zero, not {self.weight}", "remove the source or raise its weight")
        if (self.path is None) == (self.stage is None):
            raise ValueError("a source needs either 'path' or 'stage'")
        if (self.stage is None) != (self.file is None):
            raise ValueError("'stage' and 'file' go together: the stage that wrote the rows, and which of its files")
        return self

    def read(self, path: Path | str) -> Iterator[Row]:
        """The source's checked rows out of `path`, which is where its file lies.

        Raises:
            UserError: a bad row, or a file that is missing, empty or not understood.
        """
        told = {"source": self.name, "language": self.language, "encoding": self.encoding, "separator": self.separator}
        kept = islice(read_rows(path, self.reader, **told, prompts=self.prompts), self.limit)
        if self.attributes is None:
            return kept
        return ({"attributes": self.attributes, **row} if "messages" in row else row for row in kept)


class Prompts(Source):
    """A source whose dialogues are answered by a model: they may end with a question."""

    prompts: ClassVar[bool] = True
