"""Rows that are nearly the same: Jaccard likeness of their character 5-grams of at least 0.8.

Candidates come from MinHash signatures cut into 21 bands of 6 (Broder 1997, "On the resemblance and containment of
documents"; Indyk and Motwani 1998 for the bands): a pair of likeness s agrees in at least one band with probability
1 - (1 - s^6)^21, that is 99.8 % at 0.8, 93 % at 0.7 and 28 % at 0.5. Candidates whose signatures are too far apart
are dropped, and the likeness of the others is counted exactly: a pair below the threshold is never reported.

In a crowded bucket (many rows of one template) a row is compared with its neighbours only, so the work grows with the
number of rows and not with its square; neighbours agree in the next band too where possible. Rows of one group that
are compared with nobody directly are still joined through others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from tunesmith.data.duplicates.shingles import (
    PERMUTATIONS,
    Hashes,
    Signatures,
    Tell,
    Texts,
    jaccard,
    shingle_set,
    signatures,
    silent,
)
from tunesmith.data.duplicates.texts import RowTexts, common_frame, text_key
from tunesmith.data.types import Example

THRESHOLD = 0.8
BANDS, BAND_WIDTH = 21, 6
NEIGHBOURS = 8
"""Rows of a crowded bucket that each row is compared with."""
SLACK = 0.12
"""How far below the threshold a signature's estimate may lie: 3.4 standard deviations at 0.8 with 128 places."""
_CACHED = 50_000
_CHUNK = 100_000

Indexes = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class NearPair:
    """Two texts by their place, and their exact likeness; 1 where their normalised texts are the same."""

    first: int
    second: int
    similarity: float


@dataclass(frozen=True, slots=True)
class NearDuplicates:
    """What is nearly the same among some rows.

    `pairs` connect each group of rows alike with as few pairs as do, by place in the rows; exact copies are in none.
    `cluster` gives every row the number of its group; rows are in one group where their inputs or the whole rows are
    the same or nearly so.
    """

    pairs: tuple[NearPair, ...]
    cluster: tuple[int, ...]


def find_near_duplicates(
    examples: Sequence[Example], *, threshold: float = THRESHOLD, tell: Tell = silent, processes: int | None = 1
) -> NearDuplicates:
    """Rows that are nearly the same, whatever their order in the file. Memory: about 550 bytes a distinct row.

    `processes` sign many rows, None stands for one per core.
    """
    frame = common_frame(examples)
    groups = Groups(len(examples))
    pairs: list[NearPair] = []
    for part in ("row", "input"):
        texts = RowTexts(examples, part, frame)
        first_of = _distinct(texts)
        own = Groups(len(examples))
        for row, first in enumerate(first_of):
            groups.join(row, int(first))
        rows = np.flatnonzero(first_of == np.arange(len(examples)))
        for pair in _near(texts, rows, threshold, tell, own, processes):
            groups.join(pair.first, pair.second)
            if part == "row":
                pairs.append(pair)
    return NearDuplicates(tuple(sorted(pairs, key=lambda p: (p.first, p.second))), tuple(groups.numbers()))


class Groups:
    """Disjoint sets of the places 0 to n - 1; the smallest place of a set stands for it."""

    def __init__(self, size: int) -> None:
        self._parent = list(range(size))

    def find(self, place: int) -> int:
        """The place that stands for the set of `place`."""
        root = place
        while self._parent[root] != root:
            root = self._parent[root]
        while self._parent[place] != root:
            self._parent[place], place = root, self._parent[place]
        return root

    def join(self, one: int, other: int) -> bool:
        """Make one set of two; False where they were one already."""
        a, b = sorted((self.find(one), self.find(other)))
        self._parent[b] = a
        return a != b

    def numbers(self) -> list[int]:
        """For every place the one that stands for its set."""
        return [self.find(place) for place in range(len(self._parent))]


def _distinct(texts: Texts) -> Indexes:
    """For every text the place of the first one that is the same."""
    keys = np.fromiter((text_key(texts[i]) for i in range(len(texts))), dtype=np.uint64, count=len(texts))
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    return np.asarray(first[inverse.reshape(-1)], dtype=np.int64)


class _Chosen:
    """Some texts of many."""

    def __init__(self, texts: Texts, rows: Indexes) -> None:
        self.texts, self.rows = texts, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int, /) -> str:
        return self.texts[int(self.rows[index])]


def _near(
    texts: Texts, rows: Indexes, threshold: float, tell: Tell, groups: Groups, processes: int | None
) -> Iterator[NearPair]:
    """Pairs of `rows` that are alike, as many as connect them; the most alike first."""
    if len(rows) < 2:
        return
    chosen = _Chosen(texts, rows)
    signed = signatures(chosen, tell, processes)
    one, other = _candidates(signed, threshold)
    del signed
    shingles = _sets_of(chosen)
    for number, (a, b) in enumerate(zip(one.tolist(), other.tolist(), strict=True), 1):
        first, second = int(rows[a]), int(rows[b])
        if groups.find(first) != groups.find(second):
            similarity = jaccard(shingles(a), shingles(b))
            if similarity >= threshold:
                groups.join(first, second)
                yield NearPair(min(first, second), max(first, second), similarity)
        if number % _CHUNK == 0 or number == len(one):
            tell("counting likeness", number, len(one))


def _sets_of(texts: Texts) -> Callable[[int], Hashes]:
    """Shingle sets of texts by place; the latest are kept."""

    @lru_cache(maxsize=_CACHED)
    def shingles(place: int) -> Hashes:
        return shingle_set(texts[place])

    return shingles


def band_keys(signed: Signatures, band: int) -> Hashes:
    """One number per signature for one band: equal where the six places of the band are."""
    places = signed[:, band * BAND_WIDTH : (band + 1) * BAND_WIDTH].astype(np.uint64)
    keys = np.zeros(len(signed), dtype=np.uint64)
    for place in range(BAND_WIDTH):
        keys = (keys ^ places[:, place]) * np.uint64(0x9E3779B97F4A7C15)
        keys ^= keys >> np.uint64(32)
    return keys


def estimated(signed: Signatures, one: Indexes, others: Signatures, other: Indexes) -> npt.NDArray[np.float32]:
    """The share of places in which row `one` of `signed` and row `other` of `others` agree `[pairs]`."""
    made = np.empty(len(one), dtype=np.float32)
    for begin in range(0, len(one), _CHUNK):
        part = slice(begin, begin + _CHUNK)
        made[part] = (signed[one[part]] == others[other[part]]).sum(axis=1, dtype=np.int32) / PERMUTATIONS
    return made


def _candidates(signed: Signatures, threshold: float) -> tuple[Indexes, Indexes]:
    """Pairs worth counting, each once, the most alike by estimate first."""
    count = len(signed)
    keys = band_keys(signed, 0)
    codes: list[npt.NDArray[np.int64]] = []
    likeness: list[npt.NDArray[np.float32]] = []
    for band in range(BANDS):
        following = band_keys(signed, (band + 1) % BANDS)
        # Equal keys lie side by side, among them rows that agree in the next band too; then by content, not by place.
        order = np.lexsort((signed[:, -1], following, keys))
        sorted_keys = keys[order]
        for distance in range(1, min(NEIGHBOURS, count - 1) + 1):
            equal = np.flatnonzero(sorted_keys[distance:] == sorted_keys[:-distance])
            if not len(equal):
                break
            one, other = order[equal], order[equal + distance]
            estimate = estimated(signed, one, signed, other)
            good = estimate >= threshold - SLACK
            one, other = one[good], other[good]
            codes.append(np.minimum(one, other) * count + np.maximum(one, other))
            likeness.append(estimate[good])
        keys = following
    if not codes:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    unique, index = np.unique(np.concatenate(codes), return_index=True)
    best_first = np.argsort(-np.concatenate(likeness)[index], kind="stable")
    ordered = unique[best_first]
    return ordered // count, ordered % count
