"""A home folder with files and jobs in it, and a worker that is started when a test wants one."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tunesmith.service.catalogue import StoreCatalogue
from tunesmith.service.context import Service
from tunesmith.service.ids import Flavour
from tunesmith.service.jobs.operations import create_job
from tunesmith.service.jobs.request import JobRequest
from tunesmith.service.settings import OPENAI_NAMES, Limits, ServeSettings
from tunesmith.service.store import open_store
from tunesmith.service.store.leases import job_lease
from tunesmith.service.store.nouns import Event, File, Job
from tunesmith.service.worker.desk import Desk
from tunesmith.service.worker.supervise import Supervisor

MODEL = "gpt-4o-mini-2024-07-18"
COLOURS = ("red", "green", "blue", "black", "white", "brown", "pink", "grey", "gold", "teal")


def rows(first: int, count: int) -> bytes:
    """Chat rows, no two alike."""
    return b"".join(_row(i) for i in range(first, first + count))


def _row(number: int) -> bytes:
    colour = COLOURS[number % len(COLOURS)]
    asked = f"Item {number}: what colour is the {colour} thing number {number * 7}?"
    turns = [("system", "You name the colour."), ("user", asked), ("assistant", colour)]
    return json.dumps({"messages": [{"role": r, "content": c} for r, c in turns]}).encode() + b"\n"


@dataclass(frozen=True)
class Bench:
    """A service without HTTP and without engine."""

    service: Service

    @classmethod
    def at(cls, home: Path, **settings: Any) -> Bench:
        """In a folder; every model's name stands for the smallest embedded base."""
        usual = {"aliases": dict.fromkeys(OPENAI_NAMES, "embedded:tiny"), "evidence": False}
        made = ServeSettings(home=home, limits=Limits(free_disk=0), **{**usual, **settings})
        store, blobs = open_store(made)
        return cls(Service(made, store, blobs, StoreCatalogue(made, store), None))

    @property
    def settings(self) -> ServeSettings:
        return self.service.settings

    @property
    def store(self) -> Any:
        return self.service.store

    def file(self, data: bytes, purpose: str = "fine-tune") -> str:
        """A file as if it had been uploaded, without its checks."""
        id = f"file-{self.store.count(File)}"
        blob = self.service.blobs.add(data)
        self.store.add(File(id, int(time.time()), f"{id}.jsonl", purpose, len(data), blob))
        return id

    def create(
        self, training: bytes, validation: bytes | None = None, *, flavour: Flavour = "openai", **fields: Any
    ) -> str:
        """A job; returns its id."""
        files = {"training_file": self.file(training)}
        if validation is not None:
            files["validation_file"] = self.file(validation)
        request = JobRequest.model_validate({"model": MODEL, "seed": 1, **files, **fields})
        return create_job(self.service, request, flavour).id

    def job(self, id: str) -> Job:
        job = self.store.get(Job, id)
        assert job is not None
        return job

    def events(self, id: str) -> list[Event]:
        """Oldest first."""
        return list(self.store.all(Event, {"job_id": id}))

    def steps(self, id: str) -> list[int]:
        """The steps that were told, in order."""
        return [int((e.data or {})["step"]) for e in self.events(id) if e.type == "metrics"]

    def until(self, done: Callable[[], bool], seconds: float = 90.0) -> None:
        """Wait for something."""
        end = time.monotonic() + seconds
        while not done():
            assert time.monotonic() < end, "it did not happen in time"
            time.sleep(0.03)

    def until_status(self, id: str, *wanted: str, seconds: float = 90.0) -> Job:
        """The job once it has one of these; other final states fail at once."""

        def there() -> bool:
            job = self.job(id)
            assert job.status in wanted or job.status not in ("succeeded", "failed", "cancelled"), (job, self.log(id))
            return job.status in wanted

        self.until(there, seconds)
        return self.job(id)

    def log(self, id: str) -> str:
        """What the job's processes printed."""
        path = self.settings.home / "logs" / f"{id}.log"
        return path.read_text() if path.is_file() else ""

    @contextmanager
    def working(self, **settings: Any) -> Iterator[Supervisor]:
        """A worker in this process, which hands back what it has at the end."""
        supervisor = Supervisor(replace(self.settings, **settings))
        supervisor.start()
        try:
            yield supervisor
        finally:
            supervisor.stop(30)
            assert not supervisor.alive


def taken_up(bench: Bench, id: str) -> Desk:
    """A job that this process works on."""
    lease = bench.store.take_lease(job_lease(id), "me", 600)
    assert lease is not None
    return Desk(bench.settings, bench.store, bench.service.blobs, lease, id, "openai")


def processes_of(id: str) -> list[int]:
    """Processes that work on a job, by their command lines; those that have ended and wait for a parent have none."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and id.encode() in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
    return found
