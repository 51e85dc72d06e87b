"""What a search may vary: whether its spaces make sense, and a recipe with values out of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from tunesmith.recipe.describe import field_at, section_of, settings
from tunesmith.recipe.problems import InvalidRecipeError, Problem, from_validation, nearest
from tunesmith.recipe.schema import Recipe
from tunesmith.recipe.searching import Space

_FIXED = ("name", "goal", "task", "data", "baselines", "remotes", "evaluate", "verdict", "output", "search")
"""Sections that say what is asked, of which rows, and how it is measured: trials that differ there do not compare."""
_SEARCHED = "a setting of train, method or base"
_MEASURES = frozenset({"train.eval_rows", "train.select_by", "train.loss_on"})
_LOSSES = ("train.loss", "train.objective", "train.label_smoothing", "train.z_loss", "train.distillation", "base")
"""What changes the meaning of a loss; a task's metric stays comparable."""


def read_spaces(given: Mapping[str, Any], where: str) -> dict[str, Space]:
    """Spaces from plain mappings, `{type: float, low: …, high: …}` by name.

    Raises one `InvalidRecipeError` that lists everything that is wrong with all of them.
    """
    spaces: dict[str, Space] = {}
    problems: list[Problem] = []
    for name, plain in given.items():
        if isinstance(plain, Space):
            space = plain
        elif not isinstance(plain, Mapping):
            problems.append(
                Problem(name, f"{plain!r} is not allowed", expected="a space, such as {type: float, low: 0, high: 1}")
            )
            continue
        else:
            try:
                space = Space.model_validate(dict(plain))
            except ValidationError as error:
                problems += [_wrong(name, detail) for detail in error.errors(include_url=False)]
                continue
        problems += space_problems(name, space)
        spaces[name] = space
    if problems:
        raise InvalidRecipeError(list({problem.key: problem for problem in reversed(problems)}.values())[::-1], where)
    return spaces


def space_problems(name: str, space: Space) -> Iterator[Problem]:
    """What makes no sense in a space that is well formed."""
    for field, what, expected in _choice_faults(space) if space.type == "choice" else _range_faults(space):
        yield Problem(f"{name}.{field}", what, expected=expected)


def search_problems(recipe: Recipe, check: Callable[[Recipe], list[Problem]]) -> Iterator[Problem]:
    """What is wrong with a recipe's search: its spaces, its settings, and values that these may not have.

    `check` tells what is wrong with the values of a recipe.
    """
    spec = recipe.search
    if spec is None:
        return
    if not spec.space:
        yield Problem("search.space", "there is nothing to vary", expected="at least one setting with its space")
    for key, space in spec.space.items():
        name = f"search.space.{key}"
        wrong = [*_key_problems(key, recipe), *space_problems(name, space)]
        if spec.sampler == "sequential" and not wrong and space.type != "choice" and space.step is None:
            wrong = [
                Problem(
                    f"{name}.step",
                    "missing: every combination of a range without steps has no end",
                    expected="a number | type: choice with values | sampler: tpe",
                )
            ]
        yield from wrong or _value_problems(key, space, recipe, check)


def with_settings(recipe: Recipe, values: Mapping[str, Any]) -> Recipe:
    """The recipe with settings by their dotted keys, and without a search.

    Raises one `InvalidRecipeError` for all that do not go together.
    """
    made, problems = _with_settings(recipe, values)
    if made is None:
        raise InvalidRecipeError(problems, "settings of a trial")
    return made


def _with_settings(recipe: Recipe, values: Mapping[str, Any]) -> tuple[Recipe | None, list[Problem]]:
    # Without defaults: `method.type: qlora` brings settings of its own, which values written out would undo.
    data = recipe.model_dump(exclude_defaults=True)
    data.pop("search", None)
    for key, value in values.items():
        *sections, leaf = key.split(".")
        place = data
        for section in sections:
            place = place.setdefault(section, {})
        place[leaf] = value
    try:
        return Recipe.model_validate(data), []
    except ValidationError as error:
        return None, from_validation(error)


def _key_problems(key: str, recipe: Recipe) -> Iterator[Problem]:
    """Why a setting cannot be searched."""
    name, path = f"search.space.{key}", key.split(".")
    field = field_at(path)
    if field is None:
        known = list(settings(["base", "method", "train"]))
        near = nearest(path[-1], [s.leaf for s in known])
        fix = f"did you mean {next(s.key for s in known if s.leaf == near)}?" if near else None
        yield Problem(name, "unknown setting", expected=_SEARCHED, fix=fix)
    elif section_of(field) is not None:
        inner = [s.key for s in settings() if s.key.startswith(f"{key}.")]
        yield Problem(name, "is a whole section", expected=f"one setting of it, such as {inner[0]}")
    elif path[0] in _FIXED or key in _MEASURES:
        yield Problem(name, "decides what is measured: its trials would not compare", expected=_SEARCHED)
    elif by_loss(recipe) and any(key == one or key.startswith(f"{one}.") for one in _LOSSES):
        yield Problem(
            name,
            "changes what the validation loss means, by which trials are compared",
            expected="train.select_by: metric, with train.eval_rows above 0",
        )


def by_loss(recipe: Recipe) -> bool:
    """Whether trials are compared by validation loss, and not by the task's metric on validation rows."""
    return recipe.train.select_by != "metric" or not recipe.train.eval_rows or recipe.data.columns.second is not None


def _value_problems(
    key: str, space: Space, recipe: Recipe, check: Callable[[Recipe], list[Problem]]
) -> Iterator[Problem]:
    """The values at the ends of a range, or all of a choice, that the setting cannot have."""
    values = space.values if space.values is not None else [space.low, space.high]
    for value in values:
        plain = value if space.type == "choice" else int(value or 0) if space.type == "int" else float(value or 0)
        made, problems = _with_settings(recipe, {key: plain})
        if made is not None:
            problems = check(made)
        found = next((problem for problem in problems if problem.key == key), None)
        if found is not None:
            yield Problem(f"search.space.{key}", found.what, found.expected, found.fix)
            return


def _range_faults(space: Space) -> Iterator[tuple[str, str, str]]:
    if space.values is not None:
        yield "values", f"has no meaning for type {space.type}", "low and high | type: choice"
    whole = space.type == "int"
    for name, value in (("low", space.low), ("high", space.high)):
        if value is None:
            yield name, "missing", f"the {'smallest' if name == 'low' else 'largest'} value"
        elif not math.isfinite(value):
            yield name, f"{value} is not allowed", "a number"
        elif whole and value != int(value):
            yield name, f"{value} is not allowed", "a whole number | type: float"
    step = space.step
    if step is not None and space.log:
        yield "step", "does not go with log", "log without step | type: choice with values"
    elif step is not None and not (math.isfinite(step) and step > 0):
        yield "step", f"{step} is not allowed", "a number above 0"
    elif step is not None and whole and step != int(step):
        yield "step", f"{step} is not allowed", "a whole number | type: float"
    if space.low is None or space.high is None:
        return
    if space.low > space.high:
        yield "low", f"{space.low:g} is above high, {space.high:g}", "low at most high"
    elif space.log and space.low <= 0:
        yield "low", f"{space.low:g} has no logarithm", "low above 0 | log: false"


def _choice_faults(space: Space) -> Iterator[tuple[str, str, str]]:
    for name in ("low", "high", "step"):
        if getattr(space, name) is not None:
            yield name, "has no meaning for type choice", "values: [...] | type: float | type: int"
    if space.log:
        yield "log", "has no meaning for type choice", "values: [...] | type: float | type: int"
    if space.values is None:
        yield "values", "missing", "the values to choose from, as a list"
    elif not space.values:
        yield "values", "there is nothing to choose from", "at least one value"
    else:
        twice = [value for i, value in enumerate(space.values) if _among(value, space.values[:i])]
        if twice:
            yield "values", f"given twice: {', '.join(map(repr, twice))}", "distinct values"


def _among(value: Any, others: list[Any]) -> bool:
    """Whether an equal value of the same type is there: 1 and true are two values."""
    return any(value == other and type(value) is type(other) for other in others)


def _wrong(name: str, detail: Any) -> Problem:
    """Pydantic's complaint about a space that stands outside a recipe."""
    field = str(detail["loc"][0]) if detail["loc"] else "type"
    key = f"{name}.{field}"
    if detail["type"] == "extra_forbidden":
        near = nearest(field, Space.model_fields)
        fix = f"did you mean {near}?" if near else None
        return Problem(key, "unknown setting", expected=f"one of {', '.join(Space.model_fields)}", fix=fix)
    kinds = "float | int | choice"
    if detail["type"] == "missing":
        return Problem(key, "missing", expected=kinds)
    value = detail["input"]
    if field == "type":
        near = nearest(str(value), kinds.split(" | "))
        fix = f"did you mean {near}?" if near else None
        return Problem(key, f"{value!r} is not allowed", expected=kinds, fix=fix)
    expected = {"log": "true | false", "values": "a list"}.get(field, "a number")
    return Problem(key, f"{value!r} is not allowed", expected=expected)
