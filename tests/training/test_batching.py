"""Rows of a step, and the streams they are computed in."""

from __future__ import annotations

from collections import Counter

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.tiny import ragged_samples
from tunesmith.text.types import Sample
from tunesmith.training.batching import RowOrder, collate, micro_batches


@given(rows=st.integers(1, 50), batch=st.integers(1, 60), seed=st.integers(0, 5), shuffle=st.booleans())
def test_every_row_once_per_epoch(rows, batch, seed, shuffle):
    order = RowOrder(rows, batch, seed, shuffle)
    per_epoch = order.steps_per_epoch
    for epoch in (0, 1, 7):
        steps = [list(order.of_step(epoch * per_epoch + i)) for i in range(per_epoch)]
        assert sorted(i for step in steps for i in step) == list(range(rows))
        assert all(len(step) == batch for step in steps[:-1]) and 0 < len(steps[-1]) <= batch


def test_the_order_is_a_function_of_seed_and_step():
    first, again, other = RowOrder(40, 8, 1), RowOrder(40, 8, 1), RowOrder(40, 8, 2)
    assert list(first.of_step(7)) == list(again.of_step(7))  # asked for alone: nothing before it is needed
    assert list(first.of_step(0)) != list(other.of_step(0))
    assert list(first.of_step(0)) != list(first.of_step(5))  # epochs differ
    assert [list(RowOrder(5, 2, 0, shuffle=False).of_step(i)) for i in range(4)] == [[0, 1], [2, 3], [4], [0, 1]]


def test_a_stream_is_its_documents_end_to_end():
    samples = ragged_samples((3, 1, 4))
    batch = collate(samples)
    assert batch.tokens == 8 and batch.ids.dtype == torch.int64 and batch.weights.dtype == torch.float32
    assert batch.ids.tolist() == [i for s in samples for i in s.ids]
    assert batch.weights.tolist() == [w for s in samples for w in s.weights]
    assert batch.packing.positions[0].tolist() == [0, 1, 2, 0, 0, 1, 2, 3]


@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=20), budget=st.integers(1, 80))
def test_streams_hold_all_supervised_rows_within_the_budget(lengths, budget):
    samples = [
        Sample(np.full(n, i), np.r_[np.zeros(n - 1), float(i % 3 > 0)].astype(np.float32), str(i))
        for i, n in enumerate(lengths)
    ]
    batches = list(micro_batches(samples, budget))
    got = Counter(i for b in batches for i in b.ids.tolist())
    assert got == {i: n for i, n in enumerate(lengths) if i % 3}
    documents = [int((b.packing.positions[0] == 0).sum()) for b in batches]
    assert all(b.tokens <= budget or count == 1 for b, count in zip(batches, documents, strict=True))
    starts = [b.ids[(b.packing.positions[0] == 0)].tolist() for b in batches]
    order = [lengths[i] for stream in starts for i in stream]
    assert order == sorted(order, reverse=True)


def test_nothing_to_learn_makes_no_stream():
    silent = [Sample(s.ids, np.zeros_like(s.weights)) for s in ragged_samples()]
    assert list(micro_batches(silent, 100)) == [] and list(micro_batches([], 100)) == []
