"""The store on SQLite or PostgreSQL: plain statements over the tables, each call one transaction."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from tunesmith.service.ids import azure_id, new_id
from tunesmith.service.store import cursors, leases, working
from tunesmith.service.store.engine import Database
from tunesmith.service.store.interface import AtMost, Found, Page
from tunesmith.service.store.nouns import Event, Job, JobStatus, Lease
from tunesmith.service.store.tables import Kind, Words, kind_of

N = TypeVar("N")


class SqlStore:
    """Records in tables; see `interface.Store` for what each call promises."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def add(self, record: Any) -> None:
        self.add_all([record])

    def add_all(self, records: Sequence[Any]) -> None:
        with _told_of(records), self.database.writing() as connection:
            for record in records:
                kind = kind_of(type(record))
                connection.execute(sa.insert(kind.table).values(**kind.row(record)))

    def get(self, kind: type[N], id: str) -> N | None:
        how = kind_of(kind)
        with self.database.reading() as connection:
            row = connection.execute(sa.select(*how.columns).where(how.table.c.id == id)).first()
        return how.read(row) if row is not None else None

    def page(
        self,
        kind: type[N],
        page: Page,
        where: Mapping[str, Any] | None = None,
        metadata: Mapping[str, str] | None = None,
        without: Sequence[str] = (),
    ) -> Found[N]:
        how = kind_of(kind)
        narrowed = _narrowed(how, where)
        columns = [sa.null() if column.name in without else column for column in how.columns]
        key, upwards = sa.tuple_(*how.order), page.order == "asc"
        with self.database.reading() as connection:
            statement = sa.select(*columns).where(*narrowed, *_having(how, metadata, connection))
            if page.after is not None:
                cursor = cursors.found(connection, how, page.after, narrowed)
                statement = statement.where(key > cursor if upwards else key < cursor)
            statement = statement.order_by(*(one.asc() if upwards else one.desc() for one in how.order))
            rows = connection.execute(statement.limit(page.limit + 1)).all()
        return Found(tuple(how.read(row) for row in rows[: page.limit]), len(rows) > page.limit)

    def all(self, kind: type[N], where: Mapping[str, Any] | None = None) -> tuple[N, ...]:
        how = kind_of(kind)
        statement = sa.select(*how.columns).where(*_narrowed(how, where)).order_by(*how.order)
        with self.database.reading() as connection:
            rows = connection.execute(statement).all()
        return tuple(how.read(row) for row in rows)

    def count(self, kind: type[Any], where: Mapping[str, Any] | None = None) -> int:
        how = kind_of(kind)
        statement = sa.select(sa.func.count()).select_from(how.table).where(*_narrowed(how, where))
        with self.database.reading() as connection:
            return int(connection.execute(statement).scalar_one())

    def update(self, kind: type[N], id: str, **changes: Any) -> N | None:
        how = kind_of(kind)
        changed: N | None = self._change(how, (how.table.c.id == id,), changes)
        return changed

    def remove(self, kind: type[Any], id: str) -> bool:
        how = kind_of(kind)
        with self.database.writing() as connection:
            statement = sa.delete(how.table).where(how.table.c.id == id).returning(*how.order)
            stood = connection.execute(statement).first()
            if stood is not None:
                cursors.remember(connection, how, id, stood)
        return stood is not None

    def remove_all(self, kind: type[Any], where: Mapping[str, Any]) -> int:
        how = kind_of(kind)
        with self.database.writing() as connection:
            return connection.execute(sa.delete(how.table).where(*_narrowed(how, where))).rowcount

    def move_job(self, id: str, to: JobStatus, *, only_from: Sequence[JobStatus], **changes: Any) -> Job | None:
        how = kind_of(Job)
        allowed = how.table.c.id == id, how.table.c.status.in_(tuple(only_from))
        job: Job | None = self._change(how, allowed, {**changes, "status": to})
        return job

    def move(self, kind: type[N], id: str, to: str, *, only_from: Sequence[str], **changes: Any) -> N | None:
        how = kind_of(kind)
        allowed = how.table.c.id == id, how.table.c.status.in_(tuple(only_from))
        moved: N | None = self._change(how, allowed, {**changes, "status": to})
        return moved

    def append_event(self, event: Event) -> bool:
        how = kind_of(Event)
        with self.database.writing() as connection:
            insert = (sqlite.insert if self.database.is_sqlite else postgresql.insert)(how.table)
            statement = insert.values(**how.row(event)).on_conflict_do_nothing(index_elements=["job_id", "seq"])
            return connection.execute(statement.returning(how.table.c.id)).first() is not None

    def next_seq(self, job_id: str) -> int:
        with self.database.reading() as connection:
            return _next_seq(connection, job_id)

    def tell(self, job_id: str, message: str, **fields: Any) -> Event:
        how = kind_of(Event)
        with self.database.writing() as connection:
            if not self.database.is_sqlite:
                # Two writers would read the same last number: they take turns, job by job.
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(sa.func.hashtextextended(job_id, 0))))
            azure = (
                connection.execute(
                    sa.select(kind_of(Job).table.c.flavour).where(kind_of(Job).table.c.id == job_id)
                ).scalar()
                == "azure"
            )
            fields = {"level": "info", "created_at": int(time.time()), **fields}
            event = Event(
                id=azure_id("ftevent") if azure else new_id("ftevent"),
                job_id=job_id,
                seq=_next_seq(connection, job_id),
                message=message,
                **fields,
            )
            connection.execute(sa.insert(how.table).values(**how.row(event)))
        return event

    def claim_job(self, holder: str, seconds: float, *, evidence: bool = False) -> tuple[Job, Lease] | None:
        with self.database.writing() as connection:
            return leases.claim(connection, holder, seconds, evidence)

    def take_lease(self, name: str, holder: str, seconds: float) -> Lease | None:
        with self.database.writing() as connection:
            return leases.take(connection, name, holder, seconds)

    def renew(self, lease: Lease, seconds: float) -> Lease | None:
        with self.database.writing() as connection:
            return leases.renew(connection, lease, seconds)

    def release(self, lease: Lease) -> None:
        with self.database.writing() as connection:
            leases.release(connection, lease)

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
        with _told_of(add), self.database.writing() as connection:
            return working.work(connection, lease, job_id, add, events, only_from, changes)

    def close(self) -> None:
        self.database.close()

    def _change(self, how: Kind, where: Sequence[sa.ColumnElement[bool]], changes: Mapping[str, Any]) -> Any:
        known = {column.name for column in how.columns} - {"id"}
        if unknown := sorted(changes.keys() - known):
            raise TypeError(f"{how.record.__name__} has no field {', '.join(unknown)} that can be changed")
        values = {name: how.value(name, value) for name, value in changes.items()}
        with self.database.writing() as connection:
            if not values:
                row = connection.execute(sa.select(*how.columns).where(*where)).first()
            else:
                statement = sa.update(how.table).where(*where).values(**values).returning(*how.columns)
                row = connection.execute(statement).first()
        return how.read(row) if row is not None else None


@contextmanager
def _told_of(records: Sequence[Any]) -> Iterator[None]:
    """Raise `ValueError` with their names where the database does not take records."""
    try:
        yield
    except sa.exc.IntegrityError as error:
        named = ", ".join(f"{type(one).__name__} {one.id}" for one in records[:3])
        raise ValueError(f"one of these is there already, or lacks a field: {named}") from error


def _next_seq(connection: sa.Connection, job_id: str) -> int:
    table = kind_of(Event).table.c
    last = connection.execute(sa.select(sa.func.max(table.seq)).where(table.job_id == job_id)).scalar()
    return (last or 0) + 1


def _narrowed(how: Kind, where: Mapping[str, Any] | None) -> list[sa.ColumnElement[bool]]:
    found: list[sa.ColumnElement[bool]] = []
    for name, wanted in (where or {}).items():
        if name not in how.table.c:
            raise TypeError(f"{how.record.__name__} has no field {name}")
        column = how.table.c[name]
        if isinstance(wanted, list | tuple | set | frozenset):
            found.append(column.in_(list(wanted)))
        elif isinstance(wanted, AtMost):
            found.append(column <= wanted.value)
        else:
            found.append(column.is_(None) if wanted is None else column == wanted)
    return found


def _having(how: Kind, metadata: Mapping[str, str] | None, connection: sa.Connection) -> list[sa.ColumnElement[bool]]:
    """Conditions that the JSON column `metadata` holds these pairs; names are values here and never part of a path."""
    if not metadata:
        return []
    column = how.table.c["metadata"]
    wanted = [(sa.literal(key, Words), sa.literal(value, Words)) for key, value in metadata.items()]
    if connection.dialect.name == "sqlite":
        pairs = sa.func.json_each(column).table_valued("key", "value")
        return [
            sa.select(pairs.c.key).where(pairs.c.key == key, pairs.c.value == value).exists() for key, value in wanted
        ]
    # Nothing can be extracted from JSON with a NUL in it.
    sound = sa.func.strpos(sa.cast(column, sa.Text), "\\u0000") == 0
    return [
        sa.case((sound, sa.func.json_extract_path_text(column, key) == value), else_=False) for key, value in wanted
    ]
