"""A server from its settings: the parts, the start, and the end.

Told to end (SIGTERM, Ctrl-C), it takes nothing new and says so, lets answers go on for `drain_seconds`, has the worker
stop at its next step with everything kept, and goes; told twice, it goes at once.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn
from fastapi import FastAPI

from tunesmith.errors import RecipeError, ResourceError, TunesmithError
from tunesmith.service import connections, logs
from tunesmith.service.app import make_app
from tunesmith.service.catalogue import StoreCatalogue
from tunesmith.service.context import Service
from tunesmith.service.settings import ServeSettings, make_home
from tunesmith.service.settling import settle
from tunesmith.service.store import open_store
from tunesmith.service.store.interface import Store
from tunesmith.service.store.nouns import Key
from tunesmith.service.sweeping import regularly_swept

if TYPE_CHECKING:
    from tunesmith.inference.serving.types import ServingEngine
    from tunesmith.service.background import Background
    from tunesmith.service.worker.supervise import Supervisor

log = logging.getLogger("tunesmith.service")

KEEP_ALIVE_SECONDS = 75
"""Longer than clients keep idle connections, so that none is closed while a request is on its way."""
BACKLOG = 4096
"""Connections that wait to be taken; the system may allow fewer."""
CUT_SECONDS = 3
"""Between the end of the drain and the cutting of answers that still go on."""
WORKER_SECONDS = 60.0
"""How long a worker may take to reach its next step and keep it."""


def build_service(settings: ServeSettings) -> Service:
    """Open store and blobs and make the engine; no model is loaded yet.

    Raises `RecipeError` for a database that is none and where a key is required and there is none, `ResourceError`
    where something cannot be opened.
    """
    store, blobs = open_store(settings)
    try:
        check_keys(settings, store)
        return Service(settings, store, blobs, StoreCatalogue(settings, store), _engine(settings))
    except BaseException:
        store.close()
        raise


@dataclass
class Running:
    """What lives beside the application while a server runs; `warmed` is called when its first model is in memory."""

    service: Service
    supervisor: Supervisor | None
    background: Background
    warmed: Callable[[], None] = lambda: None
    ending: asyncio.Task[None] | None = field(default=None, init=False)

    def worker_check(self) -> str:
        """For `/readyz`."""
        if self.supervisor is None:
            return "none here"
        return "ok" if self.supervisor.alive else "down"

    @asynccontextmanager
    async def lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        """Start worker and background work, and end everything."""
        if self.supervisor is not None:
            self.supervisor.start()
        self.background.start()
        warming = asyncio.create_task(self._warm())
        try:
            async with regularly_swept(self.service):
                yield
        finally:
            warming.cancel()
            await self.begin_to_end()
            if self.service.engine is not None:
                await self.service.engine.drain(CUT_SECONDS)
            self.service.store.close()

    async def _warm(self) -> None:
        """Bring an embedded base that names stand for into memory, so that the first question does not wait for it.

        Others are loaded when they are asked: they are large, and a server may be there for its jobs alone.
        """
        aliases = self.service.settings.aliases
        name = next((name for name, base in aliases.items() if base.startswith("embedded:")), None)
        if self.service.engine is None or name is None:
            return
        try:
            await self.service.engine.load(self.service.catalogue.model_of(name).ref)
        except TunesmithError as error:
            log.warning("the base %s could not be loaded: %s", aliases[name], error)
        self.warmed()

    async def begin_to_end(self) -> None:
        """Have the worker stop at its next step, and background work where it is. Any number of calls do it once."""
        if self.ending is None:
            self.ending = asyncio.create_task(self._end())
        await asyncio.shield(self.ending)

    async def _end(self) -> None:
        await self.background.stop()
        if self.supervisor is not None:
            await asyncio.to_thread(self.supervisor.stop, WORKER_SECONDS)


class Server(uvicorn.Server):
    """Uvicorn that drains: a signal first ends the taking of new requests, and then the server."""

    def __init__(self, config: uvicorn.Config, app: FastAPI, running: Running) -> None:
        super().__init__(config)
        self.app, self.running = app, running
        self.drain_seconds = running.service.settings.drain_seconds
        self.end_at: float | None = None
        self.tasks: set[asyncio.Task[None]] = set()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal drains, the second ends, the third does not wait for anything."""
        if self.end_at is None:
            self.end_at = time.monotonic() + self.drain_seconds
            self.app.state.in_flight.draining = True
        elif not self.should_exit:
            self.should_exit = True
        else:
            self.force_exit = True

    async def on_tick(self, counter: int) -> bool:
        """Called by uvicorn ten times a second; True ends the loop."""
        if self.end_at is not None:
            if not self.tasks:
                log.info("shutting down: nothing new is taken, %d requests go on", self.app.state.in_flight.count)
                self.tasks.add(asyncio.create_task(self.running.begin_to_end()))
            if self.app.state.in_flight.count == 0 or time.monotonic() > self.end_at:
                return True
        return await super().on_tick(counter)


def make_server(service: Service, background: Background, supervisor: Supervisor | None) -> Server:
    """A server of these parts, which starts and ends them."""
    settings = service.settings
    running = Running(service, supervisor, background)
    app = make_app(service, lifespan=running.lifespan, worker_check=running.worker_check, only_local=settings.loopback)
    config = uvicorn.Config(
        app,
        http=connections.protocol(settings.limits.connections),
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        lifespan="on",
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=CUT_SECONDS,
        backlog=BACKLOG,
    )
    return Server(config, app, running)


def serve(settings: ServeSettings, started: Callable[[str], None] = lambda _: None) -> None:
    """Serve until told to end. `started` is called with the address once the port is ours and all parts are made.

    Raises `RecipeError` where a key is required and there is none, `ResourceError` where the port is taken.
    """
    listener = bind(settings.host, settings.port)
    try:
        connections.make_room(settings.limits.connections)
        make_home(settings.home)
        logs.configure(settings.log)
        service = build_service(settings)
        server = make_server(service, _background(service), _supervisor(settings))
        server.running.warmed = settle
        settle()
        started(address(settings.host, listener.getsockname()[1]))
        try:
            server.run(sockets=[listener])
        except SystemExit as error:
            # Uvicorn's way to say that the lifespan failed; why is in the log.
            raise ResourceError(
                "the server could not start its parts; the log says why", where=str(settings.log or "")
            ) from error
    finally:
        listener.close()


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens at an address; 0 is any free port. Raises `ResourceError` where it is taken or not ours."""
    try:
        family, kind, number, _, where = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise ResourceError(f"{host!r} is no address of this machine", where="--host") from error
    listener = socket.socket(family, kind, number)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(where)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise ResourceError(
            f"cannot listen at {host}, port {port}: {(error.strerror or str(error)).lower()}",
            where="--host, --port",
            fix="another server may run there: end it, or choose another --port (0 is any free one)",
        ) from error
    return listener


def address(host: str, port: int) -> str:
    """The address that a client on this machine uses."""
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "": "127.0.0.1"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{shown}:{port}"


def check_keys(settings: ServeSettings, store: Store) -> None:
    """Raises `RecipeError` where every request must have a key and there is none that is valid."""
    if not settings.keys_required:
        return
    now = int(time.time())
    if any(one.revoked_at is None and (one.expires_at or now + 1) > now for one in store.all(Key)):
        return
    wider = "it was told to ask for keys" if settings.loopback else f"{settings.host} can be reached from elsewhere"
    raise RecipeError(
        f"there is no key, and a server needs one where {wider}",
        where="--host" if not settings.loopback else "--require-key",
        fix=f"make one with `tunesmith keys create NAME --home {settings.home}`, or "
        + ("leave out require_key" if settings.loopback else "serve on 127.0.0.1"),
    )


def _engine(settings: ServeSettings) -> ServingEngine:
    from tunesmith.inference.serving.engines import make_engine

    return make_engine(
        adapters_resident=settings.adapters_resident,
        batch_rows=settings.limits.batch_rows,
        waiting=settings.limits.waiting_requests,
    )


def _supervisor(settings: ServeSettings) -> Supervisor | None:
    if not settings.worker:
        return None
    from tunesmith.service.worker.supervise import Supervisor

    return Supervisor(settings)


def _background(service: Service) -> Background:
    from tunesmith.service.background import Background

    return Background(service)
