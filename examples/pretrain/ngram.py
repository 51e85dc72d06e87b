"""An interpolated Kneser-Ney model over token ids, as the yardstick of a small language model.

What a model of n-grams knows is what was literally seen; a network that is worth training must know more. The model is
the modified one of Chen and Goodman ("An Empirical Study of Smoothing Techniques for Language Modeling", Harvard
TR-10-98, section 3), interpolated, with the discounts estimated from the counts:

    p(w|h) = max(a(hw) - D(a(hw)), 0) / S(h) + g(h) p(w|h'),   g(h) = (D1 N1(h) + D2 N2(h) + D3 N3+(h)) / S(h)

a is the count for the longest n-grams, and below the number of different tokens seen before the n-gram (its raw count
where it begins a document, as nothing can stand before it). S(h) sums a over what follows h, Nk(h) counts the followers
with a = k, h' is h without its first token. Below the unigrams stands the uniform distribution.

    Y = n1 / (n1 + 2 n2),  D1 = 1 - 2Y n2/n1,  D2 = 2 - 3Y n3/n2,  D3 = 3 - 4Y n4/n3      nk: n-grams with a = k

How it is computed: no model is kept. The text to be measured is known beforehand, so it is numbered together with the
training text, order by order: an n-gram's id is the rank of (id of its first n-1 tokens, last token) among those of all
places. A look-up is then an index, and each order can be dropped when the next one but one has been counted. Ids are
given bucket by bucket, which bounds the memory of sorting. 16 million tokens took 38 s and 1.2 GB.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.uint16]
Places = npt.NDArray[np.int64]
Int32 = npt.NDArray[np.int32]
Float = npt.NDArray[np.float64]
Discounts = tuple[float, float, float]

USUAL_DISCOUNTS: Discounts = (0.5, 1.0, 1.5)
"""Where the counts do not tell: unigrams of a subword vocabulary all have many neighbours, so their n1 to n4 are 0."""

_BUCKET = 4_000_000


@dataclass(frozen=True, slots=True)
class Order:
    """What was found of one order: different n-grams in training, the discounts, whether the counts told them."""

    ngrams: int
    discounts: Discounts
    estimated: bool


@dataclass(frozen=True, slots=True)
class Measured:
    """bits: -log2 p of every token of the measured documents but their first, in order [T]; facts by order, 1 first."""

    bits: Float
    orders: tuple[Order, ...]


def measure(
    training: Ids,
    offsets: Places,
    documents: Sequence[Ids],
    *,
    vocabulary: int,
    bos: int,
    order: int = 5,
    bucket: int = _BUCKET,
) -> Measured:
    """-log2 p of every token in `documents` under the model of `training`.

    Parameters
    ----------
    training: ids of all training documents, one after another [N].
    offsets: where each begins, and N at the end [D+1]. No n-gram crosses a boundary.
    documents: what is measured. Each document here and there begins with `bos`, which occurs nowhere else, is always
        given and never predicted.
    vocabulary: number of ids; the probabilities of all but `bos` sum to 1.
    bucket: about how many places are sorted at once; memory and not results.

    Raises `ValueError` where a document does not begin with `bos`, or holds it elsewhere.
    """
    if order < 1:
        raise ValueError(f"order is {order}, expected at least 1")
    counted = int(offsets[-1])
    lengths = np.concatenate([np.diff(offsets), [len(d) for d in documents]]).astype(np.int64)
    ids = np.concatenate([training[:counted], *documents])
    starts = np.cumsum(lengths) - lengths
    if (lengths == 0).any() or (ids[starts] != bos).any() or np.count_nonzero(ids == bos) != len(starts):
        raise ValueError(f"every document must begin with the token {bos}, which occurs nowhere else")
    text = _Text(ids, _tokens_left(lengths), counted, vocabulary, bucket)
    depth = np.concatenate([np.arange(len(d)) for d in documents])  # tokens before each place of a measured document
    measured = counted + np.flatnonzero(depth)
    depth = depth[depth > 0]

    gram_at, current = text.tokens(bos)
    context_at = np.zeros(len(ids), np.int32)
    chances: Float = np.full(len(measured), 1.0 / (vocabulary - 1))
    facts: list[Order] = []
    for n in range(1, order + 1):
        longer = text.extend(gram_at, len(current.counts), n + 1, bos) if n < order else None
        adjusted = current.counts if longer is None else _continuations(current, longer[1])
        if n == 1:
            adjusted = np.where(current.begins, 0, adjusted)  # the begin mark is given, never predicted
        discounts, estimated = _discounts(adjusted)
        facts.append(Order(int(np.count_nonzero(adjusted)), discounts, estimated))
        inside = depth >= n - 1  # at the start of a document there are no longer contexts
        first = measured[inside] - n + 1
        chances[inside] = _interpolate(
            adjusted, current.prefixes, discounts, gram_at[first], context_at[first], chances[inside]
        )
        if longer is not None:
            context_at, (gram_at, current) = gram_at, longer
    return Measured(-np.log2(chances), tuple(facts))


@dataclass(frozen=True, slots=True)
class _Grams:
    """All n-grams of one order [U]: training count, ids of the first and of the last n-1 tokens, begins with `bos`."""

    counts: Int32
    prefixes: Int32
    suffixes: Int32
    begins: npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class _Text:
    """Training and measured documents in one row of ids [M].

    `left`: tokens of its document from each place on, 255 at most. Places from `counted` on are not counted.
    """

    ids: Ids
    left: npt.NDArray[np.uint8]
    counted: int
    vocabulary: int
    bucket: int

    def tokens(self, bos: int) -> tuple[Int32, _Grams]:
        """Order 1: the id of a unigram is its token; every unigram has the empty prefix 0."""
        counts = np.bincount(self.ids[: self.counted], minlength=self.vocabulary).astype(np.int32)
        none = np.zeros(self.vocabulary, np.int32)
        return self.ids.astype(np.int32), _Grams(counts, none, none, np.arange(self.vocabulary) == bos)

    def extend(self, shorter: Int32, kinds: int, n: int, bos: int) -> tuple[Int32, _Grams]:
        """The id of the n-gram at every place that has one (others: -1), from the ids of order n-1, and all n-grams."""
        found = np.full(len(self.ids), -1, np.int32)
        parts: list[_Grams] = []
        known = 0
        for low, high in self._ranges(shorter, kinds):
            places = np.flatnonzero((shorter >= low) & (shorter < high) & (self.left >= n))
            keys = shorter[places].astype(np.int64) * self.vocabulary + self.ids[places + n - 1]
            sorting = np.argsort(keys)
            keys, places = keys[sorting], places[sorting]
            del sorting
            new = np.ones(len(keys), np.bool_)
            new[1:] = keys[1:] != keys[:-1]
            group = np.cumsum(new) - 1
            found[places] = group + known
            head = places[new]
            parts.append(
                _Grams(
                    counts=np.bincount(group[places < self.counted], minlength=len(head)).astype(np.int32),
                    prefixes=(keys[new] // self.vocabulary).astype(np.int32),
                    suffixes=shorter[head + 1],
                    begins=self.ids[head] == bos,
                )
            )
            known += len(head)
        return found, _Grams(
            *(
                np.concatenate([getattr(part, name) for part in parts])
                for name in ("counts", "prefixes", "suffixes", "begins")
            )
        )

    def _ranges(self, shorter: Int32, kinds: int) -> Iterator[tuple[int, int]]:
        """Ranges of ids of order n-1 that hold about `bucket` places each."""
        reached = np.cumsum(np.bincount(shorter[shorter >= 0], minlength=kinds))
        low = 0
        while low < kinds:
            before = reached[low - 1] if low else 0
            high = max(low + 1, int(np.searchsorted(reached, before + self.bucket, side="right")))
            yield low, min(high, kinds)
            low = high


def _tokens_left(lengths: Places) -> npt.NDArray[np.uint8]:
    """For each place of documents of these lengths, the tokens from there to the document's end, 255 at most."""
    left = np.empty(int(lengths.sum()), np.uint8)
    end = 0
    for length in lengths.tolist():
        end += length
        left[end - length : end] = 255
        short = min(length, 255)
        left[end - short : end] = np.arange(short, 0, -1)
    return left


def _continuations(grams: _Grams, longer: _Grams) -> Int32:
    """N1+(. w): in how many different tokens' company each n-gram was seen; raw counts where it begins a document."""
    different = np.bincount(longer.suffixes[longer.counts > 0], minlength=len(grams.counts))
    return np.where(grams.begins, grams.counts, different).astype(np.int32)


def _discounts(adjusted: Int32) -> tuple[Discounts, bool]:
    """D1, D2, D3+ from the counts of counts, and whether these told them (none of n1 to n4 is 0)."""
    n1, n2, n3, n4 = (int(np.count_nonzero(adjusted == k)) for k in (1, 2, 3, 4))
    if not (n1 and n2 and n3 and n4):
        return USUAL_DISCOUNTS, False
    y = n1 / (n1 + 2 * n2)
    found = (1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)
    # Counts of counts that do not fall as those of language do can ask for negative ones.
    return (found, True) if all(0 <= d <= k for k, d in enumerate(found, 1)) else (USUAL_DISCOUNTS, False)


def _interpolate(
    adjusted: Int32,
    prefixes: Int32,
    discounts: Discounts,
    grams: Int32,
    contexts: Int32,
    lower: Float,
) -> Float:
    """p(w|h) [Q] for the ids of n-grams hw and contexts h, from `lower`, p(w|h'); it stays where h was never seen."""
    wanted, back = np.unique(contexts, return_inverse=True)
    row = np.full(int(max(prefixes.max(initial=0), wanted.max(initial=0))) + 1, -1, np.int32)
    row[wanted] = np.arange(len(wanted), dtype=np.int32)
    rows = row[prefixes]
    asked = (rows >= 0) & (adjusted > 0)
    rows, counts = rows[asked], adjusted[asked]
    taken = np.asarray((0.0, *discounts))[np.minimum(counts, 3)]
    total = np.bincount(rows, weights=counts, minlength=len(wanted))[back]
    saved = np.bincount(rows, weights=taken, minlength=len(wanted))[back]
    own = adjusted[grams]
    left = own - np.asarray((0.0, *discounts))[np.minimum(own, 3)]
    seen = total > 0
    result = lower.copy()
    result[seen] = (left[seen] + saved[seen] * lower[seen]) / total[seen]
    return result
