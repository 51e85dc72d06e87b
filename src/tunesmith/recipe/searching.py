"""The section `search`: which settings are tried, how, and how often."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from tunesmith.recipe.section import Section

Sampler = Literal["tpe", "random", "sequential"]


class Space(Section):
    """The values that one setting may take: a range of numbers, or a list."""

    type: Literal["float", "int", "choice"] = Field(description="A range of numbers, of whole numbers, or a list.")
    low: float | int | None = Field(None, description="Smallest value of a range.")
    high: float | int | None = Field(None, description="Largest value of a range.")
    log: bool = Field(False, description="Draw by the logarithm: as many from 1e-5 to 1e-4 as from 1e-4 to 1e-3.")
    step: float | int | None = Field(None, description="Only low, low + step, low + 2 step, … up to high.")
    values: list[Any] | None = Field(None, description="The values of a choice.")


class Search(Section):
    """Which settings `tunesmith search` tries: every trial is a run, and validation rows choose."""

    space: dict[str, Space] = Field(
        description="What may vary: a setting's dotted key, such as train.learning_rate, and its range or values."
    )
    sampler: Sampler = Field(
        "tpe",
        description="tpe proposes values near good ones (Optuna), random draws them, sequential takes every "
        "combination of a grid in its order.",
    )
    trials: int | None = Field(
        None, ge=1, description="Runs to try; none is 20, and every combination with sequential."
    )
    max_seconds: float | None = Field(None, gt=0, description="Time after which no further trial is begun.")
    seed: int = Field(0, ge=0, description="Seed of what the sampler draws.")


DEFAULT_TRIALS = 20
"""What no number of trials means, but for a sequential search."""
