"""What rows seem to be: the proposal `tunesmith init` shows for confirmation. A guess is called a guess."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.data.examples import EVERYTHING, examples_from
from tunesmith.data.formats import Sample, formats, recognise
from tunesmith.data.reading import ReadResult, read_rows
from tunesmith.data.row_readers import span_columns
from tunesmith.data.shapes import well_known
from tunesmith.data.sources import address_of
from tunesmith.data.spans import Span
from tunesmith.data.task_type import LABEL_LENGTH, explain_task, is_json_answer
from tunesmith.data.template import cell_text, field_of
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
_QUESTION_NAMES = ("question", "instruction", "prompt", "text", "input", "sentence")
_PREFERRED = (
    ("answer_matching_behavior", "answer_not_matching_behavior"),
    ("better", "worse"),
    ("accepted", "rejected"),
)
_FIELD_SHARE = 0.5
"""Share of its cells, those that say something, which must occur in the input for a column to be a field of it."""
_LONG_ITEM = 6
"""Words of an item of a list, on average, from which the items are texts in their own right, not things to extract."""

Mapped = tuple[dict[str, Any], list[str], list[str]]
"""Keys of `data`, reasons, warnings."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """A source, understood: `data` and `task` are sections of a recipe, `reasons` says why, in sentences.

    `columns` are those of the source; `labels` is empty unless the task is a classification.
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


def propose(source: str | Path) -> Proposal:
    """Look at a source and propose how to use it.

    Raises `DataError` where it cannot be read, or nothing in it looks like an answer.
    """
    address = address_of(source)
    where = address.shown
    read = read_rows(source)
    if not read.rows:
        problems = "; ".join(finding.message for finding in read.findings[:3])
        raise DataError(f"no row can be read: {problems}", where=where, fix="correct these lines first")
    mapping, reasons, warnings = _mapping(read, where)
    data = {"train": str(source), **mapping}
    spec = Data.model_validate(data)
    loaded = examples_from(read, spec, where)
    examples = loaded.examples or examples_from(read, spec, where, learns=EVERYTHING).examples
    if not examples:
        problems = "; ".join(finding.message for finding in loaded.findings[:3])
        raise DataError(f"no row can be used: {problems}", where=where, fix="correct these rows first")
    if not loaded.examples:
        warnings.append("None of these rows can be learnt yet; they can be converted (`tunesmith data convert`).")
    task_type, why = explain_task(examples)
    reasons.append(f"The task is {task_type}: {why}.")
    labels = tuple(sorted({example.expected for example in examples})) if task_type == "classification" else ()
    warnings += [finding.message for finding in loaded.findings if finding.severity != "info"]
    return Proposal(
        path=address.path,
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
        samples=tuple(examples[:3]),
    )


def _mapping(read: ReadResult, where: str) -> Mapped:
    """The keys of `data` besides `train`, with reasons and warnings."""
    found = recognise(Sample(read.rows[:_LOOK_AT], read.columns), where)
    if found is not None:
        format, seen = found
        return {"format": format.name}, [f"{format.title}, recognised by {seen.reason}."], []
    spans = span_columns(read.rows, read.columns)
    if len(spans) == 1:
        return _span_mapping(read, *next(iter(spans.items())), where)
    for proposal in (_preference(read), _instances(read), _fields(read)):
        if proposal is not None:
            return proposal
    known = well_known(read.columns)
    if known is not None:
        reason = f"Recognised by {known.reason}."
        if known.format == "prompt_completion":
            return {"format": "prompt_completion"}, [reason], []
        return _columns(known.shape.inputs[0], known.shape.answer), [reason], []
    if len(read.columns) == 2:
        prompt, answer = read.columns
        first = _first_of(read, answer)
        if first is not None:
            return _columns(prompt, first), [_first_reason(answer, prompt)], []
        return _columns(prompt, answer), [f"The file has two columns: {prompt} is the input, {answer} the answer."], []
    return _guess(read, where)


def _span_mapping(read: ReadResult, answer: str, spans: Sequence[Span], where: str) -> Mapped:
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


def _preference(read: ReadResult) -> Mapped | None:
    """Two columns whose names say that one answer is wanted and the other is not."""
    pair = next((pair for pair in _PREFERRED if set(pair) <= set(read.columns)), None)
    prompt = _longest_text(read, without=set(pair)) if pair is not None else None
    if pair is None or prompt is None:
        return None
    columns = {"prompt": prompt, "answer": pair[0], "rejected": pair[1]}
    reason = f"By their names, {pair[0]} is the answer that is wanted and {pair[1]} the one that is not."
    return {"format": "columns", "columns": columns}, [reason], []


def _instances(read: ReadResult) -> Mapped | None:
    """An instruction with a list of worked instances: the first one is taken."""
    if not {"instruction", "instances"} <= set(read.columns):
        return None
    lists = [row.values.get("instances") for row in read.rows[:_LOOK_AT]]
    if not all(isinstance(v, list) and v and isinstance(v[0], dict) and "output" in v[0] for v in lists):
        return None
    most = max(len(value) for value in lists if isinstance(value, list))
    mapping = {"template": "{instruction}\n\n{instances[0].input}\n\n{instances[0].output}"}
    warning = f"Of up to {most} instances per row only the first is used."
    return mapping, ["Instructions with instances of input and output."], [warning] if most > 1 else []


def _fields(read: ReadResult) -> Mapped | None:
    """An input and several columns whose cells mostly occur in it: fields to extract, as a JSON object."""
    if any(name.strip().lower() in _ANSWER_NAMES for name in read.columns) or len(read.columns) < 4:
        return None
    prompt = _longest_text(read, without=set())
    if prompt is None:
        return None
    fields = [name for name in read.columns if name != prompt and _occurs_in(read, name, prompt)]
    others = [name for name in read.columns if name not in (prompt, *fields)]
    if len(fields) < 3 or len(fields) < len(others):
        return None
    filled = [name for name in read.columns if name != prompt and _cells(read, name)]
    reason = f"Most of what stands in {', '.join(fields)} is taken from {prompt}: fields of a JSON object."
    return {"format": "columns", "columns": {"prompt": prompt, "answer": filled}}, [reason], []


def _occurs_in(read: ReadResult, name: str, prompt: str) -> bool:
    """Whether most words of most cells of a column stand in the input."""
    hits = total = 0
    for row in read.rows[:_LOOK_AT]:
        words = cell_text(row.values.get(name)).casefold().split()
        if words:
            total += 1
            text = cell_text(row.values.get(prompt)).casefold()
            hits += sum(word in text for word in words) > len(words) / 2
    return total > 0 and hits >= _FIELD_SHARE * total


def _guess(read: ReadResult, where: str) -> Mapped:
    answer, reason = _likely_answer(read)
    prompt = None
    if answer is not None:
        first = _first_of(read, answer)
        prompt = (None if first else _source_of_items(read, answer)) or _longest_text(read, without={answer})
        if first is not None and prompt is not None:
            answer, reason = first, _first_reason(answer, prompt)
    if answer is None or prompt is None:
        raise _nothing_found(read, where)
    warning = f"Which columns are input and answer is a guess; the file has: {', '.join(read.columns)}."
    context = _body_of(read, prompt, answer)
    if context is not None:
        template = f"{{{context}}}\n{{{prompt}}}\n{{{answer}}}"
        return {"template": template}, [f"{reason} {context} and {prompt} together are the input."], [warning]
    return _columns(prompt, answer), [f"{reason} {prompt} is taken as the input."], [warning]


def _first_of(read: ReadResult, answer: str) -> str | None:
    """`answer[0]` where a column holds lists of whole texts, as of several references; None for anything else."""
    lists = [value for row in read.rows[:_LOOK_AT] if (value := row.values.get(answer)) is not None]
    if not lists or not all(isinstance(v, list) and v and all(isinstance(item, str) for item in v) for v in lists):
        return None
    words = [len(item.split()) for value in lists for item in value]
    return f"{answer}[0]" if sum(words) / len(words) >= _LONG_ITEM else None


def _first_reason(answer: str, prompt: str) -> str:
    return f"{answer} holds lists of texts, of which the first is the answer to {prompt}."


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
        text = cell_text(field_of(row.values, answer))
        value = json.loads(text) if is_json_answer(text) else []
        items = value.values() if isinstance(value, Mapping) else value
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
        if name.strip().lower() in _QUESTION_NAMES:
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
        expected=f"one of the formats {', '.join(formats())}, or a column with labels or answers",
        fix='write a recipe with data.columns: {prompt: …, answer: …}, or data.template: "{…} → {…}"',
    )
