"""Held-out rows that were seen before: whole or only their input, exactly or nearly.

Nothing is removed here: a test file that a person supplies stays as it is. `leaked_rows` says for every such row which
earlier row it resembles; scores can then be given with and without these rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tunesmith.data.codes import CODES
from tunesmith.data.duplicates.near import BANDS, SLACK, THRESHOLD, Indexes, band_keys, estimated
from tunesmith.data.duplicates.shingles import Hashes, Signatures, Tell, Texts, jaccard, shingle_set, signatures, silent
from tunesmith.data.duplicates.texts import Part, RowTexts, common_frame, text_key
from tunesmith.data.findings import finding
from tunesmith.data.quality.masking import shown
from tunesmith.data.types import Example, Finding

LeakKind = Literal["row", "prompt", "near", "near_prompt"]
"""The whole row, only its input (with another answer), and either of them nearly."""

SAME_FILE = 0.5
"""Share of exactly repeated test rows from which a test is a training file under another name."""
_LOOKED_AT = 16
"""Earlier rows of a crowded bucket that a held-out row is compared with."""


@dataclass(frozen=True, slots=True)
class LeakedRow:
    """A held-out row, and the earlier row it repeats; `similarity` is 1 for exact repetitions (after normalising)."""

    id: str
    line: int
    source: str
    kind: LeakKind
    similarity: float
    seen_id: str
    seen_line: int
    seen_source: str


def leaked_rows(
    held_out: Sequence[Example],
    seen: Sequence[Example],
    *,
    near: bool = True,
    threshold: float = THRESHOLD,
    tell: Tell = silent,
) -> tuple[LeakedRow, ...]:
    """The rows of `held_out` that `seen` holds already, in order, each once under the first kind that fits.

    With `near` off only exact repetitions are looked for.
    """
    if not held_out or not seen:
        return ()
    frame = common_frame(seen)
    found: dict[int, tuple[LeakKind, int, float]] = {}
    exact: tuple[tuple[LeakKind, Part], ...] = (("row", "row"), ("prompt", "input"))
    nearly: tuple[tuple[LeakKind, Part], ...] = (("near", "row"), ("near_prompt", "input"))
    for kind, part in exact:
        texts, earlier = RowTexts(held_out, part, frame), RowTexts(seen, part, frame)
        keys = {text_key(earlier[place]): place for place in reversed(range(len(seen)))}
        for place in range(len(held_out)):
            if place not in found and (original := keys.get(text_key(texts[place]))) is not None:
                found[place] = (kind, original, 1.0)
    for kind, part in nearly if near else ():
        rest = [place for place in range(len(held_out)) if place not in found]
        texts = RowTexts([held_out[place] for place in rest], part, frame)
        for number, original, similarity in _nearest(texts, RowTexts(seen, part, frame), threshold, tell):
            found[rest[number]] = (kind, original, similarity)
    return tuple(
        _record(held_out[place], kind, seen[original], similarity)
        for place, (kind, original, similarity) in sorted(found.items())
    )


def leak_findings(name: str, leaks: Sequence[LeakedRow], held_out: Sequence[Example]) -> list[Finding]:
    """Findings about the part called `name` (`test` or `validation`), one per kind of leak."""
    by_id = {example.id: example for example in held_out}
    found = []
    for kind in ("row", "prompt", "near", "near_prompt"):
        records = [leak for leak in leaks if leak.kind == kind]
        if not records:
            continue
        code, one = f"{name}_leak_{kind}", records[0]
        likeness = f" ({one.similarity:.0%} alike)" if kind.startswith("near") else ""
        message = (
            f"{CODES[code].title}: {len(records):,} of {len(held_out):,}; "
            f"line {one.line} is line {one.seen_line} of {one.seen_source}{likeness}"
        )
        lines = [leak.line for leak in records]
        example = shown(by_id[one.id].question)
        found.append(finding(code, message, lines, count=len(records), source=one.source, example=example))
    return found


def trained_test_findings(leaks: Sequence[LeakedRow], held_out: Sequence[Example]) -> list[Finding]:
    """An error where at least half of the test rows repeat earlier rows exactly: the test file was trained on."""
    copies = [leak for leak in leaks if leak.kind == "row"]
    if not held_out or len(copies) < SAME_FILE * len(held_out):
        return []
    message = (
        f"{CODES['test_is_train'].title}: {len(copies):,} of {len(held_out):,} test rows are exactly rows of "
        f"{copies[0].seen_source}"
    )
    return [finding("test_is_train", message, [leak.line for leak in copies], source=copies[0].source)]


def _record(row: Example, kind: LeakKind, seen: Example, similarity: float) -> LeakedRow:
    return LeakedRow(row.id, row.line, row.source, kind, similarity, seen.id, seen.line, seen.source)


def _nearest(texts: Texts, earlier: Texts, threshold: float, tell: Tell) -> list[tuple[int, int, float]]:
    """For every text that has one: the place of an earlier text at least `threshold` alike, and how much."""
    if not len(texts):
        return []
    mine, theirs = signatures(texts, tell), signatures(earlier, tell)
    one, other = _cross_candidates(mine, theirs, threshold)
    found: dict[int, tuple[int, float]] = {}
    sets: dict[int, Hashes] = {}
    for place, original in zip(one.tolist(), other.tolist(), strict=True):
        if place in found:
            continue
        if place not in sets:
            sets = {place: shingle_set(texts[place])}
        similarity = jaccard(sets[place], shingle_set(earlier[original]))
        if similarity >= threshold:
            found[place] = (original, similarity)
    return [(place, original, similarity) for place, (original, similarity) in found.items()]


def _cross_candidates(mine: Signatures, theirs: Signatures, threshold: float) -> tuple[Indexes, Indexes]:
    """Pairs (mine, theirs) worth counting, ordered by mine and then by estimated likeness, the highest first.

    Besides the bands themselves, two neighbouring bands are used as one: of a crowded bucket that finds the rows that
    are most alike.
    """
    ones: list[Indexes] = []
    others: list[Indexes] = []
    for band in range(BANDS):
        narrow = [band_keys(signed, band) for signed in (mine, theirs)]
        following = [band_keys(signed, (band + 1) % BANDS) for signed in (mine, theirs)]
        wide = [(keys ^ (more >> np.uint64(1))) for keys, more in zip(narrow, following, strict=True)]
        for own, known in (narrow, wide):
            order = np.argsort(known, kind="stable")
            ordered = known[order]
            start = np.searchsorted(ordered, own)
            for step in range(_LOOKED_AT):
                place = np.minimum(start + step, len(ordered) - 1)
                hit = np.flatnonzero((start + step < len(ordered)) & (ordered[place] == own))
                if not len(hit):
                    break
                ones.append(hit)
                others.append(order[place[hit]])
    if not ones:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    codes = np.unique(np.concatenate(ones) * len(theirs) + np.concatenate(others))
    one, other = codes // len(theirs), codes % len(theirs)
    estimate = estimated(mine, one, theirs, other)
    good = estimate >= threshold - SLACK
    one, other, estimate = one[good], other[good], estimate[good]
    order = np.lexsort((-estimate, one))
    return one[order], other[order]
