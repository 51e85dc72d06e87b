"""Stores on both databases."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.postgresql import postgresql_server
from tunesmith.service.settings import Limits, ServeSettings
from tunesmith.service.store import open_store
from tunesmith.service.store.migrations import VERSION_TABLE
from tunesmith.service.store.sql import SqlStore

Open = Callable[[], SqlStore]


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """A PostgreSQL server for all tests of the store."""
    with postgresql_server() as url:
        yield url


@pytest.fixture
def settings(tmp_path: Path) -> ServeSettings:
    return ServeSettings(home=tmp_path / "home", limits=Limits(free_disk=0))


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite database of this version without rows: copying one is much quicker than making one."""
    home = tmp_path_factory.mktemp("made")
    open_store(ServeSettings(home=home))[0].close()
    return home / "store.sqlite"


@pytest.fixture(params=["sqlite", "postgresql"])
def opened(request: pytest.FixtureRequest, settings: ServeSettings) -> Iterator[Open]:
    """Opens the same database, without rows at first, again and again."""
    if request.param == "sqlite":
        settings.home.mkdir()
        shutil.copy(request.getfixturevalue("made"), settings.home)
    url = None if request.param == "sqlite" else emptied_database(request.getfixturevalue("postgresql"))
    chosen = ServeSettings(home=settings.home, database=url, limits=settings.limits)
    stores: list[SqlStore] = []

    def again() -> SqlStore:
        stores.append(open_store(chosen)[0])
        return stores[-1]

    yield again
    for store in stores:
        store.close()


@pytest.fixture
def store(opened: Open) -> SqlStore:
    return opened()


def emptied_database(server: str) -> str:
    """URL of a database of this version without rows, or of an empty one."""
    import psycopg

    with psycopg.connect(server, autocommit=True) as connection:
        found = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
        # Deleting is quicker than emptying in PostgreSQL's own way, which makes new files; numbers go on.
        for (name,) in found:
            if name != VERSION_TABLE:
                connection.execute(f'DELETE FROM "{name}"')
    return server


def new_database(server: str) -> str:
    """URL of an empty database: the server's own, emptied, for making one takes longer than most tests."""
    import psycopg

    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute("DROP SCHEMA public CASCADE")
        connection.execute("CREATE SCHEMA public")
    return server
