"""From rows to examples: every row of a source becomes one conversation to learn, or is named in a finding."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from tunesmith.data.codes import CODES
from tunesmith.data.findings import FindingLog, finding, in_order
from tunesmith.data.making import ExampleMaker
from tunesmith.data.reading import ReadResult, read_rows
from tunesmith.data.row_readers import LOOK_AT, RowReader, TableReader, row_reader
from tunesmith.data.shapes import refuse_contradictions
from tunesmith.data.sources import address_of
from tunesmith.data.streaming import Scan, first_rows, scan_rows
from tunesmith.data.task_type import is_json_answer
from tunesmith.data.template import parse_template, root_column
from tunesmith.data.types import Content, Example, Finding, Kind, Row
from tunesmith.recipe.schema import Data

LEARNT: frozenset[Kind] = frozenset({"answer", "text"})
"""Kinds of examples that training can learn. Of other rows what can be learnt is kept, and said."""
EVERYTHING: frozenset[Kind] = frozenset({"answer", "text", "preference", "rated", "prompt"})
Made = TypeVar("Made")
Result_co = TypeVar("Result_co", covariant=True)


@dataclass(frozen=True, slots=True)
class LoadResult:
    """The examples of one source. `rows` counts all records: those that became examples and those in findings.

    `format` is the name of a format, `prompt_completion`, `columns` or `template`; `reason` says what it was recognised
    by, and `used` which columns it read.
    """

    examples: list[Example]
    findings: list[Finding]
    format: str
    rows: int
    reason: str
    used: tuple[str, ...] = ()

    @property
    def left_out(self) -> int:
        """Rows that are only in findings."""
        return self.rows - len(self.examples)


def load_examples(
    spec: Data, source: str | Path, *, task_type: str = "auto", learns: Collection[str] = LEARNT
) -> LoadResult:
    """Read `source` (the train, validation or test rows of `spec`) into examples.

    With `task_type="extraction"` an answer that is not a JSON list or object is reported and its row left out. What
    is not in `learns` is reported: questions alone and bad answers are left out, of a preference the better answer is
    learnt. Raises `DataError` where the source cannot be read or its columns cannot be mapped,
    `RecipeError` where the recipe contradicts itself or its template is none.
    """
    return examples_from(
        read_rows(source, encoding=spec.encoding), spec, _shown(source), task_type=task_type, learns=learns
    )


def examples_from(
    read: ReadResult, spec: Data, where: str, *, task_type: str = "auto", learns: Collection[str] = LEARNT
) -> LoadResult:
    """The same for rows already read; `where` names the source in errors."""
    refuse_contradictions(spec)
    log = FindingLog(where)
    if not read.rows:  # every record is broken; there are no columns to speak of
        return LoadResult([], in_order(read.findings), spec.format, read.left_out, "no row could be read")
    columns = _deciding(spec, read.head_columns, lambda: read.columns)
    reader = row_reader(spec, read.rows, columns, where)
    maker = ExampleMaker(spec.system)
    examples = []
    for row in read.rows:
        content = reader.read(row, log)
        if content is not None and (content := _learnable(content, row, log, task_type, learns)) is not None:
            examples.append(maker.make(content, row))
    if isinstance(reader, TableReader):
        reader.require_span_types(where)
    findings = [*read.findings, *log.findings(), *_unused(read.columns, reader.columns, where)]
    rows = len(read.rows) + read.left_out
    return LoadResult(examples, in_order(findings), reader.format, rows, reader.reason, reader.columns)


class Work(Protocol[Result_co]):
    """What to do with the examples of one block, in another process; may note what is wrong with them."""

    def __call__(self, examples: Sequence[Example], log: FindingLog) -> Result_co: ...


@dataclass(frozen=True, slots=True)
class ExampleScan(Generic[Made]):
    """What came of all rows of a source: `results` are those of each block, in order."""

    results: list[Made]
    findings: list[Finding]
    format: str
    reason: str
    rows: int
    examples: int


def scan_examples(
    spec: Data,
    source: str | Path,
    work: Work[Made],
    *,
    task_type: str = "auto",
    learns: Collection[str] = LEARNT,
    processes: int | None = None,
) -> ExampleScan[Made]:
    """As `load_examples`, for any number of rows: `work` sees the examples a block at a time, on all cores.

    Ids are those of the content alone, so equal rows have equal ids. `work` is a function of a module, or a
    `functools.partial` of one.
    """
    refuse_contradictions(spec)
    rows, columns = first_rows(source, LOOK_AT, encoding=spec.encoding)
    where = _shown(source)
    if not rows:
        nothing = scan_rows(source, _count_only, encoding=spec.encoding, processes=processes)
        return ExampleScan([], nothing.findings, spec.format, "no row could be read", nothing.rows, 0)
    columns = _deciding(
        spec,
        columns,
        lambda: scan_rows(source, _count_only, encoding=spec.encoding, processes=processes).columns,
    )
    reader = row_reader(spec, rows, columns, where)
    look = partial(_work_on, reader=reader, system=spec.system, task_type=task_type, learns=learns, work=work)
    scan: Scan[tuple[Made, int]] = scan_rows(source, look, encoding=spec.encoding, processes=processes)
    findings = in_order([*scan.findings, *_unused(scan.columns, reader.columns, where)])
    results, counts = [made for made, _ in scan.results], [count for _, count in scan.results]
    return ExampleScan(results, findings, reader.format, reader.reason, scan.rows, sum(counts))


def _deciding(spec: Data, head: tuple[str, ...], everything: Callable[[], Sequence[str]]) -> tuple[str, ...]:
    """The columns by which is decided how rows are read: those of the first rows, and those that the recipe names.

    What the recipe names, and the first rows lack, is looked for in `everything`: all columns of the source.
    """
    named = list(parse_template(spec.template, spec.answer).columns) if spec.template is not None else []
    answers = spec.columns.answer if isinstance(spec.columns.answer, list) else [spec.columns.answer]
    named += [name for name in (spec.columns.prompt, *answers, spec.columns.rejected) if name]
    if all(name in spec.defaults or root_column(name, head) in head for name in named):
        return head
    later = [name for name in everything() if name not in head]
    return (*head, *(name for name in later if name in {root_column(wanted, later) for wanted in named}))


def _count_only(rows: Sequence[Row], log: FindingLog) -> int:
    return len(rows)


def _work_on(
    rows: Sequence[Row],
    log: FindingLog,
    *,
    reader: RowReader,
    system: str | None,
    task_type: str,
    learns: Collection[str],
    work: Work[Made],
) -> tuple[Made, int]:
    maker = ExampleMaker(system, count_repeats=False)
    examples = []
    for row in rows:
        content = reader.read(row, log)
        if content is not None and (content := _learnable(content, row, log, task_type, learns)) is not None:
            examples.append(maker.make(content, row))
    return work(examples, log), len(examples)


def _shown(source: str | Path) -> str:
    return address_of(source).shown


def _learnable(content: Content, row: Row, log: FindingLog, task_type: str, learns: Collection[str]) -> Content | None:
    """The content as it can be learnt, or None; notes what is not."""
    kind = content.kind
    if kind not in learns:
        if kind == "prompt":
            log.add("no_answer_given", row.line)
            return None
        if kind == "rated" and not content.rating:
            log.add("bad_answer_left_out", row.line)
            return None
        if kind == "preference":
            log.add("rejected_not_learnt", row.line)
    if content.parallel_tool_calls is False and (number := _calls_at_once(content)) is not None:
        log.add("parallel_calls_clash", row.line, f"message {number}", field="messages")
    if task_type == "extraction" and not is_json_answer(content.expected):
        log.add("answer_not_json", row.line, repr(content.expected[:40]))
        return None
    return content


def _calls_at_once(content: Content) -> int | None:
    """The number of the first turn that calls more than one tool."""
    return next((n for n, m in enumerate(content.messages, 1) if len(m.tool_calls) > 1), None)


def _unused(columns: Sequence[str], used: Sequence[str], where: str) -> list[Finding]:
    names = [name for name in columns if name not in used]
    message = f"{CODES['unused_columns'].title}: {', '.join(names)}"
    return [finding("unused_columns", message, count=len(names), source=where)] if names else []
