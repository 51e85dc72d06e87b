"""Spaces of values as a search sees them: grids, and how many combinations they have.

What a space is written as, and whether it makes sense, is the recipe's (`recipe/spaces.py`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any

from tunesmith.recipe.searching import Space
from tunesmith.recipe.spaces import read_spaces

__all__ = ["Space", "combinations", "grid", "last_step", "read_spaces", "size"]

_SLACK = 1e-9
"""Steps of decimal fractions do not end exactly where they should: 0.1 + 2 · 0.1 is above 0.3."""


def last_step(space: Space) -> float:
    """The largest value of a range that its steps reach; `high` where it has none."""
    low, high = _ends(space)
    if space.step is None:
        return high
    return low + space.step * math.floor((high - low) / space.step * (1 + _SLACK) + _SLACK)


def grid(space: Space) -> list[Any]:
    """All values of a space in their order. Raises `ValueError` for a range without steps."""
    if space.type == "choice":
        return list(space.values or ())
    if space.step is None:
        raise ValueError("a range without steps has no grid")
    low, _ = _ends(space)
    count = round((last_step(space) - low) / space.step) + 1
    if space.type == "int":
        return [int(low) + i * int(space.step) for i in range(count)]
    # Rounded to what a decimal fraction means: 0.3, not 0.30000000000000004.
    return [float(f"{low + i * space.step:.12g}") for i in range(count)]


def size(spaces: Mapping[str, Space]) -> int:
    """How many combinations the grids of these spaces have."""
    return math.prod(len(grid(space)) for space in spaces.values())


def combinations(spaces: Mapping[str, Space]) -> Iterator[dict[str, Any]]:
    """Every combination, the last space's values changing fastest."""
    names = list(spaces)
    for values in itertools.product(*(grid(space) for space in spaces.values())):
        yield dict(zip(names, values, strict=True))


def _ends(space: Space) -> tuple[float, float]:
    if space.low is None or space.high is None:
        raise ValueError("a range needs both ends")
    return space.low, space.high
