"""How rows are read: by a format, or by a mapping of columns to input and answer."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from tunesmith.data.findings import FindingLog
from tunesmith.data.formats import Format, Sample, format_named, recognise
from tunesmith.data.shapes import Recognised, shape_of
from tunesmith.data.spans import Span, parse_spans, texts_of
from tunesmith.data.template import Shape, cell_text, field_of, has_field, mapping, render_prompt
from tunesmith.data.types import Content, Message, Row
from tunesmith.errors import DataError
from tunesmith.recipe.schema import Data

LOOK_AT = 200
"""Rows by which a format is recognised."""


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
        seen = format.recognise(Sample(rows[:LOOK_AT], columns))
        return FormatReader(format, "data.format", seen.columns if seen is not None else ())
    found = recognise(Sample(rows[:LOOK_AT], columns), where)
    if found is not None:
        return FormatReader(found[0], found[1].reason, found[1].columns)
    return TableReader(shape_of(spec, columns, where), spec)


@dataclass(frozen=True, slots=True)
class FormatReader:
    """Reads rows of one format."""

    by: Format
    reason: str
    further: tuple[str, ...] = ()

    @property
    def format(self) -> str:
        """Its name."""
        return self.by.name

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that are read."""
        return (*self.by.columns, *self.further)

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
