"""What a file seems to be: the proposal `tunesmith init` shows for confirmation. A guess is called a guess."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.data.examples import examples_from, span_columns
from tunesmith.data.reading import ReadResult, read_rows
from tunesmith.data.shapes import is_chat, refuse_unsupported, well_known
from tunesmith.data.spans import Span
from tunesmith.data.task_type import LABEL_LENGTH, explain_task, is_json_answer
from tunesmith.data.template import cell_text
from tunesmith.data.types import Example
from tunesmith.errors import DataError
from tunesmith.recipe.schema import Data

_LOOK_AT = 500
"""Rows that are looked at to guess columns."""
_ANSWER_NAMES = (
    "answer",
    "output",
    "response",
    "completion",
    "target",
    "label",
    "category",
    "class",
    "intent",
    "code",
    "ground_truth",
)


@dataclass(frozen=True, slots=True)
class Proposal:
    """A file, understood: `data` and `task` are sections of a recipe, `reasons` says why, in sentences.

    `columns` are those of the file; `labels` is empty unless the task is a classification.
    """

    path: Path
    kind: str
    format: str
    columns: tuple[str, ...]
    task_type: str
    labels: tuple[str, ...]
    span_types: tuple[str, ...]
    rows: int
    data: dict[str, Any]
    task: dict[str, Any]
    reasons: list[str]
    warnings: list[str]
    samples: tuple[Example, ...]


def propose(path: Path) -> Proposal:
    """Look at a file and propose how to use it.

    Raises `DataError` where the file cannot be read, or nothing in it looks like an answer.
    """
    read = read_rows(path)
    if not read.rows:
        problems = "; ".join(finding.message for finding in read.findings[:3])
        raise DataError(f"no row can be read: {problems}", where=str(path), fix="correct these lines first")
    mapping, reasons, warnings = _mapping(read, str(path))
    data = {"train": str(path), **mapping}
    loaded = examples_from(read, Data.model_validate(data), str(path))
    if not loaded.examples:
        problems = "; ".join(finding.message for finding in loaded.findings[:3])
        raise DataError(f"no row can be used: {problems}", where=str(path), fix="correct these rows first")
    task_type, why = explain_task(loaded.examples)
    reasons.append(f"The task is {task_type}: {why}.")
    labels = tuple(sorted({example.expected for example in loaded.examples})) if task_type == "classification" else ()
    warnings += [finding.message for finding in loaded.findings if finding.severity != "info"]
    return Proposal(
        path=path,
        kind=read.kind,
        format=loaded.format,
        columns=read.columns,
        task_type=task_type,
        labels=labels,
        span_types=tuple(mapping.get("span_types", ())),
        rows=loaded.rows,
        data=data,
        task={"type": task_type},
        reasons=reasons,
        warnings=warnings,
        samples=tuple(loaded.examples[:3]),
    )


def _mapping(read: ReadResult, where: str) -> tuple[dict[str, Any], list[str], list[str]]:
    """The keys of `data` besides `train`, with reasons and warnings."""
    refuse_unsupported(read.columns, where)
    if is_chat(read.columns):
        return {"format": "chat"}, ["Rows hold conversations (messages)."], []
    spans = span_columns(read)
    if len(spans) == 1:
        return _span_mapping(read, *next(iter(spans.items())), where)
    known = well_known(read.columns)
    if known is not None:
        reason = f"Recognised by {known.reason}."
        if known.format == "prompt_completion":
            return {"format": "prompt_completion"}, [reason], []
        return _columns(known.shape.inputs[0], known.shape.answer), [reason], []
    if len(read.columns) == 2:
        prompt, answer = read.columns
        return _columns(prompt, answer), [f"The file has two columns: {prompt} is the input, {answer} the answer."], []
    return _guess(read, where)


def _span_mapping(
    read: ReadResult, answer: str, spans: Sequence[Span], where: str
) -> tuple[dict[str, Any], list[str], list[str]]:
    """The type with the most different texts is proposed: amounts and units repeat, things do not."""
    prompt = _longest_text(read, without={answer})
    if prompt is None:
        raise _nothing_found(read, where)
    texts: dict[str, set[str]] = defaultdict(set)
    for span in spans:
        texts[span.type].add(span.text.casefold())
    ranked = sorted(texts, key=lambda name: (-len(texts[name]), name))
    others = f" Other types: {', '.join(ranked[1:])}." if len(ranked) > 1 else ""
    reason = f"{answer} holds spans; {ranked[0]} is the type with the most different texts.{others}"
    return {**_columns(prompt, answer), "span_types": [ranked[0]]}, [reason], []


def _guess(read: ReadResult, where: str) -> tuple[dict[str, Any], list[str], list[str]]:
    answer, reason = _likely_answer(read)
    prompt = None
    if answer is not None:
        prompt = _source_of_items(read, answer) or _longest_text(read, without={answer})
    if answer is None or prompt is None:
        raise _nothing_found(read, where)
    warning = f"Which columns are input and answer is a guess; the file has: {', '.join(read.columns)}."
    context = _body_of(read, prompt, answer)
    if context is not None:
        template = f"{{{context}}}\n{{{prompt}}}\n{{{answer}}}"
        return {"template": template}, [f"{reason} {context} and {prompt} together are the input."], [warning]
    return _columns(prompt, answer), [f"{reason} {prompt} is taken as the input."], [warning]


def _columns(prompt: str, answer: str) -> dict[str, Any]:
    return {"format": "columns", "columns": {"prompt": prompt, "answer": answer}}


def _cells(read: ReadResult, name: str) -> list[str]:
    """Cells of the first rows that are not empty."""
    texts = (cell_text(row.values.get(name)) for row in read.rows[:_LOOK_AT])
    return [text for text in texts if text.strip()]


def _likely_answer(read: ReadResult) -> tuple[str | None, str]:
    """The one column with an answer's name, else the last of JSON lists, else one of few short values."""
    named = [name for name in read.columns if name.strip().lower() in _ANSWER_NAMES]
    if len(named) == 1:
        return named[0], f"{named[0]} is named like an answer."
    looked_at = min(len(read.rows), _LOOK_AT)
    full = {name: cells for name in read.columns if len(cells := _cells(read, name)) >= 0.9 * looked_at}
    structured = [name for name, cells in full.items() if all(is_json_answer(cell) for cell in cells)]
    if structured:
        return structured[-1], f"{structured[-1]} holds JSON."
    few = {
        name: distinct
        for name, cells in full.items()
        if all(len(cell) <= LABEL_LENGTH for cell in cells) and 2 <= (distinct := len(Counter(cells))) <= len(cells) / 4
    }
    if few:
        name = next((name for name in few if any(word in name.lower() for word in _ANSWER_NAMES)), list(few)[-1])
        return name, f"{name} has only {few[name]} different values."
    return None, ""


def _source_of_items(read: ReadResult, answer: str) -> str | None:
    """The column in which most items of JSON answers occur word for word, if more than half do."""
    found: Counter[str] = Counter()
    total = 0
    for row in read.rows[:_LOOK_AT]:
        text = cell_text(row.values.get(answer))
        value = json.loads(text) if is_json_answer(text) else []
        items = value.values() if isinstance(value, dict) else value
        for item in items:
            if isinstance(item, str) and item.strip():
                total += 1
                found.update(
                    name
                    for name in read.columns
                    if name != answer and item.casefold() in cell_text(row.values.get(name)).casefold()
                )
    best = max(found, key=lambda name: found[name], default=None)
    return best if best is not None and found[best] > total / 2 else None


def _longest_text(read: ReadResult, without: set[str]) -> str | None:
    """The input: a column named like a question if there is one, else that with the longest cells."""
    names = [name for name in read.columns if name not in without]
    for name in names:
        if name.strip().lower() in ("question", "instruction", "prompt", "text", "input", "sentence"):
            return name
    lengths = {name: sum(map(len, cells)) / len(cells) for name in names if (cells := _cells(read, name))}
    return max(lengths, key=lambda name: lengths[name], default=None)


def _body_of(read: ReadResult, prompt: str, answer: str) -> str | None:
    """A column `body` that the question needs and does not repeat."""
    name = next((n for n in read.columns if n.strip().lower() == "body" and n not in (prompt, answer)), None)
    if name is None:
        return None
    pairs = [(cell_text(row.values.get(name)), cell_text(row.values.get(prompt))) for row in read.rows[:_LOOK_AT]]
    repeated = sum(bool(body.strip()) and body.strip()[:40] in question for body, question in pairs)
    return name if repeated < len(pairs) / 2 else None


def _nothing_found(read: ReadResult, where: str) -> DataError:
    return DataError(
        f"no column looks like an answer (columns: {', '.join(read.columns)})",
        where=where,
        expected="messages, prompt and completion, or a column with labels or answers",
        fix='write a recipe with data.columns: {prompt: …, answer: …}, or data.template: "{…} → {…}"',
    )
