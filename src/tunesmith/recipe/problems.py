"""What is wrong with a recipe: every problem at once, each with its key and the nearest right name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from tunesmith.errors import RecipeError
from tunesmith.recipe.describe import choices, field_at, section_at, settings, type_text


@dataclass(frozen=True, slots=True)
class Problem:
    """One wrong setting."""

    key: str
    what: str
    expected: str | None = None
    fix: str | None = None

    def __str__(self) -> str:
        parts = [f"{self.key}: {self.what}"]
        if self.expected:
            parts.append(f"expected {self.expected}")
        if self.fix:
            parts.append(self.fix)
        return "; ".join(parts)


class InvalidRecipeError(RecipeError):
    """A recipe with at least one problem; `problems` lists all of them."""

    def __init__(self, problems: Sequence[Problem], where: str) -> None:
        self.problems = tuple(problems)
        if len(problems) == 1:
            only = problems[0]
            super().__init__(f"{only.key}: {only.what}", where=where, expected=only.expected, fix=only.fix)
        else:
            listed = "".join(f"\n  - {problem}" for problem in problems)
            super().__init__(f"{len(problems)} settings are wrong:{listed}", where=where)


def unknown_key(path: Sequence[str]) -> Problem:
    """A key that does not exist, with the nearest one that does.

    Looked for first among the keys beside it, then by its last part among all settings: `learning_rate` at the top
    finds `train.learning_rate`.
    """
    key, parent = ".".join(path), ".".join(path[:-1])
    section = section_at(path[:-1])
    if section is None and field_at(path[:-1]) is None:
        return unknown_key(path[:-1])
    if section is None:
        return Problem(key, f"{parent} has no settings inside it")
    beside = list(section.model_fields)
    near = nearest(path[-1], beside)
    if near:
        name = f"{parent}.{near}" if parent else near
        return Problem(key, "unknown setting", fix=f"did you mean {name}?")
    leaves = {setting.leaf: setting.key for setting in reversed(list(settings()))}
    near = nearest(path[-1], leaves)
    if near:
        return Problem(key, "unknown setting", fix=f"did you mean {leaves[near]}?")
    return Problem(key, "unknown setting", expected=f"one of {', '.join(beside)}")


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word most like `word`, or None where none is close."""
    candidates = list(known)
    simplified = {candidate.lower().replace("-", "_"): candidate for candidate in candidates}
    found = difflib.get_close_matches(word.lower().replace("-", "_"), list(simplified), n=1, cutoff=0.6)
    return simplified[found[0]] if found else None


def from_validation(error: ValidationError) -> list[Problem]:
    """Pydantic's complaints as problems: one per setting, in terms of the setting's own description."""
    problems: dict[str, Problem] = {}
    for detail in error.errors(include_url=False):
        path = _setting_path(detail["loc"])
        key = ".".join(path)
        if detail["type"] == "extra_forbidden":
            problem = unknown_key([*path, str(detail["loc"][len(path)])])
            problems.setdefault(problem.key, problem)
        elif key not in problems:
            # A union complains once per alternative; the setting's whole type answers them all.
            problems[key] = _wrong_value(path, detail)
    return list(problems.values())


def _setting_path(location: Sequence[int | str]) -> list[str]:
    """The leading parts of an error's location that are settings; the rest are list positions and union branches."""
    path: list[str] = []
    for part in location:
        if not isinstance(part, str) or field_at([*path, part]) is None:
            break
        path.append(part)
    return path


def _wrong_value(path: Sequence[str], detail: Mapping[str, Any]) -> Problem:
    key, field = ".".join(path), field_at(path)
    if field is None:
        return Problem(key or "recipe", "not a mapping of settings", expected=f"settings ({', '.join(_top())})")
    expected = type_text(field)
    if detail["type"] == "missing":
        return Problem(key, "missing", expected=expected, fix=field.description)
    value = detail["input"]
    position = next((part for part in detail["loc"][len(path) :] if isinstance(part, int)), None)
    place = f"item {position + 1}, {_shown(value)}," if position is not None else _shown(value)
    near = nearest(value, choices(field.annotation)) if isinstance(value, str) else None
    fix = f"did you mean {near}?" if near else None
    if fix is None and "text" in expected and not isinstance(value, str | list | dict):
        fix = "put it in quotes to make it text"
    return Problem(key, f"{place} is not allowed", expected=expected, fix=fix)


def _top() -> list[str]:
    section = section_at([])
    return list(section.model_fields) if section is not None else []


def _shown(value: Any) -> str:
    text = "true" if value is True else "false" if value is False else "nothing" if value is None else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
