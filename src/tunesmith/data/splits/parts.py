"""Which groups are for training, validation and test: the plan, what it falls back to, and what must be said of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from tunesmith.data.splits.drawing import can_stratify, draw, draw_first, rows_in
from tunesmith.data.splits.groups import Group, Keyed, groups_of
from tunesmith.data.template import cell_text
from tunesmith.errors import DataError

ENOUGH = 0.5
"""Share of the wanted rows of a part from which a split that keeps near-duplicates together is taken."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How a split is drawn: method, sizes, and what keeps rows together besides their input.

    cluster: the group of likeness of each row, by place; None where likeness does not matter.
    """

    method: str
    test: int
    validation: int
    seed: int
    cluster: Sequence[int] | None
    group_by: str | None


@dataclass(frozen=True, slots=True)
class Drawn:
    """The groups of each part."""

    train: list[Group]
    validation: list[Group]
    test: list[Group]

    def rows(self) -> int:
        """Rows set aside."""
        return rows_in(self.validation) + rows_in(self.test)

    def lacks(self, plan: Plan, share: float = ENOUGH) -> bool:
        """Whether a part has less than this share of the wanted rows."""
        return rows_in(self.test) < share * plan.test or rows_in(self.validation) < share * plan.validation


def draw_parts(known: Keyed, plan: Plan, asked: str) -> tuple[Plan, Drawn, str]:
    """The parts, the plan they could be drawn by, and what must be said of it. `asked` is the recipe's method."""
    notes = []
    if plan.method == "stratified" and not _stratifiable(known, plan):
        plain = _without_clusters(plan)
        if _stratifiable(known, plain):
            plan = plain
            notes.append("near-duplicates are not kept together, since too few rows would be left to draw from")
        elif asked == "stratified":
            raise DataError(
                "the rows cannot be stratified: too many labels have only one distinct input",
                where="data.split",
                expected="two or more rows of most labels",
                fix="set data.split.method: random, or add rows",
            )
        else:
            plan = replace(plan, method="random")
            notes.append("too many labels are seen once to stratify")
    drawn = _draw(known, plan)
    if plan.method == "stratified" and asked == "auto" and plan.group_by is not None and drawn.lacks(plan, 0.9):
        other = _draw(known, replace(plan, method="random"))
        if other.rows() > drawn.rows():
            plan, drawn = replace(plan, method="random"), other
            notes.append(f"labels are not in proportion, since rows with the same {plan.group_by} stay together")
    if plan.cluster is not None and drawn.lacks(plan):
        plain = _without_clusters(plan)
        other = _draw(known, plain)
        if other.rows() > drawn.rows():
            largest = max(Counter(plan.cluster).values())
            plan, drawn = plain, other
            notes.append(f"near-duplicates are not kept together, since {largest:,} rows are nearly the same")
    for name, count in (("test", plan.test), ("validation", plan.validation)):
        if count and not getattr(drawn, name):
            raise _nothing_for(name, known, plan)
    return plan, drawn, "; ".join(notes)


def kept_together(drawn: Drawn, known: Keyed, plan: Plan) -> str:
    """What was kept together, in words."""
    kept = ["rows with the same input"]
    if plan.cluster is not None:
        groups = [g for part in (drawn.train, drawn.validation, drawn.test) for g in part if len(g.places) > 1]
        alike = [g for g in groups if len(set(known.inputs[list(g.places)].tolist())) > 1]
        if alike and plan.group_by is None:
            kept.append(f"near-duplicates ({rows_in(alike):,} rows in {len(alike):,} groups)")
        elif plan.group_by is not None:
            kept.append("near-duplicates")
    if plan.group_by is not None:
        kept.append(f"rows with the same {plan.group_by}")
    listed = kept[0] if len(kept) == 1 else f"{', '.join(kept[:-1])} and {kept[-1]}"
    return f"{listed} kept together"


def _groups(known: Keyed, plan: Plan) -> list[Group]:
    return groups_of(known, plan.cluster, stratified=plan.method == "stratified")


def _stratifiable(known: Keyed, plan: Plan) -> bool:
    return can_stratify(_groups(known, plan), plan.test + plan.validation)


def _without_clusters(plan: Plan) -> Plan:
    return replace(plan, cluster=None)


def _draw(known: Keyed, plan: Plan) -> Drawn:
    groups = _groups(known, plan)
    if plan.method in ("order", "time"):
        groups.sort(key=lambda group: (-group.position, group.order))
    else:
        groups.sort(key=lambda group: group.order)
    parts = []
    for wanted in (plan.test, plan.validation):
        taken, left = draw_first(groups, wanted) if plan.method == "time" else draw(groups, wanted)
        if wanted and not taken and plan.group_by is not None and len(groups) > 1:  # every group is larger than wanted
            smallest = min(groups, key=lambda group: (len(group.places), group.order))
            taken, left = [smallest], [group for group in groups if group is not smallest]
        parts.append(taken)
        groups = left
    return Drawn(train=groups, validation=parts[1], test=parts[0])


def _nothing_for(name: str, known: Keyed, plan: Plan) -> DataError:
    rows = known.rows
    if plan.group_by is not None:
        values = len({cell_text(row.values.get(plan.group_by)) for row in rows})
        return DataError(
            f"no row can be set aside for {name}: {plan.group_by!r} has {values:,} distinct values in {len(rows):,} "
            "rows, and rows with the same value stay together",
            where="data.split.group_by",
            fix="name a column with more and smaller groups, or supply a file for it",
        )
    return DataError(
        f"no row can be set aside for {name}: {len(rows):,} rows have only {len(np.unique(known.inputs)):,} distinct "
        "inputs, and rows with the same input stay together",
        where="data.split",
        fix="add rows with other inputs, or supply a file for it",
    )
