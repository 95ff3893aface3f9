"""Tries a grammar out in a process of its own, so that a catastrophic one costs that process and not the caller.

llguidance bounds what it does, but not in every place: thirty patterns that must all match keep it busy for minutes. What it
does cannot be interrupted from Python, so the process has a bound on its processor time and its memory, and dies of them.
What passes here takes the same path once more in the caller's process, in as little time.

Run as `python -m cairn.generate.examine`: a JSON line with the vocabulary, then one with a grammar for each answer.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Any

from cairn.generate.closing import Closer, limits
from cairn.generate.vocabulary import Symbols, Vocabulary

CPU_SECONDS = 5.0
"""Processor time for one grammar."""
WALL_SECONDS = 300.0
"""Time for one grammar on the clock, on whatever loaded machine."""
MEMORY = 4 << 30
"""Address space of the process in bytes, its vocabulary included."""
NO_END = "no finite answer was found in it"


class Refused(Exception):
    """Why a grammar cannot be used."""


def build(vocabulary: Vocabulary, source: str, hints: Sequence[str], ending: Symbols | None = None) -> tuple[Any, Closer]:
    """A matcher over a vocabulary at the answer's beginning, and its closer.

    Raises:
        Refused: llguidance cannot compile the grammar, or nothing satisfies it.
    """
    from llguidance import LLMatcher

    plain = LLMatcher(vocabulary.bytes, source, log_level=0, limits=limits(False))
    if not plain.is_error():
        plain.compute_bitmask()
    closer = Closer(plain, tuple(tuple(hint.encode()) for hint in hints), ending)
    if plain.is_error():
        raise Refused(_reason(plain.get_error()))
    if ending is None and not closer.begin():
        raise Refused(NO_END)
    matcher = LLMatcher(vocabulary.tokens, source, log_level=0, limits=limits(True))
    if not matcher.is_error():
        matcher.compute_bitmask()
    if matcher.is_error():
        raise Refused(_reason(matcher.get_error()))
    return matcher, closer


def _reason(error: str) -> str:
    """What llguidance says, without the place in a grammar that the user did not write."""
    if error.startswith("NoExtension"):
        return NO_END
    lines = [line.strip() for line in error.strip().splitlines() if line.strip() and "<non-verbose/>" not in line]
    text = lines[0] if lines else "unknown error"
    for opening in ("failed to compile JSON schema: ", "Unsatisfiable schema: "):
        text = text.partition(opening)[2] or text
    named = next((line for line in lines[1:] if line.startswith("error: ")), "")
    return (f"{text[:200]} ({named})" if named else text)[:300]


class Examiner:
    """Asks the process; starts it when it is first needed, and again where a grammar ended it.

    Args:
        vocabulary: what the answers are made of.
        cpu_seconds: processor time for one grammar.
    """

    def __init__(self, vocabulary: Vocabulary, cpu_seconds: float = CPU_SECONDS) -> None:
        self._vocabulary, self._cpu_seconds = vocabulary, cpu_seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def ending(self, source: str, hints: Sequence[str]) -> Symbols:
        """The shortest known answer to a grammar.

        Raises:
            Refused: it cannot be used.
        """
        with self._lock:
            try:
                answer = self._ask(json.dumps([source, hints]).encode())
            except OSError:
                answer = None
            if answer is None:
                self.close()
                raise Refused(f"it takes more than {self._cpu_seconds:g} s of processor time or too much memory")
        if "error" in answer:
            raise Refused(answer["error"])
        return tuple(answer["ending"])

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _ask(self, line: bytes) -> dict[str, Any] | None:
        process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(line + b"\n")
        process.stdin.flush()
        found = b""
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while not found.endswith(b"\n"):
                if not selector.select(WALL_SECONDS):
                    return None
                part = os.read(process.stdout.fileno(), 1 << 16)
                if not part:
                    return None
                found += part
        return dict(json.loads(found))

    def _start(self) -> subprocess.Popen[bytes]:
        # Where modules are looked for, and nowhere else: without -P the folder that the user stands in comes first, as it does for an
        # empty part, and a file there that is named like a module would run.
        path = os.pathsep.join(part or os.getcwd() for part in sys.path)
        # Its errors are one line on standard output; what an abort prints helps nobody.
        self._process = process = subprocess.Popen(
            [sys.executable, "-P", "-m", "cairn.generate.examine"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": path},
        )
        vocabulary = self._vocabulary
        head = [self._cpu_seconds, vocabulary.json, vocabulary.size, vocabulary.special, sorted(vocabulary.stop_ids)]
        assert process.stdin is not None
        process.stdin.write(json.dumps(head).encode() + b"\n")
        return process


def main() -> None:
    """Answer grammars from standard input until it ends."""
    with contextlib.suppress(ImportError, ValueError, OSError):  # no such bound on this system
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the caller's
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    vocabulary: Vocabulary | None = None
    seconds = CPU_SECONDS
    for line in sys.stdin:
        value = json.loads(line)
        if vocabulary is None:
            seconds, *rest = value
            vocabulary = Vocabulary(*rest)
            continue
        signal.setitimer(signal.ITIMER_PROF, seconds)
        try:
            answer: dict[str, Any] = {"ending": list(build(vocabulary, *value)[1].ending)}
        except Refused as refused:
            answer = {"error": str(refused)}
        except ValueError as error:  # llguidance's own, for what is not even JSON to it
            answer = {"error": str(error)[:300]}
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
