"""The formats there are: ours, and those of other packages."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from functools import cache
from importlib.metadata import entry_points

from tunesmith.data.formats.types import Format, Recognition, Sample
from tunesmith.errors import DataError, RecipeError

GROUP = "tunesmith.formats"
_OURS = {
    "chat": "openai_chat",
    "openai_dpo": "openai_preference",
    "openai_rft": "prompts",
    "trl": "trl",
    "trl_completion": "trl_completion",
    "preference": "preference",
    "rated": "rated",
    "alpaca": "alpaca",
    "sharegpt": "sharegpt",
    "conll": "tagged",
    "squad": "squad",
    "openai_evals": "openai_evals",
    "promptfoo": "promptfoo",
    "text": "text",
}
MAPPED = ("auto", "columns", "prompt_completion")
"""What `data.format` may be besides: rows that columns, a template, or the columns' names explain."""
_CLOSE = 0.01
"""Formats that are nearly as sure as each other cannot be told apart."""


@cache
def formats() -> Mapping[str, Format]:
    """All formats by name. Raises `RecipeError` for one of another package that does not load or takes a name."""
    found: dict[str, Format] = {
        name: importlib.import_module(f"tunesmith.data.formats.{module}").FORMAT for name, module in _OURS.items()
    }
    for point in entry_points(group=GROUP):
        package = point.dist.name if point.dist is not None else point.value
        if point.name in found or point.name in MAPPED:
            raise RecipeError(
                f"the package {package} brings a format {point.name!r}, which there is already",
                where=GROUP,
                fix=f"rename it there, or uninstall {package}",
            )
        try:
            loaded = point.load()
        except Exception as error:  # whatever another package does when it is imported
            raise RecipeError(
                f"the format {point.name!r} of the package {package} does not load: {error}",
                where=GROUP,
                fix=f"mend or uninstall {package}",
            ) from error
        lacks = [name for name in ("name", "columns", "recognise", "read", "write") if not hasattr(loaded, name)]
        if lacks:
            raise RecipeError(
                f"the format {point.name!r} of the package {package} has no {', '.join(lacks)}",
                where=GROUP,
                expected="an object as of tunesmith.data.formats.types.Format",
            )
        found[point.name] = loaded
    return found


def format_named(name: str) -> Format:
    """The format `data.format` names. Raises `RecipeError` where there is none."""
    known = formats()
    if name not in known:
        raise RecipeError(f"there is no format {name!r}", where="data.format", expected=", ".join([*MAPPED, *known]))
    return known[name]


def recognise(sample: Sample, where: str) -> tuple[Format, Recognition] | None:
    """The format that is surest of these rows; None where none knows them.

    Raises `DataError` where two are equally sure, naming both.
    """
    found = [(format, seen) for format in formats().values() if (seen := format.recognise(sample)) is not None]
    found.sort(key=lambda pair: -pair[1].confidence)
    if not found:
        return None
    if len(found) > 1 and found[0][1].confidence - found[1][1].confidence < _CLOSE:
        names = [format.name for format, _ in found[:2]]
        raise DataError(
            f"the rows could be {names[0]} ({found[0][1].reason}) or {names[1]} ({found[1][1].reason})",
            where=where,
            expected="one format",
            fix=f"set data.format: {names[0]}, or {names[1]}",
        )
    return found[0]
