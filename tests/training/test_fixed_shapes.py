"""Rounding shapes up: few of them, little filling, the same for the same batch, and everything in its place."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.text.types import Sample
from tunesmith.training.batching import Batch, collate
from tunesmith.training.fixed_shapes import FixedInputs, Shape, rounded_tokens


def rows(*lengths: int, share: float = 0.5, seed: int = 0) -> list[Sample]:
    rng = np.random.default_rng(seed)
    made = []
    for i, length in enumerate(lengths):
        weights = (rng.random(length) < share).astype(np.float32)
        weights[0] = 0
        made.append(Sample(rng.integers(3, 200, length), weights, f"row {i}"))
    return made


def laid_out(batch: Batch, budget: int = 4096, longest: int = 64) -> FixedInputs:
    inputs = FixedInputs(Shape.of(batch, budget, longest), torch.device("cpu"))
    inputs.fill(batch)
    return inputs


@given(st.integers(1, 200_000))
def test_an_eighth_at_most_is_filling(tokens):
    rounded = rounded_tokens(tokens)
    assert rounded >= tokens and rounded - tokens < max(64, tokens / 8)
    assert rounded_tokens(rounded) == rounded


def test_there_are_eight_sizes_between_powers_of_two():
    assert len({rounded_tokens(n) for n in range(2049, 4097)}) == 8
    assert len({rounded_tokens(n) for n in range(8193, 16385)}) == 8


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 90), min_size=1, max_size=12), st.integers(64, 700), st.floats(0, 1))
def test_a_shape_holds_its_batch(lengths, budget, share):
    batch = collate(rows(*lengths, share=share))
    shape = Shape.of(batch, budget, 20)
    assert shape == Shape.of(batch, budget, 20)
    assert shape.tokens >= batch.tokens and 1 <= shape.learnt <= shape.tokens and shape.learnt >= len(batch.learnt)
    assert shape.longest >= max(lengths) and shape.longest & (shape.longest - 1) == 0
    assert batch.tokens > budget or shape.tokens <= budget, "filling goes beyond the memory that was planned"
    inputs = FixedInputs(shape, torch.device("cpu"))
    inputs.fill(batch)
    starts = inputs.packing.runs.starts.tolist()
    assert starts[0] == 0 and starts[-1] == shape.tokens and starts == sorted(starts)
    assert max(np.diff(starts)) <= shape.longest
    assert starts[1 : 1 + len(lengths)] == np.cumsum(batch.packing.lengths).tolist()


def test_what_is_laid_out_and_what_fills_it_up():
    batch = collate(rows(30, 50, 20))
    inputs = laid_out(batch)
    assert inputs.shape.tokens == 128 and inputs.shape.longest == 64
    assert torch.equal(inputs.ids[:100], batch.ids)
    assert inputs.packing.runs.starts.tolist()[:5] == [0, *np.cumsum(batch.packing.lengths).tolist(), 128]
    assert torch.equal(inputs.packing.positions[0, :100], batch.packing.positions[0])
    assert inputs.packing.positions[0, 100:].tolist() == list(range(28))
    count = len(batch.learnt)
    assert torch.equal(inputs.places[:count], batch.previous[batch.learnt])
    assert torch.equal(inputs.targets[:count], batch.ids[batch.learnt])
    assert torch.equal(inputs.weights[:count], batch.weights[batch.learnt])
    assert inputs.weights[count:].eq(0).all() and len(inputs.weights) > count
    assert len(inputs.places[count:].unique()) == len(inputs.places[count:])


def test_a_smaller_batch_leaves_nothing_of_the_one_before():
    inputs = laid_out(collate(rows(60, 60, share=0.9)))
    other = collate(rows(58, 57, share=0.9, seed=5))
    assert Shape.of(other, 4096, 64) == inputs.shape
    inputs.fill(other)
    fresh = FixedInputs(inputs.shape, torch.device("cpu"))
    fresh.fill(other)
    for name in ("ids", "places", "targets", "weights"):
        assert torch.equal(getattr(inputs, name), getattr(fresh, name)), name
    assert torch.equal(inputs.packing.runs.starts, fresh.packing.runs.starts)


def test_memory_stays_where_it_is():
    inputs = laid_out(collate(rows(30, 50)))
    places = [t.data_ptr() for t in (inputs.ids, inputs.weights, inputs.packing.runs.starts, inputs.packing.positions)]
    inputs.fill(collate(rows(25, 52, seed=2)))
    again = [t.data_ptr() for t in (inputs.ids, inputs.weights, inputs.packing.runs.starts, inputs.packing.positions)]
    assert places == again


@pytest.mark.parametrize("lengths", [(1,), (64,), (65, 1, 1, 1)])
def test_edges(lengths):
    batch = collate(rows(*lengths))
    inputs = laid_out(batch, budget=64)
    assert inputs.shape.tokens >= batch.tokens
    assert inputs.shape.learnt >= 1
