"""Bringing a database to the tables of this version, whoever opens it first.

A change of `nouns` needs a new file in `versions/`, which `python -m tunesmith.service.store.migrations NAME` writes; a
test compares both.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa

from tunesmith.errors import ResourceError
from tunesmith.service.store.engine import Database

VERSIONS = Path(__file__).parent / "versions"
HEAD = max((path.name[:4] for path in VERSIONS.glob("[0-9]*.py")), default="")
"""The number of the newest migration."""

VERSION_TABLE = "tunesmith_schema"
_LOCK = 0x74756E65


def migrate(database: Database) -> None:
    """Bring the database to `HEAD`. Of several processes one does it, and the others wait.

    Raises `ResourceError` where it cannot be reached, is no database, is not ours, or was made by a newer version.
    """
    try:
        if _version(database) == HEAD:
            return
        with _alone(database):
            version = _version(database)
            if version != HEAD:
                _upgrade(database, version)
    except sa.exc.DBAPIError as error:
        raise ResourceError(
            f"the database cannot be opened: {str(error.orig).strip()}",
            where=database.url.render_as_string(hide_password=True),
            fix="look at the server, its name and the user's rights, or name another with --database",
        ) from error


def _upgrade(database: Database, version: str | None) -> None:
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    known = [script.revision for script in ScriptDirectory.from_config(config).walk_revisions()]
    where = database.url.render_as_string(hide_password=True)
    if version is not None and version not in known:
        raise ResourceError(
            f"the database is of a newer Tunesmith: its schema is {version}, and this version knows up to {HEAD}",
            where=where,
            fix="update Tunesmith, or use another --home",
        )
    with database.writing() as connection:
        from tunesmith.service.store.tables import metadata

        if version is None and (others := sorted(metadata.tables.keys() & sa.inspect(connection).get_table_names())):
            raise ResourceError(
                f"the database has tables of another program: {', '.join(others)}",
                where=where,
                fix="give Tunesmith a database of its own",
            )
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def _version(database: Database) -> str | None:
    """The version of the database; None for an empty one."""
    with database.reading() as connection:
        if not sa.inspect(connection).has_table(VERSION_TABLE):
            return None
        table = sa.table(VERSION_TABLE, sa.column("version_num"))
        version: str | None = connection.execute(sa.select(table.c.version_num)).scalar()
        return version


@contextmanager
def _alone(database: Database) -> Iterator[None]:
    """No other process prepares this database meanwhile."""
    if not database.is_sqlite:
        with database.engine.connect() as connection, connection.begin():
            # Held until this transaction ends; the work is done in another.
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
            yield
        return
    assert database.url.database is not None
    with Path(database.url.database + ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        # Kept in the file: readers no longer wait for writers. It cannot be changed inside a transaction.
        raw = database.engine.raw_connection()
        try:
            raw.cursor().execute("PRAGMA journal_mode = WAL")
        finally:
            raw.close()
        yield
