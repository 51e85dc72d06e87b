"""Answers that are run or would call something: SQL, tool calls, code."""

from __future__ import annotations

import itertools
import json
import math
import sqlite3
import sys
import time
from pathlib import Path
from statistics import mean

import pytest

from tests.tasks.rows import example
from tunesmith.data.types import Example, Message, ToolCall
from tunesmith.errors import DataError, RecipeError
from tunesmith.recipe.schema import Task as TaskSpec
from tunesmith.tasks import Code, TextToSql, ToolCalls, fit_task, pass_at_k, quick_score, training_conversation
from tunesmith.tasks.sandbox import run_python

# SQL.


@pytest.fixture
def shop(tmp_path: Path) -> str:
    path = tmp_path / "shop.sqlite"
    with sqlite3.connect(path) as connection:
        connection.executescript(
            "CREATE TABLE item (name TEXT, price REAL); INSERT INTO item VALUES ('tea', 3), ('milk', 1.5), ('cup', 3);"
        )
    connection.close()
    return str(path)


def sql_task(shop: str, *queries: str, **spec: float) -> tuple[TextToSql, list]:  # type: ignore[type-arg]
    rows = [example(f"q{i}", query) for i, query in enumerate(queries)]
    task = fit_task(TaskSpec.model_validate({"database": shop, **spec}), "text_to_sql", rows)
    assert isinstance(task, TextToSql)
    return task, rows


def test_queries_are_right_if_they_find_the_same(shop: str) -> None:
    task, rows = sql_task(shop, "SELECT name FROM item WHERE price = 3;")
    for right in (
        "select name from item where price > 2",
        "Sure:\n```sql\nSELECT name FROM item WHERE price = 3 ORDER BY name DESC;\n```",
        "WITH t AS (SELECT * FROM item) SELECT name FROM t WHERE price >= 3",
    ):
        assert quick_score(task, [right], rows)["execution_accuracy"] == 1.0, right
    for wrong in ("SELECT price FROM item", "SELECT DISTINCT 'tea' FROM item", "SELECT nothing FROM item", "no idea"):
        assert quick_score(task, [wrong], rows)["execution_accuracy"] == 0.0, wrong
    assert quick_score(task, ["SELECT nothing"], rows)["valid_sql"] == 0.0
    assert quick_score(task, ["select  name FROM item\nwhere price = 3"], rows)["exact_match"] == 1.0
    assert "CREATE TABLE item" in task.full_instruction and "CREATE TABLE" not in task.instruction


def test_order_counts_where_it_is_asked_for(shop: str) -> None:
    task, rows = sql_task(shop, "SELECT name FROM item ORDER BY name")
    assert quick_score(task, ["SELECT name FROM item ORDER BY name ASC"], rows)["execution_accuracy"] == 1.0
    assert quick_score(task, ["SELECT name FROM item ORDER BY name DESC"], rows)["execution_accuracy"] == 0.0


@pytest.mark.parametrize(
    "query",
    [
        "WITH x AS (SELECT 1) DELETE FROM item",
        "SELECT 1; DROP TABLE item",
        "SELECT load_extension('x')",
        "SELECT zeroblob(100000000)",
        "SELECT a.name FROM item a, item b, item c, item d, item e, item f, item g, item h, item i, item j, item k, "
        "item l, item m, item n, item o, item p ORDER BY random()",
        "WITH RECURSIVE t(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM t) SELECT count(*) FROM t",
        "WITH RECURSIVE t(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM t) SELECT n, zeroblob(1000000) FROM t",
    ],
)
def test_queries_can_neither_write_nor_take_long_nor_much(shop: str, query: str) -> None:
    before = Path(shop).read_bytes()
    task, _ = sql_task(shop, "SELECT 1", time_limit=0.2)
    assert task.run(query) is None
    assert Path(shop).read_bytes() == before


def test_broken_expected_queries_and_databases_are_named(shop: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such table: missing"):
        sql_task(shop, "SELECT 1", "SELECT * FROM missing")
    with pytest.raises(RecipeError, match="no such file"):
        sql_task(str(tmp_path / "none.sqlite"), "SELECT 1")
    (tmp_path / "text").write_text("this is not a database, but it is long enough to be looked at" * 20)
    with pytest.raises(DataError, match="not an SQLite file"):
        sql_task(str(tmp_path / "text"), "SELECT 1")


@pytest.mark.parametrize("size", [4_000_000, 400_000])
def test_queries_of_slow_steps_are_stopped_in_time(shop: str, size: int) -> None:
    numbers = "WITH RECURSIVE t(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM t)"
    task, _ = sql_task(shop, "SELECT 1", time_limit=0.1)
    began = time.process_time()
    assert task.run(f"{numbers} SELECT sum(length(hex(randomblob({size})))) FROM t") is None
    assert time.process_time() - began < 0.3


@pytest.mark.parametrize(
    ("text", "query"),
    [
        ("Here is the query, with a filter:\nSELECT 1", "SELECT 1"),
        ("This will select the names:\nSELECT name FROM item", "SELECT name FROM item"),
        ("The query: SELECT a FROM (\nSELECT 1 AS a)", "SELECT a FROM (\nSELECT 1 AS a)"),
        ("SELECT a FROM t;\n\nThis finds a.", "SELECT a FROM t"),
        ("SELECT ';' AS \"a;b\" -- don't; stop\nFROM t; SELECT 2", "SELECT ';' AS \"a;b\" -- don't; stop\nFROM t"),
        ("Sure. with recursive x(a, b) as (select 1, 2) table", "with recursive x(a, b) as (select 1, 2) table"),
        ('WITH "my t" AS MATERIALIZED (SELECT 1) SELECT 2;', 'WITH "my t" AS MATERIALIZED (SELECT 1) SELECT 2'),
        ("I answer with words.", None),
    ],
)  # fmt: skip
def test_queries_are_found_among_words(shop: str, text: str, query: str | None) -> None:
    assert TextToSql(shop).parse(text) == query


def test_long_whole_numbers_are_not_rounded(shop: str) -> None:
    task, rows = sql_task(shop, "SELECT 9007199254740993")
    scores = [
        quick_score(task, [answer], rows)["execution_accuracy"]
        for answer in ("SELECT 9007199254740992", "SELECT 9007199254740990 + 3")
    ]
    assert scores == [0.0, 1.0]
    task, rows = sql_task(shop, "SELECT 3, 0.3")
    assert quick_score(task, ["SELECT 3.0, 0.1 + 0.2"], rows)["execution_accuracy"] == 1.0


# Tool calls.

CALLS = ToolCalls()
WEATHER = {"name": "weather", "arguments": {"city": "Rome", "days": 2}}


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        (json.dumps(WEATHER), [WEATHER]),
        (f"<tool_call>\n{json.dumps(WEATHER)}\n</tool_call>", [WEATHER]),
        (json.dumps([WEATHER, WEATHER]), [WEATHER, WEATHER]),
        (f"{json.dumps(WEATHER)}\n{json.dumps(WEATHER)}", [WEATHER, WEATHER]),
        (json.dumps({"tool_calls": [{"id": "1", "function": {"name": "weather", "arguments": '{"city": "x"}'}}]}),
         [{"name": "weather", "arguments": {"city": "x"}}]),
        ('{"name": "now", "parameters": {}}', [{"name": "now", "arguments": {}}]),
        ('{"name": "now"}', [{"name": "now", "arguments": {}}]),
        ("It is sunny in Rome.", []),
        ("[]", []),
        ("", []),
        ('{"name": "weather", "arguments": {"city"', None),
        ("<tool_call>weather(Rome)</tool_call>", None),
        ('{"city": "Rome"}', None),
    ],
)  # fmt: skip
def test_calls_are_read(text: str, calls: list[object] | None) -> None:
    assert CALLS.parse(text) == calls


def test_call_scores() -> None:
    rows = [example("weather?", json.dumps(WEATHER)), example("thanks", "You are welcome.")]
    task = fit_task(TaskSpec(), "tool_calls", rows)
    right = quick_score(task, ['{"name": "weather", "arguments": {"days": 2.0, "city": " rome"}}', "Bye"], rows)
    assert set(right.values()) == {1.0}
    near = quick_score(task, ['{"name": "weather", "arguments": {"city": "Rome"}}', json.dumps(WEATHER)], rows)
    assert near["call_accuracy"] == 0.0 and near["name_accuracy"] == 0.5 and near["decision_accuracy"] == 0.5
    assert near["argument_f1"] == pytest.approx(2 * 1 / (2 * 1 + 2 + 1))
    assert set(quick_score(task, ["{broken", "{broken"], rows).values()) == {0.0}
    assert [task.slices(row)["function"] for row in rows] == ["weather", "none"]


@pytest.mark.parametrize(
    ("given", "wanted", "right"),
    [
        ({"at": [48.1, 11.5]}, {"at": [11.5, 48.1]}, False),
        ({"at": [[1, 2], [3]]}, {"at": [1, 2, 3]}, False),
        ({"at": "5"}, {"at": 5}, False),
        ({"at": True}, {"at": 1}, False),
        ({"at": []}, {}, False),
        ({"at": None}, {}, False),
        ({"at": {"x": 1, "y": [" New  York"]}}, {"at": {"y": ["new york"], "x": 1.0}}, True),
    ],
)
def test_right_calls_have_the_structure_of_the_expected(given: object, wanted: object, right: bool) -> None:
    rows = [example("q", json.dumps({"name": "f", "arguments": wanted}))]
    assert quick_score(CALLS, [json.dumps({"name": "f", "arguments": given})], rows)["call_accuracy"] == float(right)


@pytest.mark.parametrize("levels", [600, 900])
def test_calls_that_nest_without_end_are_unreadable(levels: int) -> None:
    deep = "[" * levels + "]" * levels
    assert CALLS.parse(deep) is None
    assert CALLS.parse(f'{{"name": "f", "arguments": {{"a": {deep}}}}}') is None
    assert CALLS.parse(json.dumps({"name": "f", "arguments": f'{{"a": {deep}}}'})) is None


def test_tools_that_rows_define_are_offered_as_the_model_does_it() -> None:
    called = ToolCall("c1", "weather", '{"city": "Rome"}')
    turns = (Message("user", "weather in Rome?"), Message("assistant", "", tool_calls=(called,)))
    row = Example("x", turns, '[{"name": "weather", "arguments": {"city": "Rome"}}]', 1, "rows.jsonl", tools=("{}",))
    task = fit_task(TaskSpec(), "tool_calls", [row])
    assert task.full_instruction == task.instruction
    assert training_conversation(task, row)[-1] == turns[-1]
    assert quick_score(task, [row.expected], [row])["call_accuracy"] == 1.0
    assert task.slices(row) == {"function": "weather", "calls": "1"}


# Code.


def test_pass_at_k_is_the_share_of_draws_with_a_right_answer() -> None:
    for samples, right, k in itertools.product(range(1, 6), range(6), range(1, 6)):
        if right > samples or k > samples:
            with pytest.raises(ValueError, match="not defined"):
                pass_at_k(samples, right, k)
            continue
        draws = itertools.combinations([1] * right + [0] * (samples - right), k)
        assert pass_at_k(samples, right, k) == pytest.approx(mean(any(draw) for draw in draws))
    assert pass_at_k(200, 3, 10) == pytest.approx(1 - math.comb(197, 10) / math.comb(200, 10))


fenced = pytest.mark.skipif(sys.platform != "linux", reason="code is fenced in by Linux's seccomp")
SOLUTION = {"code": "def twice(n):\n    return 2 * n", "test_list": ["assert twice(2) == 4", "assert twice(0) == 0"]}


def code_task(**spec: object) -> tuple[Code, list]:  # type: ignore[type-arg]
    rows = [example("Double a number.", json.dumps(SOLUTION))]
    task = fit_task(TaskSpec.model_validate(spec), "code", rows)
    assert isinstance(task, Code)
    return task, rows


def test_code_is_learnt_without_its_tests_and_not_run_unless_allowed() -> None:
    task, rows = code_task()
    assert training_conversation(task, rows[0])[-1].content == SOLUTION["code"]
    assert list(task.metrics) == ["exact_match", "valid_python"]
    assert quick_score(task, [f"```python\n{SOLUTION['code']}\n```"], rows) == {"exact_match": 1.0, "valid_python": 1.0}
    assert quick_score(task, ["def twice(n"], rows) == {"exact_match": 0.0, "valid_python": 0.0}
    with pytest.raises(DataError, match="solution with its tests"):
        fit_task(TaskSpec(), "code", [example("q", "print(1)")])


@fenced
def test_code_that_passes_its_tests_is_right() -> None:
    task, rows = code_task(run_code=True, time_limit=20)
    answers = ["def twice(n):\n    return n + n", "def twice(n):\n    return 4", "import sys\nsys.exit(0)"]
    assert [quick_score(task, [answer], rows)["pass_at_1"] for answer in answers] == [1.0, 0.0, 0.0]


@fenced
def test_fenced_code_has_no_network_no_processes_and_writes_nothing(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("whole")
    tmp_path.chmod(0o777)
    victim.chmod(0o666)
    refused = {
        "socket": "import ctypes\nassert ctypes.CDLL(None).socket(2, 1, 0) == -1",
        "fork": "import os\nos.fork()",
        "write": f"open({str(victim)!r}, 'w')",
        "new file": "open('here', 'w')",
        "remove": f"import os\nos.remove({str(victim)!r})",
        "kill": "import os\nos.kill(os.getppid(), 9)",
        "memory": "x = bytearray(2**31)",
    }
    attempt = (
        "try:\n    exec({!r})\nexcept (OSError, MemoryError):\n    pass\nelse:\n    assert {!r} == 'socket', {!r}\n"
    )
    each = "".join(attempt.format(code, name, name) for name, code in refused.items())
    ran = run_python(each, 30)
    assert ran.outcome == "passed", ran.error
    assert victim.read_text() == "whole"


@fenced
def test_code_that_never_ends_is_stopped() -> None:
    assert run_python("while True:\n    print('x' * 1000)", 1.0).outcome == "timeout"
