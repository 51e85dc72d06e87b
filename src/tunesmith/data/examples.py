"""From rows to examples: every row of a source becomes one conversation to learn, or is named in a finding."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from tunesmith.data.codes import CODES
from tunesmith.data.findings import FindingLog, finding, in_order
from tunesmith.data.formats import Format, Sample, format_named, recognise
from tunesmith.data.reading import ReadResult, read_rows
from tunesmith.data.shapes import Recognised, refuse_contradictions, shape_of
from tunesmith.data.sources import address_of
from tunesmith.data.spans import Span, parse_spans, texts_of
from tunesmith.data.streaming import Scan, first_rows, scan_rows
from tunesmith.data.task_type import is_json_answer
from tunesmith.data.template import Shape, cell_text, field_of, has_field, mapping, render_prompt
from tunesmith.data.types import Content, Example, Finding, Message, Row
from tunesmith.errors import DataError, RecipeError
from tunesmith.recipe.schema import Data

LEARNT: frozenset[str] = frozenset({"answer", "text"})
"""What training can learn: kinds of examples, and `tools`. Of other rows what can be learnt is kept, and said."""
EVERYTHING: frozenset[str] = frozenset({"answer", "text", "preference", "rated", "prompt", "tools"})
_LOOK_AT = 200
"""Rows by which a format is recognised."""
_ENCODER = json.JSONEncoder(ensure_ascii=False)
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
    is not in `learns` is reported: questions alone, bad answers and tool calls are left out, of a preference the
    better answer is learnt. Raises `DataError` where the source cannot be read or its columns cannot be mapped,
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
    reader = row_reader(spec, read.rows, read.columns, where)
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
    rows, columns = first_rows(source, _LOOK_AT, encoding=spec.encoding)
    where = _shown(source)
    if not rows:
        nothing = scan_rows(source, _count_only, encoding=spec.encoding, processes=processes)
        return ExampleScan([], nothing.findings, spec.format, "no row could be read", nothing.rows, 0)
    reader = row_reader(spec, rows, columns, where)
    look = partial(_work_on, reader=reader, system=spec.system, task_type=task_type, learns=learns, work=work)
    scan: Scan[tuple[Made, int]] = scan_rows(source, look, encoding=spec.encoding, processes=processes)
    findings = in_order([*scan.findings, *_unused(scan.columns, reader.columns, where)])
    results, counts = [made for made, _ in scan.results], [count for _, count in scan.results]
    return ExampleScan(results, findings, reader.format, reader.reason, scan.rows, sum(counts))


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


class RowReader(Protocol):
    """Reads rows one by one, as the recipe or their format says."""

    @property
    def format(self) -> str:
        """Its name."""

    @property
    def reason(self) -> str:
        """Why the rows are read so."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that are read."""

    def read(self, row: Row, log: FindingLog) -> Content | None:
        """What a row says, or None with every reason noted in `log`."""


def row_reader(spec: Data, rows: Sequence[Row], columns: tuple[str, ...], where: str) -> RowReader:
    """How to read rows such as these. Raises as `load_examples` does."""
    mapped = bool(spec.template or spec.columns.prompt or spec.columns.answer)
    if spec.span_types and not mapped:
        read = Recognised(_span_shape(rows, columns, where), "columns", "data.span_types")
        return TableReader(read, spec)
    if mapped or spec.format in ("columns", "prompt_completion"):
        return TableReader(shape_of(spec, columns, where), spec)
    if spec.format != "auto":
        format = format_named(spec.format)
        if not set(columns) & set(format.columns):
            raise DataError(
                f"data.format is {spec.format}, but no row has {' or '.join(format.columns[:2])} "
                f"(columns: {', '.join(columns) or 'none'})",
                where=where,
                expected=format.title,
                fix="remove data.format, or correct the file",
            )
        return FormatReader(format, "data.format")
    found = recognise(Sample(rows[:_LOOK_AT], columns), where)
    if found is not None:
        return FormatReader(found[0], found[1].reason)
    return TableReader(shape_of(spec, columns, where), spec)


@dataclass(frozen=True, slots=True)
class FormatReader:
    """Reads rows of one format."""

    by: Format
    reason: str

    @property
    def format(self) -> str:
        """Its name."""
        return self.by.name

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that are read."""
        return self.by.columns

    def read(self, row: Row, log: FindingLog) -> Content | None:
        """What a row says."""
        return self.by.read(row, log)


class TableReader:
    """Reads rows by a mapping of columns: input, answer, perhaps spans and an answer that is not wanted."""

    def __init__(self, recognised: Recognised, spec: Data) -> None:
        self.shape, self.format, self.reason = recognised.shape, recognised.format, recognised.reason
        self._types, self._defaults, self._rejected = spec.span_types or [], spec.defaults, spec.columns.rejected
        self._types_seen: Counter[str] = Counter()

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that are read; of a path into a cell also the column."""
        names = [*self.shape.columns, *([self._rejected] if self._rejected else [])]
        return tuple(dict.fromkeys([*names, *(name.split(".")[0].split("[")[0] for name in names)]))

    def read(self, row: Row, log: FindingLog) -> Content | None:
        """What a row says."""
        shape = self.shape
        required = [*shape.required, *([self._rejected] if self._rejected else [])]
        missing = [name for name in required if name not in self._defaults and not has_field(row.values, name)]
        for name in missing:
            log.add("missing_column", row.line, repr(name), field=name)
        if missing:
            return None
        answer = self._span_answer(row, log) if self._types else self._answer(row.values)
        if answer is None or not self._usable(row, answer, log):
            return None
        prompt = Message("user", render_prompt(shape.prompt, row.values, self._defaults))
        messages = (prompt, Message("assistant", answer + shape.tail))
        if self._rejected is None:
            return Content(messages, answer)
        worse = cell_text(field_of(row.values, self._rejected, self._defaults))
        if not worse.strip() or worse == answer:
            log.add("preference_equal" if worse == answer else "empty_answer", row.line, field=self._rejected)
            return None
        return Content(messages, answer, rejected=(prompt, Message("assistant", worse + shape.tail)))

    def require_span_types(self, where: str) -> None:
        """Raise `DataError` for types that no span of the rows read so far has."""
        missing = [name for name in self._types if name not in self._types_seen]
        if missing and self._types_seen:
            raise DataError(
                f"data.span_types names {', '.join(missing)}, which no span has",
                where=where,
                expected=f"types among: {', '.join(sorted(self._types_seen))}",
                fix="correct data.span_types",
            )

    def _answer(self, values: Mapping[str, Any]) -> str:
        if self.shape.fields:
            cells = {name: field_of(values, name, self._defaults) for name in self.shape.fields}
            empty = all(not cell_text(value).strip() for value in cells.values())
            return "" if empty else json.dumps(cells, ensure_ascii=False)
        return render_prompt(self.shape.lead, values, self._defaults) + cell_text(
            field_of(values, self.shape.answer, self._defaults)
        )

    def _usable(self, row: Row, answer: str, log: FindingLog) -> bool:
        """Whether the input columns and the answer can be learnt; notes each reason against it."""
        inputs, good = self.shape.inputs, True
        if all(not cell_text(field_of(row.values, name, self._defaults)).strip() for name in inputs):
            log.add("empty_prompt", row.line, field=inputs[0])
            good = False
        if not answer.strip():
            log.add("empty_answer", row.line, field=self.shape.answer)
            good = False
        return good

    def _span_answer(self, row: Row, log: FindingLog) -> str | None:
        value = field_of(row.values, self.shape.answer, self._defaults)
        if not cell_text(value).strip():
            return ""  # reported as an empty answer
        spans = parse_spans(value)
        if isinstance(spans, str):
            log.add("bad_spans", row.line, spans, field=self.shape.answer)
            return None
        self._types_seen.update(span.type for span in spans)
        return texts_of(spans, self._types)


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
    if "tools" not in learns:
        if any(m.tool_calls or m.role == "tool" for m in content.messages):
            log.add("tool_calls_not_learnt", row.line, field="messages")
            return None
        if content.tools:
            log.add("tools_not_learnt", row.line, "tools", field="tools")
    if task_type == "extraction" and not is_json_answer(content.expected):
        log.add("answer_not_json", row.line, repr(content.expected[:40]))
        return None
    return content


def _unused(columns: Sequence[str], used: Sequence[str], where: str) -> list[Finding]:
    names = [name for name in columns if name not in used]
    message = f"{CODES['unused_columns'].title}: {', '.join(names)}"
    return [finding("unused_columns", message, count=len(names), source=where)] if names else []


def span_columns(rows: Sequence[Row], columns: Sequence[str]) -> dict[str, list[Span]]:
    """Columns whose first cells that are not empty all hold spans, with the spans found in them."""
    found: dict[str, list[Span]] = {}
    for name in columns:
        cells = [value for row in rows[:200] if cell_text(value := row.values.get(name)).strip()]
        parsed = [parse_spans(value) for value in cells[:50]]
        spans = [span for spans in parsed if not isinstance(spans, str) for span in spans]
        if spans and not any(isinstance(spans, str) for spans in parsed):
            found[name] = spans
    return found


def _span_shape(rows: Sequence[Row], columns: Sequence[str], where: str) -> Shape:
    """Input and answer of rows with spans, when the recipe names no columns."""
    names = list(span_columns(rows, columns))
    inputs = [name for name in columns if name not in names]
    if len(columns) == 2:
        answer = names[0] if len(names) == 1 else columns[1]
        return mapping(next(name for name in columns if name != answer), answer)
    if len(names) == 1 and len(inputs) == 1:
        return mapping(inputs[0], names[0])
    raise DataError(
        f"data.span_types is set, but it is not clear which column is the input (columns: {', '.join(columns)})",
        where=where,
        expected="data.columns beside data.span_types",
        fix=f"set data.columns: {{prompt: …, answer: {names[0] if names else '…'}}}",
    )


class ExampleMaker:
    """Makes examples with ids by content; equal rows are told apart by a counter, unless repeats are not counted."""

    def __init__(self, system: str | None, *, count_repeats: bool = True) -> None:
        if system is not None and not system.strip():
            raise RecipeError("data.system is empty", where="data.system", fix="write a message, or remove the key")
        self._system = Message("system", system) if system is not None else None
        self._seen: Counter[str] = Counter()
        self._count = count_repeats

    def make(self, content: Content, row: Row) -> Example:
        """The example of a row."""
        if self._system is not None and content.kind != "text":
            content = replace(
                content,
                messages=self._with_system(content.messages),
                rejected=self._with_system(content.rejected) if content.rejected else (),
            )
        key = content_key(
            content.messages,
            tools=content.tools,
            parallel_tool_calls=content.parallel_tool_calls,
            rejected=content.rejected,
            rating=content.rating,
        )
        if self._count:
            self._seen[key] += 1
            if (count := self._seen[key]) > 1:
                key = f"{key}-{count}"
        return Example(
            key, content.messages, content.expected, row.line, row.source, row.values,
            content.tools, content.parallel_tool_calls, content.rejected, content.rating,
        )  # fmt: skip

    def _with_system(self, messages: tuple[Message, ...]) -> tuple[Message, ...]:
        if self._system is None or messages[0].role in ("system", "developer"):
            return messages
        return (self._system, *messages)


def content_key(
    messages: Sequence[Message],
    *,
    tools: Sequence[str] = (),
    parallel_tool_calls: bool | None = None,
    rejected: Sequence[Message] = (),
    rating: bool | None = None,
) -> str:
    """16 hexadecimal characters of the SHA-256 over what is said.

    That is role, content and weight of every turn, and what else there is: names, tools, calls, the other answer, the
    rating. How arguments are spaced and what calls are numbered by makes no difference.
    """
    said: list[Any] = _turns(messages)
    more = [list(map(_canonical, tools)), parallel_tool_calls, _turns(rejected), rating]
    if more != [[], None, [], None]:
        said.append(more)
    return hashlib.sha256(_ENCODER.encode(said).encode("utf-8")).hexdigest()[:16]


def _turns(messages: Sequence[Message]) -> list[Any]:
    numbers: dict[str, int] = {}
    count = 0
    turns: list[Any] = []
    for m in messages:
        turn: list[Any] = [m.role, m.content, m.weight]
        if m.name is not None or m.tool_calls or m.tool_call_id is not None:
            calls = []
            for call in m.tool_calls:
                numbers[call.id] = count
                count += 1
                calls.append([call.name, numbers[call.id], _canonical(call.arguments)])
            turn += [m.name, calls, numbers.get(m.tool_call_id, -1) if m.tool_call_id is not None else None]
        turns.append(turn)
    return turns


def _canonical(text: str) -> Any:
    """JSON text without regard to spaces and the order of keys."""
    return json.dumps(json.loads(text), sort_keys=True)
