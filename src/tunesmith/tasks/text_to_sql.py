"""Text-to-SQL: a query is right if it finds what the expected query finds, whatever it looks like."""

from __future__ import annotations

import re
import sqlite3
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

from tunesmith.data.types import Example
from tunesmith.errors import DataError, RecipeError
from tunesmith.tasks.answers import bad_answer, without_closing
from tunesmith.tasks.base import TextTask
from tunesmith.tasks.metrics import MeanMetric
from tunesmith.tasks.types import Metric

MOST_ROWS = 100_000
"""Rows of a result; a query with more fails."""
MOST_BYTES = 10_000_000
"""The size of a result, about; a query with more fails."""
LONGEST_VALUE = 1_000_000
"""Bytes of one text or blob; a query that reads or makes a longer one fails. One step's work grows with it."""
_FENCE = re.compile(r"```(?:sql|sqlite)?\s*\n(.*?)```", re.DOTALL | re.IGNORECASE)
_NAME = r"""(?:"[^"]+"|`[^`]+`|\[[^\]]+\]|\w+)"""
_WITH = rf"\bwith\s+(?:recursive\s+)?{_NAME}\s*(?:\([^()]*\)\s*)?as\s*(?:(?:not\s+)?materialized\s*)?\("
_BEGIN = re.compile(rf"{_WITH}|\bselect\b", re.IGNORECASE)
"""Where a query begins. WITH only before a table, since it is also a word of the sentences around a query."""
_PIECE = re.compile(r"""'[^']*'|"[^"]*"|`[^`]*`|\[[^\]]*\]|--[^\n]*|/\*.*?\*/|;""", re.DOTALL)
"""What may hide a semicolon (quotes, comments), or a semicolon."""
_ALLOWED = frozenset({sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE})
_STEPS_PER_LOOK = 50
"""Steps of SQLite's machine between two looks at the clock; a step on a long value may take milliseconds."""


@dataclass(frozen=True)
class TextToSql(TextTask):
    """A query per question, run on the SQLite file `database`, which is only read, for `time_limit` seconds at most."""

    database: str
    time_limit: float = 5.0
    name: ClassVar[str] = "text_to_sql"
    default_instruction: ClassVar[str] = "Write an SQL query that answers the question."
    answer_wording: ClassVar[str] = "Reply with one SQLite query only."

    @property
    def full_instruction(self) -> str:
        """The instruction, the form of the answer, and how the tables were created."""
        return f"{super().full_instruction} The tables are:\n{table_definitions(self.database)}"

    @property
    def own_metrics(self) -> Sequence[Metric]:
        """Execution accuracy decides; the share of queries that run, and of those written alike, beside it."""
        return (
            MeanMetric("execution_accuracy", binary=True, score=self._finds_the_same),
            MeanMetric("valid_sql", binary=True, score=lambda a, _: float(self.run(a) is not None)),
            MeanMetric("exact_match", binary=True, score=lambda a, b: float(_spelling(a) == _spelling(b))),
        )

    def parse(self, text: str) -> str | None:
        """The query in an answer: in a code fence, or from the first SELECT or WITH on; None where there is none.

        It ends at its first semicolon: what follows is another statement or words.
        """
        bare = without_closing(text, self.closing)
        fenced = _FENCE.search(bare)
        found = fenced.group(1) if fenced else bare
        begin = _begin(found)
        return None if begin is None else _first_statement(found[begin:].split("```")[0])

    def target(self, example: Example) -> str:
        """The expected query; raises `DataError` for what is none."""
        query = self.parse(example.expected)
        if query is None:
            raise bad_answer(example, "the answer is not a query", "SELECT …", "correct the row, or set task.type")
        return query

    def refuse_broken(self, examples: Sequence[Example]) -> None:
        """Raise `DataError` for the first row whose expected query does not run."""
        for example in examples:
            query = self.target(example)
            if self.run(query) is None:
                raise bad_answer(
                    example,
                    f"the expected query fails on {Path(self.database).name}: {_why(self.database, query)}",
                    expected=f"a query that runs within {self.time_limit:g} s and finds up to {MOST_ROWS:,} rows",
                    fix="correct the row or task.database, or raise task.time_limit",
                )

    def slices(self, example: Example) -> Mapping[str, str]:
        """Rows by the hardest thing the expected query does."""
        query = self.target(example).lower()
        nested = query.count("select") > 1
        kinds = {"nested": nested, "join": " join " in query, "group": "group by" in query}
        return {"query": next((kind for kind, there in kinds.items() if there), "simple")}

    def run(self, query: str) -> tuple[tuple[Any, ...], ...] | None:
        """The rows a query finds; None where it fails, takes too long or finds too much."""
        return _run(self.database, query, self.time_limit)

    def _finds_the_same(self, answer: str, target: str) -> float:
        found, wanted = self.run(answer), self.run(target)
        if found is None or wanted is None:
            return 0.0
        if re.search(r"\border\s+by\b", target, re.IGNORECASE):
            return float(found == wanted)
        return float(Counter(found) == Counter(wanted))


def _begin(text: str) -> int | None:
    """Where the query in a text begins; None without one.

    At the first SELECT or WITH, or where that is within a line ("I select the names:"), at the first after a colon.
    """
    starts = [match.start() for match in _BEGIN.finditer(text)]
    if not starts or not text[: starts[0]].rpartition("\n")[2].strip():
        return starts[0] if starts else None
    return next((start for start in starts if text[:start].rstrip().endswith(":")), starts[0])


def _first_statement(text: str) -> str:
    """What stands before the first semicolon that is in neither quotes nor a comment."""
    end = next((piece.start() for piece in _PIECE.finditer(text) if piece.group() == ";"), len(text))
    return text[:end].strip()


def _spelling(query: str) -> str:
    """A query without regard to white space and to case outside quotes."""
    parts = re.split(r"('(?:[^']|'')*')", query)
    return "".join(part if i % 2 else " ".join(part.lower().split()) for i, part in enumerate(parts))


@lru_cache(maxsize=4096)
def _run(database: str, query: str, time_limit: float) -> tuple[tuple[Any, ...], ...] | None:
    try:
        with closing(_opened(database)) as connection:
            deadline = time.monotonic() + time_limit
            connection.set_progress_handler(lambda: int(time.monotonic() > deadline), _STEPS_PER_LOOK)
            rows, size = [], 0
            for row in connection.execute(query):
                rows.append(tuple(map(_comparable, row)))
                size += sum(len(value) if isinstance(value, str | bytes) else 8 for value in row)
                if len(rows) > MOST_ROWS or size > MOST_BYTES or time.monotonic() > deadline:
                    return None
    except (sqlite3.Error, sqlite3.Warning, ValueError, OverflowError, MemoryError):
        return None
    return tuple(rows)


def _why(database: str, query: str) -> str:
    """What SQLite says of a query, without running it."""
    try:
        with closing(_opened(database)) as connection:
            connection.execute(f"EXPLAIN {query}")
    except (sqlite3.Error, sqlite3.Warning, ValueError) as error:
        return str(error)
    return "it takes too long or finds too much"


def _opened(database: str) -> sqlite3.Connection:
    """A connection that can do nothing but read: no writes, no other files, no extensions."""
    connection = sqlite3.connect(f"{Path(database).resolve().as_uri()}?mode=ro", uri=True)
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, LONGEST_VALUE)
    connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
    connection.set_authorizer(_authorize)
    return connection


def _authorize(action: int, first: str | None, second: str | None, *_: str | None) -> int:
    harmless = action in _ALLOWED and not (action == sqlite3.SQLITE_FUNCTION and second == "load_extension")
    return sqlite3.SQLITE_OK if harmless else sqlite3.SQLITE_DENY


def _comparable(value: Any) -> Any:
    """Real numbers up to rounding, so that 0.1 + 0.2 is 0.3; whole ones as they are, which may be long keys."""
    return round(value, 6) if isinstance(value, float) else value


@lru_cache(maxsize=8)
def table_definitions(database: str) -> str:
    """The CREATE statements of all tables. Raises `RecipeError` or `DataError`."""
    if not Path(database).is_file():
        raise RecipeError("there is no such file", where=f"task.database: {database}", expected="an SQLite file")
    try:
        with closing(sqlite3.connect(f"{Path(database).resolve().as_uri()}?mode=ro", uri=True)) as connection:
            rows = connection.execute("SELECT sql FROM sqlite_master WHERE type = 'table' AND sql NOT NULL").fetchall()
    except sqlite3.Error as error:
        raise DataError(f"not an SQLite file: {error}", where=f"task.database: {database}") from error
    return "\n".join(str(sql) for (sql,) in rows)
