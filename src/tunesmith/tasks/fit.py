"""From the recipe's task and the examples to a task that knows its labels, its JSON form, its closing text."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from tunesmith.data.task_signs import known_order
from tunesmith.data.types import Example
from tunesmith.errors import DataError, RecipeError
from tunesmith.recipe.schema import Task as TaskSpec
from tunesmith.tasks.answers import bad_answer, closing_text, references
from tunesmith.tasks.base import TaskBase
from tunesmith.tasks.classification import Classification
from tunesmith.tasks.code import Code
from tunesmith.tasks.custom import CustomMetric, custom_metrics
from tunesmith.tasks.extraction import Extraction, Form, schema_validator
from tunesmith.tasks.generation import Generation
from tunesmith.tasks.maths import Maths
from tunesmith.tasks.multi_label import MultiLabel, split_labels
from tunesmith.tasks.ordinal import Ordinal
from tunesmith.tasks.question_answering import QuestionAnswering
from tunesmith.tasks.regression import Regression
from tunesmith.tasks.summarisation import Summarisation
from tunesmith.tasks.text_to_sql import TextToSql, table_definitions
from tunesmith.tasks.token_classification import TokenClassification, scheme_of
from tunesmith.tasks.tool_calls import ToolCalls
from tunesmith.tasks.translation import Translation, tokenizer_for
from tunesmith.tasks.types import Task
from tunesmith.tasks.words import words

SHORT_ANSWER_WORDS = 3
"""Where the median expected answer has at most this many words, exact match decides a generation."""


def fit_task(spec: TaskSpec, task_type: str, examples: Sequence[Example]) -> Task:
    """The task of type `task_type` as `examples` (all splits together) show it, with the recipe's own metrics.

    Raises `DataError` without examples or for answers that do not fit the task, `RecipeError` for an unknown type or
    a metric that cannot be computed.
    """
    if not examples:
        raise DataError("there are no examples to fit the task to", expected="at least one row", fix="check data.train")
    fit = _FITS.get(task_type)
    if fit is None:
        raise RecipeError(
            f"there is no task {task_type!r}",
            where="task.type",
            expected=", ".join(_FITS),
            fix="set task.type to one of these",
        )
    task = fit(spec, examples)
    custom = custom_metrics(spec.metrics)
    _refuse_known_names(task, custom)
    if custom:
        targets = [task.read(task.reply(example.expected), example) for example in examples]
        for metric in custom:
            metric.try_on([(target, task.target(e)) for target, e in zip(targets, examples, strict=True)])
        task = dataclasses.replace(task, custom=custom)
    return task


def _refuse_known_names(task: Task, custom: Sequence[CustomMetric]) -> None:
    taken = [metric.name for metric in custom if metric.name in task.metrics]
    if taken:
        raise RecipeError(
            f"{', '.join(taken)}: the task {task.name} has a metric of this name",
            where="task.metrics",
            fix="choose another name",
        )


def _classification(spec: TaskSpec, examples: Sequence[Example]) -> Classification:
    labels = sorted({example.expected.strip() for example in examples}) if spec.labels == "auto" else spec.labels
    task = Classification(tuple(labels), spec.instruction, closing_text(examples))
    if spec.labels != "auto":
        for example in examples:
            task.target(example)
    return task


def _extraction(spec: TaskSpec, examples: Sequence[Example]) -> Extraction:
    values = [_json_answer(example) for example in examples]
    form = _form(spec, examples, values)
    # Where the form is given, rows of another one are refused below, by name.
    fitting = [value for value in values if isinstance(value, dict if form == "object" else list)]
    objects = (
        fitting
        if form == "object"
        else [element for value in fitting for element in value if isinstance(element, dict)]
    )
    keys = tuple(dict.fromkeys(key for value in objects for key in value))
    elements: Literal["text", "object"] = "object" if form == "list" and objects else "text"
    task = Extraction(form, keys, elements, spec.instruction, closing_text(examples), _json_schema(spec))
    for example in examples:
        task.target(example)
    return task


def _json_schema(spec: TaskSpec) -> str | None:
    """The text of the recipe's schema, which is one. Raises `RecipeError`."""
    if spec.json_schema is None:
        return None
    try:
        text = Path(spec.json_schema).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"cannot be read: {error}", where=f"task.json_schema: {spec.json_schema}") from error
    schema_validator(text)
    return text


def _json_answer(example: Example) -> Any:
    try:
        value = json.loads(example.expected)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, list | dict):
        raise bad_answer(
            example,
            "the answer is not a JSON list or object",
            expected='such as ["flour", "eggs"] or {"name": "flour", "unit": "g"}',
            fix="correct the row, or set task.type",
        )
    return value


def _form(spec: TaskSpec, examples: Sequence[Example], values: Sequence[Any]) -> Form:
    """The recipe's form, or the form all answers have."""
    if spec.answer_form != "auto":
        return spec.answer_form
    first = type(values[0])
    for example, value in zip(examples, values, strict=True):
        if type(value) is not first:
            raise bad_answer(
                example,
                "some answers are JSON lists and others objects",
                expected="one form in all rows",
                fix="correct the rows, or set task.answer_form",
            )
    return "object" if first is dict else "list"


def _generation(spec: TaskSpec, examples: Sequence[Example]) -> Generation:
    median = statistics.median(len(words(example.expected)) for example in examples)
    return Generation(median <= SHORT_ANSWER_WORDS, spec.instruction, closing_text(examples))


def _multi_label(spec: TaskSpec, examples: Sequence[Example]) -> MultiLabel:
    answers = [example.expected for example in examples]
    separator = next((mark for mark in ("; ", "|", ", ", "\n") if any(mark.strip(" ") in a for a in answers)), ", ")
    found = {label for answer in answers for label in split_labels(answer, separator=separator) or ()}
    written: Literal["list", "text"] = "list" if all(a.lstrip().startswith("[") for a in answers) else "text"
    labels = tuple(sorted(found)) if spec.labels == "auto" else tuple(spec.labels)
    task = MultiLabel(labels, separator, written, **_wording(spec, examples))
    for example in examples:
        task.target(example)
    return task


def _ordinal(spec: TaskSpec, examples: Sequence[Example]) -> Ordinal:
    """Labels in the recipe's order; `auto` orders numbers by size and refuses texts, whose order nobody knows."""
    labels = _by_size(sorted({e.expected.strip() for e in examples})) if spec.labels == "auto" else list(spec.labels)
    task = Ordinal(tuple(labels), spec.instruction, closing_text(examples))
    for example in examples:
        task.target(example)
    return task


def _by_size(labels: Sequence[str]) -> list[str]:
    """Labels that are different numbers, by size. Raises `RecipeError` for others, as their order must be given."""
    try:
        numbers = {label: float(label) for label in labels}
    except ValueError:
        numbers = {}
    if not all(map(math.isfinite, numbers.values())) or len(set(numbers.values())) < len(labels):
        known = known_order(labels)
        raise RecipeError(
            f"the order of the labels is not known: {', '.join(labels[:10])}",
            where="task.labels",
            expected="the labels from least to most, or labels that are different numbers",
            fix=f"list them in task.labels, such as [{known}]" if known is not None else "list them in task.labels",
        )
    return sorted(labels, key=lambda label: numbers[label])


def _regression(spec: TaskSpec, examples: Sequence[Example]) -> Regression:
    blank = Regression(0.0, 0.0, **_wording(spec, examples))
    values = [blank.target(example) for example in examples]
    return dataclasses.replace(blank, low=min(values), high=max(values), tolerance=spec.tolerance)


def _token_classification(spec: TaskSpec, examples: Sequence[Example]) -> TokenClassification:
    blank = TokenClassification((), **_wording(spec, examples))
    tags = [blank.target(example) for example in examples]
    types = sorted({tag.partition("-")[2] for row in tags for tag in row} - {""})
    return dataclasses.replace(blank, types=tuple(types), scheme=scheme_of(tags))


def _translation(spec: TaskSpec, examples: Sequence[Example]) -> Translation:
    targets = [next(iter(references(example.expected)), "") for example in examples]
    return Translation(tokenizer_for(targets), **_wording(spec, examples))


def _question_answering(spec: TaskSpec, examples: Sequence[Example]) -> QuestionAnswering:
    none = any(not references(example.expected) for example in examples)
    return QuestionAnswering(none, **_wording(spec, examples))


def _maths(spec: TaskSpec, examples: Sequence[Example]) -> Maths:
    task = Maths(spec.tolerance, **_wording(spec, examples))
    for example in examples:
        task.target(example)
    return task


def _text_to_sql(spec: TaskSpec, examples: Sequence[Example]) -> TextToSql:
    if spec.database is None:
        raise RecipeError("missing", where="task.database", expected="the SQLite file on which queries are run")
    table_definitions(spec.database)
    task = TextToSql(spec.database, spec.time_limit, **_wording(spec, examples))
    task.refuse_broken(examples)
    return task


def _code(spec: TaskSpec, examples: Sequence[Example]) -> Code:
    task = Code(spec.run_code, spec.time_limit, **_wording(spec, examples))
    for example in examples:
        task.target(example)
    if spec.run_code:
        task.refuse_broken(examples)
    return task


def _wording(spec: TaskSpec, examples: Sequence[Example]) -> dict[str, Any]:
    """The fields that all tasks answered with a text share."""
    return {"given_instruction": spec.instruction, "closing": closing_text(examples)}


_FITS: Mapping[str, Callable[[TaskSpec, Sequence[Example]], TaskBase]] = {
    "classification": _classification,
    "multi_label": _multi_label,
    "ordinal": _ordinal,
    "regression": _regression,
    "extraction": _extraction,
    "token_classification": _token_classification,
    "summarisation": lambda spec, examples: Summarisation(**_wording(spec, examples)),
    "translation": _translation,
    "question_answering": _question_answering,
    "maths": _maths,
    "text_to_sql": _text_to_sql,
    "tool_calls": lambda spec, examples: ToolCalls(any(e.tools for e in examples), **_wording(spec, examples)),
    "code": _code,
    "generation": _generation,
}
_TASKS: tuple[type[TaskBase], ...] = (
    Classification, MultiLabel, Ordinal, Regression, Extraction, TokenClassification, Summarisation, Translation,
    QuestionAnswering, Maths, TextToSql, ToolCalls, Code, Generation,
)  # fmt: skip


def task_record(task: Task) -> dict[str, Any]:
    """A fitted task as JSON values, so that a run can be asked again without its data."""
    assert isinstance(task, _TASKS)
    record = {"name": task.name, **dataclasses.asdict(task)}
    return {**record, "signatures": dict(task.signatures)} if isinstance(task, Translation) else record


def restore_task(record: Mapping[str, Any]) -> Task:
    """The task `task_record` was made from."""
    kind = next(kind for kind in _TASKS if kind.name == record["name"])
    known = {field.name for field in dataclasses.fields(kind)}
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in record.items() if k in known}
    custom = tuple(CustomMetric(**metric) for metric in record.get("custom", ()))
    return kind(**{**fields, "custom": custom})
