"""What a worker writes: everything of one moment together, and only while the job is still its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from tunesmith.service.store.interface import LostLeaseError
from tunesmith.service.store.nouns import Event, Job, Lease
from tunesmith.service.store.tables import kind_of

_EVENTS, _JOBS, _LEASES = kind_of(Event), kind_of(Job), kind_of(Lease)


def work(
    connection: sa.Connection,
    lease: Lease,
    job_id: str,
    add: Sequence[Any],
    events: Sequence[Event],
    only_from: Sequence[str] | None,
    changes: Mapping[str, Any],
) -> Job | None:
    """`Store.work` within a transaction; the caller undoes it where None is returned or something raised."""
    _hold(connection, lease)
    job = _change(connection, job_id, only_from, changes)
    if job is None:
        return None
    for record in add:
        kind = kind_of(type(record))
        connection.execute(sa.insert(kind.table).values(**kind.row(record)))
    if events:
        _append(connection, job_id, events)
    return job


def _hold(connection: sa.Connection, lease: Lease) -> None:
    """Raise `LostLeaseError` unless the lease is what it was; on PostgreSQL nobody can take it before the commit."""
    table = _LEASES.table.c
    held = sa.select(table.until).where(
        table.id == lease.id, table.holder == lease.holder, table.token == lease.token, table.until > 0
    )
    if connection.execute(held.with_for_update()).first() is None:
        raise LostLeaseError(lease.id)


def _change(
    connection: sa.Connection, job_id: str, only_from: Sequence[str] | None, changes: Mapping[str, Any]
) -> Job | None:
    table = _JOBS.table
    allowed = [table.c.id == job_id]
    if only_from is not None:
        allowed.append(table.c.status.in_(tuple(only_from)))
    if changes:
        values = {name: _JOBS.value(name, value) for name, value in changes.items()}
        row = connection.execute(sa.update(table).where(*allowed).values(**values).returning(*_JOBS.columns)).first()
    else:
        row = connection.execute(sa.select(*_JOBS.columns).where(*allowed).with_for_update()).first()
    job: Job | None = _JOBS.read(row) if row is not None else None
    return job


def _append(connection: sa.Connection, job_id: str, events: Sequence[Event]) -> None:
    """Behind the job's last event, except those whose id is there already."""
    table = _EVENTS.table
    if connection.dialect.name != "sqlite":  # the same turns as `Store.tell` takes
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(sa.func.hashtextextended(job_id, 0))))
    last = connection.execute(sa.select(sa.func.max(table.c.seq)).where(table.c.job_id == job_id)).scalar() or 0
    insert = (sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert)(table)
    for event in events:
        row = {**_EVENTS.row(event), "seq": last + 1}
        statement = insert.values(**row).on_conflict_do_nothing(index_elements=["id"]).returning(table.c.id)
        last += connection.execute(statement).first() is not None
