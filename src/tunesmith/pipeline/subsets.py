"""Nested, stratified parts of the training rows: a quarter, a half, all. Frozen, so that they are the same next week.

Rows are put into one order, and a subset is the beginning of it: so each subset holds the smaller ones. Within a label
rows are ordered by a hash of the seed and their content; the k-th of n rows of a label stands at (k + 1/2) / n of the
order, its first row at the very beginning. So every beginning holds every label in proportion, to within one row, and
every label as soon as there are as many rows as labels.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.data import part_hash
from tunesmith.data.types import Example
from tunesmith.errors import DataError, RecipeError
from tunesmith.runs import write_json

SHARES = (0.25, 0.5, 1.0)
SUBSETS = "subsets.json"
FEWEST = 8
"""Rows below which a subset teaches nothing worth measuring."""


@dataclass(frozen=True, slots=True)
class Subset:
    """A part of the training rows. `share` of all of them; `sha256` freezes it by the ids in it."""

    share: float
    rows: tuple[Example, ...]
    sha256: str


def nested_subsets(
    examples: Sequence[Example], shares: Sequence[float] = SHARES, *, seed: int = 0, stratified: bool = False
) -> tuple[Subset, ...]:
    """Subsets of these shares, smallest first; each holds the smaller ones. The order of `examples` does not matter.

    stratified: by the expected answer. Raises `RecipeError` for shares that are none, `DataError` where the smallest
    subset has fewer than `FEWEST` rows.
    """
    if not shares or len(set(shares)) != len(shares) or not all(0 < share <= 1 for share in shares):
        raise RecipeError(
            f"{list(shares)} are no shares of the rows",
            where="data.learning_curve_shares",
            expected="different numbers above 0 and at most 1, such as [0.25, 0.5, 1.0]",
        )
    ordered = nested_order(examples, seed=seed, stratified=stratified)
    sizes = [round(share * len(ordered)) for share in sorted(shares)]
    if sizes[0] < FEWEST:
        raise DataError(
            f"{len(ordered):,} training rows are too few for a learning curve: its smallest part would have {sizes[0]}",
            where="data.learning_curve_shares",
            expected=f"at least {FEWEST} rows in the smallest part",
            fix="add rows, or raise the smallest share",
        )
    return tuple(
        Subset(share, tuple(ordered[:size]), part_hash(ordered[:size]))
        for share, size in zip(sorted(shares), sizes, strict=True)
    )


def nested_order(examples: Sequence[Example], *, seed: int, stratified: bool) -> list[Example]:
    """The one order of which every subset is a beginning."""
    strata: dict[str, list[tuple[str, Example]]] = defaultdict(list)
    for example in examples:
        order = hashlib.sha256(f"{seed}:{example.id}".encode()).hexdigest()
        strata[example.expected.strip() if stratified else ""].append((order, example))
    placed: list[tuple[float, str, Example]] = []
    for members in strata.values():
        members.sort(key=lambda member: member[0])
        for k, (order, example) in enumerate(members):
            placed.append(((k + 0.5) / len(members) if k else 0.0, order, example))
    placed.sort(key=lambda member: member[:2])
    return [example for _, _, example in placed]


def freeze_subsets(folder: Path, subsets: Sequence[Subset], *, seed: int, test_sha256: str) -> Path:
    """Write the row lists into `folder/subsets.json`, or see that those there are the same.

    The file lists the rows of the largest subset in order, by id and line: each smaller one is its first so many.
    Raises `DataError` where other subsets were frozen there.
    """
    file = folder / SUBSETS
    record = _record(subsets, seed, test_sha256)
    if file.is_file():
        known = json.loads(file.read_text(encoding="utf-8"))
        if known["subsets"] != record["subsets"] or known["test_sha256"] != test_sha256:
            raise DataError(
                "other subsets are frozen here: the data, the split, the shares or the seed have changed",
                where=str(file),
                fix="choose another --out, or remove the folder",
            )
        return file
    write_json(file, record)
    return file


def _record(subsets: Sequence[Subset], seed: int, test_sha256: str) -> dict[str, Any]:
    largest = max(subsets, key=lambda subset: len(subset.rows))
    return {
        "subsets": [{"share": s.share, "rows": len(s.rows), "sha256": s.sha256} for s in subsets],
        "seed": seed,
        "test_sha256": test_sha256,
        "sources": sorted({example.source for example in largest.rows}),
        "rows": [{"id": example.id, "line": example.line} for example in largest.rows],
    }
