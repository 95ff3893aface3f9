"""A server's life: bind, serve, drain on the first signal, end on the second. Knows uvicorn and signals; no route."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import signal
import socket
import threading
from collections.abc import Callable, Iterator

import uvicorn

from cairn.errors import UserError
from cairn.serve.app import Server

GRACE = 5.0
"""Seconds after the drain in which cut answers tell their callers so."""


def bind(host: str, port: int) -> socket.socket:
    """A socket that will listen there. Bound before the model loads: an address in use shows itself at once.

    Raises:
        UserError: the address cannot be had.
    """
    where = f"{host}:{port}"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, kind, protocol)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
    except (OSError, OverflowError) as error:
        raise UserError(f"cannot listen: {error}", where=where, remedy="give another --port or --host; 0 takes any free port") from None
    return found


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens there."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def local_names(host: str) -> frozenset[str]:
    """What a caller on this machine may call the server."""
    return frozenset({"localhost", "127.0.0.1", "[::1]", host.lower(), f"[{host.lower()}]"})


class _Uvicorn(uvicorn.Server):
    """Uvicorn without its handlers of signals: they end the process before the engine is told."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def _serve(server: Server, listening: socket.socket, ready: Callable[[], None]) -> None:
    limits = server.limits
    config = uvicorn.Config(
        server.app(),
        log_level="error",
        access_log=False,
        server_header=False,
        ws="none",
        lifespan="on",
        timeout_keep_alive=30,
        timeout_graceful_shutdown=int(limits.drain_seconds + GRACE),
    )
    inner = _Uvicorn(config)
    loop = asyncio.get_running_loop()

    def stop() -> None:
        if server.ending:  # asked twice: nothing more is waited for
            inner.force_exit = True
            return
        server.ending = True
        inner.should_exit = True
        # Answers that are still running then are cut by the engine, so that their callers hear of it.
        loop.call_later(limits.drain_seconds, lambda: threading.Thread(target=server.worker.stop, args=(False,), daemon=True).start())

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    try:
        task = asyncio.ensure_future(inner.serve([listening]))
        while not inner.started and not task.done():
            await asyncio.sleep(0.01)
        if inner.started:
            ready()
        await task
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


def serve(server: Server, listening: socket.socket, ready: Callable[[], None]) -> None:
    """Serve until a signal asks for the end, and the running answers are out.

    Args:
        server: what to serve.
        listening: from `bind`.
        ready: called once requests are taken.
    """
    asyncio.run(_serve(server, listening, ready))
