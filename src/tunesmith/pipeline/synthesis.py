"""`data synthesize`: a folder to train from, made of the recipe's rows and of rows another model made from them.

```
OUT/journal.jsonl     every request, what it cost, and what came back; a repeated command goes on from here
    synthetic.jsonl   the rows that passed, with their provenance
    train.jsonl       the training rows, and the made ones at the end
    validation.jsonl  and test.jsonl: as the recipe splits them
    recipe.yaml       the recipe on these files
```

Validation and test rows are copied as they are: the split is frozen before anything is made, so nothing made from a
training row can end up among them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunesmith.data import check_examples, make_splits
from tunesmith.data.duplicates import leaked_rows
from tunesmith.data.findings import FindingLog
from tunesmith.data.making import ExampleMaker
from tunesmith.data.reading import read_rows
from tunesmith.data.row_readers import RowReader
from tunesmith.data.types import Content, Example, Finding, Message, Row
from tunesmith.errors import DataError, RecipeError
from tunesmith.inference.endpoint import Budget, Endpoint
from tunesmith.pipeline.prepare import DataFindingsError, Listener, Rows, read_data
from tunesmith.pipeline.synthetic import JOURNAL, Kind, collect, paraphrase_requests, teacher_requests
from tunesmith.pipeline.synthetic_rows import MadeRow, RowForm, Screened, TableForm, row_form, screen
from tunesmith.recipe import dump_recipe
from tunesmith.recipe.schema import Recipe
from tunesmith.runs import write_text
from tunesmith.tasks import fit_task

_PLACEHOLDER = "?"
"""Stands for the answer that an unlabelled input has not got yet."""


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be made.

    rows: parents asked about, the first of the training part (or of `inputs`); None for all of them.
    per_row: rewordings of each. max_tokens: of an answer. inputs: a source of inputs for the teacher; without one the
    teacher answers the training rows again. column: the column that is reworded, where the input has several.
    """

    kind: Kind
    rows: int | None = None
    per_row: int = 2
    max_tokens: int = 512
    options: Mapping[str, Any] = field(default_factory=lambda: {"temperature": 1.0})
    inputs: str | None = None
    column: str | None = None
    concurrency: int = 4


@dataclass(frozen=True, slots=True)
class Synthesis:
    """What came of it. `ended`: the ceiling that was reached, if one was; `findings`: of the new training rows."""

    out: Path
    asked: int
    answered: int
    screened: Screened
    train_rows: int
    tokens: int
    money: float
    ended: str
    findings: tuple[Finding, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "out": str(self.out),
            "asked": self.asked,
            "answered": self.answered,
            "made": len(self.screened.rows),
            "left_out": dict(self.screened.left_out),
            "agreeing": self.screened.agreeing,
            "train_rows": self.train_rows,
            "tokens": self.tokens,
            "money": self.money,
            "ended": self.ended,
            "findings": [{"code": f.code, "severity": f.severity, "message": f.message} for f in self.findings],
        }


def synthesize(
    recipe: Recipe,
    order: Order,
    endpoint: Endpoint,
    budget: Budget,
    out: Path,
    listener: Listener = lambda event: None,
) -> Synthesis:
    """Make rows within the budget and write the folder `out`; called again, it goes on where it stopped.

    Raises `RecipeError` for an order that makes no sense, `DataError` for rows that cannot be written back,
    `EngineError` where the endpoint fails for good; what it answered until then is kept.
    """
    endpoint.check()
    if budget.max_tokens is None and budget.max_money is None:
        raise RecipeError("there is no ceiling", where="--max-tokens, --max-cost", expected="at least one of them")
    if budget.max_money is not None and not (budget.input_price or budget.output_price):
        raise RecipeError(
            "a ceiling of money needs prices", where="--max-cost", expected="--price-in and --price-out per million"
        )
    read = read_data(recipe)
    if any(f.severity == "error" for f in read.findings):
        raise DataFindingsError(read.findings)
    form, reader = row_form(recipe.data, order.column)
    splits = read.splits
    held_out = (*splits.validation, *splits.test)
    task = fit_task(recipe.task, read.task_type, [*splits.train, *held_out])
    parents = _parents(order, read, form, reader, recipe)
    if order.kind == "paraphrase":
        requests = paraphrase_requests(
            [(parent, form.prose(parent)) for parent in parents],
            order.per_row,
            endpoint.model,
            max_tokens=order.max_tokens,
            options=order.options,
        )
    else:
        requests = teacher_requests(parents, task, endpoint.model, max_tokens=order.max_tokens, options=order.options)
    out.mkdir(parents=True, exist_ok=True)
    entries, ended = collect(
        requests, endpoint, budget, out / JOURNAL, concurrency=order.concurrency, listener=listener
    )
    screened = screen(requests, entries, form, reader, task, recipe.data, train=splits.train, held_out=held_out)
    train = _training_rows(order, splits.train, screened.rows)
    _write(out, recipe, read, train, screened.rows)
    return Synthesis(
        out=out,
        asked=len(requests),
        answered=sum(request.key in entries for request in requests),
        screened=screened,
        train_rows=len(train),
        tokens=budget.tokens,
        money=budget.money,
        ended=ended,
        findings=_findings(recipe, read, screened.rows, order),
    )


def _parents(order: Order, read: Rows, form: RowForm, reader: RowReader, recipe: Recipe) -> Sequence[Example]:
    """What is asked about: training rows, or the inputs, without those that are in the validation or test part."""
    splits = read.splits
    if order.inputs is None:
        return splits.train[: order.rows]
    if order.kind != "teacher":
        raise RecipeError("only a teacher answers other inputs", where="--inputs", expected="--kind teacher")
    found = list(_unlabelled(order.inputs, form, reader, recipe))
    if not found:
        raise DataError("there is no usable input", where=order.inputs, expected="rows with the columns of the input")
    held_out = (*splits.validation, *splits.test)
    leaks = {leak.id for leak in leaked_rows(found, held_out)}
    return [example for example in found if example.id not in leaks][: order.rows]


def _unlabelled(source: str, form: RowForm, reader: RowReader, recipe: Recipe) -> Sequence[Example]:
    """Examples of inputs alone, with a placeholder for the answer."""
    read = read_rows(source, encoding=recipe.data.encoding)
    maker = ExampleMaker(recipe.data.system)
    made = []
    for row in read.rows:
        values = dict(row.values)
        if isinstance(form, TableForm) and not values.get(form.answer):
            values[form.answer] = _PLACEHOLDER
        content = reader.read(Row(values, row.line, row.source), FindingLog(row.source))
        if content is None or content.kind not in ("answer", "prompt"):
            continue
        if content.kind == "prompt":
            content = Content((*content.messages, Message("assistant", _PLACEHOLDER)), _PLACEHOLDER)
        made.append(maker.make(content, Row(values, row.line, row.source)))
    return made


def _training_rows(order: Order, train: Sequence[Example], made: Sequence[MadeRow]) -> list[Mapping[str, Any]]:
    """The rows to train on: the recipe's and the made ones; a row that a teacher answered again is replaced.

    They have the columns of the recipe's rows and no others, by which they are recognised.
    """
    answered = {row.parent.id for row in made} if order.kind == "teacher" and order.inputs is None else set()
    return [
        *(example.values for example in train if example.id not in answered),
        *(row.values for row in made),
    ]


def _write(out: Path, recipe: Recipe, read: Rows, train: Sequence[Mapping[str, Any]], made: Sequence[MadeRow]) -> None:
    write_text(out / "synthetic.jsonl", _lines({**row.values, "provenance": row.provenance} for row in made))
    write_text(out / "train.jsonl", _lines(train))
    parts = {"train": "train.jsonl"}
    for part in ("validation", "test"):
        rows = getattr(read.splits, part)
        if rows:
            parts[part] = f"{part}.jsonl"
            write_text(out / parts[part], _lines(example.values for example in rows))
    data = recipe.data.model_copy(
        update={**{part: parts.get(part) for part in ("train", "validation", "test")}, "max_rows": None}
    )
    # Where a part is empty, none is to be split off from the rows that were made.
    empty = {part: 0 for part in ("validation", "test") if part not in parts}
    data = data.model_copy(update={"split": data.split.model_copy(update=empty), "encoding": "auto"})
    write_text(out / "recipe.yaml", dump_recipe(recipe.model_copy(update={"data": data})))


def _lines(rows: Any) -> str:
    return "".join(json.dumps(dict(row), ensure_ascii=False, default=str) + "\n" for row in rows)


def _findings(recipe: Recipe, read: Rows, made: Sequence[MadeRow], order: Order) -> tuple[Finding, ...]:
    """What the usual checks say about the new training rows beside the old held-out ones."""
    splits = read.splits
    replaced = {row.parent.id for row in made} if order.kind == "teacher" and order.inputs is None else set()
    train = [example for example in splits.train if example.id not in replaced] + [row.example for row in made]
    together = make_splits(
        train, splits.validation or None, splits.test or None,
        recipe.data.split.model_copy(
            update={**({} if splits.validation else {"validation": 0}), **({} if splits.test else {"test": 0})}
        ),
        task_type=read.task_type,
    )  # fmt: skip
    return tuple(check_examples(train, task_type=read.task_type, splits=together))
