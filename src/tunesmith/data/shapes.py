"""Which columns of a file are input and answer: as the recipe says, or by well-known names.

A pair of names is taken only where nothing else in the file could be meant; otherwise the error lists the columns and
says how to map them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tunesmith.data.formats.registry import MAPPED
from tunesmith.data.template import Part, Shape, mapping, parse_template, root_column
from tunesmith.errors import DataError, RecipeError
from tunesmith.recipe.schema import Data

_OUTPUTS = ("output", "response", "completion", "answer")
_LABELS = ("label", "category", "class", "intent", "sentiment")
_CONTEXTS = ("context", "input", "passage")
_TEXTS = ("text", "sentence", "utterance", "phrase", "query", "review", "title", "document")


@dataclass(frozen=True, slots=True)
class Recognised:
    """A shape, the name of its format, and why it was chosen."""

    shape: Shape
    format: str
    reason: str


def refuse_contradictions(spec: Data) -> None:
    """Raise `RecipeError` where `data` says two things at once, instead of obeying one of them."""
    given = {
        "data.template": spec.template is not None,
        "data.columns": bool(spec.columns.prompt or spec.columns.answer or spec.columns.rejected),
        "data.span_types": bool(spec.span_types),
    }
    named = [name for name, there in given.items() if there]
    if spec.answer and spec.template is None:
        raise RecipeError("data.answer names placeholders of a template", where="data.answer", expected="data.template")
    if spec.format not in MAPPED and named:
        clash = [f"data.format: {spec.format}", *named]
    elif spec.template is not None and (given["data.columns"] or spec.format != "auto"):
        clash = ["data.template", "data.columns" if given["data.columns"] else f"data.format: {spec.format}"]
    else:
        return
    raise RecipeError(
        f"{' and '.join(clash)} contradict each other", where="data", expected="one of them", fix="remove the other"
    )


def shape_of(spec: Data, columns: Sequence[str], where: str) -> Recognised:
    """The shape of the rows of a table-like file, from the recipe or the names of the columns.

    Raises `DataError` naming the columns that exist where the recipe's do not, or where none can be guessed, and
    `RecipeError` for a template that is not one.
    """
    if spec.template is not None:
        shape = parse_template(spec.template, spec.answer)
        _require(shape.columns, columns, where, "data.template", spec.defaults)
        return Recognised(shape, "template", "data.template")
    if spec.columns.prompt or spec.columns.answer or spec.format == "columns":
        return _mapped(spec, columns, where)
    known = well_known(columns)
    if known is not None and (spec.format == "auto" or known.format == "prompt_completion"):
        return known
    if spec.format == "prompt_completion":
        raise _unclear(columns, where, "no pair such as prompt and completion, or instruction and output")
    if len(columns) == 2:
        return Recognised(mapping(*columns), "columns", "the file has two columns, input and answer")
    raise _unclear(columns, where, "it is not clear which column is the input and which the answer")


def well_known(columns: Sequence[str]) -> Recognised | None:
    """The shape behind well-known column names, compared without regard to case; None unless exactly one fits."""
    by_name = {name.strip().lower(): name for name in columns}
    if len(by_name) != len(columns):
        return None
    found = [
        shape
        for shape in (
            _pair(by_name, "prompt", _OUTPUTS),
            _with_context(by_name, "instruction", _OUTPUTS, behind=True),
            _with_context(by_name, "question", _OUTPUTS, behind=False),
            _pair(by_name, "input", _OUTPUTS) if "instruction" not in by_name else None,
        )
        if shape is not None
    ]
    if len(found) == 1:
        names = " and ".join(found[0].columns)
        return Recognised(found[0], "prompt_completion", f"well-known column names: {names}")
    if found:
        return None
    texts = [name for name in _TEXTS if name in by_name]
    labels = [name for name in _LABELS if name in by_name]
    if "text" in by_name and "target" in by_name:  # AutoTrain's names
        texts, labels = ["text"], ["target"]
    if len(texts) == 1 and len(labels) == 1:
        shape = mapping(by_name[texts[0]], by_name[labels[0]])
        return Recognised(shape, "columns", f"well-known column names: {' and '.join(shape.columns)}")
    return None


def _answer(by_name: dict[str, str], answers: Sequence[str]) -> str | None:
    there = [by_name[name] for name in answers if name in by_name]
    return there[0] if len(there) == 1 else None


def _pair(by_name: dict[str, str], prompt: str, answers: Sequence[str]) -> Shape | None:
    answer = _answer(by_name, answers)
    return mapping(by_name[prompt], answer) if prompt in by_name and answer is not None else None


def _with_context(by_name: dict[str, str], main: str, answers: Sequence[str], *, behind: bool) -> Shape | None:
    """`main` with the one context column there may be: behind an instruction, before a question.

    A column `body` says that the question may be only half of the input, so nothing is taken for granted.
    """
    answer = _answer(by_name, answers)
    contexts = [by_name[name] for name in _CONTEXTS if name in by_name]
    if main not in by_name or answer is None or len(contexts) > 1 or "body" in by_name:
        return None
    head = Part("", by_name[main])
    if not contexts:
        return Shape((head,), answer)
    if behind:
        return Shape((head, Part("\n\n", contexts[0], optional=True)), answer)
    return Shape((Part("", contexts[0], "\n\n", optional=True), head), answer)


def _mapped(spec: Data, columns: Sequence[str], where: str) -> Recognised:
    prompt, answer = spec.columns.prompt, spec.columns.answer
    several = tuple(answer) if isinstance(answer, list) else ()
    if not prompt or not answer:
        missing = "data.columns.prompt" if not prompt else "data.columns.answer"
        raise DataError(
            f"{missing} is not set",
            where=where,
            expected="both data.columns.prompt and data.columns.answer",
            fix=f"columns of this file: {', '.join(columns)}",
        )
    rejected = (spec.columns.rejected,) if spec.columns.rejected else ()
    _require((prompt, *(several or (str(answer),)), *rejected), columns, where, "data.columns", spec.defaults)
    if several:
        return Recognised(Shape((Part("", prompt),), several[-1], fields=several), "columns", "data.columns")
    return Recognised(mapping(prompt, str(answer)), "columns", "data.columns")


def _require(
    wanted: Sequence[str], columns: Sequence[str], where: str, setting: str, defaults: Mapping[str, str]
) -> None:
    missing = [name for name in wanted if root_column(name, columns) not in columns and name not in defaults]
    if missing:
        names = ", ".join(repr(name) for name in missing)
        raise DataError(
            f"{setting} names {names}, but there is no such column",
            where=where,
            expected=f"names among: {', '.join(columns)}",
            fix=f"correct {setting}, or the file",
        )


def _unclear(columns: Sequence[str], where: str, what: str) -> DataError:
    return DataError(
        f"{what} (columns: {', '.join(columns) or 'none'})",
        where=where,
        expected="messages, prompt and completion, or a mapping",
        fix='set data.columns: {prompt: …, answer: …}, or data.template: "{…} → {…}"',
    )
