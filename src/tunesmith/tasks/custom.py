"""The user's own metrics: a formula or a function over each answer, on a scale from a worst to a best value.

What an answer is worth to a business is often not whether it is right: a refund granted wrongly costs more than one
asked back. Such a value has any unit and either direction. Here it is measured on its declared scale,
`(value - worst) / (best - worst)`, so that it is a share of what can be had, as other metrics are, and may decide a
verdict: on a scale from -200 to 0, a gain of 0.05 is 10 a request.
"""

from __future__ import annotations

import importlib.util
import math
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tunesmith.errors import RecipeError
from tunesmith.recipe.schema import CustomMetric as CustomMetricSpec
from tunesmith.tasks.formula import compile_formula
from tunesmith.tasks.metrics import ItemMean


@dataclass(frozen=True)
class CustomMetric(ItemMean):
    """`formula` is an expression or `file.py:function`, called with (answer, expected) as the task reads them.

    The mean over rows of the scaled value. Values beyond an end count as that end. An unreadable answer, one on which
    the formula fails, and a value that is no number count as the worst; a failure is told once for each kind of error,
    by a `RuntimeWarning`, and `failures` counts them. Statistics per item: (score, 1).
    """

    name: str
    formula: str
    worst: float = 0.0
    best: float = 1.0

    @property
    def binary(self) -> bool:
        """Values in between are possible."""
        return False

    def try_on(self, right: Sequence[tuple[Any, Any]]) -> None:
        """Value right answers, given as (answer, expected): a formula that fails on these is wrong itself.

        Raises `RecipeError`.
        """
        for answer, target in right:
            try:
                value = float(self._function(answer, target))
            except Exception as error:  # the user's code: anything can come out of it
                raise RecipeError(
                    f"it fails on an expected answer, {str(target)[:80]!r}: {_told(error)}",
                    where=f"task.metrics.{self.name}",
                    expected="a number for every answer that is in the data",
                    fix="correct the formula; `answer` and `expected` are as the task reads them (docs/tasks.md)",
                ) from error
            if not math.isfinite(value):
                raise RecipeError(f"it gives {value} for {str(target)[:80]!r}", where=f"task.metrics.{self.name}")

    def score(self, answer: Any, target: Any) -> float:
        try:
            value = float(self._function(answer, target))
        except Exception as error:  # the user's code, on what a model answered: anything can come out of it
            kind = type(error).__name__
            self.failures[kind] += 1
            if self.failures[kind] == 1:
                warnings.warn(
                    f"task.metrics.{self.name} fails on the answer {str(answer)[:80]!r}, which counts as the worst, "
                    f"as does any other it fails on: {_told(error)}",
                    RuntimeWarning,
                    stacklevel=2,
                )
            return 0.0
        if not math.isfinite(value):
            return 0.0
        return min(1.0, max(0.0, (value - self.worst) / (self.best - self.worst)))

    @cached_property
    def failures(self) -> Counter[str]:
        """How often valuing an answer has failed so far, by the kind of error."""
        return Counter()

    @cached_property
    def _function(self) -> Callable[[Any, Any], Any]:
        where = f"task.metrics.{self.name}"
        file, colon, name = self.formula.rpartition(":")
        if colon and file.endswith(".py"):
            return load_function(Path(file), name, where)
        return compile_formula(self.formula, where)


def custom_metrics(specs: Mapping[str, CustomMetricSpec]) -> tuple[CustomMetric, ...]:
    """The recipe's own metrics, each loaded or compiled. Raises `RecipeError`."""
    made = tuple(CustomMetric(name, spec.formula, spec.worst, spec.best) for name, spec in specs.items())
    for metric in made:
        _ = metric._function
    return made


def load_function(file: Path, name: str, where: str) -> Callable[..., Any]:
    """A function of the user's Python file, which is run for this. Raises `RecipeError`."""
    if not file.is_file():
        raise RecipeError(f"there is no file {file}", where=where, fix="the path counts from the recipe's folder")
    spec = importlib.util.spec_from_file_location(f"tunesmith_metric_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise RecipeError(f"{file} is no Python file", where=where)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # the user's code: anything can come out of it
        raise RecipeError(f"{file} cannot be run: {_told(error)}", where=where) from error
    found = getattr(module, name, None)
    if not callable(found):
        own = [key for key, value in vars(module).items() if getattr(value, "__module__", None) == spec.name]
        raise RecipeError(f"{file} has no function {name!r}", where=where, expected=", ".join(own) or "a function")
    function: Callable[..., Any] = found
    return function


def _told(error: Exception) -> str:
    """An error with the line of the user's file it came from, where there is one."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "tunesmith/tasks" not in f.filename]
    place = f" (line {frames[-1].lineno} of {Path(frames[-1].filename).name})" if frames else ""
    return f"{type(error).__name__}: {error}{place}"
