"""Which test rows hang together, and into which slices they fall."""

from __future__ import annotations

from tunesmith.data.template import cell_text
from tunesmith.pipeline.prepare import Prepared


def clusters_of(prepared: Prepared) -> dict[str, str] | None:
    """By test row, what it hangs together with: the value of `data.split.group_by`; a row without one is alone."""
    column = prepared.recipe.data.split.group_by
    if column is None:
        return None
    values = {example.id: example.values.get(column) for example in prepared.rows.splits.test}
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
