"""Rows that stay together: those with the same input, nearly the same rows, rows of one value of a column.

Rows are spoken of by their place. What they are compared by is kept as numbers and hashes, some 50 bytes a row, so that
rows that lie on the disk are read once and not held.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tunesmith.data.duplicates.near import Groups
from tunesmith.data.duplicates.texts import prompt_key
from tunesmith.data.moments import moments
from tunesmith.data.template import cell_text
from tunesmith.data.types import Example
from tunesmith.errors import DataError
from tunesmith.recipe.schema import Split

Codes = npt.NDArray[np.int64]
_ORDER = hashlib.sha256().digest_size


@dataclass(frozen=True, slots=True)
class Group:
    """Rows that stay together, by place. `order` is the seeded hash, `position` the place of the first row in the file,
    or the time of the latest one.
    """

    places: tuple[int, ...]
    stratum: str
    order: bytes
    position: float


@dataclass(frozen=True, slots=True)
class Keyed:
    """Rows, and what they are grouped by.

    inputs [n]: equal where the inputs are. orders [n, 32]: the seeded hash of each input. column [n]: equal where the
    value of `group_by` is, or None. times [n], or None.
    """

    rows: Sequence[Example]
    seed: int
    inputs: Codes
    orders: npt.NDArray[np.uint8]
    column: Codes | None
    times: npt.NDArray[np.float64] | None


def keyed(rows: Sequence[Example], split: Split) -> Keyed:
    """Read what decides the groups. Raises `DataError` for a column that no row has, or rows without a time."""
    orders = np.empty((len(rows), _ORDER), np.uint8)
    inputs = np.empty((len(rows), 2), np.uint64)  # 128 bits: inputs that differ never agree in them
    for place, row in enumerate(rows):
        text = input_key(row)
        orders[place] = np.frombuffer(seeded(split.seed, text), np.uint8)
        digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        inputs[place] = np.frombuffer(digest, np.uint64)
    _, codes = np.unique(inputs, axis=0, return_inverse=True)
    times = None
    if split.time is not None:
        by_id = moments(rows, split.time)
        times = np.fromiter((by_id[row.id] for row in rows), np.float64, len(rows))
    column = _column(rows, split.group_by) if split.group_by is not None else None
    return Keyed(rows, split.seed, codes.reshape(-1).astype(np.int64), orders, column, times)


def groups_of(known: Keyed, cluster: Sequence[int] | None, *, stratified: bool) -> list[Group]:
    """Rows with the same input, of one cluster, or with the same value of the group column, as one group each."""
    together = Groups(len(known.rows))
    for codes in (known.inputs, cluster, known.column):
        if codes is None:
            continue
        _, first, inverse = np.unique(np.asarray(codes), return_index=True, return_inverse=True)
        firsts = first[inverse.reshape(-1)]
        for place in np.flatnonzero(firsts != np.arange(len(firsts))).tolist():
            together.join(place, int(firsts[place]))
    roots = np.asarray(together.numbers())
    order = np.argsort(roots, kind="stable")
    ends = np.flatnonzero(np.diff(roots[order], append=-1)) + 1
    made, begin = [], 0
    for end in ends.tolist():
        made.append(_group(known, tuple(order[begin:end].tolist()), stratified))
        begin = end
    return made


def singles(rows: Sequence[Example], seed: int, *, stratified: bool) -> list[Group]:
    """Each row as a group of its own, ordered by its content."""
    return [
        Group((place,), row.expected if stratified else "", seeded(seed, row.id), float(place))
        for place, row in enumerate(rows)
    ]


def input_key(row: Example) -> str:
    """The input of a row as one text: the same exactly where roles and contents of its turns are."""
    return json.dumps(prompt_key(row), ensure_ascii=False)


def seeded(seed: int, key: str) -> bytes:
    """What rows are ordered by."""
    return hashlib.sha256(f"{seed}:{key}".encode()).digest()


def _group(known: Keyed, places: tuple[int, ...], stratified: bool) -> Group:
    """Several labels in one group: the commonest names it, of equals the one that sorts first, whatever the order."""
    stratum = ""
    if stratified:
        labels = Counter(known.rows[place].expected for place in places)
        stratum = min(labels, key=lambda label: (-labels[label], label))
    first = places[0]
    order = known.orders[first].tobytes()
    if len(places) > 1 and len(set(known.inputs[list(places)].tolist())) > 1:
        order = seeded(known.seed, min(input_key(known.rows[place]) for place in places))
    position = float(first) if known.times is None else float(known.times[list(places)].max())
    return Group(places, stratum, order, position)


def _column(rows: Sequence[Example], column: str) -> Codes:
    """A number for each value of a column; rows without one have a number of their own."""
    if not any(column in row.values for row in rows):
        there = dict.fromkeys(name for row in rows for name in row.values)
        raise DataError(
            f"no row has a column {column!r} to group by",
            where="data.split.group_by",
            expected=f"a column among: {', '.join(there)}",
        )
    numbers: dict[str, int] = {}
    codes = np.empty(len(rows), np.int64)
    for place, row in enumerate(rows):
        value = row.values.get(column)
        codes[place] = -1 - place if value is None else numbers.setdefault(cell_text(value), len(numbers))
    return codes
