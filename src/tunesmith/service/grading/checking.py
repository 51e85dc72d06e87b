"""Whether a grader can grade: its shape, its templates, its source or formula, and what this server offers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from tunesmith.service.context import Service
from tunesmith.service.errors import ApiError
from tunesmith.service.grading.code import source_problem
from tunesmith.service.grading.formula import FormulaError, read_formula
from tunesmith.service.grading.shapes import (
    Grader,
    LabelModel,
    Multi,
    Python,
    ScoreModel,
    StringCheck,
    TextSimilarity,
    read_grader,
)
from tunesmith.service.grading.templates import template_problems
from tunesmith.service.validation import Problem

Where = Literal["jobs", "evals"]
_NAMED = str.isidentifier


def check_grader(
    grader: Any, *, where: Where, service: Service | None = None, param: str = "grader"
) -> tuple[Problem, ...]:
    """Everything that is wrong with a grader, nothing where it can be used.

    Parameters
    ----------
    grader: as in the request.
    where: a job's grader or the criterion of an eval, which differ in what they must say.
    service: also checks that its models exist and that Python graders may run; None leaves that out.
    param: its place in the request.
    """
    read = read_grader(grader, param)
    return read if isinstance(read, tuple) else tuple(problems_with(read, where, service, param))


def problems_with(
    grader: Grader, where: Where, service: Service | None, param: str, *, part: bool = False
) -> Iterator[Problem]:
    """As `check_grader`, for one whose shape is right; `part`: of a multi grader, so that it needs no threshold."""
    for field, text in texts_of(grader):
        for problem in template_problems(text):
            yield _invalid(f"{param}.{field}", problem)
    match grader:
        case TextSimilarity():
            yield from _similarity(grader, where, param, part)
        case Python():
            yield from _python(grader, service, param)
        case ScoreModel():
            yield from _score_model(grader, param)
            yield from _model(grader.model, service, param)
        case LabelModel():
            yield from _label_model(grader, param)
            yield from _model(grader.model, service, param)
        case Multi():
            yield from _multi(grader, where, service, param)


def texts_of(grader: Grader) -> Iterator[tuple[str, str]]:
    """The texts that may hold templates, each with its field; a multi grader itself has none."""
    match grader:
        case StringCheck() | TextSimilarity():
            yield "input", grader.input
            yield "reference", grader.reference
        case ScoreModel() | LabelModel():
            for place, message in enumerate(grader.input):
                yield f"input[{place}].content", message.text


def all_texts(grader: Grader) -> Iterator[str]:
    """Every text of a grader and its parts that may hold templates."""
    parts = list(grader.parts.values()) if isinstance(grader, Multi) else [grader]
    for part in parts:
        yield from (text for _, text in texts_of(part))


def _similarity(grader: TextSimilarity, where: Where, param: str, part: bool) -> Iterator[Problem]:
    if grader.evaluation_metric == "cosine":
        why = (
            "cosine is offered for evals only"
            if where == "jobs"
            else "cosine compares embeddings, and no embedding model is registered on this server"
        )
        yield _invalid(f"{param}.evaluation_metric", f"{why}; choose fuzzy_match, meteor or a rouge measure")
    if where == "evals" and grader.pass_threshold is None and not part:
        name = f"{param}.pass_threshold"
        yield Problem(f"Missing required parameter: {name!r}.", name, "missing_required_parameter")


def _python(grader: Python, service: Service | None, param: str) -> Iterator[Problem]:
    problem = source_problem(grader.source)
    if problem is not None:
        yield _invalid(f"{param}.source", problem.rstrip("."))
    if service is not None and not service.settings.python_graders:
        yield Problem(
            "Python graders are switched off on this server. `tunesmith serve --python-graders` allows them; they "
            "run in a sandbox without network.",
            f"{param}.type",
            "python_graders_disabled",
        )


def _score_model(grader: ScoreModel, param: str) -> Iterator[Problem]:
    low, high = grader.bounds
    if not low < high:
        yield _invalid(f"{param}.range", f"expected the lower bound first, but got [{low:g}, {high:g}]")
    elif grader.pass_threshold is not None and not low <= grader.pass_threshold <= high:
        yield _invalid(
            f"{param}.pass_threshold", f"{grader.pass_threshold:g} lies outside the range [{low:g}, {high:g}]"
        )


def _label_model(grader: LabelModel, param: str) -> Iterator[Problem]:
    if len(set(grader.labels)) < len(grader.labels):
        yield _invalid(f"{param}.labels", "a label is given twice")
    unknown = sorted(set(grader.passing_labels) - set(grader.labels))
    if unknown:
        yield _invalid(f"{param}.passing_labels", f"{', '.join(map(repr, unknown))} is not one of the labels")


def _model(name: str, service: Service | None, param: str) -> Iterator[Problem]:
    if service is None:
        return
    try:
        service.catalogue.resolve(name)
    except ApiError as error:
        yield Problem(error.message, f"{param}.model", error.code)


def _multi(grader: Multi, where: Where, service: Service | None, param: str) -> Iterator[Problem]:
    if not grader.parts:
        yield _invalid(f"{param}.graders", "expected at least one grader")
    for name, part in grader.parts.items():
        place = f"{param}.graders" + (f".{name}" if isinstance(grader.graders, dict) else "")
        if not _NAMED(name):
            yield _invalid(
                place, f"{name!r} cannot stand in a formula; name it with letters, digits and underscores only"
            )
        yield from problems_with(part, where, service, place, part=True)
    try:
        formula = read_formula(grader.calculate_output)
    except FormulaError as error:
        yield _invalid(f"{param}.calculate_output", str(error))
        return
    unknown = sorted(formula.names - grader.parts.keys())
    if unknown:
        yield _invalid(
            f"{param}.calculate_output",
            f"{', '.join(map(repr, unknown))} is no grader; there are {', '.join(map(repr, grader.parts))}",
        )


def _invalid(param: str, why: str) -> Problem:
    return Problem(f"Invalid value for {param!r}: {why}.", param, "invalid_value")
