"""What a stage is, and how its kind is found. Knows the ledger; knows no stage of its own.

A stage kind is one file in `stages/`, named like the kind, with a class under `@register`. It is imported when a
recipe asks for its kind and not before, so its own imports stay light and what is heavy is imported inside `run`.
"""

from __future__ import annotations

import importlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from cairn.config import Config
from cairn.errors import UserError, did_you_mean
from cairn.ledger.progress import Progress, Silent
from cairn.ledger.refs import InputPath, Location, StageRef
from cairn.ledger.store import Artifact, Store


@dataclass(kw_only=True)
class Context:
    """All that a stage is given to run with."""

    config: Any
    """The stage's configuration, an instance of its `config` class."""
    seed: int
    """The recipe's seed; derive streams from it by name with `cairn.ledger.seeds`."""
    inputs: Mapping[str, Artifact]
    """The artifacts that the configuration refers to, by the name of their stage."""
    draft: Path
    """Folder to write into. It survives a kill: resume from what lies there."""
    store: Store
    """The store, to look up the lineage of an input. Read nothing else from it, or the key says too little."""
    progress: Progress = field(default_factory=Silent)
    """Where to tell how far the work is."""
    environment: dict[str, Any] = field(default_factory=dict)
    """Facts that the stage adds to the recorded environment, such as the device."""
    name: str = ""
    """The stage's name in the recipe. It may be shown to who watches, and must not reach an output: names are not in the key."""
    recipe: str = ""
    """The recipe's name. Only stages that say `shows_names` may write it."""
    command: str = ""
    """The command that runs the recipe, to be shown to readers. Only stages that say `shows_names` may write it."""
    names: Mapping[str, str] = field(default_factory=dict)
    """{key: stage's name in the recipe} of all that comes before it, for stages that say `shows_names`."""
    key: str = ""
    """The artifact's key; empty in a replay."""
    team: Any = None
    """The processes that run the stage together (`cairn.pipeline.team.Team`); None for this one alone."""
    recorded: Artifact | None = None
    """In a replay, the artifact that is checked."""

    @property
    def first(self) -> bool:
        """Whether this process alone writes into the draft: rank 0, or the only one."""
        return self.team is None or not self.team.follows

    @property
    def several(self) -> bool:
        """Whether other ranks take part."""
        return self.team is not None and self.team.several

    def place(self, source: Any) -> Path:
        """Where a source's rows lie: the user's file (`path`), or a file of the stage that wrote them (`stage`, `file`)."""
        return self.inputs[source.stage].path(str(source.file)) if source.stage is not None else Path(str(source.path))


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a stage will cost, as far as it can tell; None is unknown."""

    parameters: int | None = None
    """Parameters of the model it trains or runs."""
    tokens: int | None = None
    """Tokens it processes."""
    flops: float | None = None
    """Floating-point operations."""
    disk_bytes: int | None = None
    """Largest size of its draft."""
    memory_bytes: int | None = None
    """Peak memory of the process, or of each rank's device."""
    seconds: float | None = None
    """Time on this machine."""
    passes: dict[str, float] | None = None
    """About how often a training goes through each of its sources, by their names."""


class PlannedInputs(dict[str, "Artifact | None"]):
    """A stage's inputs in a plan, by name: the artifact, or None where it is not in the store yet.

    What is not there yet can be told from the stage that will make it: its configuration and its own estimate.
    """

    def __init__(
        self, artifacts: Mapping[str, Artifact | None], configs: Mapping[str, Any], estimates: Mapping[str, Estimate]
    ) -> None:
        super().__init__(artifacts)
        self.configs = dict(configs)
        self.estimates = dict(estimates)


class Stage:
    """A step of a recipe: a configuration class and `run`."""

    kind: ClassVar[str]
    """Its name in recipes: the name of its file."""
    config: ClassVar[type[Config]]
    """Its configuration class."""
    code: ClassVar[str | tuple[str, ...]] = ()
    """Modules whose code shapes the outputs, beside what the stage's own module imports."""
    shows_names: ClassVar[bool] = False
    """Whether its outputs show names (of the recipe, of stages) or the command: for such a stage they are in the key."""

    def resolve(self, config: Any, others: Mapping[str, Any]) -> Any:
        """The configuration with every value that it leaves to the stage, which the key and the record then hold.

        Args:
            config: as the recipe gives it.
            others: the configurations of the recipe's stages, by name.
        """
        return config

    def chosen(self, config: Any) -> dict[str, Any]:
        """What `resolve` decided, to be shown in a plan."""
        return {}

    def run(self, context: Context) -> dict[str, Any]:
        """Write the outputs into `context.draft` and give the metrics, which depend on inputs and seed alone."""
        raise NotImplementedError

    def outputs(self, config: Any) -> Collection[str] | None:
        """The files that a run will write and other stages may ask for; None where nothing can be said before it runs."""
        return None

    def needs(self, config: Any) -> Iterable[tuple[Location, str, tuple[str, ...]]]:
        """What it asks of other stages beside its sources' rows: (place in the configuration, stage, files of which one will do)."""
        return ()

    def stops_at_bad_rows(self, config: Any) -> bool:
        """Whether a bad row in a source's file ends a run; if so, files from outside are read before the first stage runs."""
        return True

    def estimate(self, config: Any, inputs: PlannedInputs) -> Estimate | None:
        """What a run would cost. Must not take long."""
        return None

    def summarize(self, artifact: Artifact) -> Any:
        """What to show of a finished artifact at the end of a run: a rich renderable, text or None."""
        return None

    def replay_interval(self, context: Context, first: int, last: int) -> list[dict[str, str]]:
        """Run again from one checkpoint of `context.recorded` to a later one; give every difference as {path, why}."""
        raise UserError(f"a stage of kind '{self.kind}' has no intervals to replay", remedy="replay it whole: --replay without --interval")


S = TypeVar("S", bound=type[Stage])

_FOLDER = Path(__file__).parent / "stages"
_KINDS: dict[str, Stage] = {}


def register(cls: S) -> S:
    """Make a stage class known by its kind. A decorator."""
    _KINDS[cls.kind] = cls()
    return cls


def unregister(kind: str) -> None:
    """Forget a kind that was registered from elsewhere."""
    _KINDS.pop(kind, None)


def kinds() -> list[str]:
    """All known kinds, found by their files' names and without importing them."""
    return sorted({p.stem for p in _FOLDER.glob("*.py") if not p.stem.startswith("_")} | set(_KINDS))


def find_stage(kind: str, where: str = "") -> Stage:
    """The stage of a kind.

    Raises:
        UserError: there is none.
    """
    if kind not in _KINDS and kind.isidentifier() and (_FOLDER / f"{kind}.py").is_file():
        importlib.import_module(f"cairn.pipeline.stages.{kind}")
    if kind not in _KINDS:
        raise UserError(f"unknown kind of stage '{kind}'", where=where, remedy=did_you_mean(kind, kinds()))
    return _KINDS[kind]


__all__ = ["Context", "Estimate", "InputPath", "PlannedInputs", "Stage", "StageRef", "find_stage", "kinds", "register", "unregister"]
