"""Train, validation and test parts that depend on the content of the rows, never on their order in the file.

Every row is ordered by a hash of the seed and its content; parts are cut from that order. Rows with the same input
form a group, and a group is never divided, so no question of the test is ever seen in training. Stratified parts hold
every label in proportion (largest remainders) and leave at least one group of each label for training.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from tunesmith.data.types import Example, Splits
from tunesmith.errors import DataError, RecipeError
from tunesmith.recipe.schema import Split

PromptKey = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class _Group:
    """Rows with the same input. `order` is the seeded hash, `position` the place of the first row in the file."""

    rows: tuple[Example, ...]
    stratum: str
    order: str
    position: int


def prompt_key(example: Example) -> PromptKey:
    """What makes two inputs the same: roles and contents of all turns before the answer."""
    return tuple((turn.role, turn.content) for turn in example.prompt)


def make_splits(
    train_examples: Sequence[Example],
    validation: Sequence[Example] | None,
    test: Sequence[Example] | None,
    split: Split,
    *,
    task_type: str,
    max_rows: int | None = None,
) -> Splits:
    """Divide the rows of the training file; validation and test rows the user supplies are used whole.

    `max_rows` first draws so many rows of the training file. Raises `DataError` where a part would be empty and
    `RecipeError` for sizes that cannot be meant.
    """
    if not train_examples:
        raise DataError("there is no usable row to train on", where="data.train", fix="see the findings for the file")
    for name, rows in (("validation", validation), ("test", test)):
        if rows is not None and not rows:
            raise DataError(f"the {name} file has no usable row", where=f"data.{name}", fix="see its findings")
    method = split.method if split.method != "auto" else ("stratified" if task_type == "classification" else "random")
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

    note = ""
    if method == "stratified" and not _can_stratify(_groups(rows, split.seed, True), wanted_test + wanted_validation):
        if split.method == "stratified":
            raise DataError(
                "the rows cannot be stratified: too many labels have only one distinct input",
                where="data.split",
                expected="two or more rows of most labels",
                fix="set data.split.method: random, or add rows",
            )
        method, note = "random", " (too many labels are seen once to stratify)"
    groups = _groups(rows, split.seed, stratified=method == "stratified")
    if method == "order":
        groups.sort(key=lambda group: -group.position)
    else:
        groups.sort(key=lambda group: group.order)
    taken_test, groups = _draw(groups, wanted_test)
    taken_validation, groups = _draw(groups, wanted_validation)
    for name, count, taken in (("test", wanted_test, taken_test), ("validation", wanted_validation, taken_validation)):
        if count and not taken:
            distinct = len({prompt_key(row) for row in rows})
            raise DataError(
                f"no row can be set aside for {name}: {len(rows):,} rows have only {distinct:,} distinct inputs, "
                "and rows with the same input stay together",
                where="data.split",
                fix="add rows with other inputs, or supply a file for it",
            )
    parts = {
        "train": _arranged(groups, method),
        "validation": tuple(validation) if validation is not None else _arranged(taken_validation, method),
        "test": tuple(test) if test is not None else _arranged(taken_test, method),
    }
    return Splits(
        parts["train"],
        parts["validation"],
        parts["test"],
        hashes={name: part_hash(part) for name, part in parts.items()},
        explanation=_explain(parts, len(train_examples), len(rows), method, split.seed, validation, test, note),
    )


def part_hash(part: Sequence[Example]) -> str:
    """SHA-256 over the sorted ids, one per line: equal exactly when the same rows are in the part."""
    return hashlib.sha256("\n".join(sorted(example.id for example in part)).encode()).hexdigest()


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


def _groups(rows: Sequence[Example], seed: int, stratified: bool) -> list[_Group]:
    by_prompt: dict[PromptKey, list[tuple[int, Example]]] = defaultdict(list)
    for position, row in enumerate(rows):
        by_prompt[prompt_key(row)].append((position, row))
    groups = []
    for key, members in by_prompt.items():
        # Conflicting answers to one input: the label that sorts first names the group, whatever the file's order.
        stratum = min(row.expected for _, row in members) if stratified else ""
        order = _seeded(seed, json.dumps(key, ensure_ascii=False))
        groups.append(_Group(tuple(row for _, row in members), stratum, order, members[0][0]))
    return groups


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
    """Rows of a part: in the file's order for method order, else in seeded order, whatever the file's."""
    if method == "order":
        return tuple(row for group in sorted(groups, key=lambda g: g.position) for row in group.rows)
    ordered = sorted(groups, key=lambda g: g.order)
    return tuple(row for group in ordered for row in sorted(group.rows, key=lambda row: row.id))


def _explain(
    parts: dict[str, tuple[Example, ...]],
    in_file: int,
    used: int,
    method: str,
    seed: int,
    validation: Sequence[Example] | None,
    test: Sequence[Example] | None,
    note: str,
) -> str:
    how = {
        "stratified": f"drawn by seed {seed} with every label in proportion",
        "random": f"drawn at random by seed {seed}{note}",
        "order": "taken from the end of the file",
    }[method]
    drawn = [f"{len(parts['train']):,} rows are for training"]
    if validation is None:
        drawn.append(f"{len(parts['validation']):,} for validation")
    if test is None:
        drawn.append(f"{len(parts['test']):,} for the test")
    text = drawn[0] if len(drawn) == 1 else f"{', '.join(drawn[:-1])} and {drawn[-1]}"
    if len(drawn) > 1:
        text += f", {how}, rows with the same input kept together"
    if used < in_file:
        text += f", from {used:,} of {in_file:,} rows (data.max_rows)"
    own = [
        f"{name} is its own file with {len(rows):,} rows"
        for name, rows in (("validation", validation), ("test", test))
        if rows is not None
    ]
    return f"{'; '.join([text, *own])}."
