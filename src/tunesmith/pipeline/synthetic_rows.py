"""From replies to rows: written as the training rows are, read back by the same reader, and screened.

A made row is left out where it says nothing new (it repeats, or nearly, a training row), where it says too much (it
resembles a validation or test row), and where it cannot be right (no answer can be read in it, or what the answer
quotes is gone from the input).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

from tunesmith.data.duplicates import leaked_rows, normalised
from tunesmith.data.duplicates.shingles import jaccard, shingle_set
from tunesmith.data.findings import FindingLog
from tunesmith.data.formats import Writer
from tunesmith.data.making import ExampleMaker
from tunesmith.data.row_readers import FormatReader, RowReader, TableReader, row_reader
from tunesmith.data.streaming import first_rows
from tunesmith.data.types import Example, Row
from tunesmith.errors import DataError
from tunesmith.pipeline.synthetic import Entry, Kind, Request, texts_in
from tunesmith.recipe.schema import Data
from tunesmith.tasks.types import Task
from tunesmith.text.answers import ReadAnswer, read_answer

NEAR = 0.8
"""Likeness of character 5-grams from which a rewording is no other text than its parent."""
SOURCE = "synthetic"
_LOOK_AT = 200
Reason = Literal[
    "refused", "cut_off", "unreadable", "empty", "answer_lost", "repeated", "like_parent", "leak", "bad_row"
]


@dataclass(frozen=True, slots=True)
class MadeRow:
    """A row that passed: as it is written, as it is read, and where it comes from."""

    values: Mapping[str, Any]
    example: Example
    parent: Example
    provenance: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Screened:
    """What became of the replies. `agreeing`: teacher's answers that are those of the rows they were asked about."""

    rows: tuple[MadeRow, ...]
    left_out: Mapping[Reason, int]
    agreeing: int


class RowForm(Protocol):
    """How rows of the training source are taken apart and written."""

    def prose(self, example: Example) -> str:
        """The text that may be reworded."""

    def reworded(self, example: Example, text: str) -> dict[str, Any]:
        """The row with that text replaced."""

    def answered(self, example: Example, answer: str) -> dict[str, Any]:
        """The row with another answer."""


@dataclass(frozen=True, slots=True)
class TableForm:
    """Rows of columns: one of them is reworded, one holds the answer."""

    column: str
    answer: str

    def prose(self, example: Example) -> str:
        """The text of the column that is reworded."""
        return str(example.values.get(self.column, ""))

    def reworded(self, example: Example, text: str) -> dict[str, Any]:
        """The row with another text in that column."""
        return {**example.values, self.column: text}

    def answered(self, example: Example, answer: str) -> dict[str, Any]:
        """The row with another answer."""
        return {**example.values, self.answer: answer}


@dataclass(frozen=True, slots=True)
class WrittenForm:
    """Rows of a format that can be written: the last question is reworded, the last answer replaced."""

    writer: Writer

    def prose(self, example: Example) -> str:
        """The last question."""
        return example.question

    def reworded(self, example: Example, text: str) -> dict[str, Any]:
        """The row with another last question."""
        place = max(i for i, message in enumerate(example.prompt) if message.role == "user")
        messages = list(example.messages)
        messages[place] = replace(messages[place], content=text)
        return self.writer.write(replace(example, messages=tuple(messages)))

    def answered(self, example: Example, answer: str) -> dict[str, Any]:
        """The row with another last answer; of a row with tools, with the calls in it."""
        read = read_answer(answer) if example.has_tools else ReadAnswer(answer)
        last = replace(example.messages[-1], content=read.content, tool_calls=read.calls)
        made = replace(example, messages=(*example.prompt, last), expected=read.expected_form)
        return self.writer.write(made)


def row_form(spec: Data, column: str | None = None) -> tuple[RowForm, RowReader]:
    """How the rows of `spec.train` are written, and how they are read. `column`: the one to reword, where several are.

    Raises `DataError` for rows that cannot be written back, and where it is not clear which column to reword.
    """
    rows, columns = first_rows(spec.train, _LOOK_AT, encoding=spec.encoding)
    reader = row_reader(spec, rows, columns, spec.train)
    if isinstance(reader, FormatReader) and isinstance(reader.by, Writer) and "answer" in reader.by.kinds:
        return WrittenForm(reader.by), reader
    if not isinstance(reader, TableReader) or spec.span_types or reader.shape.fields or reader.shape.lead:
        raise DataError(
            f"rows read as {reader.format} cannot be written again with other texts",
            where=spec.train,
            fix="convert them first: tunesmith data convert FILE --to openai-chat",
        )
    inputs = reader.shape.inputs
    if column is None and len(inputs) > 1:
        raise DataError(
            f"the input is made of several columns: {', '.join(inputs)}",
            where=spec.train,
            fix="say which one is to be reworded with --column NAME",
        )
    chosen = column or inputs[0]
    if chosen not in inputs:
        raise DataError(f"{chosen!r} is no column of the input", where="--column", expected=", ".join(inputs))
    return TableForm(chosen, reader.shape.answer), reader


def screen(
    requests: Sequence[Request],
    entries: Mapping[str, Entry],
    form: RowForm,
    reader: RowReader,
    task: Task,
    spec: Data,
    *,
    train: Sequence[Example],
    held_out: Sequence[Example],
) -> Screened:
    """Rows from the replies, in the order of the requests, each checked against the parents and the held-out rows."""
    left_out: Counter[Reason] = Counter()
    passed: list[MadeRow] = []
    inputs = {normalised(_input(example)) for example in train}
    maker = ExampleMaker(spec.system)
    line = 0
    for request in requests:
        entry = entries.get(request.key)
        if entry is None:
            continue
        made = _values_of(request, entry, form, task)
        if isinstance(made, str):
            left_out[made] += 1
            continue
        for values in made:
            line += 1
            example = _read(values, line, reader, maker, task)
            reason = "bad_row" if example is None else _objection(request.kind, request.parent, example, form, inputs)
            if example is None or reason is not None:
                left_out[reason or "bad_row"] += 1
                continue
            if request.kind == "paraphrase":
                inputs.add(normalised(_input(example)))
            passed.append(MadeRow(values, example, request.parent, entry.provenance))
    leaks = {leak.id for leak in leaked_rows([row.example for row in passed], held_out)}
    left_out["leak"] += sum(row.example.id in leaks for row in passed)
    kept = tuple(row for row in passed if row.example.id not in leaks)
    agreeing = sum(row.provenance["kind"] == "teacher" and row.example.expected == row.parent.expected for row in kept)
    return Screened(kept, {reason: count for reason, count in left_out.items() if count}, agreeing)


def _values_of(request: Request, entry: Entry, form: RowForm, task: Task) -> list[dict[str, Any]] | Reason:
    """The rows a reply means, or why it means none."""
    if entry.text is None:
        return "refused"
    if entry.provenance.get("finish_reason") == "length":
        return "cut_off"
    if request.kind == "teacher":
        text = entry.text.strip()
        if not text:
            return "empty"
        answer = _answer_text(task, text)
        return "unreadable" if answer is None else [form.answered(request.parent, answer)]
    texts = texts_in(entry.text)
    if texts is None:
        return "unreadable"
    good = [text for text in texts if text]
    return [form.reworded(request.parent, text) for text in good] if good else "empty"


def _answer_text(task: Task, text: str) -> str | None:
    """The answer as it stands in a row: the label, the JSON, or the text itself; None where it cannot be read."""
    value = task.parse(text)
    if value is None:
        return None
    if task.name == "extraction":
        return json.dumps(value, ensure_ascii=False)
    return value if isinstance(value, str) and task.name == "classification" else text


def _objection(kind: Kind, parent: Example, example: Example, form: RowForm, inputs: set[str]) -> Reason | None:
    """Why a readable row is not to be learnt, leaks aside."""
    if kind == "teacher":
        return None
    text, original = form.prose(example), form.prose(parent)
    if any(quoted in original and quoted not in text for quoted in _quoted(example.expected)):
        return "answer_lost"
    if normalised(_input(example)) in inputs:
        return "repeated"
    one, other = shingle_set(normalised(text)), shingle_set(normalised(original))
    return "like_parent" if jaccard(one, other) >= NEAR else None


def _quoted(answer: str) -> Iterator[str]:
    """The texts in an answer that is JSON: an extraction's spans, which the input must hold."""
    try:
        waiting = [json.loads(answer)]
    except ValueError:
        return
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
        elif isinstance(value, str) and value:
            yield value


def _read(values: Mapping[str, Any], line: int, reader: RowReader, maker: ExampleMaker, task: Task) -> Example | None:
    """The row as training would read it; None where it would be reported instead."""
    row = Row(values, line, SOURCE)
    content = reader.read(row, FindingLog(SOURCE))
    if content is None or content.kind != "answer":
        return None
    example = maker.make(content, row)
    if task.name == "generation":
        return example
    return example if task.parse(example.expected) is not None else None


def _input(example: Example) -> str:
    return "\n".join(message.content for message in example.prompt if message.role not in ("system", "developer"))
