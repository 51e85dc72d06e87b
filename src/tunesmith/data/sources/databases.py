"""Rows of a query on SQLite or PostgreSQL, read-only.

`sqlite:///reviews.db#select text, label from reviews`; a table's name stands for all of it, and where a database has
one table only, nothing need be named. Three slashes begin a relative path, four an absolute one.
"""

from __future__ import annotations

import importlib.util
import re
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tunesmith.data.findings import FindingLog
from tunesmith.data.sources.address import Address
from tunesmith.data.sources.records import unique_names
from tunesmith.errors import DataError

_NAME = re.compile(r"[\w.]*")
_FETCH = 1_000
_POSTGRES_TABLES = (
    "select table_schema || '.' || table_name from information_schema.tables"
    " where table_schema not in ('pg_catalog', 'information_schema') order by 1"
)

Records = Iterator[Mapping[str, Any]]


def sqlite_records(address: Address, log: FindingLog) -> tuple[tuple[str, ...], Records]:
    """Column names and records of a query on an SQLite file. Raises `DataError` where it cannot be asked."""
    path = Path(address.place.partition("://")[2][1:])
    if not path.is_file():
        raise DataError(
            f"there is no database file {path}",
            where=address.shown,
            expected="sqlite:///RELATIVE/FILE or sqlite:////ABSOLUTE/FILE",
        )
    try:
        connection = sqlite3.connect(f"file:{quote(str(path.resolve()))}?mode=ro", uri=True)
    except sqlite3.Error as error:
        raise DataError(f"the database cannot be opened: {error}", where=address.shown) from error
    # Broken texts become lone surrogates, which are reported by row instead of ending the query.
    connection.text_factory = lambda data: data.decode("utf-8", errors="surrogateescape")
    try:
        listed = (
            "select name from sqlite_master where type in ('table', 'view') and name not like 'sqlite_%' order by 1"
        )
        tables = [str(name) for (name,) in connection.execute(listed)]
        cursor = connection.execute(_query(address, tables, schemas=False))
        if cursor.description is None:
            raise DataError("the query gives no rows", where=address.shown, expected="select …")
        names = unique_names([column[0] for column in cursor.description], log)
    except (sqlite3.Error, sqlite3.Warning, ValueError) as error:
        connection.close()
        raise DataError(f"the query fails: {error}", where=address.shown, fix="correct what follows #") from error

    def records() -> Records:
        with closing(connection):
            try:
                while cells := cursor.fetchmany(_FETCH):
                    for row in cells:
                        yield dict(zip(names, row, strict=True))
            except sqlite3.Error as error:
                raise DataError(f"the query fails: {error}", where=address.shown) from error

    return names, records()


def postgresql_records(address: Address, log: FindingLog) -> tuple[tuple[str, ...], Records]:
    """The same for PostgreSQL, by a cursor on the server in a read-only transaction."""
    if importlib.util.find_spec("psycopg") is None:
        raise DataError(
            "PostgreSQL is asked by the library psycopg, which is not installed",
            where=address.shown,
            fix="pip install 'tunesmith[postgres]', or export the query as CSV",
        )
    import psycopg

    try:
        connection = psycopg.connect(address.place)
    except psycopg.Error as error:
        raise DataError(f"no connection to the database: {_short(error)}", where=address.shown) from error
    try:
        connection.read_only = True
        tables = [str(name) for (name,) in connection.execute(_POSTGRES_TABLES).fetchall()]
        cursor = connection.cursor(name="tunesmith_rows")
        cursor.itersize = _FETCH
        cursor.execute(_query(address, tables, schemas=True))
        names = unique_names([column.name for column in cursor.description or ()], log)
    except psycopg.Error as error:
        connection.close()
        raise DataError(
            f"the query fails: {_short(error)}", where=address.shown, fix="correct what follows #"
        ) from error

    def records() -> Records:
        with closing(connection):
            try:
                for row in cursor:
                    yield dict(zip(names, row, strict=True))
            except psycopg.Error as error:
                raise DataError(f"the query fails: {_short(error)}", where=address.shown) from error

    return names, records()


def _short(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _query(address: Address, tables: Sequence[str], *, schemas: bool) -> str:
    """The query that is meant: as written, all of a table, or all of the only table."""
    given = (address.part or "").strip()
    if not given and len(tables) == 1:
        given = tables[0]
    by_name = {name.rpartition(".")[2]: name for name in tables} if schemas else {}
    table = given if given in tables else by_name.get(given)
    if table is not None:
        names = table.split(".", 1) if schemas else [table]
        return f"select * from {'.'.join(_quoted(name) for name in names)}"
    if given and not _NAME.fullmatch(given):
        return given.rstrip("; \n\t")
    raise DataError(
        f"there is no table {given!r}" if given else "the address does not say which rows are meant",
        where=address.shown,
        expected=f"#TABLE among: {', '.join(tables) or 'none, as the database has no table'}; or #select …",
        fix=f"write {address.shown.partition('#')[0]}#{tables[0] if tables else 'select …'}",
    )


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
