"""The application on a home of its own: without a socket, or as a real server in a thread."""

from __future__ import annotations

import http.client
import json
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.testclient import TestClient

from tests.service.scripted import ScriptedEngine
from tunesmith.service.app import make_app
from tunesmith.service.catalogue import StoreCatalogue
from tunesmith.service.context import Service
from tunesmith.service.server import Server, bind, make_server
from tunesmith.service.settings import Limits, ServeSettings
from tunesmith.service.store import open_store


def make_service(home: Path, engine: Any = None, *, limits: Limits | None = None, **settings: Any) -> Service:
    """A service on real SQLite; answers come from a scripted engine unless another is given."""
    chosen = ServeSettings(home=home, limits=limits or Limits(free_disk=0), **settings)
    store, blobs = open_store(chosen)
    return Service(chosen, store, blobs, StoreCatalogue(chosen, store), engine or ScriptedEngine())


def http_scope(method: str, path: str, headers: Mapping[str, str] | None = None) -> dict[str, Any]:
    """A request as a server hands it to an application."""
    given = {"host": "127.0.0.1", **(headers or {})}
    return {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in given.items()],
        "root_path": "",
        "scheme": "http",
        "http_version": "1.1",
    }


@contextmanager
def client_of(service: Service, **more: Any) -> Iterator[TestClient]:
    """A client of the service's application, which sees errors as a network client would."""
    with TestClient(make_app(service, **more), raise_server_exceptions=False) as client:
        yield client
    service.store.close()


class QuietBackground:
    """Nothing is done beside the requests; counts how often it was begun and ended."""

    begun = ended = 0

    def start(self) -> None:
        self.begun += 1

    async def stop(self) -> None:
        self.ended += 1


class QuietWorker:
    """A worker that has nothing to do."""

    alive = False

    def __init__(self) -> None:
        self.stopped_within: float | None = None

    def start(self) -> None:
        self.alive = True

    def stop(self, timeout: float) -> None:
        self.stopped_within, self.alive = timeout, False


@dataclass
class Served:
    """A real server in a thread of this process. `url` has no path."""

    url: str
    port: int
    server: Server
    thread: threading.Thread
    background: QuietBackground
    worker: QuietWorker

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, dict[str, str], Any]:
        """Status, headers and JSON of an answer, by a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        data = None if body is None else json.dumps(body)
        sent = {"content-type": "application/json", **{name.replace("_", "-"): v for name, v in headers.items()}}
        try:
            connection.request(method, path, data, sent)
            answer = connection.getresponse()
            told = answer.read()
        finally:
            connection.close()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, json.loads(told)


@contextmanager
def served(service: Service, prepare: Callable[[FastAPI], None] = lambda _: None) -> Iterator[Served]:
    """Serve on a free port until the end of the block; `prepare` may add routes."""
    background, worker = QuietBackground(), QuietWorker()
    server = make_server(service, background, worker)  # type: ignore[arg-type]
    prepare(server.app)
    listener = bind("127.0.0.1", 0)
    port = listener.getsockname()[1]
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    until = time.monotonic() + 20
    while not server.started and time.monotonic() < until:
        time.sleep(0.01)
    try:
        yield Served(f"http://127.0.0.1:{port}", port, server, thread, background, worker)
    finally:
        server.handle_exit(signal.SIGTERM, None)
        server.handle_exit(signal.SIGTERM, None)
        thread.join(20)
        listener.close()
    assert not thread.is_alive()
