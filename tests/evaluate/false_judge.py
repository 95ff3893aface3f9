"""A server that speaks just enough of OpenAI's API to be asked as a judge, and behaves as badly as it is told."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = Callable[[str, int], "str | int | bytes | None"]
"""(the last message, the number of the request) → a reply; a status; raw bytes of a body; or None: nothing for ever."""


class Judge:
    """What the server was asked, and where it is."""

    def __init__(self, reply: Reply) -> None:
        self.reply = reply
        self.asked: list[list[dict[str, Any]]] = []
        self.keys: list[str | None] = []
        self.models: Any = {"data": [{"id": "wise"}]}
        self.address = ""
        self.over = threading.Event()


@contextmanager
def judging(reply: Reply) -> Iterator[Judge]:
    """A server as long as the block lasts."""
    judge = Judge(reply)
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: Any) -> None:
            pass

        def send(self, status: int, body: bytes) -> None:
            self.send_response(status)
            if 300 <= status < 400:
                self.send_header("Location", "/v1/models")
            if status == 429:
                self.send_header("Retry-After", "1")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            status = judge.models if isinstance(judge.models, int) else 200
            self.send(status, json.dumps(judge.models).encode())

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                judge.asked.append(body["messages"])
                judge.keys.append(self.headers.get("Authorization"))
                number = len(judge.asked)
            found = judge.reply(body["messages"][-1]["content"], number)
            if found is None:
                judge.over.wait(30)
            elif isinstance(found, int):
                self.send(found, json.dumps({"error": {"message": f"told to say {found}"}}).encode())
            elif isinstance(found, bytes):
                self.send(200, found)
            else:
                self.send(200, json.dumps({"choices": [{"message": {"role": "assistant", "content": found}}]}).encode())

        def handle(self) -> None:
            with suppress(OSError):  # whoever asked went away
                super().handle()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    judge.address = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield judge
    finally:
        judge.over.set()
        server.shutdown()
        server.server_close()
