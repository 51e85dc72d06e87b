"""Which test rows hang together, and into which slices they fall."""

from __future__ import annotations

from collections.abc import Sequence

from tunesmith.data.template import cell_text
from tunesmith.data.types import Example
from tunesmith.pipeline.prepare import Prepared


def clusters_of(prepared: Prepared) -> dict[str, str] | None:
    """By test row, what it hangs together with, as `data.split.group_by` says."""
    return clusters_in(prepared.rows.splits.test, prepared.recipe.data.split.group_by)


def clusters_in(test: Sequence[Example], column: str | None) -> dict[str, str] | None:
    """By row, what it hangs together with: the value of the column; a row without one is alone.

    None without a column, or where no row has a value in it.
    """
    if column is None:
        return None
    values = {example.id: example.values.get(column) for example in test}
    if all(value is None for value in values.values()):
        return None
    return {row: f"row {row}" if value is None else f"group {cell_text(value)}" for row, value in values.items()}


def slices_of(prepared: Prepared) -> dict[str, list[str]]:
    """Test rows by the task's divisions, such as `label refund`."""
    slices: dict[str, list[str]] = {}
    for example in prepared.rows.splits.test:
        for division, value in prepared.task.slices(example).items():
            slices.setdefault(f"{division} {value}", []).append(example.id)
    return slices
