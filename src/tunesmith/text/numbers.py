"""How many tokens there are, how many of them are learnt, how long rows are, and what padding them would waste.

Everything is computed from two arrays, one number per row, so that a million rows kept on disk cost no more than that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from tunesmith.text.store import StoredSamples
from tunesmith.text.types import Sample

Counts = npt.NDArray[np.int64]
_BINS = 12
_COUNTED = ("rows", "tokens", "supervised", "too_long", "lost")


@dataclass(frozen=True, slots=True)
class Bin:
    """Rows of `low` to `high` tokens, both included."""

    low: int
    high: int
    rows: int


@dataclass(frozen=True, slots=True)
class Padding:
    """What a trainer that pads would waste at a batch size, as shares of the tokens it computes.

    `shuffled`: rows in random order, as most trainers take them; `grouped`: rows of like length together.
    """

    batch_size: int
    shuffled: float
    grouped: float


@dataclass(frozen=True, slots=True)
class TokenNumbers:
    """Counts over rows, in tokens. `too_long` rows are longer than `limit` and are in no other number."""

    rows: int
    tokens: int
    supervised: int
    shortest: int
    median: int
    p95: int
    longest: int
    limit: int
    too_long: int
    lost: int
    padding: Padding
    histogram: tuple[Bin, ...]

    @property
    def supervised_share(self) -> float:
        """Of all tokens, those that are learnt."""
        return self.supervised / self.tokens if self.tokens else 0.0

    @property
    def mean(self) -> float:
        """Tokens per row."""
        return self.tokens / self.rows if self.rows else 0.0

    def scaled(self, factor: float) -> TokenNumbers:
        """The numbers of `factor` times as many rows of the same kind; lengths and shares stay."""
        counts = {name: round(getattr(self, name) * factor) for name in _COUNTED}
        bins = tuple(replace(one, rows=round(one.rows * factor)) for one in self.histogram)
        return replace(self, **counts, histogram=bins)


def sample_counts(samples: Sequence[Sample]) -> tuple[Counts, Counts]:
    """Tokens and supervised tokens of each sample; of stored ones without reading them."""
    if isinstance(samples, StoredSamples):
        return samples.lengths, samples.supervised
    lengths = np.fromiter((len(s.ids) for s in samples), dtype=np.int64, count=len(samples))
    supervised = np.fromiter((s.supervised for s in samples), dtype=np.int64, count=len(samples))
    return lengths, supervised


def token_numbers(lengths: Counts, supervised: Counts, *, limit: int, batch_size: int, seed: int = 0) -> TokenNumbers:
    """The numbers of rows with `lengths` tokens, of which `supervised` are learnt; rows above `limit` are left out.

    Percentiles are those of the nearest rank: lengths that some row has.
    """
    fits = lengths <= limit
    kept = np.sort(lengths[fits])

    def rank(share: float) -> int:
        return int(kept[max(0, int(np.ceil(share * len(kept))) - 1)]) if len(kept) else 0

    return TokenNumbers(
        rows=len(kept),
        tokens=int(kept.sum()),
        supervised=int(supervised[fits].sum()),
        shortest=rank(0.0),
        median=rank(0.5),
        p95=rank(0.95),
        longest=rank(1.0),
        limit=limit,
        too_long=int((~fits).sum()),
        lost=int(supervised[~fits].sum()),
        padding=Padding(
            batch_size,
            padding_share(np.random.default_rng(seed).permutation(kept), batch_size),
            padding_share(kept[::-1], batch_size),
        ),
        histogram=length_histogram(kept),
    )


def padding_share(lengths: Counts, batch_size: int) -> float:
    """Share of padding among the tokens of batches of `batch_size` rows, in the order given, padded to their longest.

    `1 - sum(lengths) / sum(rows in a batch · its longest row)`.
    """
    if not lengths.sum():
        return 0.0
    starts = np.arange(0, len(lengths), batch_size)
    longest = np.maximum.reduceat(lengths, starts)
    rows = np.diff(np.append(starts, len(lengths)))
    return float(1 - lengths.sum() / (longest * rows).sum())


def length_histogram(lengths: Counts, bins: int = _BINS) -> tuple[Bin, ...]:
    """Rows by length in bins of one width, a round one. The last bin takes all that is longer than the 99th percentile
    would need, so that a few very long rows do not press all others into one bin."""
    if not len(lengths):
        return ()
    low, high, most = int(lengths.min()), int(lengths.max()), int(np.percentile(lengths, 99))
    width = _round_width((most - low + 1) / bins)
    first = low // width * width
    last = (most - first) // width
    places = np.minimum((lengths - first) // width, last)
    counts = np.bincount(places, minlength=last + 1)
    edges = [first + width * i for i in range(last + 1)]
    return tuple(
        Bin(edge, max(high, edge) if i == last else edge + width - 1, int(count))
        for i, (edge, count) in enumerate(zip(edges, counts, strict=True))
    )


def _round_width(width: float) -> int:
    """The next 1, 2 or 5 times a power of ten."""
    power = 1
    while True:
        for factor in (1, 2, 5):
            if factor * power >= width:
                return factor * power
        power *= 10
