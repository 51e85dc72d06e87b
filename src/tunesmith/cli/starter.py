"""The recipe `tunesmith init` writes: what was found in the file, and the settings people change first, explained."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

from tunesmith.recipe import apply_overrides, dump_yaml, parse_recipe, settings

_EXPLAINED = (
    "goal.use_case",
    "goal.metric",
    "goal.target",
    "goal.requests_per_month",
    "task.type",
    "base.model",
    "method.type",
    "method.rank",
    "train.epochs",
    "train.learning_rate",
    "train.seed",
    "baselines",
    "verdict.min_gain",
)


def starter_recipe(
    name: str, data: Mapping[str, Any], task: Mapping[str, Any], reasons: Sequence[str], overrides: Sequence[str],
    *, folder: Path,
) -> str:  # fmt: skip
    """A commented recipe that is valid as it stands. Paths in `overrides` are written relative to `folder`.

    Raises `RecipeError` where `overrides` are wrong.
    """
    # In the order of a recipe; what is not set here keeps its default.
    chosen: dict[str, Any] = {"name": name, "goal": {}, "task": dict(task), "data": dict(data)}
    chosen |= {"base": {}, "method": {}, "train": {}, "baselines": None, "verdict": {}}
    defaults = parse_recipe({"data": data})
    for key in _EXPLAINED:
        _set_default(chosen, key.split("."), attrgetter(key)(defaults))
    chosen = apply_overrides(chosen, overrides, base=Path.cwd())
    for part in ("train", "validation", "test"):
        file = chosen["data"].get(part)
        if isinstance(file, str) and Path(file).is_absolute():
            chosen["data"][part] = os.path.relpath(file, folder)
    parse_recipe(chosen, "the recipe to write")
    help_of = {setting.key: setting.help for setting in settings()}
    comments = {key: help_of[key] for key in _EXPLAINED}
    comments["name"] = "Every setting: tunesmith recipe docs. `auto` is decided from data and base, and explained."
    comments["data"] = "\n".join(reasons)
    return dump_yaml(chosen, comments)


def _set_default(data: dict[str, Any], path: Sequence[str], value: Any) -> None:
    for part in path[:-1]:
        data = data.setdefault(part, {})
    if data.get(path[-1]) is None:
        data[path[-1]] = value
