"""Small stage kinds for tests; as a script, the command line with these kinds known.

The variable DUMMY_PAUSE (seconds a line) makes them slow enough to be killed in the middle.
"""

from __future__ import annotations

import errno
import os
import sys
import time
from typing import Any

from pydantic import Field

from cairn.config import Config
from cairn.ledger import seeds
from cairn.ledger.refs import InputPath, StageRef
from cairn.ledger.store import write_atomically
from cairn.pipeline.stage import Context, Estimate, PlannedInputs, Stage, register


class Part(Config):
    """A nested source."""

    name: str = ""
    stage: StageRef | None = None
    path: InputPath | None = None


class LinesConfig(Config):
    """Configuration of `lines`."""

    lines: int = 5
    word: str = "word"
    after: StageRef | None = None
    file: InputPath | None = None
    parts: list[Part] = Field(default_factory=list)


@register
class Lines(Stage):
    """Writes seeded lines one at a time, and resumes after the last whole one."""

    kind = "lines"
    config = LinesConfig

    def run(self, context: Context) -> dict[str, Any]:
        config, part = context.config, context.draft / "resume" / "lines.part"
        part.parent.mkdir(exist_ok=True)
        text = part.read_text() if part.exists() else ""
        done = text[: text.rfind("\n") + 1].splitlines()
        (context.draft / "logs").mkdir(exist_ok=True)
        (context.draft / "logs" / "began.txt").write_text(f"{len(done)} {time.time()}")
        context.progress.start(config.lines, "lines")
        with open(part, "w") as file:
            file.writelines(line + "\n" for line in done)
            for index in range(len(done), config.lines):
                file.write(f"{config.word} {seeds.seed(context.seed, 'lines', index)}\n")
                file.flush()
                time.sleep(float(os.environ.get("DUMMY_PAUSE", "0")))
                context.progress.update(index + 1)
        content = part.read_text()
        for name in sorted(context.inputs):
            content += context.inputs[name].path("out/lines.txt").read_text()
        for path in filter(None, [config.file, *(p.path for p in config.parts)]):
            with open(path) as file:
                content += file.read()
        (context.draft / "out").mkdir(exist_ok=True)
        write_atomically(context.draft / "out" / "lines.txt", content)
        return {"lines": content.count("\n"), "tokens": content.count("\n"), "ratio": float("nan")}

    def estimate(self, config: Any, inputs: PlannedInputs) -> Estimate:
        before = [inputs.estimates[name].tokens or 0 for name in inputs if inputs.configs[name].lines]
        return Estimate(tokens=config.lines + sum(before), disk_bytes=30 * config.lines, seconds=0.5)

    def summarize(self, artifact: Any) -> str:
        return f"summary: {artifact.record.metrics['lines']} lines"

    def replay_interval(self, context: Context, first: int, last: int) -> list[dict[str, str]]:
        lines = context.recorded.path("out/lines.txt").read_text().splitlines() if context.recorded else []
        again = [f"{context.config.word} {seeds.seed(context.seed, 'lines', i)}" for i in range(first, last)]
        return [{"path": f"line {i}", "why": "other text"} for i, line in enumerate(again, first) if lines[i] != line]


class FaultConfig(Config):
    """Configuration of `fault`."""

    how: str = "bug"


@register
class Fault(Stage):
    """Fails in the way it is told."""

    kind = "fault"
    config = FaultConfig

    def run(self, context: Context) -> dict[str, Any]:
        how = context.config.how
        (context.draft / "half.txt").write_text("half")
        if how == "bug":
            raise RuntimeError("a bug in the stage")
        if how == "interrupt":
            raise KeyboardInterrupt
        if how == "words":
            raise RuntimeError("I/O error: No space left on device (os error 28)")
        if how == "wrapped":
            try:
                raise OSError(errno.EROFS, "Read-only file system", str(context.draft / "x"))
            except OSError as error:
                raise ValueError("could not save") from error
        if how == "clock":
            (context.draft / "clock.txt").write_text(str(time.time_ns()))
            return {"clock": time.time_ns()}
        raise OSError(getattr(errno, how), os.strerror(getattr(errno, how)), str(context.draft / "big.bin"))


if __name__ == "__main__":
    from cairn.cli.main import main

    sys.exit(main())
