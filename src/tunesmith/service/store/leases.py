"""Who works on what: leases with a fencing token, and the job that a worker takes next."""

from __future__ import annotations

import time
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from tunesmith.service.store.nouns import Job, Lease
from tunesmith.service.store.tables import kind_of

_LEASES = kind_of(Lease)
_JOBS = kind_of(Job)


def job_lease(job_id: str) -> str:
    """Name of the lease on a job."""
    return f"job:{job_id}"


def now(connection: sa.Connection) -> float:
    """Seconds since 1970: of the server where there is one, since workers' clocks may differ, else of this machine."""
    if connection.dialect.name == "sqlite":
        return time.time()
    return float(connection.execute(sa.text("SELECT extract(epoch FROM clock_timestamp())")).scalar_one())


def take(
    connection: sa.Connection, name: str, holder: str, seconds: float, moment: float | None = None
) -> Lease | None:
    """A lease that nobody else holds (at `moment`, else now). The token grows whenever it is taken anew, also by the
    same holder.
    """
    moment = now(connection) if moment is None else moment
    table = _LEASES.table.c
    new = Lease(id=name, created_at=int(moment), holder=holder, until=moment + seconds, token=1)
    insert = _insert(connection).values(**_LEASES.row(new))
    lapsed: sa.ColumnElement[bool] = table.until <= moment
    statement = insert.on_conflict_do_update(
        index_elements=["id"],
        set_={
            "holder": holder,
            "until": moment + seconds,
            "created_at": sa.case((lapsed, int(moment)), else_=table.created_at),
            "token": sa.case((lapsed, table.token + 1), else_=table.token),
        },
        where=sa.or_(lapsed, table.holder == holder),
    ).returning(*_LEASES.columns)
    row = connection.execute(statement).first()
    lease: Lease | None = _LEASES.read(row) if row is not None else None
    return lease


def renew(connection: sa.Connection, lease: Lease, seconds: float) -> Lease | None:
    """Prolonged from now, also where its time was over and nobody has taken it meanwhile."""
    statement = (
        sa.update(_LEASES.table)
        .where(*_same(lease), _LEASES.table.c.until > 0)
        .values(until=now(connection) + seconds)
        .returning(*_LEASES.columns)
    )
    row = connection.execute(statement).first()
    renewed: Lease | None = _LEASES.read(row) if row is not None else None
    return renewed


def release(connection: sa.Connection, lease: Lease) -> None:
    """End it now. The row stays, so that the next holder's token is a larger one."""
    connection.execute(sa.update(_LEASES.table).where(*_same(lease)).values(until=0))


def claim(connection: sa.Connection, holder: str, seconds: float, evidence: bool) -> tuple[Job, Lease] | None:
    """The oldest job that waits (`Store.claim_job` says which), and a lease on it."""
    jobs, leases = _JOBS.table, _LEASES.table
    # One moment for all of it: a clock that is set back in between would make a free job one that cannot be taken.
    moment = now(connection)
    waits: sa.ColumnElement[bool] = jobs.c.status.in_(("validating_files", "queued", "running"))
    if evidence:
        waits = sa.and_(jobs.c.status == "succeeded", jobs.c.evidence.in_(("pending", "running")))
    living = (
        sa.select(leases.c.id).where(leases.c.id == sa.literal("job:") + jobs.c.id, leases.c.until > moment).exists()
    )
    # Another worker's transaction may hold the row: on PostgreSQL it is stepped over; SQLite has one writer at a time.
    oldest = sa.select(*_JOBS.columns).where(waits, ~living).order_by(*_JOBS.order).limit(1)
    oldest = oldest.with_for_update(skip_locked=True)
    while (row := connection.execute(oldest).first()) is not None:
        job: Job = _JOBS.read(row)
        lease = take(connection, job_lease(job.id), holder, seconds, moment)
        if lease is not None:
            return job, lease
        # It was claimed between reading and locking; a statement repeated sees that.
    return None


def _same(lease: Lease) -> tuple[sa.ColumnElement[bool], ...]:
    table = _LEASES.table.c
    return table.id == lease.id, table.holder == lease.holder, table.token == lease.token


def _insert(connection: sa.Connection) -> Any:
    return (sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert)(_LEASES.table)
