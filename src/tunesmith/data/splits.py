"""Train, validation and test parts that depend on the content of the rows, never on their order in the file.

Every row is ordered by a hash of the seed and its content; parts are cut from that order. Rows with the same input
form a group, and so do rows that are nearly the same and rows of one `data.split.group_by`; a group is never divided,
so no question of the test is ever seen in training. Stratified parts hold every label in proportion (largest
remainders) and leave at least one group of each label for training. By time, the latest groups are the test.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from tunesmith.data.duplicates.near import Groups, NearDuplicates, find_near_duplicates
from tunesmith.data.duplicates.shingles import Tell, silent
from tunesmith.data.duplicates.texts import prompt_key
from tunesmith.data.moments import moments
from tunesmith.data.template import cell_text
from tunesmith.data.types import Example, Splits
from tunesmith.errors import DataError, RecipeError
from tunesmith.recipe.schema import Split

ENOUGH = 0.5
"""Share of the wanted rows of a part from which a split that keeps near-duplicates together is taken."""


@dataclass(frozen=True, slots=True)
class _Group:
    """Rows that stay together. `order` is the seeded hash, `position` the place of the first row in the file, or the
    time of the latest one.
    """

    rows: tuple[Example, ...]
    stratum: str
    order: str
    position: float


@dataclass(frozen=True, slots=True)
class _Plan:
    """How a split is drawn: method, sizes, what keeps rows together besides their input, and times of rows by id."""

    method: str
    test: int
    validation: int
    seed: int
    cluster: Mapping[str, int]
    group_by: str | None
    times: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class _Drawn:
    train: list[_Group]
    validation: list[_Group]
    test: list[_Group]

    def rows(self) -> int:
        """Rows set aside."""
        return _size(self.validation) + _size(self.test)

    def lacks(self, plan: _Plan, share: float = ENOUGH) -> bool:
        """Whether a part has less than this share of the wanted rows."""
        return _size(self.test) < share * plan.test or _size(self.validation) < share * plan.validation


def make_splits(
    train_examples: Sequence[Example],
    validation: Sequence[Example] | None,
    test: Sequence[Example] | None,
    split: Split,
    *,
    task_type: str,
    max_rows: int | None = None,
    near: NearDuplicates | None = None,
    tell: Tell = silent,
) -> Splits:
    """Divide the rows of the training file; validation and test rows the user supplies are used whole.

    `max_rows` first draws so many rows of the training file. `near` is what is known of likeness among
    `train_examples`; where it is needed and not known it is looked for. Raises `DataError` where a part would be empty
    or a row has no time, and `RecipeError` for sizes and settings that cannot be meant.
    """
    if not train_examples:
        raise DataError("there is no usable row to train on", where="data.train", fix="see the findings for the file")
    for name, rows in (("validation", validation), ("test", test)):
        if rows is not None and not rows:
            raise DataError(f"the {name} file has no usable row", where=f"data.{name}", fix="see its findings")
    method = _method(split, task_type)
    rows = _limited(train_examples, max_rows, split.seed, stratified=method == "stratified")
    wanted_test = 0 if test is not None else _count(split.test, len(rows), "test")
    wanted_validation = 0 if validation is not None else _count(split.validation, len(rows), "validation")
    if wanted_test + wanted_validation >= len(rows):
        raise DataError(
            f"{len(rows)} usable rows cannot give {wanted_validation} for validation, {wanted_test} for test "
            "and at least one for training",
            where="data.split",
            fix="add rows, or lower data.split.validation and data.split.test",
        )
    if split.near_duplicates == "ignore" or not wanted_test + wanted_validation:
        cluster: dict[str, int] = {}
    else:
        near = find_near_duplicates(train_examples, tell=tell) if near is None else near
        cluster = {row.id: number for row, number in zip(train_examples, near.cluster, strict=True)}
    times = moments(rows, split.time) if split.time is not None else {}
    plan = _Plan(method, wanted_test, wanted_validation, split.seed, cluster, split.group_by, times)
    plan, drawn, note = _drawn(rows, plan, asked=split.method)
    parts = {
        "train": _arranged(drawn.train, plan.method),
        "validation": tuple(validation) if validation is not None else _arranged(drawn.validation, plan.method),
        "test": tuple(test) if test is not None else _arranged(drawn.test, plan.method),
    }
    own = {name: rows for name, rows in (("validation", validation), ("test", test)) if rows is not None}
    return Splits(
        parts["train"],
        parts["validation"],
        parts["test"],
        hashes={name: part_hash(part) for name, part in parts.items()},
        explanation=_explain(parts, own, plan, note, _kept(drawn, plan), len(train_examples), len(rows)),
    )


def part_hash(part: Sequence[Example]) -> str:
    """SHA-256 over the sorted ids, one per line: equal exactly when the same rows are in the part."""
    return hashlib.sha256("\n".join(sorted(example.id for example in part)).encode()).hexdigest()


def _method(split: Split, task_type: str) -> str:
    if split.time is not None:
        if split.method not in ("auto", "time"):
            raise RecipeError(
                f"data.split.time and data.split.method: {split.method} contradict each other",
                where="data.split",
                expected="method: time or auto where a column with times is named",
            )
        return "time"
    if split.method == "time":
        raise RecipeError(
            "no column with times is named", where="data.split.time", fix="set data.split.time to its name"
        )
    if split.method != "auto":
        return split.method
    return "stratified" if task_type == "classification" else "random"


def _drawn(rows: Sequence[Example], plan: _Plan, asked: str) -> tuple[_Plan, _Drawn, str]:
    """The parts, the plan they could be drawn by, and what must be said of it."""
    notes = []
    if plan.method == "stratified" and not _can_stratify(_groups(rows, plan), plan.test + plan.validation):
        plain = _without_clusters(plan)
        if _can_stratify(_groups(rows, plain), plan.test + plan.validation):
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
    drawn = _draw_parts(rows, plan)
    if plan.method == "stratified" and asked == "auto" and plan.group_by is not None and drawn.lacks(plan, 0.9):
        other = _draw_parts(rows, replace(plan, method="random"))
        if other.rows() > drawn.rows():
            plan, drawn = replace(plan, method="random"), other
            notes.append(f"labels are not in proportion, since rows with the same {plan.group_by} stay together")
    if plan.cluster and drawn.lacks(plan):
        plain = _without_clusters(plan)
        other = _draw_parts(rows, plain)
        if other.rows() > drawn.rows():
            largest = max(Counter(plan.cluster[row.id] for row in rows).values())
            plan, drawn = plain, other
            notes.append(f"near-duplicates are not kept together, since {largest:,} rows are nearly the same")
    for name, count in (("test", plan.test), ("validation", plan.validation)):
        if count and not getattr(drawn, name):
            raise _nothing_for(name, rows, plan)
    return plan, drawn, "; ".join(notes)


def _without_clusters(plan: _Plan) -> _Plan:
    return replace(plan, cluster={})


def _draw_parts(rows: Sequence[Example], plan: _Plan) -> _Drawn:
    groups = _groups(rows, plan)
    if plan.method in ("order", "time"):
        groups.sort(key=lambda group: (-group.position, group.order))
    else:
        groups.sort(key=lambda group: group.order)
    parts = []
    for wanted in (plan.test, plan.validation):
        taken, left = _draw_first(groups, wanted) if plan.method == "time" else _draw(groups, wanted)
        if wanted and not taken and plan.group_by is not None and len(groups) > 1:  # every group is larger than wanted
            smallest = min(groups, key=lambda group: (len(group.rows), group.order))
            taken, left = [smallest], [group for group in groups if group is not smallest]
        parts.append(taken)
        groups = left
    return _Drawn(train=groups, validation=parts[1], test=parts[0])


def _nothing_for(name: str, rows: Sequence[Example], plan: _Plan) -> DataError:
    if plan.group_by is not None:
        values = len({cell_text(row.values.get(plan.group_by)) for row in rows})
        return DataError(
            f"no row can be set aside for {name}: {plan.group_by!r} has {values:,} distinct values in {len(rows):,} "
            "rows, and rows with the same value stay together",
            where="data.split.group_by",
            fix="name a column with more and smaller groups, or supply a file for it",
        )
    distinct = len({prompt_key(row) for row in rows})
    return DataError(
        f"no row can be set aside for {name}: {len(rows):,} rows have only {distinct:,} distinct inputs, "
        "and rows with the same input stay together",
        where="data.split",
        fix="add rows with other inputs, or supply a file for it",
    )


def _size(groups: Sequence[_Group]) -> int:
    return sum(len(group.rows) for group in groups)


def _count(value: float | int, rows: int, name: str) -> int:
    """Rows of a part: a share under 1 (at least one row), or a whole number of rows."""
    if not math.isfinite(value) or value < 0 or (value >= 1 and value != int(value)):
        raise RecipeError(
            f"{value} is neither a share nor a number of rows",
            where=f"data.split.{name}",
            expected="a share from 0 to under 1, or a whole number",
        )
    if value >= 1:
        return int(value)
    return max(1, round(rows * value)) if value else 0


def _limited(examples: Sequence[Example], limit: int | None, seed: int, *, stratified: bool) -> Sequence[Example]:
    """At most `limit` rows, in file order; labels keep their shares where the split is stratified."""
    if limit is None or limit >= len(examples):
        return examples
    singles = [
        _Group((row,), row.expected if stratified else "", _seeded(seed, row.id), position)
        for position, row in enumerate(examples)
    ]
    taken, _ = _draw(sorted(singles, key=lambda group: group.order), limit, leave_one=False)
    return [group.rows[0] for group in sorted(taken, key=lambda group: group.position)]


def _groups(rows: Sequence[Example], plan: _Plan) -> list[_Group]:
    """Rows with the same input, of one cluster, or with the same value of the group column, as one group each."""
    if plan.group_by is not None:
        _require_column(plan.group_by, rows)
    together = Groups(len(rows))
    first: dict[tuple[str, object], int] = {}
    for place, row in enumerate(rows):
        keys: list[tuple[str, object]] = [("input", prompt_key(row))]
        if row.id in plan.cluster:
            keys.append(("cluster", plan.cluster[row.id]))
        if plan.group_by is not None:
            value = row.values.get(plan.group_by)
            keys.append(("alone", row.id) if value is None else ("group", cell_text(value)))
        for key in keys:
            together.join(place, first.setdefault(key, place))
    members: dict[int, list[int]] = defaultdict(list)
    for place in range(len(rows)):
        members[together.find(place)].append(place)
    return [_group([rows[place] for place in places], places[0], plan) for places in members.values()]


def _group(rows: Sequence[Example], first: int, plan: _Plan) -> _Group:
    """Several labels in one group: the commonest names it, of equals the one that sorts first, whatever the order."""
    labels = Counter(row.expected for row in rows)
    stratum = min(labels, key=lambda label: (-labels[label], label)) if plan.method == "stratified" else ""
    order = _seeded(plan.seed, min(json.dumps(prompt_key(row), ensure_ascii=False) for row in rows))
    position = max(plan.times[row.id] for row in rows) if plan.times else float(first)
    return _Group(tuple(rows), stratum, order, position)


def _require_column(column: str, rows: Sequence[Example]) -> None:
    if not any(column in row.values for row in rows):
        there = dict.fromkeys(name for row in rows for name in row.values)
        raise DataError(
            f"no row has a column {column!r} to group by",
            where="data.split.group_by",
            expected=f"a column among: {', '.join(there)}",
        )


def _seeded(seed: int, key: str) -> str:
    return hashlib.sha256(f"{seed}:{key}".encode()).hexdigest()


def _by_stratum(groups: Sequence[_Group]) -> dict[str, list[_Group]]:
    strata: dict[str, list[_Group]] = defaultdict(list)
    for group in groups:
        strata[group.stratum].append(group)
    return dict(sorted(strata.items()))


def _can_stratify(groups: Sequence[_Group], wanted: int) -> bool:
    """Whether so many rows can be taken while one group of every label stays."""
    strata = _by_stratum(groups).values()
    return sum(sum(len(g.rows) for g in members) - max(len(g.rows) for g in members) for members in strata) >= wanted


def _draw(groups: Sequence[_Group], total: int, *, leave_one: bool = True) -> tuple[list[_Group], list[_Group]]:
    """About `total` rows in whole groups, first come first taken within each stratum, and the groups that stay.

    A group that would go over its stratum's share is passed over, so fewer rows may be taken, never more.
    """
    if total == 0:
        return [], list(groups)
    strata = _by_stratum(groups)
    candidates = [members[:-1] if leave_one else members for members in strata.values()]
    sizes = [sum(len(group.rows) for group in members) for members in strata.values()]
    limits = [sum(len(group.rows) for group in members) for members in candidates]
    taken: list[_Group] = []
    for members, quota in zip(candidates, _apportion(sizes, limits, total), strict=True):
        left = quota
        for group in members:
            if len(group.rows) <= left:
                taken.append(group)
                left -= len(group.rows)
    chosen = {id(group) for group in taken}
    return taken, [group for group in groups if id(group) not in chosen]


def _draw_first(groups: Sequence[_Group], total: int) -> tuple[list[_Group], list[_Group]]:
    """The first groups, as they come, until they hold `total` rows or more; the last group stays in any case."""
    taken, rows = 0, 0
    while rows < total and taken < len(groups) - 1:
        rows += len(groups[taken].rows)
        taken += 1
    return list(groups[:taken]), list(groups[taken:])


def _apportion(sizes: Sequence[int], limits: Sequence[int], total: int) -> list[int]:
    """`total` divided in proportion to `sizes` by largest remainders, no share above its limit."""
    whole = sum(sizes)
    shares = [total * size / whole for size in sizes]
    quotas = [min(limit, int(share)) for share, limit in zip(shares, limits, strict=True)]
    by_remainder = sorted(range(len(sizes)), key=lambda i: (int(shares[i]) - shares[i], i))
    left = min(total, sum(limits)) - sum(quotas)
    while left > 0:
        for i in by_remainder:
            if left and quotas[i] < limits[i]:
                quotas[i] += 1
                left -= 1
    return quotas


def _arranged(groups: Sequence[_Group], method: str) -> tuple[Example, ...]:
    """Rows of a part: in the order of file or time for these methods, else in seeded order, whatever the file's."""
    if method in ("order", "time"):
        return tuple(row for group in sorted(groups, key=lambda g: (g.position, g.order)) for row in group.rows)
    ordered = sorted(groups, key=lambda g: g.order)
    return tuple(row for group in ordered for row in sorted(group.rows, key=lambda row: row.id))


def _kept(drawn: _Drawn, plan: _Plan) -> str:
    """What was kept together, in words."""
    kept = ["rows with the same input"]
    if plan.cluster:
        groups = [g for part in (drawn.train, drawn.validation, drawn.test) for g in part]
        alike = [g for g in groups if len({prompt_key(row) for row in g.rows}) > 1]
        if alike and plan.group_by is None:
            kept.append(f"near-duplicates ({_size(alike):,} rows in {len(alike):,} groups)")
        elif plan.group_by is not None:
            kept.append("near-duplicates")
    if plan.group_by is not None:
        kept.append(f"rows with the same {plan.group_by}")
    listed = kept[0] if len(kept) == 1 else f"{', '.join(kept[:-1])} and {kept[-1]}"
    return f"{listed} kept together"


def _explain(
    parts: Mapping[str, tuple[Example, ...]],
    own: Mapping[str, Sequence[Example]],
    plan: _Plan,
    note: str,
    kept: str,
    in_file: int,
    used: int,
) -> str:
    how = {
        "stratified": f"drawn by seed {plan.seed} with every label in proportion",
        "random": f"drawn at random by seed {plan.seed}",
        "order": "taken from the end of the file",
        "time": "the latest rows, by time",
    }[plan.method]
    drawn = [f"{len(parts['train']):,} rows{_share(parts['train'], used)} are for training"]
    drawn += [
        f"{len(parts[name]):,}{_share(parts[name], used)} for {words}"
        for name, words in (("validation", "validation"), ("test", "the test"))
        if name not in own
    ]
    text = drawn[0] if len(drawn) == 1 else f"{', '.join(drawn[:-1])} and {drawn[-1]}"
    if len(drawn) > 1:
        text += f", {how}{f' ({note})' if note else ''}, {kept}"
    if used < in_file:
        text += f", from {used:,} of {in_file:,} rows (data.max_rows)"
    files = [f"{name} is its own file with {len(rows):,} rows" for name, rows in own.items()]
    return f"{'; '.join([text, *files])}."


def _share(part: Sequence[Example], used: int) -> str:
    return f" ({len(part) / used:.0%})"
