"""Rows of a step, and the streams they are computed in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tiny import ragged_samples
from tunesmith.errors import DataError
from tunesmith.text.types import Group, Sample
from tunesmith.training.batching import Batch, Row, RowOrder, collate, micro_batches, streams
from tunesmith.training.prefixes import SHORTEST


def sample(ids: Sequence[int], name: str = "", learnt: bool = True) -> Sample:
    """A document whose tokens weigh 1, 2, 3, ... (or nothing)."""
    return Sample(np.array(ids, np.int64), np.arange(len(ids), dtype=np.float32) * learnt, name)


def family(length: int, suffixes: Sequence[int], first: int = 0, learnt: bool = True) -> list[Sample]:
    """Documents that begin with the same `length` tokens; the next token tells them apart."""
    beginning = list(range(first, first + length))
    return [
        sample([*beginning, *range(10_000 + 100 * i, 10_000 + 100 * i + n)], f"{first}/{i}", learnt)
        for i, n in enumerate(suffixes)
    ]


def faithful(batch: Batch, rows: Sequence[Row]) -> None:
    """The stream says what the rows say: words, positions, predecessors and weights of every document."""
    documents = [s for row in rows for s in (row.samples if isinstance(row, Group) else (row,))]
    assert [s.example_id for s in batch.rows] == [s.example_id for s in documents]
    assert batch.documents_tokens == sum(len(d.ids) for d in documents)
    weights = torch.zeros(batch.tokens, dtype=torch.float64)
    for document, places in zip(documents, batch.documents, strict=True):
        assert batch.ids[places].tolist() == document.ids.tolist()
        assert batch.packing.positions[0, places].tolist() == list(range(len(document.ids)))
        assert batch.previous[places[1:]].tolist() == places[:-1].tolist()
        assert batch.previous[places[0]] == 0
        weights[places] += torch.from_numpy(document.weights).double()
    assert batch.weights.tolist() == weights.tolist()
    seen = torch.cat(batch.documents).unique()
    assert seen.tolist() == list(range(batch.tokens))
    assert sum(batch.packing.lengths) == batch.tokens == len(batch.ids)


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


@pytest.mark.parametrize("share", [True, False])
def test_a_stream_is_its_documents_end_to_end(share):
    samples = ragged_samples((3, 1, 4))
    batch = collate(samples, share_prefixes=share)
    assert batch.tokens == 8 and batch.ids.dtype == torch.int64 and batch.weights.dtype == torch.float32
    assert batch.ids.tolist() == [i for s in samples for i in s.ids]
    assert batch.weights.tolist() == [w for s in samples for w in s.weights]
    assert batch.packing.positions[0].tolist() == [0, 1, 2, 0, 0, 1, 2, 3]
    assert batch.groups == () and batch.labels is None
    faithful(batch, samples)


def test_a_beginning_stands_once():
    rows = [*family(20, (3, 1, 0, 5)), sample([7, 8]), *family(17, (2, 2), first=500)]
    batch = collate(rows, share_prefixes=True)
    faithful(batch, rows)
    assert batch.tokens == 20 + 9 + 2 + 17 + 4 and batch.documents_tokens == 4 * 20 + 9 + 2 + 2 * 17 + 4
    assert [(p.start, p.length, p.suffixes) for p in batch.packing.prefixes] == [(0, 20, (3, 1, 5)), (31, 17, (2, 2))]
    assert batch.weights[:20].tolist() == [4.0 * i for i in range(20)]
    assert batch.previous[20] == batch.previous[23] == 19
    assert batch.documents[2].tolist() == list(range(20))  # the one that is nothing but the beginning
    assert collate(rows).tokens == batch.documents_tokens


def test_identical_documents_are_computed_once():
    rows = [sample(range(30)) for _ in range(3)]
    batch = collate(rows, share_prefixes=True)
    faithful(batch, rows)
    assert batch.tokens == 30 and batch.packing.prefixes == ()


def test_rows_without_supervision_share_too_and_weigh_nothing():
    rows = [*family(20, (3, 4), learnt=False), *family(20, (5, 6, 7))[2:]]
    batch = collate(rows, share_prefixes=True)
    faithful(batch, rows)
    assert batch.weights[:20].tolist() == [float(i) for i in range(20)]


lengths = st.lists(st.integers(1, 30), max_size=8)


@given(
    lone=lengths,
    families=st.lists(st.tuples(st.integers(SHORTEST, 40), st.lists(st.integers(0, 9), max_size=6)), max_size=3),
    pairs=st.integers(0, 3),
    budget=st.integers(1, 150),
    order=st.randoms(use_true_random=False),
)
@settings(max_examples=60, deadline=None)
def test_streams_hold_all_rows_within_the_budget(lone, families, pairs, budget, order):
    rows: list[Row] = [sample(range(50_000 + 50 * i, 50_000 + 50 * i + n), f"lone {i}") for i, n in enumerate(lone)]
    for number, (length, suffixes) in enumerate(families):
        rows += family(length, suffixes, 1000 * number)
    for i in range(pairs):
        mine = family(20, (4, 5), first=0 if i else 7000, learnt=bool(i % 2))
        rows.append(Group(tuple(mine), float(i), f"pair {i}"))
    order.shuffle(rows)
    learnt = [row for row in rows if isinstance(row, Group) or row.supervised]
    batches = list(micro_batches(rows, budget))
    assert [b.ids.tolist() for b in batches] == [b.ids.tolist() for b in micro_batches(rows, budget)]
    names = Counter(s.example_id for b in batches for s in b.rows)
    wanted = [s for row in learnt for s in (row.samples if isinstance(row, Group) else (row,))]
    assert names == Counter(s.example_id for s in wanted)
    divided = list(streams(learnt, budget))
    assert len(divided) == len(batches)
    for batch, (stream, size) in zip(batches, divided, strict=True):
        faithful(batch, stream)
        assert batch.tokens <= size and (size <= budget or len(stream) == 1)
        assert len(batch.groups) == sum(isinstance(row, Group) for row in stream)
    plain = list(micro_batches(rows, budget, share_prefixes=False))
    assert sum(b.tokens for b in batches) <= sum(b.tokens for b in plain) == sum(len(s.ids) for s in wanted)
    assert all(b.packing.prefixes == () for b in plain)


def test_rows_alike_stand_together_and_each_stream_has_its_own_beginning():
    rows: list[Row] = [*family(100, [10] * 6), *[sample(range(200 + 40 * i, 230 + 40 * i)) for i in range(4)]]
    batches = list(micro_batches(rows[::2] + rows[1::2], 130))
    assert [b.tokens for b in batches] == [130, 130, 120]
    assert [[p.length for p in b.packing.prefixes] for b in batches] == [[100], [100], []]


def test_without_sharing_the_longest_come_first():
    rows = [sample(range(100 * i, 100 * i + n)) for i, n in enumerate((4, 9, 2, 7))]
    (batch,) = micro_batches(rows, 100)
    assert [len(row.ids) for row in batch.rows] == [9, 7, 4, 2]


def test_groups_stay_whole_and_keep_their_labels():
    pairs = [
        Group((sample([i, i + 1]), sample([i], learnt=False)), label, f"p{i}") for i, label in ((3, 0.5), (9, 1.0))
    ]
    (batch,) = micro_batches(pairs, 100)
    faithful(batch, pairs)
    assert batch.groups == (range(0, 2), range(2, 4))
    assert batch.labels is not None and batch.labels.tolist() == [0.5, 1.0] and batch.labels.dtype == torch.float32
    assert [len(b.rows) for b in micro_batches(pairs, 1)] == [2, 2]
    mixed = collate([sample([5, 6]), pairs[0]])
    assert mixed.groups == (range(1, 3),) and mixed.labels is not None and mixed.labels.tolist() == [0.5]
    assert collate([Group(pairs[0].samples)]).labels is None


def test_labels_for_some_pairs_only_are_refused():
    with pytest.raises(DataError, match="row bare"):
        collate([Group((sample([1, 2]),), 1.0, "with"), Group((sample([3, 4]),), None, "bare")])


def test_nothing_to_learn_makes_no_stream():
    silent = [Sample(s.ids, np.zeros_like(s.weights)) for s in ragged_samples()]
    assert list(micro_batches(silent, 100)) == [] and list(micro_batches([], 100)) == []
