"""Rows of a real PostgreSQL server, started for these tests alone where its programs are installed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.postgresql import USER, postgresql_server
from tunesmith.data import load_examples, read_rows, source_sha256
from tunesmith.data.sources import databases
from tunesmith.errors import DataError
from tunesmith.recipe.schema import Data

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


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """A server with the tables above."""
    import psycopg

    with postgresql_server() as url:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(TABLES)
        yield url


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
