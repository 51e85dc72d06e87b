"""Connections: SQLite so that what a call has acknowledged outlives a power cut, PostgreSQL as it comes.

SQLite runs with its write-ahead log, flushed at each commit; a transaction that will write takes the write lock when it
begins, so that it never has to give up half-way. Threads of one process queue for that lock here and not in SQLite,
whose waiting is a sleep; other processes are waited for by SQLite.
"""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from tunesmith.errors import RecipeError, ResourceError

BUSY_SECONDS = 60
_THREADS = 64
_WRITES = "tunesmith_writes"


class Database:
    """An engine, and the two ways of using it."""

    def __init__(self, url: str) -> None:
        self.url = parsed_url(url)
        self.engine = _engine(self.url)
        self._turn = threading.Lock()

    @property
    def is_sqlite(self) -> bool:
        return self.url.get_backend_name() == "sqlite"

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """A transaction that sees one state of everything."""
        with self.engine.begin() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """A transaction that is kept when the block ends, and undone where it raises."""
        if not self.is_sqlite:
            with self.engine.begin() as connection:
                yield connection
            return
        with self._turn, self.engine.connect() as connection:
            connection = connection.execution_options(**{_WRITES: True})
            with connection.begin():
                yield connection

    def close(self) -> None:
        self.engine.dispose()


def parsed_url(url: str) -> sa.URL:
    """A URL of a database we know, with its driver. Raises `RecipeError` for others, without showing a password."""
    try:
        parsed = sa.make_url("postgresql" + url.removeprefix("postgres") if url.startswith("postgres:") else url)
        backend = parsed.get_backend_name()
    except sa.exc.ArgumentError:
        backend = ""
    if backend == "sqlite":
        if not parsed.database or parsed.database == ":memory:":
            raise RecipeError("a database in memory is lost when the server ends", fix="name a file: sqlite:///FILE")
        return parsed.set(drivername="sqlite+pysqlite")
    if backend == "postgresql":
        if importlib.util.find_spec("psycopg") is None:
            raise ResourceError("PostgreSQL needs psycopg", fix='pip install "tunesmith[postgres]"')
        return parsed.set(drivername="postgresql+psycopg")
    raise RecipeError(
        "the database's URL is of no database that can be used",
        where="--database",
        expected="sqlite:///FILE or postgresql://USER:PASSWORD@HOST/NAME",
    )


def _engine(url: sa.URL) -> sa.Engine:
    if url.get_backend_name() == "postgresql":
        return sa.create_engine(url, pool_size=8, max_overflow=_THREADS, pool_pre_ping=True, hide_parameters=True)
    assert url.database is not None
    Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    engine = sa.create_engine(
        url,
        pool_size=8,
        max_overflow=_THREADS,
        hide_parameters=True,
        connect_args={"timeout": BUSY_SECONDS, "check_same_thread": False},
    )
    sa.event.listen(engine, "connect", _prepare_sqlite)
    sa.event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: Any, _: Any) -> None:
    # The driver begins transactions on its own, and too late; `_begin_sqlite` does it instead.
    connection.isolation_level = None
    cursor = connection.cursor()
    for line in (f"busy_timeout = {BUSY_SECONDS * 1000}", "synchronous = FULL"):
        cursor.execute(f"PRAGMA {line}")
    cursor.close()


def _begin_sqlite(connection: sa.Connection) -> None:
    writes = connection.get_execution_options().get(_WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
