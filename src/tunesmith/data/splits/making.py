"""From rows to frozen parts, with their sizes explained.

Every row is ordered by a hash of the seed and its content; parts are cut from that order. Rows with the same input
form a group, and so do rows that are nearly the same and rows of one `data.split.group_by`; a group is never divided,
so no question of the test is ever seen in training. Stratified parts hold every label in proportion (largest
remainders) and leave at least one group of each label for training. By time, the latest groups are the test.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence

from tunesmith.data.duplicates.near import NearDuplicates, find_near_duplicates
from tunesmith.data.duplicates.shingles import Tell, silent
from tunesmith.data.splits.drawing import draw
from tunesmith.data.splits.groups import Group, keyed, singles
from tunesmith.data.splits.parts import Plan, draw_parts, kept_together
from tunesmith.data.types import Example, Splits
from tunesmith.errors import DataError, RecipeError
from tunesmith.recipe.schema import ONE_LABEL, Split


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
    for name, given in (("validation", validation), ("test", test)):
        if given is not None and not given:
            raise DataError(f"the {name} file has no usable row", where=f"data.{name}", fix="see its findings")
    method = _method(split, task_type)
    chosen = _limited(train_examples, max_rows, split.seed, stratified=method == "stratified")
    rows = train_examples if chosen is None else [train_examples[place] for place in chosen]
    wanted_test = 0 if test is not None else _count(split.test, len(rows), "test")
    wanted_validation = 0 if validation is not None else _count(split.validation, len(rows), "validation")
    if wanted_test + wanted_validation >= len(rows):
        raise DataError(
            f"{len(rows)} usable rows cannot give {wanted_validation} for validation, {wanted_test} for test "
            "and at least one for training",
            where="data.split",
            fix="add rows, or lower data.split.validation and data.split.test",
        )
    cluster: Sequence[int] | None = None
    if split.near_duplicates != "ignore" and wanted_test + wanted_validation:
        near = find_near_duplicates(train_examples, tell=tell) if near is None else near
        cluster = near.cluster if chosen is None else [near.cluster[place] for place in chosen]
    known = keyed(rows, split)
    plan = Plan(method, wanted_test, wanted_validation, split.seed, cluster, split.group_by)
    plan, drawn, note = draw_parts(known, plan, asked=split.method)
    parts = {
        "train": _arranged(rows, drawn.train, plan.method),
        "validation": tuple(validation) if validation is not None else _arranged(rows, drawn.validation, plan.method),
        "test": tuple(test) if test is not None else _arranged(rows, drawn.test, plan.method),
    }
    own = {name: given for name, given in (("validation", validation), ("test", test)) if given is not None}
    kept = kept_together(drawn, known, plan)
    return Splits(
        parts["train"],
        parts["validation"],
        parts["test"],
        hashes={name: part_hash(part) for name, part in parts.items()},
        explanation=_explain(parts, own, plan, note, kept, len(train_examples), len(rows)),
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
    return "stratified" if task_type in ONE_LABEL else "random"


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


def _limited(examples: Sequence[Example], limit: int | None, seed: int, *, stratified: bool) -> list[int] | None:
    """Places of at most `limit` rows, in file order, labels in their shares where the split is stratified.

    None where all rows are taken.
    """
    if limit is None or limit >= len(examples):
        return None
    alone = singles(examples, seed, stratified=stratified)
    taken, _ = draw(sorted(alone, key=lambda group: group.order), limit, leave_one=False)
    return sorted(group.places[0] for group in taken)


def _arranged(rows: Sequence[Example], groups: Sequence[Group], method: str) -> tuple[Example, ...]:
    """Rows of a part: in the order of file or time for these methods, else in seeded order, whatever the file's."""
    if method in ("order", "time"):
        ordered = sorted(groups, key=lambda group: (group.position, group.order))
        return tuple(rows[place] for group in ordered for place in group.places)
    ordered = sorted(groups, key=lambda group: group.order)
    return tuple(rows[place] for group in ordered for place in sorted(group.places, key=lambda place: rows[place].id))


def _explain(
    parts: Mapping[str, tuple[Example, ...]],
    own: Mapping[str, Sequence[Example]],
    plan: Plan,
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
