"""A service in this process: a real store, a scripted engine, and an application on a free port."""

from __future__ import annotations

import atexit
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import uvicorn

from tests.service.scripted import Script, ScriptedEngine
from tunesmith.service.app import make_app
from tunesmith.service.catalogue import StoreCatalogue
from tunesmith.service.context import Service
from tunesmith.service.settings import ServeSettings
from tunesmith.service.store import open_store
from tunesmith.service.store.nouns import Model

TUNED = "gpt-4o-mini-2024-07-18.ft-0e208cf33a6a466994aff31a08aba678"


@cache
def _made_once() -> Path:
    """A store without anything in it: making one takes longer than most tests."""
    home = Path(tempfile.mkdtemp(prefix="tunesmith-test-"))
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    open_store(ServeSettings(home=home))[0].close()
    return home / "store.sqlite"


def lay_store(home: Path) -> None:
    """Put a store without anything in it into a home that has none."""
    home.mkdir(parents=True, exist_ok=True)
    if not (home / "store.sqlite").exists():
        shutil.copyfile(_made_once(), home / "store.sqlite")


def make_service(home: Path, script: Script = "Blue whale. Quite a big fish.", **changes: Any) -> Service:
    settings = replace(ServeSettings(home=home), **changes)
    lay_store(home)
    store, blobs = open_store(settings)
    return Service(settings, store, blobs, StoreCatalogue(settings, store), ScriptedEngine(script))


def tuned(service: Service, name: str = TUNED, *, base: str = "embedded:base", **fields: Any) -> Model:
    """A tuned model with an adapter's folder, kept."""
    adapter = f"models/{abs(hash(name))}"
    folder = service.settings.home / adapter
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    made = Model(name, 5, "tunesmith", fields.pop("kind", "tuned"), base, adapter, **fields)
    service.store.add(made)
    return made


@contextmanager
def served(service: Service) -> Iterator[str]:
    """The address of a server that answers in a thread."""
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    # Uvicorn's own settings of logs would stay behind for every later test.
    # A stream that a test left open shall not hold up the end of the tests.
    config = uvicorn.Config(
        make_app(service), log_config=None, access_log=False, lifespan="on", timeout_graceful_shutdown=2
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    until = time.monotonic() + 20
    while not server.started and time.monotonic() < until:
        time.sleep(0.01)
    assert server.started
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)
        listening.close()
