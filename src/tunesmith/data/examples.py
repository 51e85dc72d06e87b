"""From rows to examples: every row of a file becomes one conversation to learn, or is named in a finding."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tunesmith.data.chat import CHAT_FIELDS, read_messages
from tunesmith.data.codes import CODES
from tunesmith.data.findings import FindingLog, finding, in_order
from tunesmith.data.reading import ReadResult, read_rows
from tunesmith.data.shapes import Recognised, is_chat, refuse_contradictions, refuse_unsupported, shape_of
from tunesmith.data.spans import Span, parse_spans, texts_of
from tunesmith.data.task_type import is_json_answer
from tunesmith.data.template import Shape, cell_text, mapping, render_prompt
from tunesmith.data.types import Example, Finding, Message, Row
from tunesmith.errors import DataError, RecipeError
from tunesmith.recipe.schema import Data

_ENCODER = json.JSONEncoder(ensure_ascii=False)


@dataclass(frozen=True, slots=True)
class LoadResult:
    """The examples of one file. `rows` counts all records: those that became examples and those in findings.

    `format` is `chat`, `prompt_completion`, `columns` or `template`; `reason` says what it was recognised by.
    """

    examples: list[Example]
    findings: list[Finding]
    format: str
    rows: int
    reason: str

    @property
    def left_out(self) -> int:
        """Rows that are only in findings."""
        return self.rows - len(self.examples)


def load_examples(spec: Data, path: Path, *, task_type: str = "auto") -> LoadResult:
    """Read `path` (the train, validation or test file of `spec`) into examples.

    With `task_type="extraction"` an answer that is not a JSON list or object is reported and its row left out.
    Raises `DataError` where the file cannot be read or its columns cannot be mapped, `RecipeError` where the
    recipe contradicts itself or its template is none.
    """
    return examples_from(read_rows(path, encoding=spec.encoding), spec, str(path), task_type=task_type)


def examples_from(read: ReadResult, spec: Data, where: str, *, task_type: str = "auto") -> LoadResult:
    """The same for rows already read; `where` names the file in errors."""
    refuse_contradictions(spec)
    log = FindingLog(where)
    if not read.rows:  # every record is broken; there are no columns to speak of
        return LoadResult([], in_order(read.findings), spec.format, read.left_out, "no row could be read")
    mapped = bool(spec.template or spec.columns.prompt or spec.columns.answer)
    if spec.format == "chat" or (spec.format == "auto" and not (mapped or spec.span_types) and is_chat(read.columns)):
        if spec.format == "auto":
            refuse_unsupported(read.columns, where)
        examples, name, reason = _from_chat(read, spec, log, where), "chat", "rows with messages"
        used: Sequence[str] = CHAT_FIELDS
    else:
        if spec.span_types and not mapped:
            recognised = Recognised(_span_shape(read, where), "columns", "data.span_types")
        else:
            recognised = shape_of(spec, read.columns, where)
        examples, name, reason = (
            _from_table(read, spec, recognised.shape, log, where, task_type),
            recognised.format,
            recognised.reason,
        )
        used = recognised.shape.columns
    findings = [*read.findings, *log.findings(), *_unused(read.columns, used, where)]
    return LoadResult(examples, in_order(findings), name, len(read.rows) + read.left_out, reason)


def _unused(columns: Sequence[str], used: Sequence[str], where: str) -> list[Finding]:
    names = [name for name in columns if name not in used]
    message = f"{CODES['unused_columns'].title}: {', '.join(names)}"
    return [finding("unused_columns", message, count=len(names), source=where)] if names else []


def _from_chat(read: ReadResult, spec: Data, log: FindingLog, where: str) -> list[Example]:
    if not is_chat(read.columns):
        raise DataError(
            f"data.format is chat, but no row has messages (columns: {', '.join(read.columns) or 'none'})",
            where=where,
            expected='rows such as {"messages": [{"role": "user", "content": "…"}, …]}',
            fix="remove data.format, or correct the file",
        )
    maker = _ExampleMaker(spec.system)
    examples = []
    for row in read.rows:
        messages = read_messages(row.values, row.line, log)
        if messages is not None:
            examples.append(maker.make(messages, messages[-1].content, row))
    return examples


def _from_table(
    read: ReadResult, spec: Data, shape: Shape, log: FindingLog, where: str, task_type: str
) -> list[Example]:
    required, inputs = shape.required, shape.inputs
    spans_seen: Counter[str] = Counter()
    maker = _ExampleMaker(spec.system)
    examples = []
    for row in read.rows:
        missing = [name for name in required if name not in row.values]
        for name in missing:
            log.add("missing_column", row.line, repr(name), field=name)
        if missing:
            continue
        answer = _span_answer(row, shape, spec.span_types, spans_seen, log) if spec.span_types else _answer(row, shape)
        if answer is None or not _usable(row, inputs, shape.answer, answer, task_type, log):
            continue
        prompt = Message("user", render_prompt(shape.prompt, row.values))
        examples.append(maker.make((prompt, Message("assistant", answer + shape.tail)), answer, row))
    if spec.span_types:
        _require_types(spec.span_types, spans_seen, where)
    return examples


def _answer(row: Row, shape: Shape) -> str:
    return cell_text(row.values[shape.answer])


def _usable(row: Row, inputs: Sequence[str], column: str, answer: str, task_type: str, log: FindingLog) -> bool:
    """Whether the input columns and the `answer` from `column` can be learnt; notes each reason against it."""
    good = True
    if all(not cell_text(row.values.get(name)).strip() for name in inputs):
        log.add("empty_prompt", row.line, field=inputs[0])
        good = False
    if not answer.strip():
        log.add("empty_answer", row.line, field=column)
        good = False
    elif task_type == "extraction" and not is_json_answer(answer):
        log.add("answer_not_json", row.line, repr(answer[:40]), field=column)
        good = False
    return good


def _span_answer(row: Row, shape: Shape, types: Sequence[str], seen: Counter[str], log: FindingLog) -> str | None:
    value = row.values[shape.answer]
    if not cell_text(value).strip():
        return ""  # reported as an empty answer
    spans = parse_spans(value)
    if isinstance(spans, str):
        log.add("bad_spans", row.line, spans, field=shape.answer)
        return None
    seen.update(span.type for span in spans)
    return texts_of(spans, types)


def _require_types(types: Sequence[str], seen: Counter[str], where: str) -> None:
    missing = [name for name in types if name not in seen]
    if missing and seen:
        raise DataError(
            f"data.span_types names {', '.join(missing)}, which no span has",
            where=where,
            expected=f"types among: {', '.join(sorted(seen))}",
            fix="correct data.span_types",
        )


def span_columns(read: ReadResult) -> dict[str, list[Span]]:
    """Columns whose first cells that are not empty all hold spans, with the spans found in them."""
    found: dict[str, list[Span]] = {}
    for name in read.columns:
        cells = [value for row in read.rows[:200] if cell_text(value := row.values.get(name)).strip()]
        parsed = [parse_spans(value) for value in cells[:50]]
        spans = [span for spans in parsed if not isinstance(spans, str) for span in spans]
        if spans and not any(isinstance(spans, str) for spans in parsed):
            found[name] = spans
    return found


def _span_shape(read: ReadResult, where: str) -> Shape:
    """Input and answer of a file with spans, when the recipe names no columns."""
    names = list(span_columns(read))
    inputs = [name for name in read.columns if name not in names]
    if len(read.columns) == 2:
        answer = names[0] if len(names) == 1 else read.columns[1]
        return mapping(next(name for name in read.columns if name != answer), answer)
    if len(names) == 1 and len(inputs) == 1:
        return mapping(inputs[0], names[0])
    raise DataError(
        f"data.span_types is set, but it is not clear which column is the input (columns: {', '.join(read.columns)})",
        where=where,
        expected="data.columns beside data.span_types",
        fix=f"set data.columns: {{prompt: …, answer: {names[0] if names else '…'}}}",
    )


class _ExampleMaker:
    """Makes examples with ids by content: equal rows are told apart by a counter."""

    def __init__(self, system: str | None) -> None:
        if system is not None and not system.strip():
            raise RecipeError("data.system is empty", where="data.system", fix="write a message, or remove the key")
        self._system = Message("system", system) if system is not None else None
        self._seen: Counter[str] = Counter()

    def make(self, messages: tuple[Message, ...], expected: str, row: Row) -> Example:
        if self._system is not None and messages[0].role not in ("system", "developer"):
            messages = (self._system, *messages)
        key = content_key(messages)
        self._seen[key] += 1
        count = self._seen[key]
        return Example(key if count == 1 else f"{key}-{count}", messages, expected, row.line, row.source, row.values)


def content_key(messages: Sequence[Message]) -> str:
    """16 hexadecimal characters of the SHA-256 over role, content and weight of every turn."""
    turns = [[m.role, m.content, m.weight] for m in messages]
    return hashlib.sha256(_ENCODER.encode(turns).encode("utf-8")).hexdigest()[:16]
