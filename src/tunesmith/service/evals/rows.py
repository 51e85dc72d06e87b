"""The rows of a run: read from its source when it is made, checked, and kept as they were."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

from tunesmith.service.context import Service
from tunesmith.service.errors import ApiError
from tunesmith.service.evals.schemas import faults
from tunesmith.service.evals.shapes import FileContent, FileId, Source, StoredCompletions, StoredResponses
from tunesmith.service.evals.stored import Pair, completion_rows, response_rows
from tunesmith.service.filing import file_path, get_file
from tunesmith.service.json_lines import is_blank, json_line, read_line
from tunesmith.service.validation import Problem

MOST_ROWS = 50_000
MOST_PROBLEMS = 50
"""Problems of rows that are told; the rest is counted."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row; `sample` is an answer that came with it."""

    item: Mapping[str, Any]
    sample: Mapping[str, Any] | None = None


def rows_of(service: Service, source: Source) -> tuple[tuple[Row, ...], tuple[Problem, ...]]:
    """The rows of a source and what is wrong with it. Rows with problems are left out."""
    param = "data_source.source"
    match source:
        case FileContent():
            found = tuple(Row(one.item, one.sample) for one in source.content)
            problems: tuple[Problem, ...] = ()
        case FileId():
            found, problems = _of_file(service, source.id, f"{param}.id")
        case StoredCompletions():
            found, problems = _first(completion_rows(service, source)), ()
        case StoredResponses():
            found, problems = _first(response_rows(service, source)), ()
    if not problems and not found:
        nothing = "no stored answer fits its filters" if "stored" in source.type or source.type == "responses" else ""
        problems = (_invalid(param, nothing or "it has no rows"),)
    if len(found) > MOST_ROWS:
        problems = (*problems, _invalid(param, f"it has more than {MOST_ROWS:,} rows"))
    return found, problems


def item_problems(rows: Sequence[Row], schema: Mapping[str, Any], param: str) -> Iterator[Problem]:
    """Where items do not keep the schema, row by row."""
    for number, text in faults([row.item for row in rows], schema):
        if number is None:
            yield _invalid("data_source_config.item_schema", text)
        else:
            yield _invalid(param, f"row {number}, {text}")


def bounded(problems: Iterable[Problem]) -> tuple[Problem, ...]:
    """The first of many problems, and a last one that says how many more there are."""
    kept: list[Problem] = []
    more = 0
    for problem in problems:
        if len(kept) < MOST_PROBLEMS:
            kept.append(problem)
        else:
            more += 1
    if more:
        last = kept[-1]
        kept[-1] = Problem(f"{last.message} There are {more:,} more problems like these.", last.param, last.code)
    return tuple(kept)


@contextmanager
def keep_rows(service: Service, rows: Iterable[Row]) -> Iterator[str]:
    """Write the rows as a blob, one JSON object on each line; its name, held until a record names it."""
    writer = service.blobs.writer()
    try:
        for row in rows:
            writer.write(json_line({"item": row.item, "sample": row.sample}))
        yield writer.finish(hold=True)
    finally:
        writer.abandon()


def kept_rows(service: Service, blob: str) -> list[Row]:
    """What `keep_rows` wrote. Raises `KeyError` where it is gone."""
    with service.blobs.path(blob).open(encoding="utf-8") as lines:
        return [Row(found["item"], found["sample"]) for found in map(json.loads, lines)]


def _first(pairs: Iterator[Pair]) -> tuple[Row, ...]:
    """As many as a run may have, and one more where there are more."""
    return tuple(Row(*one) for one in islice(pairs, MOST_ROWS + 1))


def _of_file(service: Service, name: str, param: str) -> tuple[tuple[Row, ...], tuple[Problem, ...]]:
    try:
        file = get_file(service, name[:100])
        path = file_path(service, file)
    except ApiError as error:
        return (), (Problem(error.message, param, error.code),)
    if file.bytes > service.settings.limits.batch_file:
        most = service.settings.limits.batch_file
        return (), (_invalid(param, f"the file has {file.bytes:,} bytes, but may have at most {most:,}"),)
    rows, problems = [], []
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if is_blank(line):
                continue
            row = _row_of(line)
            if isinstance(row, Row):
                rows.append(row)
            else:
                problems.append(_invalid(param, f"line {number}: {row}"))
            if len(rows) + len(problems) > MOST_ROWS:
                break  # one too many is enough to refuse it
    return tuple(rows), bounded(problems)


def _row_of(line: bytes) -> Row | str:
    try:
        found = read_line(line)
    except ValueError as error:
        return f"it is not valid JSON: {error}"
    if not isinstance(found, dict) or not isinstance(found.get("item"), dict):
        return 'expected an object with an object "item" in it, as in {"item": {"question": "…"}}'
    sample = found.get("sample")
    if sample is not None and not isinstance(sample, dict):
        return '"sample" is not an object'
    return Row(found["item"], sample)


def _invalid(param: str, why: str) -> Problem:
    return Problem(f"Invalid value for {param!r}: {why}.", param, "invalid_value")
