"""A running `cairn serve` under 200 concurrent streaming clients for a minute: no error, no lost token, flat memory.

Every client asks again and again, one request at a time, out of a fixed set of distinct ones (greedy and drawn, short and long), and
compares what it hears with the answer that the server gave to the same request when nobody else asked. Clients run in this process,
the server in its own, on the same machine: speeds are told for information, and hold for both together.
"""

from __future__ import annotations

import asyncio
import json
import re
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from pydantic import Field

from cairn.config import Config
from cairn.errors import UserError
from cairn.ledger.seeds import uniform
from cairn.pipeline.bench import Row, command_line, missed, row, say, workspace

SHAPE = {"hidden_size": 256, "layers": 4, "heads": 8, "kv_heads": 4, "intermediate_size": 688}
"""Of the random model that is served where none is named."""
WORDS = ("mountain", "river", "what", "is", "the", "name", "of", "a", "stone", "that", "marks", "trail", "snow", "and", "wind")


class Options(Config):
    """How it is measured."""

    store: Path | None = None
    """A new or empty folder for the model and the server's log, kept afterwards; None: a temporary one."""
    model: Path | None = None
    """The folder of the model to serve; None: a random one of 3 million weights, which never stops by itself."""
    clients: int = Field(200, ge=1)
    """Clients that ask at the same time."""
    seconds: float = Field(60.0, gt=0)
    """How long they begin requests; what has begun is finished."""
    requests: int = Field(48, ge=1)
    """Distinct requests."""
    longest: int = Field(128, ge=16)
    """Answers have 16 to so many tokens at most."""
    serve: list[str] = Field(default_factory=list)
    """More words for `cairn serve`."""
    seed: int = 1
    """Of the model, the requests and who asks which."""


@dataclass(frozen=True)
class Heard:
    """One answer as a client heard it.

    Attributes:
        text: all of it.
        finish: why it ended; empty where it did not.
        tokens: as its usage counts them.
        first: seconds from the request to the first event.
        seconds: from the request to the end.
        error: what went wrong.
    """

    text: str = ""
    finish: str = ""
    tokens: int = 0
    first: float = 0.0
    seconds: float = 0.0
    error: str = ""

    @property
    def same(self) -> tuple[str, str, int]:
        """What must not depend on company."""
        return self.text, self.finish, self.tokens


@dataclass
class Load:
    """What the clients heard, and what was seen of the server meanwhile.

    Attributes:
        alone: each request's answer when nobody else asked.
        heard: (number of the request, answer).
        generated: tokens that the server counted meanwhile.
        memory: (seconds since the clients began, resident MB of the server).
        left: requests that the server still thought in flight when all clients had ended.
        seconds: from the first request to the last answer.
    """

    alone: list[Heard]
    heard: list[tuple[int, Heard]] = field(default_factory=list)
    generated: int = 0
    memory: list[tuple[float, float]] = field(default_factory=list)
    left: int = 0
    seconds: float = 0.0


def run(options: Options) -> list[Row]:
    """Measure."""
    with workspace(options.store, "serve") as place:
        folder = options.model or random_model(place.folder / "model", options.seed)
        with served(folder, place.folder / "server.log", options) as server:
            load = asyncio.run(pressed(server, options))
        log = (place.folder / "server.log").read_text(encoding="utf-8", errors="replace")
        rows = judged(load, options, log)
        place.keep = place.keep or bool(missed(rows))
    return rows


def judged(load: Load, options: Options, log: str = "") -> list[Row]:
    """The rows."""
    errors = [heard.error for _, heard in load.heard if heard.error]
    different = [(number, heard) for number, heard in load.heard if not heard.error and heard.same != load.alone[number].same]
    for error in sorted(set(errors))[:5]:
        say(f"  error: {error}")
    for number, heard in different[:3]:
        say(f"  request {number} differs: {heard.same} is not {load.alone[number].same}")
    lost = load.generated - sum(heard.tokens for _, heard in load.heard)
    begin, end = thirds(load.memory)
    whole = [heard for _, heard in load.heard if not heard.error]
    firsts = sorted(heard.first for heard in whole) or [float("nan")]
    label = f"{options.clients} clients, {options.seconds:g} s"
    return [
        row(f"{label}: streamed answers", len(whole), f">= {options.clients}"),
        row(f"{label}: errors", len(errors), "== 0"),
        row(f"{label}: answers that differ from the undisturbed one", len(different), "== 0"),
        row(f"{label}: tokens that were generated and not heard", lost, "== 0"),
        row(f"{label}: server's memory in MB, highest in the last third / in the first", end, "<= 1.05", peer=begin),
        row(f"{label}: requests left in flight afterwards", load.left, "== 0"),
        row(f"{label}: tracebacks in the server's log", log.count("Traceback"), "== 0"),
        row(f"{label}: tokens/s of all clients", sum(heard.tokens for heard in whole) / load.seconds if load.seconds else 0.0),
        row(f"{label}: seconds to the first token, median", statistics.median(firsts)),
        row(f"{label}: seconds to the first token, 95 % within", firsts[int(0.95 * (len(firsts) - 1))]),
    ]


def thirds(memory: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The highest values in the first third of the time and in the last."""
    if not memory:
        raise UserError("nothing was seen of the server's memory", where="cairn bench serve", remedy="measure on Linux")
    last = memory[-1][0]
    first_third = [size for at, size in memory if at <= last / 3]
    return max(first_third), max(size for at, size in memory if at >= 2 * last / 3)


# -- the server -----------------------------------------------------------------------------------------------------------


def random_model(folder: Path, seed: int) -> Path:
    """A small Llama of bytes in the format k2, whose stop tokens are never the likeliest."""
    from cairn.chat.format import load_format
    from cairn.model.config import ModelConfig
    from cairn.model.load import new_model, save_model
    from cairn.tokenizer.train import byte_tokenizer, save

    chat_format = load_format("k2")
    tokenizer = byte_tokenizer(chat_format)
    config = ModelConfig(family="llama", context=2048, tied=False, **SHAPE)
    model = new_model(config, vocab_size=tokenizer.vocab_size, bos_id=None, eos_id=None, pad_id=None, seed=seed)
    model.lm_head.weight.data[list(tokenizer.special.values())] = 0
    save_model(model, folder)
    save(tokenizer.backend, chat_format, folder)
    return folder


@dataclass(frozen=True)
class Server:
    """A running server."""

    address: str
    pid: int

    def memory(self) -> float:
        """Resident MB."""
        text = Path(f"/proc/{self.pid}/status").read_text(encoding="ascii")
        found = re.search(r"VmRSS:\s+(\d+) kB", text)
        return int(found[1]) / 1000 if found else 0.0


@contextmanager
def served(folder: Path, log: Path, options: Options) -> Iterator[Server]:
    """`cairn serve` on a free port, ended afterwards.

    Raises:
        UserError: it did not begin.
    """
    words = ["serve", str(folder), "--port", "0", "--name", "bench", "--deterministic", *options.serve]
    words += ["--set", f"max_in_flight={2 * options.clients}", "--set", "request_seconds=3000"]
    with log.open("w", encoding="utf-8") as errors:
        process = subprocess.Popen(command_line(words), stdout=subprocess.PIPE, stderr=errors, text=True)
    try:
        assert process.stdout
        line = process.stdout.readline()
        if not line.startswith("serving"):
            tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-5:])
            raise UserError("the server did not begin", where=str(log), remedy=f"its last words:\n{tail}")
        say(line.strip())
        yield Server(line.split()[3], process.pid)
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        assert process.stdout
        process.stdout.close()


# -- the clients ----------------------------------------------------------------------------------------------------------


def bodies(options: Options) -> list[dict[str, Any]]:
    """The distinct requests."""

    def draw(stream: str, index: int) -> float:
        return uniform(options.seed, stream, index)

    asked = []
    for i in range(options.requests):
        count = 1 + int(24 * draw(f"length/{i}", 0))
        text = " ".join(WORDS[int(len(WORDS) * draw(f"words/{i}", k))] for k in range(count)) + f" {i}?"
        body: dict[str, Any] = {
            "model": "bench", "messages": [{"role": "user", "content": text}], "stream": True, "stream_options": {"include_usage": True},
            "max_completion_tokens": 16 + int((options.longest - 15) * draw("tokens", i)), "temperature": 0.0,
        }  # fmt: skip
        if i % 2:
            body |= {"temperature": 0.8, "top_p": 0.95, "seed": i}
        asked.append(body)
    return asked


async def ask(client: httpx.AsyncClient, body: dict[str, Any]) -> Heard:
    """One request to its end."""
    begun = time.monotonic()
    first, parts, finish, tokens, done = 0.0, [], "", 0, False
    try:
        async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
            if answer.status_code != 200:
                return Heard(error=f"status {answer.status_code}: {(await answer.aread())[:300].decode(errors='replace')}")
            async for line in answer.aiter_lines():
                if not line.startswith("data: "):
                    continue
                first = first or time.monotonic() - begun
                if line == "data: [DONE]":
                    done = True
                    continue
                event = json.loads(line[6:])
                if "error" in event:
                    return Heard(error=str(event["error"])[:300])
                for choice in event["choices"]:
                    parts.append(choice["delta"].get("content") or "")
                    finish = choice["finish_reason"] or finish
                tokens = (event["usage"] or {}).get("completion_tokens", tokens)
    except (httpx.HTTPError, ValueError) as error:
        return Heard(error=f"{type(error).__name__}: {error}"[:300])
    if not done or not finish:
        return Heard(error="the stream ended before its answer")
    return Heard("".join(parts), finish, tokens, first, time.monotonic() - begun)


async def pressed(server: Server, options: Options) -> Load:
    """Each request alone, then all clients at once."""
    asked = bodies(options)
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=options.clients)
    async with httpx.AsyncClient(base_url=server.address, timeout=3000.0, limits=limits, trust_env=False) as client:
        load = Load([await ask(client, body) for body in asked])
        wrong = next((heard.error for heard in load.alone if heard.error), None)
        if wrong is not None:
            raise UserError(f"the server fails on a request of its own: {wrong}", where="cairn bench serve", remedy="see its log")
        say(f"{len(asked)} requests, {sum(h.tokens for h in load.alone)} tokens alone; now {options.clients} clients")
        before = await figures(client)
        begun = time.monotonic()
        ended = threading.Event()
        watching = threading.Thread(target=watch, args=(server, load, begun, ended), daemon=True)
        watching.start()
        await asyncio.gather(*(one_client(client, number, asked, load, begun, options) for number in range(options.clients)))
        load.seconds = time.monotonic() - begun
        ended.set()
        watching.join()
        after = await figures(client)
    load.generated = int(after["tokens"] - before["tokens"])
    load.left = int(after["in_flight"])
    return load


async def one_client(
    client: httpx.AsyncClient, number: int, asked: list[dict[str, Any]], load: Load, begun: float, options: Options
) -> None:
    """Ask again and again; at least once."""
    turn = 0
    while not turn or time.monotonic() - begun < options.seconds:
        which = int(len(asked) * uniform(options.seed, f"client/{number}", turn))
        load.heard.append((which, await ask(client, asked[which])))
        turn += 1


async def figures(client: httpx.AsyncClient) -> dict[str, float]:
    """What the server counts."""
    lines = (await client.get("/metrics")).text.splitlines()
    names = {"tokens": 'cairn_tokens_total{kind="generated"}', "in_flight": "cairn_in_flight"}
    return {key: next(float(line.split()[-1]) for line in lines if line.startswith(f"{name} ")) for key, name in names.items()}


def watch(server: Server, load: Load, begun: float, ended: threading.Event) -> None:
    """Note the server's memory four times a second."""
    if not sys.platform.startswith("linux"):
        return
    while not ended.wait(0.25):
        load.memory.append((time.monotonic() - begun, server.memory()))
