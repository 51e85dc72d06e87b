"""Counts of tokens, padding and histograms, from lengths alone."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tiny import ragged_samples
from tunesmith.text.numbers import length_histogram, padding_share, sample_counts, token_numbers
from tunesmith.text.preview import length_facts

LENGTHS = st.lists(st.integers(1, 3_000), min_size=1, max_size=200)


def ints(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def test_counts_of_samples():
    samples = ragged_samples()
    lengths, supervised = sample_counts(samples)
    assert lengths.tolist() == [len(s.ids) for s in samples]
    assert supervised.tolist() == [s.supervised for s in samples]
    assert 0 in supervised and supervised.max() > 1


def test_rows_beyond_the_limit_are_counted_apart():
    found = token_numbers(ints(10, 20, 30, 40), ints(1, 2, 3, 4), limit=30, batch_size=2)
    assert (found.rows, found.tokens, found.supervised) == (3, 60, 6)
    assert (found.too_long, found.lost) == (1, 4)
    assert (found.shortest, found.median, found.p95, found.longest) == (10, 20, 30, 30)
    assert found.supervised_share == pytest.approx(0.1) and found.mean == 20


def test_no_row_and_no_row_that_fits():
    for lengths in (ints(), ints(9, 9)):
        found = token_numbers(lengths, lengths, limit=4, batch_size=8)
        assert (found.rows, found.tokens, found.longest, found.mean, found.supervised_share) == (0, 0, 0, 0, 0)
        assert found.too_long == len(lengths) and found.histogram == ()
        assert found.padding.shuffled == found.padding.grouped == 0


def test_padding_by_hand_and_as_the_facts_of_check_say():
    # 2 and 4 are padded to 4; 6 stands alone.
    assert padding_share(ints(2, 4, 6), 2) == pytest.approx(1 - 12 / 14)
    samples = ragged_samples()
    lengths, _ = sample_counts(samples)
    assert padding_share(lengths, 3) == pytest.approx(length_facts(samples, 100, batch=3).padding_share)


@given(LENGTHS, st.integers(1, 16))
def test_padding_is_a_share_and_grouping_never_wastes_more(lengths, batch):
    found = token_numbers(ints(*lengths), ints(*lengths), limit=10_000, batch_size=batch)
    assert 0 <= found.padding.grouped < 1 and 0 <= found.padding.shuffled < 1
    if len(lengths) % batch == 0:  # else chance may put the longest row alone into the last, smaller batch
        assert found.padding.grouped <= found.padding.shuffled + 1e-12
    if batch == 1:
        assert found.padding.shuffled == 0


@given(LENGTHS)
def test_histogram_holds_every_row_once_in_its_bin(lengths):
    bins = length_histogram(ints(*lengths))
    assert sum(one.rows for one in bins) == len(lengths)
    assert 1 <= len(bins) <= 14
    for one in bins:
        assert one.rows == sum(one.low <= length <= one.high for length in lengths)
    assert all(a.high + 1 == b.low for a, b in itertools.pairwise(bins))


def test_a_very_long_row_does_not_flatten_the_histogram():
    bins = length_histogram(ints(*range(100, 300), 9_000))
    assert len(bins) > 5
    assert bins[-1].high == 9_000


def test_numbers_of_more_rows_of_the_same_kind():
    found = token_numbers(ints(10, 20, 30), ints(1, 2, 3), limit=100, batch_size=2)
    twice = found.scaled(2)
    assert (twice.rows, twice.tokens, twice.supervised) == (6, 120, 12)
    assert twice.mean == found.mean and twice.longest == 30 and twice.padding == found.padding
    assert sum(one.rows for one in twice.histogram) == 6
