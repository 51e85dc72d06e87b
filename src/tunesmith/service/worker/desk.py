"""One job on a worker's table: what is read and written of it, all under its lease."""

from __future__ import annotations

import hashlib
import logging
import string
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from sqlalchemy.exc import OperationalError

from tunesmith.service.ids import Flavour, azure_id, new_id
from tunesmith.service.settings import ServeSettings
from tunesmith.service.store.interface import Blobs, LostLeaseError, Store
from tunesmith.service.store.nouns import Event, File, Job, JobStatus, Lease

if TYPE_CHECKING:
    from tunesmith.service.jobs.events import Draft

_LOG = logging.getLogger("tunesmith.worker.process")

STORE_SECONDS, RETRY_SECONDS = 120.0, 1.0
"""So long a process goes without its store, and so often it looks whether it is there again."""
T = TypeVar("T")
Reason = Literal["cancel", "pause", "drain", "lost"]
_ALPHABET = string.ascii_letters + string.digits


@dataclass(frozen=True, slots=True)
class Desk:
    """Where one job is worked on. Every write is kept only while the lease is held.

    `patience`: seconds in which a store that cannot be reached is asked again.
    """

    settings: ServeSettings
    store: Store
    blobs: Blobs
    lease: Lease
    job_id: str
    flavour: Flavour
    patience: float = STORE_SECONDS

    @property
    def inputs(self) -> Path:
        """Folder of the job's files under names that say what they are."""
        return self.settings.home / "inputs" / self.job_id

    @property
    def run(self) -> Path:
        """Folder of the job's run."""
        return self.settings.home / "runs" / self.job_id

    @property
    def twin(self) -> Path:
        """Folder of the run that measures a job without validation file."""
        return self.settings.home / "runs" / f"{self.job_id}-evidence"

    def job(self) -> Job:
        """The job as it is now. Raises `LostLeaseError` where it was deleted."""
        job = _patiently(lambda: self.store.get(Job, self.job_id), self.patience)
        if job is None:
            raise LostLeaseError(self.job_id)
        return job

    def write(
        self,
        *,
        add: Sequence[Any] = (),
        events: Sequence[Event] = (),
        only_from: Sequence[JobStatus] | None = None,
        **changes: Any,
    ) -> Job:
        """All of it in one transaction. Raises `LostLeaseError` where the job is not ours any more, or has moved on."""
        job = _patiently(
            lambda: self.store.work(self.lease, self.job_id, add=add, events=events, only_from=only_from, **changes),
            self.patience,
        )
        if job is None:
            raise LostLeaseError(self.job_id)
        return job

    def event(self, draft: Draft, name: str, at: int | None = None) -> Event:
        """A draft as an event of this job; `name` says which one it is, so that it is never kept twice."""
        return Event(
            id=_event_id(self.job_id, name, self.flavour == "azure"),
            created_at=int(time.time()) if at is None else at,
            job_id=self.job_id,
            seq=0,
            message=draft.message,
            **draft.fields(),
        )

    def result_file(self, filename: str, data: bytes | Path) -> File:
        """Keep bytes, or a file's, as a result of the job; the record is still to be added."""
        writer = self.blobs.writer()
        try:
            if isinstance(data, bytes):
                writer.write(data)
            else:
                with data.open("rb") as source:
                    while chunk := source.read(1 << 20):
                        writer.write(chunk)
            size, blob = writer.size, writer.finish()
        finally:
            writer.abandon()
        return File(
            id=azure_id("file") if self.flavour == "azure" else new_id("file"),
            created_at=int(time.time()),
            filename=filename,
            purpose="fine-tune-results",
            bytes=size,
            blob=blob,
            flavour=self.flavour,
        )


def _patiently(ask: Callable[[], T], seconds: float) -> T:
    """What the store says, also where it cannot be reached for a while: hours of training are not worth less than that.

    Asking again is safe. A write that was kept although its answer was lost finds the job moved on, its events there
    already, or changes nothing.
    """
    end = time.monotonic() + seconds
    while True:
        try:
            return ask()
        except OperationalError:
            if time.monotonic() > end:
                raise
            _LOG.warning("the store cannot be reached; trying again", exc_info=True)
            time.sleep(RETRY_SECONDS)


def _event_id(job_id: str, name: str, azure: bool) -> str:
    digest = hashlib.sha256(f"{job_id}/{name}".encode()).digest()
    if azure:
        return f"ftevent-{digest.hex()[:32]}"
    return "ftevent-" + "".join(_ALPHABET[byte % len(_ALPHABET)] for byte in digest[:24])
