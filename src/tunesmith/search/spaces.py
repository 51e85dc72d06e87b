"""Spaces of values as a search sees them: grids, and how many combinations they have.

What a space is written as, and whether it makes sense, is the recipe's (`recipe/spaces.py`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tunesmith.recipe.searching import Space

_SLACK = 1e-9
_RELATIVE = 1e-12
"""Steps of decimal fractions do not end exactly where they should: 0.1 + 2 · 0.1 is above 0.3."""


def last_step(space: Space) -> float:
    """The largest value of a range that its steps reach; `high` where it has none."""
    low, high = _ends(space)
    if space.step is None:
        return high
    if space.type == "int":
        return int(high) - (int(high) - int(low)) % int(space.step)
    return low + space.step * math.floor((high - low) / space.step * (1 + _RELATIVE) + _SLACK)


def grid(space: Space) -> Sequence[Any]:
    """All values of a space in their order, computed when asked for. Raises `ValueError` for a range without steps."""
    if space.type == "choice":
        return list(space.values or ())
    if space.step is None:
        raise ValueError("a range without steps has no grid")
    low, _ = _ends(space)
    count = round((last_step(space) - low) / space.step) + 1
    if space.type == "int":
        return range(int(low), int(low) + count * int(space.step), int(space.step))
    return _Decimals(low, space.step, count)


def size(spaces: Mapping[str, Space]) -> int:
    """How many combinations the grids of these spaces have."""
    return math.prod(len(grid(space)) for space in spaces.values())


def combinations(spaces: Mapping[str, Space]) -> Iterator[dict[str, Any]]:
    """Every combination, the last space's values changing fastest."""
    grids = {name: grid(space) for name, space in spaces.items()}
    for place in range(size(spaces)):
        chosen = {}
        for name, values in reversed(grids.items()):
            place, within = divmod(place, len(values))
            chosen[name] = values[within]
        yield {name: chosen[name] for name in grids}


@dataclass(frozen=True, slots=True)
class _Decimals(Sequence[float]):
    """`low`, `low + step`, …, rounded to what a decimal fraction means: 0.3, not 0.30000000000000004."""

    low: float
    step: float
    total: int

    def __len__(self) -> int:
        return self.total

    def __getitem__(self, place: Any) -> Any:
        return float(f"{self.low + range(self.total)[place] * self.step:.12g}")


def _ends(space: Space) -> tuple[float, float]:
    if space.low is None or space.high is None:
        raise ValueError("a range needs both ends")
    return space.low, space.high
