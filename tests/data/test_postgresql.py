"""Rows of a real PostgreSQL server, started for these tests alone where its programs are installed."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tunesmith.data import load_examples, read_rows, source_sha256
from tunesmith.data.sources import databases
from tunesmith.errors import DataError
from tunesmith.recipe.schema import Data

BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda p: float(p.parent.name))
USER = "rows"
TABLES = """
create table reviews (id int primary key, text text, label text);
insert into reviews select n, 'text ' || n || ' é', case when n % 2 = 0 then 'pos' else 'neg' end
  from generate_series(1, 2500) n;
create schema shop;
create table shop."the orders" (at date, total numeric, open boolean, words text[], facts jsonb, nothing text);
insert into shop."the orders" values ('2026-01-02', 1.50, true, array['a', 'b'], '{"x": {"y": [1, null]}}', null);
create table odd (value point, more text);
insert into odd values (null, 'a'), (null, 'b');
create view labels as select distinct label from reviews;
"""


def server_programs() -> Path:
    """Where `initdb` and `pg_ctl` are; skips with the reason where a server cannot be started."""
    found = next((folder for folder in reversed(BINARIES) if (folder / "initdb").is_file()), None)
    if found is None and (ctl := shutil.which("pg_ctl")) is not None:
        found = Path(ctl).resolve().parent
    if found is None:
        pytest.skip("no PostgreSQL server is installed (Debian: apt install postgresql)")
    if importlib.util.find_spec("psycopg") is None:
        pytest.skip("psycopg is not installed (extra postgres)")
    return found


def unprivileged() -> list[str]:
    """What a command begins with so that it does not run as root, which the server refuses."""
    if os.geteuid() != 0:
        return []
    if shutil.which("runuser") is None:
        pytest.skip("the server does not run as root, and there is no runuser")
    for name in ("postgres", "nobody"):
        try:
            pwd.getpwnam(name)
        except KeyError:
            continue
        return ["runuser", "-u", name, "--"]
    pytest.skip("the server does not run as root, and there is no other user")


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """`postgresql://rows@/postgres?host=FOLDER` of a server that listens on a socket in a new folder only."""
    programs, run_as = server_programs(), unprivileged()
    # Not in tmp_path: another user must reach it, and a socket's path has at most 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="pg-"))
    data = folder / "data"
    try:
        if run_as:
            shutil.chown(folder, run_as[2])

        def run(program: str, *arguments: str) -> None:
            command = [*run_as, str(programs / program), *arguments]
            done = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=60, check=False)
            if done.returncode:
                pytest.skip(f"{program} fails here: {(done.stderr or done.stdout).strip()[:300]}")

        run("initdb", "-D", str(data), "-U", USER, "--auth=trust", "--encoding=UTF8", "--no-sync", "--locale=C")
        options = f"-c listen_addresses='' -c unix_socket_directories={folder} -c fsync=off"
        run("pg_ctl", "-D", str(data), "-w", "-t", "30", "-l", str(folder / "log"), "-o", options, "start")
        try:
            url = f"postgresql://{USER}@/postgres?host={folder}"
            import psycopg

            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute(TABLES)
            yield url
        finally:
            run("pg_ctl", "-D", str(data), "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def values(source: str) -> list[dict[str, Any]]:
    return [dict(row.values) for row in read_rows(source).rows]


def count(url: str) -> int:
    import psycopg

    with psycopg.connect(url) as connection:
        found = connection.execute("select count(*) from reviews").fetchone()
    assert found is not None
    return int(found[0])


def test_a_table_is_read_in_pieces_and_becomes_examples(server: str) -> None:
    """2,500 rows are more than two fetches of the cursor."""
    assert databases._FETCH == 1_000
    source = f"{server}#select text, label from reviews order by id"
    result = load_examples(Data(train=source), source)
    assert len(result.examples) == 2_500 and result.findings == []
    assert result.examples[2].question == "text 3 é" and result.examples[2].expected == "neg"
    assert len(values(f"{server}#reviews")) == 2_500
    assert sorted(row["label"] for row in values(f"{server}#labels")) == ["neg", "pos"]


def test_types_become_plain_values(server: str) -> None:
    for name in ("shop.the orders", "the orders"):
        assert values(f"{server}#{name}") == [
            {
                "at": "2026-01-02", "total": "1.50", "open": True, "words": ["a", "b"],
                "facts": {"x": {"y": [1, None]}}, "nothing": None,
            }
        ]  # fmt: skip
    names = [row["a"] for row in values(f"{server}#select 1 as a, 2 as a")]
    assert names == [1]
    assert values(f"{server}#select 1 as a, 2 as a")[0]["a_2"] == 2


def test_nothing_can_be_written(server: str) -> None:
    before = count(server)
    for query in (
        "delete from reviews",
        "insert into reviews values (0, 'x', 'y') returning id",
        "with gone as (delete from reviews returning id) select * from gone",
        "select 1; delete from reviews",
    ):
        with pytest.raises(DataError, match="the query fails"):
            read_rows(f"{server}#{query}")
        assert count(server) == before


def test_what_is_not_there_is_told(server: str) -> None:
    with pytest.raises(DataError) as told:
        read_rows(f"{server}#nowhere")
    assert "there is no table 'nowhere'" in str(told.value) and "public.reviews" in str(told.value)
    with pytest.raises(DataError, match="does not say which rows"):
        read_rows(server)
    with pytest.raises(DataError, match='relation "nowhere" does not exist'):
        read_rows(f"{server}#select * from nowhere")
    with pytest.raises(DataError, match="no connection to the database"):
        read_rows(f"{server.replace('/postgres?', '/elsewhere?')}#reviews")
    with pytest.raises(DataError, match="no connection to the database"):
        read_rows("postgresql://rows@/postgres?host=/nowhere#reviews")


def test_a_query_that_fails_on_a_later_row_is_told(server: str) -> None:
    with pytest.raises(DataError, match="division by zero"):
        read_rows(f"{server}#select text, 1 / (id - 2000) as label from reviews order by id")


def test_the_same_rows_have_the_same_hash(server: str) -> None:
    one = source_sha256(f"{server}#select text, label from reviews order by id")
    assert one == source_sha256(f"{server}#select text, label from reviews order by id asc")
    assert one != source_sha256(f"{server}#select text, label from reviews where id > 1 order by id")


def test_no_connection_is_left_open(server: str) -> None:
    import psycopg

    read_rows(f"{server}#reviews")
    with pytest.raises(DataError):
        read_rows(f"{server}#select 1 / 0 as a")
    with psycopg.connect(server) as connection:
        others = connection.execute(
            "select count(*) from pg_stat_activity where usename = %s and pid <> pg_backend_pid()"
            " and backend_type = 'client backend'",
            [USER],
        ).fetchone()
    assert others == (0,)
