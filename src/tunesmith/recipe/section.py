"""What every part of a recipe is made of."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

Auto = Literal["auto"]
"""Decided from data and base, explained, and written into the run's resolved recipe."""
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
SIZE_PATTERN = r"^(auto|[0-9]+(\.[0-9]+)?\s*(GB|GiB|MB|MiB))$"
METRIC_PATTERN = r"^[A-Za-z][A-Za-z0-9_]*(\..+)?$"


class Section(BaseModel):
    """A part of a recipe; unknown keys are refused, objects cannot be changed."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)
