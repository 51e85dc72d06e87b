"""What a store does. Every call is one transaction; a call that returned is kept, whatever dies afterwards."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, Protocol, TypeVar

from tunesmith.service.store.nouns import Event, Job, JobStatus, Lease

N = TypeVar("N")
"""A record of `nouns`."""


@dataclass(frozen=True, slots=True)
class Page:
    """A page that is asked for. `after` is the id of the last object of the page before it."""

    limit: int = 20
    after: str | None = None
    order: Literal["asc", "desc"] = "desc"


@dataclass(frozen=True, slots=True)
class Found(Generic[N]):
    """A page that was found: newest first unless asked otherwise; equal times are kept in the order of adding."""

    items: tuple[N, ...]
    has_more: bool


@dataclass(frozen=True, slots=True)
class AtMost:
    """A value in `where`: the field has one, and it is not larger."""

    value: float


class Store(Protocol):
    """Records by kind (a class of `nouns`) and id.

    `where` maps fields to values: equal to it, one of it where it is a list, not larger where it is `AtMost`.
    """

    def add(self, record: Any) -> None:
        """Keep a new record. Raises `ValueError` where the id is taken."""
        ...

    def add_all(self, records: Sequence[Any]) -> None:
        """Keep several, of any kinds, or none of them."""
        ...

    def get(self, kind: type[N], id: str) -> N | None: ...

    def page(
        self,
        kind: type[N],
        page: Page,
        where: Mapping[str, Any] | None = None,
        metadata: Mapping[str, str] | None = None,
        without: Sequence[str] = (),
    ) -> Found[N]:
        """Records that `where` allows and whose metadata hold all of `metadata`.

        The fields `without` are left unread and are None: a long list of large ones is quick without them.

        Raises `UnknownCursorError` where `page.after` is no record of this kind that `where` allows.
        """
        ...

    def all(self, kind: type[N], where: Mapping[str, Any] | None = None) -> tuple[N, ...]:
        """Every one, oldest first."""
        ...

    def count(self, kind: type[Any], where: Mapping[str, Any] | None = None) -> int: ...

    def update(self, kind: type[N], id: str, **changes: Any) -> N | None:
        """The record with these fields changed; None where there is none."""
        ...

    def remove(self, kind: type[Any], id: str) -> bool: ...

    def remove_all(self, kind: type[Any], where: Mapping[str, Any]) -> int:
        """Remove what `where` allows, which cannot be paged any more afterwards; returns how many."""
        ...

    def move_job(self, id: str, to: JobStatus, *, only_from: Sequence[JobStatus], **changes: Any) -> Job | None:
        """Change a job's status, and other fields with it, if it is in one of `only_from`; else None."""
        ...

    def move(self, kind: type[N], id: str, to: str, *, only_from: Sequence[str], **changes: Any) -> N | None:
        """Change the status of a record, and other fields with it, if it is in one of `only_from`; else None."""
        ...

    def append_event(self, event: Event) -> bool:
        """Keep an event; False where this job has one of that `seq` already (it is then left as it is)."""
        ...

    def next_seq(self, job_id: str) -> int:
        """One more than the job's last event."""
        ...

    def tell(self, job_id: str, message: str, **fields: Any) -> Event:
        """Append an event behind the job's last one: `level`, `type`, `data`, `created_at` as in `Event`."""
        ...

    def claim_job(self, holder: str, seconds: float, *, evidence: bool = False) -> tuple[Job, Lease] | None:
        """The oldest job that waits for a worker, with a lease on it, or None.

        Waiting are queued jobs, and those validating or running, all without a living lease (the worker has died, or
        none was there yet). With `evidence`, waiting are instead succeeded ones whose evidence is `pending` or
        `running`, without a living lease. The lease is named `job:<id>` in both cases.
        """
        ...

    def take_lease(self, name: str, holder: str, seconds: float) -> Lease | None:
        """A lease on a name that nobody else holds; `token` grows with every change of holder."""
        ...

    def renew(self, lease: Lease, seconds: float) -> Lease | None:
        """The lease prolonged; None where it was lost meanwhile."""
        ...

    def release(self, lease: Lease) -> None: ...

    def work(
        self,
        lease: Lease,
        job_id: str,
        *,
        add: Sequence[Any] = (),
        events: Sequence[Event] = (),
        only_from: Sequence[JobStatus] | None = None,
        **changes: Any,
    ) -> Job | None:
        """What a worker has to write at one moment: records, events, fields of the job. All of it is kept, or nothing.

        None, and nothing kept, where the job's status is not in `only_from`. Events are numbered here behind the job's
        last one; those whose id is there already are left out, so that telling them again does no harm. Raises
        `LostLeaseError` where the lease is another's by now.
        """
        ...

    def close(self) -> None: ...


class LostLeaseError(RuntimeError):
    """The lease was lost: somebody else works on this, and whoever had it must stop."""


class UnknownCursorError(LookupError):
    """`after` names nothing in this list."""


class Blobs(Protocol):
    """Bytes by their SHA-256, in files under `home/blobs`; a name given by a user is never part of a path."""

    def writer(self) -> BlobWriter:
        """Raises `ApiError` (`exceeded_quota`), as `write` does, where there is no room for more."""
        ...

    def path(self, sha: str) -> Path:
        """The file that holds them. Raises `KeyError` where there is none."""
        ...

    def add(self, data: bytes) -> str:
        """Keep these bytes; write the record that names them within ten minutes."""
        ...

    def remove(self, sha: str, unused: Callable[[], bool]) -> bool:
        """Remove a blob if `unused` says so of the records, and nobody has just written it."""
        ...

    def remove_unused(self, used: Callable[[str], bool]) -> int:
        """Remove every blob that is not `used`; returns how many."""
        ...


class BlobWriter(Protocol):
    """Writes a temporary file and counts; nothing is there until `finish`."""

    size: int

    def write(self, data: bytes) -> None: ...

    def written(self) -> Path:
        """The temporary file as it is by now."""
        ...

    def finish(self, *, hold: bool = False) -> str:
        """Flush to the disk and name the file; returns the SHA-256. With `hold` it is kept until `release`."""
        ...

    def release(self) -> None: ...

    def abandon(self) -> None: ...
