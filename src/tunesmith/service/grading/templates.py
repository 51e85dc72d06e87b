"""Templates of graders and evals: `{{item.question}}`, `{{ sample.output_json.steps[0].text }}`.

What stands between the braces is a namespace (`item`: the row; `sample`: the answer), then steps into it: `.name`,
`[number]` or `["any name"]`. A text goes in as it is, everything else as JSON. A name that is not there is an error,
never an empty text; what is put in is not read for templates again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

NAMESPACES = ("item", "sample")
# What is between braces holds none that open: a text of nothing but braces is read in one pass.
_BRACES = re.compile(r"\{\{((?:(?!\{\{|\}\}).)*+)\}\}", re.DOTALL)
_STEP = re.compile(r"""\.\s*([^\s.\[\]{}"']+)|\[\s*(\d+)\s*\]|\[\s*"([^"\]]*)"\s*\]|\[\s*'([^'\]]*)'\s*\]""")

Path = tuple[str | int, ...]


class TemplateError(ValueError):
    """A template cannot be read or filled; the message says which one and why."""


class NotJsonError(TemplateError):
    """A template asks for the answer's JSON, and the answer is none."""


def template_problems(text: str) -> tuple[str, ...]:
    """What is wrong with the templates of a text, each as a sentence."""
    problems = []
    for found in _BRACES.finditer(text):
        try:
            read_path(found[1])
        except TemplateError as error:
            problems.append(str(error))
    return tuple(problems)


def paths_of(text: str) -> tuple[Path, ...]:
    """The paths that a text asks for, in order. Raises `TemplateError` for those that cannot be read."""
    return tuple(read_path(found) for found in _BRACES.findall(text))


def namespaces_of(text: str) -> frozenset[str]:
    """The namespaces that a text asks for; templates that cannot be read are left out."""
    found = (name.strip().partition(".")[0].partition("[")[0].strip() for name in _BRACES.findall(text))
    return frozenset(found) & set(NAMESPACES)


def read_path(text: str) -> Path:
    """`item.a[0]` as ("item", "a", 0). Raises `TemplateError`."""
    bare = text.strip()
    namespace = re.match(r"\w+", bare)
    if namespace is None or namespace[0] not in NAMESPACES:
        raise TemplateError(f"'{{{{{text}}}}}' does not begin with 'item.' or 'sample.'")
    steps: list[str | int] = [namespace[0]]
    place = namespace.end()
    while place < len(bare):
        step = _STEP.match(bare, place)
        if step is None:
            raise TemplateError(f"'{{{{{text}}}}}' cannot be read at '{bare[place : place + 20]}'")
        name, number, double, single = step.groups()
        steps.append(int(number) if number is not None else next(x for x in (name, double, single) if x is not None))
        place = step.end()
    if len(steps) == 1:
        raise TemplateError(f"'{{{{{text}}}}}' names no variable; write '{{{{{namespace[0]}.name}}}}'")
    return tuple(steps)


def look_up(path: Path, values: Mapping[str, Any]) -> Any:
    """The value at a path. Raises `TemplateError` that says which step is missing and what is there instead."""
    here: Any = values
    for depth, step in enumerate(path):
        shown = show_path(path[: depth + 1])
        if path[:depth] == ("sample", "output_json") and here is None:
            raise NotJsonError("sample.output_json: the answer is not JSON")
        if isinstance(here, Mapping):
            if str(step) not in here:
                raise TemplateError(f"there is no '{shown}'; {_there(here)}")
            here = here[str(step)]
        elif isinstance(here, list) and str(step).isdecimal():
            if int(step) >= len(here):
                raise TemplateError(f"there is no '{shown}'; the list has {len(here)} elements")
            here = here[int(step)]
        else:
            kind = "a list" if isinstance(here, list) else f"{json.dumps(here, ensure_ascii=False)[:40]}"
            raise TemplateError(f"there is no '{shown}'; '{show_path(path[:depth])}' is {kind}")
    if path == ("sample", "output_json") and here is None:
        raise NotJsonError("sample.output_json: the answer is not JSON")
    return here


def fill(text: str, values: Mapping[str, Any]) -> str:
    """The text with its templates replaced. Raises `TemplateError`."""
    return _BRACES.sub(lambda found: as_text(look_up(read_path(found[1]), values)), text)


def as_text(value: Any) -> str:
    """A text as it is, everything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def show_path(path: Path) -> str:
    """A path as it is written in a template."""
    return str(path[0]) + "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path[1:])


def _there(here: Mapping[str, Any]) -> str:
    names = sorted(map(str, here))
    return f"there is: {', '.join(names[:20])}{', …' if len(names) > 20 else ''}" if names else "nothing is there"
