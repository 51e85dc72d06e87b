"""The score of a trained run: what its training measured on validation rows, at the step that was kept."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tunesmith.errors import EngineError
from tunesmith.recipe.schema import Recipe
from tunesmith.recipe.spaces import by_loss
from tunesmith.runs import RunFolder
from tunesmith.search.samplers import Direction

LOSS = "validation_loss"


@dataclass(frozen=True, slots=True)
class Score:
    """A metric of the task, higher is better, or the validation loss, lower is better; `loss` is None without one."""

    name: str
    value: float
    loss: float | None
    step: int


def direction_of(recipe: Recipe) -> Direction:
    """Which way a recipe's trials are better."""
    return "minimize" if by_loss(recipe) else "maximize"


def score_of(folder: RunFolder, asked: Recipe, resolved: Recipe) -> Score:
    """The validation score of a run that was trained, at the step whose weights were kept.

    asked: the recipe that is searched, which says whether metric or loss is compared. Raises `EngineError` where the
    training measured no such thing.
    """
    kept = json.loads((folder.path / "training.json").read_text(encoding="utf-8"))
    measured = [entry for entry in kept["history"] if entry["kind"] == "validation"]
    if kept.get("best_step") is not None:
        measured = [entry for entry in measured if entry["step"] == kept["best_step"]]
    if not measured:
        raise EngineError(
            "the training measured nothing on validation rows",
            where=str(folder.path),
            fix="give validation rows (data.validation, data.split.validation) and train.evaluations above 0",
        )
    return _read(measured[-1], folder, LOSS if by_loss(asked) else str(resolved.goal.metric))


def _read(entry: Mapping[str, Any], folder: RunFolder, name: str) -> Score:
    value = entry["loss"] if name == LOSS else entry["metrics"].get(name)
    if value is None:
        raise EngineError(f"the training did not measure {name} on validation rows", where=str(folder.path))
    return Score(name, float(value), entry["loss"], int(entry["step"]))
