"""What is wrong with a workflow, all of it at once, before any step is begun."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from itertools import islice

from tunesmith.errors import TunesmithError
from tunesmith.pipeline.workflow.steps import EXPORTS, target_of
from tunesmith.pipeline.workflow.types import Step, Workflow
from tunesmith.recipe import InvalidRecipeError, Problem, parse_recipe
from tunesmith.recipe.problems import nearest
from tunesmith.recipe.schema import Recipe, Search
from tunesmith.recipe.searching import Space
from tunesmith.recipe.spaces import space_problems, with_settings
from tunesmith.search.spaces import grid

_OF_EXPORT = ("precision", "bits", "device", "runtime", "kind")
_KEYS = {"evaluate": ("rows",), "measure": ("peak_memory",)}
_MEASURED = ("evaluate", "measure")
_NAME = re.compile(r"[\w -]{1,100}")
_TRIED = 100
"""Values of a grid that are held against a setting at most."""
_WITHOUT_REFERENCE = ("validation_loss", "mean_kl", "top1_agreement")


def check_workflow(workflow: Workflow) -> None:
    """Raise one `InvalidRecipeError` that lists everything that is wrong."""
    problems = [*_subject(workflow), *_steps(workflow), *_search(workflow), *_goals(workflow)]
    if problems:
        raise InvalidRecipeError(problems, workflow.name)


def searched(workflow: Workflow) -> dict[str, Space]:
    """Every space of the steps, by `step.key`."""
    return {f"{step.name}.{key}": space for step in workflow.steps for key, space in step.space.items()}


def _subject(workflow: Workflow) -> Iterator[Problem]:
    subject = workflow.subject
    given = [name for name in ("recipe", "run", "base") if getattr(subject, name) is not None]
    if len(given) != 1:
        yield Problem("subject", f"{' and '.join(given) or 'nothing'} is given", expected="one of recipe, run, base")
    kinds = [step.kind for step in workflow.steps]
    if subject.recipe is not None and (not kinds or kinds[0] != "train"):
        yield Problem("steps", "a recipe is given and nothing trains by it", expected="a step train, the first one")
    if subject.recipe is None and "train" in kinds:
        yield Problem("steps", "there is no recipe to train by", expected="subject.recipe | no step train")
    if subject.base is not None and "evaluate" in kinds:
        yield Problem(
            "steps", "a model without a run has no rows to evaluate on", expected="subject.run | subject.recipe"
        )
    if subject.adapter is not None and subject.base is None:
        yield Problem("subject.adapter", "has no meaning without subject.base")


def _steps(workflow: Workflow) -> Iterator[Problem]:
    if not workflow.steps:
        yield Problem("steps", "there is none", expected="at least one step")
    names = [step.name for step in workflow.steps]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield Problem(f"steps.{name}", "two steps have this name", expected="distinct names")
    for name in names:
        if not _NAME.fullmatch(name):
            yield Problem(
                f"steps.{name}", "is no name for a step", expected="letters, digits, spaces, - and _, at most 100"
            )
    for place, step in enumerate(workflow.steps):
        if step.kind == "train" and place:
            yield Problem(f"steps.{step.name}", "training comes first, and once", expected="train as the first step")
        for key, space in step.space.items():
            yield from space_problems(f"steps.{step.name}.{key}", space)
        if not any(True for key, space in step.space.items() for _ in space_problems(key, space)):
            yield from _train(step, workflow) if step.kind == "train" else _settings(step)


def _train(step: Step, workflow: Workflow) -> Iterator[Problem]:
    """Settings and spaces of a training are checked as the recipe's own search section is."""
    recipe = workflow.subject.recipe
    if recipe is None:
        return
    try:
        made = with_settings(recipe, step.settings)
        if step.space:
            search = Search(space=dict(step.space)).model_dump(exclude_defaults=True)
            parse_recipe({**made.model_dump(exclude_defaults=True), "search": search})
        else:
            _reparsed(made)
    except InvalidRecipeError as error:
        for problem in error.problems:
            yield Problem(f"steps.{step.name}.{problem.key}", problem.what, problem.expected, problem.fix)


def _reparsed(recipe: Recipe) -> None:
    parse_recipe(recipe.model_dump(exclude_defaults=True))


def _settings(step: Step) -> Iterator[Problem]:
    known = _KEYS.get(step.kind, _OF_EXPORT)
    unknown = [key for key in (*step.settings, *step.space) if key not in known]
    for key in dict.fromkeys(unknown):
        near = nearest(key, known)
        fix = f"did you mean {near}?" if near else None
        yield Problem(f"steps.{step.name}.{key}", "unknown setting", expected=" | ".join(known), fix=fix)
    if unknown:
        return
    if step.kind in _MEASURED:
        yield from _of_measuring(step)
        return
    tried = [{}] if not step.space else [{key: value} for key, space in step.space.items() for value in _values(space)]
    for values in tried:
        try:
            target_of(step.kind, {**step.settings, **values})
        except TunesmithError as error:
            if len(step.space) < 2:  # of several settings, one may need another that is tried with it
                yield Problem(f"steps.{step.name}", error.what, error.expected, error.fix)
                return


def _of_measuring(step: Step) -> Iterator[Problem]:
    if step.space:
        yield Problem(f"steps.{step.name}", "how something is measured is not searched", expected="settings only")
    rows = step.settings.get("rows", "auto")
    if rows not in ("auto", "validation", "test"):
        yield Problem(f"steps.{step.name}.rows", f"{rows!r} is not allowed", expected="auto | validation | test")


def _values(space: Space) -> list[object]:
    if space.type == "choice" or space.step is not None:
        return list(islice(grid(space), _TRIED))
    return [space.low, space.high]


def _search(workflow: Workflow) -> Iterator[Problem]:
    spaces = searched(workflow)
    if workflow.search is None and spaces:
        yield Problem("search", "steps have spaces, and nothing says how to search", expected="a search plan")
    if workflow.search is not None and not spaces:
        yield Problem("search", "there is nothing to search", expected="a step with a space")
    if not spaces:
        return
    if workflow.search is not None and workflow.search.trials is not None and workflow.search.trials < 1:
        yield Problem("search.trials", f"{workflow.search.trials} is not allowed", expected="at least 1")
    for step in workflow.steps:
        if step.kind == "evaluate" and step.settings.get("rows") == "test":
            yield Problem(
                f"steps.{step.name}.rows", "settings would be chosen by test rows", expected="auto | validation"
            )
    kinds = {step.kind for step in workflow.steps}
    if not kinds & {*_MEASURED, "train"}:
        yield Problem("steps", "nothing measures what is searched for", expected="a step evaluate or measure")


def _goals(workflow: Workflow) -> Iterator[Problem]:
    kinds = {step.kind for step in workflow.steps}
    sources = {
        "size_bytes": "measure", "first_token_seconds": "measure", "seconds_per_token": "measure",
        "tokens_per_second": "measure", "peak_memory_bytes": "measure", "validation_loss": "train",
    }  # fmt: skip
    for goal in workflow.goals:
        of_export = goal.measure in ("mean_kl", "top1_agreement")
        needed = None if of_export else sources.get(goal.measure, "evaluate")
        if needed is not None and needed not in kinds:
            yield Problem(f"goals.{goal.measure}", "nothing measures it", expected=f"a step {needed}")
        if of_export and not kinds & set(EXPORTS):
            yield Problem(f"goals.{goal.measure}", "nothing measures it", expected="a step that exports")
        if not math.isfinite(goal.value) or (goal.kind == "max-degradation" and goal.value < 0):
            expected = "a number" if goal.kind != "max-degradation" else "at least 0"
            yield Problem(f"goals.{goal.measure}", f"{goal.value:g} is not allowed", expected=expected)
        if goal.kind == "max-degradation" and goal.measure in _WITHOUT_REFERENCE:
            yield Problem(
                f"goals.{goal.measure}", "there is none before, so nothing is lost", expected="at-least | at-most"
            )
