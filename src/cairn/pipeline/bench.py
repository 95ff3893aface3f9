"""What every benchmark needs: finding them, their options, rows with a bound to reach, `cairn` as a timed process. Knows none of them.

A benchmark is a file `benchmarks/<name>.py` of the repository with a docstring, `Options(Config)` and `run(options) -> list of rows`.
A row is {"measure", "ours", "peer", "ratio", "must", "ok"}; `row` makes one.
"""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import IO, Any

import yaml

import cairn
from cairn.config import Config, build
from cairn.errors import UserError, did_you_mean

Row = dict[str, Any]

_MUST = re.compile(r"(>=|<=|==|>|<)\s*(-?\d+(?:\.\d+)?)")


# -- rows -----------------------------------------------------------------------------------------------------------


def met(must: str, value: float | None) -> bool:
    """Whether a value is within a bound such as ">= 0.95", "< 2" or "== 20". A value that is missing or no number is not.

    Raises:
        ValueError: the bound is of no such form.
    """
    match = _MUST.fullmatch(must.strip())
    if match is None:
        raise ValueError(f"not a bound: {must!r}")
    if value is None or math.isnan(value):
        return False
    bound = float(match[2])
    return {">=": value >= bound, "<=": value <= bound, "==": value == bound, ">": value > bound, "<": value < bound}[match[1]]


def row(measure: str, ours: float | None, must: str = "", *, peer: float | None = None) -> Row:
    """One measured number. The bound is about the ratio to the peer, or about ours where there is no peer.

    A row without a bound tells something and cannot be missed, so it is ok.
    """
    ratio = ours / peer if ours is not None and peer else None
    judged = ratio if peer is not None else ours
    return {"measure": measure, "ours": ours, "peer": peer, "ratio": ratio, "must": must, "ok": met(must, judged) if must else True}


def skipped(measure: str, must: str, why: str) -> Row:
    """A number that was not measured: neither reached nor missed."""
    return {"measure": f"{measure} (not measured: {why})", "ours": None, "peer": None, "ratio": None, "must": must, "ok": None}


def missed(rows: Sequence[Row]) -> list[Row]:
    """The rows whose bound was not reached."""
    return [one for one in rows if one["ok"] is False]


# -- finding and starting one ---------------------------------------------------------------------------------------


def bench_folder() -> Path:
    """The repository's folder of benchmarks.

    Raises:
        UserError: this is an installed package without its repository.
    """
    folder = Path(cairn.__file__).parents[2] / "benchmarks"
    if not folder.is_dir():
        what = "the benchmarks are part of the repository, and this is an installed package without it"
        raise UserError(what, where=str(Path(cairn.__file__).parent), remedy="run `cairn bench` from a clone (pip install -e .)")
    return folder


def benchmarks() -> dict[str, str]:
    """{name: first line of its docstring}; none of them is run."""
    found = {}
    for path in sorted(bench_folder().glob("[a-z]*.py")):
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        found[path.stem] = text.partition("\n")[0]
    return found


def load_benchmark(name: str) -> ModuleType:
    """The module of a benchmark.

    Raises:
        UserError: there is none of that name.
    """
    known = benchmarks()
    if name not in known:
        raise UserError(f"no benchmark is called '{name}'", where=str(bench_folder()), remedy=did_you_mean(name, known))
    spec = importlib.util.spec_from_file_location(f"cairn_benchmark_{name}", bench_folder() / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    # pydantic looks the options' annotations up by the module's name.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def make_options(name: str, module: ModuleType, given: Mapping[str, Any], settings: Sequence[str] = ()) -> Config:
    """The options of a benchmark: `given`, and texts `option=value` whose value is YAML.

    Raises:
        UserError: an option that the benchmark does not have, or a bad value.
    """
    values = dict(given)
    for text in settings:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            remedy = f"options: {', '.join(module.Options.model_fields)}"
            raise UserError("an option is written name=value", where=f"--set {text}", remedy=remedy)
        try:
            values[key.strip()] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise UserError("the value is not valid YAML", where=f"--set {text}", remedy="put it into quotes") from None
    for key in values:
        if key not in module.Options.model_fields:
            remedy = did_you_mean(key, module.Options.model_fields)
            raise UserError(f"the benchmark '{name}' has no option '{key}'", where=f"cairn bench {name}", remedy=remedy)
    options: Config = build(module.Options, values, where=f"cairn bench {name}")
    return options


# -- what benchmarks do ---------------------------------------------------------------------------------------------


def say(text: str) -> None:
    """A line of progress, on standard error."""
    print(text, file=sys.stderr, flush=True)


@dataclass
class Workspace:
    """A folder to measure in."""

    folder: Path
    keep: bool
    """Whether it stays when the measuring is over."""


@contextlib.contextmanager
def workspace(given: Path | None, name: str) -> Iterator[Workspace]:
    """A folder to measure in: the one that the user gave, which is kept, or a temporary one, which goes unless a failure is in it.

    Raises:
        UserError: the given folder is not empty.
    """
    if given is not None:
        if given.exists() and (not given.is_dir() or any(given.iterdir())):
            raise UserError("a benchmark starts from an empty folder", where=str(given), remedy="name a new one, or leave --store away")
        given.mkdir(parents=True, exist_ok=True)
    place = Workspace((given or Path(tempfile.mkdtemp(prefix=f"cairn-bench-{name}-"))).absolute(), given is not None)
    try:
        yield place
    except Exception:
        place.keep = True
        raise
    finally:
        if place.keep:
            say(f"kept: {place.folder}")
        else:
            shutil.rmtree(place.folder, ignore_errors=True)


@dataclass(frozen=True)
class Finished:
    """A process of `cairn` that has ended."""

    status: int
    seconds: float
    """Wall time from its start to its end, Python's own start included."""
    out: str
    """What it wrote on standard output."""


def command_line(words: Sequence[str]) -> list[str]:
    """The command that runs `cairn` as this Python has it."""
    return [sys.executable, "-m", "cairn", *words]


def call_cairn(words: Sequence[str], *, log: IO[str] | None = None, fine: Sequence[int] = (0,)) -> Finished:
    """Run `cairn` as a process of its own and time it.

    Args:
        words: its command line.
        log: where its standard error goes; None: to ours.
        fine: the exit statuses that are expected.

    Raises:
        UserError: it ended with another one.
    """
    began = time.perf_counter()
    done = subprocess.run(command_line(words), stdout=subprocess.PIPE, stderr=log, text=True, check=False)
    seconds = time.perf_counter() - began
    if done.returncode not in fine:
        where = f"cairn {' '.join(words)}"
        remedy = f"its own message is in {log.name}" if log is not None else "its own message stands above"
        raise UserError(f"the measured command ended with status {done.returncode}", where=where[:400], remedy=remedy)
    return Finished(done.returncode, seconds, done.stdout)


class Script:
    """A script of a benchmark as a process of its own, which is talked to in lines of JSON.

    Args:
        path: the script. It is given the path of a JSON file that holds `job`.
        job: what it is told.
        folder: where the job and the log (all that it prints on standard error) are written.
        name: their name.
        python: the interpreter; ours unless given.
        environ: further environment variables.
    """

    def __init__(
        self,
        path: Path,
        job: Mapping[str, Any],
        folder: Path,
        name: str,
        *,
        python: Path | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self.name, self.log = name, folder / f"{name}.log"
        told = folder / f"{name}.json"
        told.write_text(json.dumps(job, indent=1), encoding="utf-8")
        # The source that runs this is what is measured, however it was put on the path.
        source = str(Path(cairn.__file__).parents[1])
        settings = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (source, os.environ.get("PYTHONPATH")))), **(environ or {})}
        with open(self.log, "w", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                [str(python or sys.executable), str(path), str(told)], env=settings, text=True, stderr=log, stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )  # fmt: skip

    def read(self) -> dict[str, Any]:
        """Its next reply.

        Raises:
            UserError: it ended without one.
        """
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            status = self.process.wait()
            tail = "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-5:])
            raise UserError(f"'{self.name}' ended with status {status}", where=str(self.log), remedy=f"its last words:\n{tail}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def ask(self, words: str) -> dict[str, Any]:
        """Send it a line, and read its reply."""
        assert self.process.stdin
        with contextlib.suppress(BrokenPipeError):  # the missing reply tells why it ended
            self.process.stdin.write(words + "\n")
            self.process.stdin.flush()
        return self.read()

    def __enter__(self) -> Script:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
