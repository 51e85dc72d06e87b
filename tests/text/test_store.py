"""Tokenised rows on disk: exactly the samples that went in, whatever their weights."""

from __future__ import annotations

import json
import pickle
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tiny import ragged_samples
from tunesmith.errors import VerificationError
from tunesmith.text.store import StoredSamples, StoreWriter, id_type, pack
from tunesmith.text.types import Sample


def write(folder, samples, vocabulary=300, parts=2) -> StoredSamples:
    with StoreWriter(folder, vocabulary) as writer:
        for i in range(parts):
            writer.add(pack(samples[i::parts] if parts == 1 else samples[_part(i, parts, len(samples))], writer.dtype))
        writer.finish({"made": "here"})
    return StoredSamples.open(folder)


def _part(i: int, parts: int, total: int) -> slice:
    return slice(i * total // parts, (i + 1) * total // parts)


def same(one: Sample, other: Sample) -> bool:
    return (
        one.ids.dtype == np.int64
        and one.weights.dtype == np.float32
        and np.array_equal(one.ids, other.ids)
        and np.array_equal(one.weights, other.weights)
        and one.example_id == other.example_id
    )


@pytest.mark.parametrize("parts", [1, 3, 8])
def test_what_goes_in_comes_out(tmp_path, parts):
    samples = ragged_samples()
    store = write(tmp_path / "store", samples, parts=parts)
    assert len(store) == len(samples) and store.facts == {"made": "here"}
    assert all(same(a, b) for a, b in zip(store, samples, strict=True))
    assert same(store[-1], samples[-1]) and same(store[2], samples[2])
    assert store.lengths.tolist() == [len(s.ids) for s in samples]
    assert store.supervised.tolist() == [s.supervised for s in samples]
    assert store.names() == [s.example_id for s in samples]


weights = st.lists(
    st.sampled_from([0.0, 1.0, 0.5, -0.25, float(np.float32(0.1))]) | st.floats(-2, 2, width=32), max_size=30
)


@given(rows=st.lists(weights, max_size=6), vocabulary=st.sampled_from([300, 1 << 16, 200_000]))
@settings(max_examples=40, deadline=None)
def test_any_weights_and_any_vocabulary(tmp_path_factory, rows, vocabulary):
    rng = np.random.default_rng(0)
    samples = [
        Sample(rng.integers(0, vocabulary, len(row)), np.array(row, np.float32), f"r{i}") for i, row in enumerate(rows)
    ]
    store = write(tmp_path_factory.mktemp("stores") / "s", samples, vocabulary)
    assert len(store) == len(samples)
    assert all(same(a, b) for a, b in zip(store, samples, strict=True))


def test_ids_take_two_bytes_where_the_vocabulary_allows_it():
    assert id_type(1 << 16) == np.uint16 and id_type((1 << 16) + 1) == np.uint32


def test_other_rows_of_the_same_store(tmp_path):
    samples = ragged_samples()
    store = write(tmp_path / "store", samples)
    taken = store.take([5, 0, 5])
    assert [s.example_id for s in taken] == ["row 5", "row 0", "row 5"]
    assert taken.lengths.tolist() == [20, 1, 20] and taken.names() == ["row 5", "row 0", "row 5"]
    assert [s.example_id for s in store[1:6:2]] == ["row 1", "row 3", "row 5"]
    assert [s.example_id for s in taken.take([2, 1])] == ["row 5", "row 0"]
    fitting = store.fitting(9)
    assert fitting.lengths.tolist() == [1, 3, 7, 5, 9] and fitting.lengths.max() <= 9
    assert store.fitting(20) is store
    for place in (len(store), -len(store) - 1):
        with pytest.raises(IndexError):
            store[place]


def test_an_empty_store(tmp_path):
    store = write(tmp_path / "store", [], parts=1)
    assert len(store) == 0 and list(store) == [] and store.fitting(3) is store


def test_a_store_that_was_not_finished_or_is_damaged_is_refused(tmp_path):
    samples = ragged_samples()
    with StoreWriter(tmp_path / "half", 300) as writer:
        writer.add(pack(samples, writer.dtype))
    with pytest.raises(VerificationError, match="no store"):
        StoredSamples.open(tmp_path / "half")
    write(tmp_path / "cut", samples)
    file = tmp_path / "cut" / "ids.bin"
    file.write_bytes(file.read_bytes()[:-2])
    with pytest.raises(VerificationError, match=r"ids\.bin has"):
        StoredSamples.open(tmp_path / "cut")
    write(tmp_path / "old", samples)
    index = tmp_path / "old" / "index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "version": 0}))
    with pytest.raises(VerificationError, match="version 0"):
        StoredSamples.open(tmp_path / "old")


def test_a_name_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="more than 24 bytes"):
        pack([Sample(np.ones(1, np.int64), np.zeros(1, np.float32), "x" * 25)], id_type(300))


def test_a_row_costs_little_until_it_is_looked_at(tmp_path):
    long = [Sample(np.full(5_000, i % 200), np.ones(5_000, np.float32), f"r{i}") for i in range(300)]
    store = write(tmp_path / "store", long)
    tracemalloc.start()
    listed = [row for row in store if row.supervised]
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert len(listed) == 300 and held < 300 * 400  # of 60,000 bytes each
    assert same(listed[7], long[7])


def test_a_row_of_a_store_is_a_sample_like_others(tmp_path):
    row = write(tmp_path / "store", ragged_samples())[5]
    assert isinstance(row, Sample) and row.supervised == ragged_samples()[5].supervised
    halved = replace(row, weights=row.weights / 2)
    assert halved.supervised == row.supervised and np.array_equal(halved.weights, row.weights / 2)
    sent = pickle.loads(pickle.dumps(row))
    assert type(sent) is Sample and same(sent, row)
    with pytest.raises(AttributeError, match="colour"):
        _ = row.colour


def test_bits_that_changed_on_the_disk_are_found(tmp_path):
    write(tmp_path / "store", ragged_samples())
    file = tmp_path / "store" / "ids.bin"
    data = bytearray(file.read_bytes())
    data[10] ^= 1
    file.write_bytes(data)
    with pytest.raises(VerificationError, match=r"ids\.bin is not what was written"):
        StoredSamples.open(tmp_path / "store")
    assert len(StoredSamples.open(tmp_path / "store", verify=False)) == len(ragged_samples())


@given(
    rows=st.lists(
        st.lists(st.tuples(st.integers(0, 5), st.sampled_from([0.0, 1.0, 0.5, -1.0])), max_size=8), max_size=9
    ),
    at_once=st.integers(1, 12),
)
@settings(max_examples=60, deadline=None)
def test_which_rows_learn_one_of_some_tokens(tmp_path_factory, rows, at_once):
    samples = [
        Sample(np.array([i for i, _ in row], np.int64), np.array([w for _, w in row], np.float32), str(n))
        for n, row in enumerate(rows)
    ]
    folder = tmp_path_factory.mktemp("stores") / "s"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tunesmith.text.store._TOKENS_AT_ONCE", at_once)
        found = write(folder, samples).learn_any({2, 5}).tolist()
    assert found == [any(i in (2, 5) and w > 0 for i, w in row) for row in rows]


def test_an_id_beyond_the_vocabulary_is_refused():
    with pytest.raises(ValueError, match="70000 is beyond"):
        pack([Sample(np.array([70_000]), np.zeros(1, np.float32), "x")], id_type(300))
