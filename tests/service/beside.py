"""A server in this process with its work in the background: real store, real HTTP, the official client."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import uvicorn
from fastapi import FastAPI

from tests.service.apps import make_service
from tests.service.scripted import ScriptedEngine
from tunesmith.inference.serving.types import Ask
from tunesmith.service.app import make_app
from tunesmith.service.background import Background
from tunesmith.service.context import Service


@dataclass(frozen=True)
class Beside:
    """`url` ends with `/v1`."""

    service: Service
    engine: ScriptedEngine
    client: openai.OpenAI
    url: str

    def wait(self, look: Callable[[], Any], ends: tuple[str, ...], seconds: float = 20) -> Any:
        """Look until the status is one of `ends`."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            found = look()
            if found.status in ends:
                return found
            time.sleep(0.02)
        raise AssertionError(f"still {found.status} after {seconds} s: {found}")


@contextmanager
def served_beside(
    home: Path, engine: Any, *, working: bool = True, service: Service | None = None, **settings: Any
) -> Iterator[Beside]:
    """Serve until the end of the block. `working`: with the background's work."""
    made = service or make_service(home, engine, **settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        background = Background(made)
        if working:
            background.start()
        try:
            yield
        finally:
            await background.stop()

    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    config = uvicorn.Config(
        make_app(made, lifespan=lifespan), log_config=None, lifespan="on", timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    until = time.monotonic() + 20
    while not server.started and time.monotonic() < until:
        time.sleep(0.01)
    assert server.started
    url = f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
    try:
        with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
            yield Beside(made, engine, client, url)
    finally:
        server.should_exit = True
        thread.join(20)
        listening.close()


def last_text(ask: Ask) -> str:
    """What the last message of a request says."""
    message: Any = ask.prompt[-1]
    return str(message.content)
