"""What a suite is: questions, how answers are read, and the metric of each group. Knows no model and runs nothing.

A suite is a YAML file in `suites/`, a YAML file of the user's, or a mapping written into a recipe.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator

from cairn.config import Config, build, checked, read_yaml
from cairn.data.readers import check_reader
from cairn.errors import UserError, did_you_mean
from cairn.evaluate.extract import Extractor, get_extractor
from cairn.score.registry import get_metric
from cairn.score.shown import get_measure

QUESTION = "question"
"""The name in a suite's prompt that stands for what the row's user says."""
_BUILT_IN = Path(__file__).parent / "suites"


class Suite(Config):
    """One generation suite: every row is a dialogue whose last answer the model writes anew."""

    name: str
    """Under which the results and the samples stand."""
    description: str = ""
    """One sentence on what is measured."""
    data: list[str] = Field(default_factory=list)
    """Files of questions, relative to the data folder (a stage's output); empty where the file is given at run time."""
    reader: Annotated[str, checked(check_reader)] = "messages"
    """How the files are read (see `cairn.data.readers`)."""
    prompt: str | None = None
    """How the question is put: a text in which `{question}` stands for the row's last user turn and `{name}` for a key of its "meta".
    None: as the row puts it."""
    few_shot: list[str] = Field(default_factory=list)
    """Ids of rows that stand with their answers in front of every question, as turns of the dialogue, in this order. They are put in the
    words of `prompt` too, and are not asked themselves."""
    few_shot_data: list[str] = Field(default_factory=list)
    """More files in which these rows are looked for, such as a training split; nothing of them is asked."""
    own_turns: bool = False
    """The assistant's earlier turns of a dialogue are the model's own answers, not those of the row."""
    extractor: Extractor = Extractor()
    """How the scored message is made out of the model's answer; its version is part of what a number means."""
    group_by: str | None = None
    """The key of a row's "meta" that splits the result into one number a group; None: one number for all."""
    metric: str | None = "exact"
    """The metric of groups that `metrics` does not name; None: such a group is refused."""
    metrics: dict[str, str] = Field(default_factory=dict)
    """Metric by group; needs `group_by`."""
    shown: list[Annotated[str, checked(get_measure)]] = Field(default_factory=list)
    """Attributes, which every row then asks for: one number more for each, the rank correlation of the level asked for and what the
    answers show of it (see `cairn.score.shown`)."""
    max_new_tokens: int = 128
    """Longest answer, in tokens; an answer that long is cut and scored as it stands."""
    limit: int | None = Field(default=None, ge=1)
    """At most this many rows of each file, from its start; None: all."""

    @field_validator("name")
    @classmethod
    def _name_is_a_file_name(cls, value: str) -> str:
        if not value or value.startswith(".") or any(c in value for c in "/\\\0"):
            raise ValueError("a suite's name must do as a file name")
        return value

    @field_validator("prompt")
    @classmethod
    def _question_is_put(cls, value: str | None) -> str | None:
        if value is not None and f"{{{QUESTION}}}" not in value:
            raise ValueError("a prompt must hold {question}: else every row would ask the same")
        return value

    @field_validator("few_shot")
    @classmethod
    def _examples_once(cls, value: list[str]) -> list[str]:
        if len(set(value)) != len(value):
            raise ValueError("a row is named twice as an example")
        return value

    @field_validator("max_new_tokens")
    @classmethod
    def _some_tokens(cls, value: int) -> int:
        if value < 1:
            raise ValueError("max_new_tokens must be at least 1")
        return value

    def files(self) -> list[str]:
        """Every file that is read."""
        return list(dict.fromkeys([*self.data, *self.few_shot_data]))

    def metric_of(self, group: str | None) -> str:
        """The metric's name for a group.

        Raises:
            UserError: the suite names none.
        """
        name = self.metrics.get(group, self.metric) if group is not None else self.metric
        if name is None:
            what = f"the suite '{self.name}' has no metric for the group '{group}'"
            raise UserError(what, remedy="name one under `metrics`, or set `metric`")
        return name


def suite_names() -> list[str]:
    """The suites that come with the package."""
    return sorted(path.stem for path in _BUILT_IN.glob("*.yaml"))


def load_suite(suite: str | Suite | dict[str, Any]) -> Suite:
    """A suite by name, by the path of a YAML file, or as it stands; its metrics and extractor are known to exist.

    Raises:
        UserError: no such suite, or a mistake in it.
    """
    if isinstance(suite, str):
        path = Path(suite) if suite.endswith((".yaml", ".yml")) else _BUILT_IN / f"{suite}.yaml"
        if path.parent == _BUILT_IN and not path.exists():
            remedy = did_you_mean(suite, suite_names()) + " (or give the path of a .yaml file)"
            raise UserError(f"no suite is named '{suite}'", remedy=remedy)
        value = read_yaml(path)
        suite = build(Suite, value, where=str(path), text=path.read_text(encoding="utf-8"))
    elif not isinstance(suite, Suite):
        suite = build(Suite, suite, where="suite")
    if suite.metrics and suite.group_by is None:
        raise UserError(f"the suite '{suite.name}' names metrics by group but no group", remedy="set `group_by` to a key of the rows' meta")
    for name in (*suite.metrics.values(), *([suite.metric] if suite.metric else [])):
        get_metric(name)
    get_extractor(suite.extractor)
    return suite
