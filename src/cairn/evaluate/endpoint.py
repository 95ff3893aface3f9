"""A model behind OpenAI's chat completions: dialogues in, replies out, many at a time. Knows HTTP; not what is asked.

What may pass (no connection, a late reply, 429, 5xx) is tried again with growing pauses; what concerns every request (the address, the key,
the model's name) ends the run at once, and so does a server that has stopped to answer.
"""

from __future__ import annotations

import http.client
import json
import os
import queue
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any

from cairn.errors import UserError, did_you_mean
from cairn.evaluate.judge import JudgeConfig, Messages, Told

GIVE_UP = 10
"""Dialogues without any reply, one after another, after which the server is taken for gone."""
PAUSE = 0.5
"""Seconds before the first further try; each one doubles it."""
LONGEST_PAUSE = 30.0
LARGEST = 4 << 20
"""Bytes of a response that are read at most."""


class _Failed(Exception):
    """A request without a reply.

    Args:
        why: for people.
        again: whether the same request may do better later.
        after: seconds that the server asks to wait.
    """

    def __init__(self, why: str, *, again: bool = True, after: float = 0.0) -> None:
        super().__init__(why)
        self.why, self.again, self.after = why, again, after


class _Refuse(urllib.request.HTTPRedirectHandler):
    """A redirected request would carry the key to whoever it is sent on to."""

    def redirect_request(self, *args: Any, **options: Any) -> None:
        return None


class Endpoint:
    """A judge behind an address; an `Ask`."""

    def __init__(self, config: JudgeConfig) -> None:
        self.config, self.base = config, str(config.endpoint).rstrip("/")
        self.where = f"judge.endpoint {self.base}"
        self._opener = urllib.request.build_opener(_Refuse)

    def check(self) -> None:
        """See that the server is there, takes the key and has the model, before anything is generated.

        Raises:
            UserError: it does not.
        """
        try:
            found = self._tried("/models", None)
        except _Failed as error:
            if error.again:
                remedy = "start the server, or correct the address; judge.timeout says how long it may take"
                raise UserError(f"the judge does not answer: {error.why}", where=self.where, remedy=remedy) from None
            return  # Some servers list no models.
        listed = found.get("data")
        names = [str(one.get("id")) for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
        if names and self.config.name not in names:
            remedy = did_you_mean(str(self.config.name), names[:20])
            raise UserError(f"the endpoint has no model '{self.config.name}'", where=self.where, remedy=remedy)

    def __call__(self, dialogues: Sequence[Messages], told: Told) -> None:
        """Ask each dialogue.

        Raises:
            UserError: the server refuses all of them, or has stopped to answer.
        """
        waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
        for number in range(len(dialogues)):
            waiting.put(number)
        come: queue.SimpleQueue[tuple[int, str | None, str | Exception]] = queue.SimpleQueue()
        stop = threading.Event()

        def work() -> None:
            while not stop.is_set():
                try:
                    number = waiting.get_nowait()
                except queue.Empty:
                    return
                try:
                    come.put((number, self._reply(dialogues[number], stop), ""))
                except _Failed as error:
                    come.put((number, None, error.why))
                except Exception as error:  # whatever it is must reach who waits, and concerns the others too
                    stop.set()
                    come.put((number, None, error))

        # Daemons: Ctrl-C must not wait for a server that does not answer.
        for _ in range(min(self.config.parallel, len(dialogues))):
            threading.Thread(target=work, daemon=True).start()
        silent = 0
        try:
            for _ in range(len(dialogues)):
                number, reply, why = come.get()
                if isinstance(why, Exception):
                    raise why
                silent = silent + 1 if reply is None else 0
                if silent >= max(GIVE_UP, self.config.parallel):
                    what = f"the judge gave no reply to {silent} dialogues in a row, each tried {1 + self.config.retries} times: {why}"
                    remedy = "look at the server, then run the same command again: what it said so far is kept"
                    raise UserError(what, where=self.where, remedy=remedy)
                told(number, reply, why)
        finally:
            stop.set()

    def _reply(self, dialogue: Messages, stop: threading.Event) -> str:
        body = {"model": self.config.name, "messages": dialogue, "temperature": 0, "max_tokens": self.config.max_new_tokens}
        found = self._tried("/chat/completions", body, stop)
        try:
            content = found["choices"][0]["message"]["content"]
        except (KeyError, IndexError, TypeError):
            raise _Failed(f"a response that is no chat completion: {json.dumps(found)[:100]}", again=False) from None
        # A reply that is all reasoning, or a refusal, has no content: it says no rating.
        return content if isinstance(content, str) else ""

    def _tried(self, path: str, body: Any, stop: threading.Event | None = None) -> dict[str, Any]:
        for number in range(1 + self.config.retries):
            try:
                return self._once(path, body)
            except _Failed as error:
                if not error.again or number == self.config.retries:
                    raise
                pause = min(max(PAUSE * 2**number, error.after), LONGEST_PAUSE)
            if stop is None:
                time.sleep(pause)
            elif stop.wait(pause):
                raise _Failed("the run has ended")
        raise AssertionError("unreachable")

    def _once(self, path: str, body: Any) -> dict[str, Any]:
        until = time.monotonic() + self.config.timeout
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        # Keys are pasted, often with the end of their line.
        if key := os.environ.get(self.config.key, "").strip():
            if not (key.isascii() and key.isprintable()):
                remedy = "put the key alone into it"
                raise UserError("the judge's key holds characters that no key has", where=f"the variable {self.config.key}", remedy=remedy)
            headers["Authorization"] = f"Bearer {key}"
        data = None if body is None else json.dumps(body).encode()
        try:
            request = urllib.request.Request(self.base + path, data=data, headers=headers)
            with self._opener.open(request, timeout=self.config.timeout) as response:
                return _object(self._read(response, until))
        except urllib.error.HTTPError as error:
            with error:
                raise self._refused(error, path) from None
        except TimeoutError:
            raise _Failed(f"no reply in {self.config.timeout:g} s") from None
        except urllib.error.URLError as error:
            late = isinstance(error.reason, TimeoutError)
            raise _Failed(f"no reply in {self.config.timeout:g} s" if late else str(error.reason)) from None
        except (OSError, http.client.HTTPException) as error:
            raise _Failed(f"the connection broke: {error or type(error).__name__}") from None

    def _read(self, response: Any, until: float) -> bytes:
        """The whole body. A server may send a byte now and then, and be late all the same."""
        parts, size = [], 0
        while part := response.read1(1 << 16):
            parts.append(part)
            size += len(part)
            if time.monotonic() > until:
                raise TimeoutError
            if size > LARGEST:
                raise _Failed(f"a response of more than {LARGEST >> 20} MiB", again=False)
        return b"".join(parts)

    def _refused(self, error: urllib.error.HTTPError, path: str) -> Exception:
        """What a status other than 200 means."""
        told = f"{error.code} {error.reason}{_told(error)}"
        if error.code in (401, 403):
            variable = self.config.key
            remedy = f"put the key into the variable {variable}" + (": the one in it was refused" if os.environ.get(variable) else "")
            return UserError(f"the judge does not let us in: {told}", where=self.where, remedy=remedy)
        if path != "/models" and (error.code in (404, 405) or 300 <= error.code < 400):
            remedy = "correct endpoint and name; the base mostly ends with /v1"
            return UserError(f"the judge is not there: {told}", where=f"{self.base}{path}", remedy=remedy)
        after = str(error.headers.get("Retry-After") or "")
        return _Failed(told, again=error.code in (408, 409, 425, 429) or error.code >= 500, after=float(after) if after.isdigit() else 0.0)


def _object(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except ValueError:
        raise _Failed(f"a response that is no JSON: {data[:60]!r}") from None
    if not isinstance(found, dict):
        raise _Failed(f"a response that is no JSON object: {data[:60]!r}")
    return found


def _told(error: urllib.error.HTTPError) -> str:
    """What the body of an error says, on one line."""
    try:
        found = json.loads(error.read(1 << 16))
        said = found["error"]["message"] if isinstance(found["error"], dict) else found["error"]
    except (ValueError, KeyError, TypeError, OSError, http.client.HTTPException):
        return ""
    flat = " ".join(str(said).split())
    return f" ({flat[:200]})"
