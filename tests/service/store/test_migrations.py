"""Databases from nothing to this version: by one process of several, and never downwards."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from tests.service.store.conftest import Open, new_database
from tests.service.store.records import file
from tunesmith.errors import RecipeError, ResourceError
from tunesmith.service.settings import ServeSettings
from tunesmith.service.store import migrations, nouns, open_store
from tunesmith.service.store.engine import parsed_url
from tunesmith.service.store.migrations.__main__ import difference
from tunesmith.service.store.nouns import File
from tunesmith.service.store.tables import KINDS, metadata


def opened_by_another(settings: ServeSettings, start: Any, told: Any) -> None:
    """What a process does that opens the database at the same time as others."""
    start.wait()
    try:
        store, _ = open_store(settings)
        told.put(store.count(File))
    except BaseException as error:
        told.put(repr(error))


def test_the_migrations_make_the_tables_of_the_records(opened: Open) -> None:
    """What Alembic would still change is nothing. If this fails, `nouns` was changed without a migration."""
    with opened().database.reading() as connection:
        context = MigrationContext.configure(
            connection, opts={"version_table": migrations.VERSION_TABLE, "compare_server_default": True}
        )
        assert compare_metadata(context, metadata) == []


def test_a_migration_is_written_for_what_has_changed(settings: ServeSettings) -> None:
    store, _ = open_store(settings)
    assert difference(store.database) is None
    with store.database.writing() as connection:
        connection.execute(sa.text("DROP TABLE gone"))
        connection.execute(sa.text("ALTER TABLE files DROP COLUMN status_details"))
    code = difference(store.database)
    store.close()
    assert code is not None and "op.create_table('gone'," in code
    assert "op.add_column('files', sa.Column('status_details', sa.Text(), nullable=True))" in code


def test_every_record_has_a_table() -> None:
    records = {one for one in vars(nouns).values() if isinstance(one, type) and hasattr(one, "__dataclass_fields__")}
    assert records == set(KINDS)


def test_the_newest_migration_is_the_one_that_is_looked_for() -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    assert ScriptDirectory.from_config(config).get_heads() == [migrations.HEAD]


def test_a_second_opening_changes_nothing(opened: Open) -> None:
    opened().add(file())
    assert opened().get(File, "file-1") == file()


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_of_processes_that_open_at_once_each_finds_a_whole_database(
    database: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = None if database == "sqlite" else new_database(request.getfixturevalue("postgresql"))
    chosen = ServeSettings(home=tmp_path / "home", database=url)
    # Copies of this process, so that nobody has to import everything first and all come at the same moment.
    context = multiprocessing.get_context("fork")
    start, told = context.Barrier(4), context.Queue()
    processes = [context.Process(target=opened_by_another, args=(chosen, start, told)) for _ in range(4)]
    for process in processes:
        process.start()
    assert [told.get(timeout=60) for _ in processes] == [0] * 4
    for process in processes:
        process.join(60)


def test_a_newer_database_is_refused_as_it_is(settings: ServeSettings) -> None:
    store, _ = open_store(settings)
    with store.database.writing() as connection:
        connection.execute(sa.text(f"UPDATE {migrations.VERSION_TABLE} SET version_num = '9999'"))
    with pytest.raises(ResourceError, match="newer Tunesmith: its schema is 9999"):
        open_store(settings)
    assert store.count(File) == 0
    store.close()


def test_tables_of_another_program_are_left_alone(settings: ServeSettings) -> None:
    settings.home.mkdir()
    engine = sa.create_engine(settings.database_url)
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE files (name TEXT)"))
    with pytest.raises(ResourceError, match="another program: files"):
        open_store(settings)
    assert sa.inspect(engine).get_table_names() == ["files"]
    engine.dispose()


def test_what_is_no_database_is_told(settings: ServeSettings, tmp_path: Path) -> None:
    settings.home.mkdir()
    (settings.home / "store.sqlite").write_text("this is a letter, and not a database at all; " * 100)
    with pytest.raises(ResourceError, match="file is not a database"):
        open_store(settings)
    elsewhere = "postgresql://somebody:hunter2@/nowhere?host=/nowhere"
    with pytest.raises(ResourceError, match="cannot be opened") as told:
        open_store(ServeSettings(home=tmp_path, database=elsewhere))
    assert "hunter2" not in str(told.value)


@pytest.mark.parametrize("url", ["mysql://x:hunter2@y/z", "nonsense", "", "sqlite://", "sqlite:///:memory:"])
def test_other_urls_are_refused_without_their_password(url: str) -> None:
    with pytest.raises(RecipeError) as told:
        parsed_url(url)
    assert "hunter2" not in str(told.value)


@pytest.mark.parametrize("url", ["postgres://a@h/d", "postgresql://a@h/d", "postgresql+psycopg2://a@h/d"])
def test_postgresql_is_asked_through_psycopg(url: str) -> None:
    assert parsed_url(url).render_as_string() == "postgresql+psycopg://a@h/d"


def test_sqlite_keeps_what_it_acknowledged(settings: ServeSettings) -> None:
    store, _ = open_store(settings)
    with store.database.reading() as connection:
        asked = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in ("journal_mode", "synchronous")
        }
    assert asked == {"journal_mode": "wal", "synchronous": 2}
    store.close()
