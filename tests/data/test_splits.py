"""Parts depend on content and seed, keep inputs together, and are explained."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.makers import examples
from tunesmith.data import Example, Splits, make_splits, part_hash
from tunesmith.data.splits import prompt_key
from tunesmith.errors import DataError, RecipeError
from tunesmith.recipe.schema import Split


def split(rows: Sequence[Example], task_type: str = "generation", **keys: Any) -> Splits:
    max_rows = keys.pop("max_rows", None)
    validation, test = keys.pop("validation_rows", None), keys.pop("test_rows", None)
    return make_splits(rows, validation, test, Split(**keys), task_type=task_type, max_rows=max_rows)


def sizes(splits: Splits) -> tuple[int, int, int]:
    return len(splits.train), len(splits.validation), len(splits.test)


def rows(count: int, labels: int = 4) -> list[Example]:
    return examples([(f"text {number}", f"label {number % labels}") for number in range(count)])


def test_sizes_as_shares_and_numbers() -> None:
    assert sizes(split(rows(100))) == (70, 10, 20)
    assert sizes(split(rows(100), test=7, validation=3)) == (90, 3, 7)
    assert sizes(split(rows(100), test=0, validation=0.05)) == (95, 5, 0)
    assert sizes(split(rows(5))) == (3, 1, 1)


def test_order_of_the_file_changes_nothing() -> None:
    pairs = [(f"text {number % 90}", f"label {number % 7}") for number in range(300)]
    shuffled = random.Random(1).sample(pairs, len(pairs))
    for task_type in ("classification", "generation"):
        one, other = (split(examples(order), task_type, max_rows=250) for order in (pairs, shuffled))
        assert one.hashes == other.hashes
        assert [row.id for row in one.train] == [row.id for row in other.train]
    assert split(examples(pairs), seed=1).hashes != split(examples(pairs), seed=0).hashes


def test_order_method_takes_the_end_of_the_file() -> None:
    data = rows(10)
    splits = split(data, method="order")
    assert [row.line for row in splits.test] == [10, 11]
    assert [row.line for row in splits.validation] == [9]
    assert [row.line for row in splits.train] == [2, 3, 4, 5, 6, 7, 8]
    assert "end of the file" in splits.explanation


def test_stratified_parts_hold_every_label_in_proportion() -> None:
    pairs = [(f"text {number}", "common" if number % 10 else "rare") for number in range(1000)]
    splits = split(examples(pairs), "classification")
    for part, count in ((splits.train, 700), (splits.validation, 100), (splits.test, 200)):
        counts = Counter(row.expected for row in part)
        assert counts == {"common": 0.9 * count, "rare": 0.1 * count}
    assert "every label in proportion" in splits.explanation


def test_labels_seen_once_or_twice_stay_in_training() -> None:
    pairs = [*[(f"text {number}", f"label {number % 3}") for number in range(90)], ("one", "once"), ("two", "twice"),
             ("three", "twice")]  # fmt: skip
    splits = split(examples(pairs), "classification")
    assert {"once", "twice"} <= {row.expected for row in splits.train}
    assert sizes(splits) == (93 - 9 - 19, 9, 19)


def test_too_many_single_labels_are_drawn_at_random_and_said_so() -> None:
    data = examples([(f"text {number}", f"label {number}") for number in range(20)])
    assert "too many labels are seen once" in split(data, "classification").explanation
    with pytest.raises(DataError, match="cannot be stratified"):
        split(data, "classification", method="stratified")


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 3)), min_size=1, max_size=60),
    st.sampled_from(["auto", "random", "stratified", "order"]),
    st.sampled_from([0.1, 0.2, 0.3, 1, 5]),
    st.none() | st.integers(1, 50),
)
def test_any_rows_split_whole_or_not_at_all(
    pairs: list[tuple[int, int]], method: str, test: float, max_rows: int | None
) -> None:
    data = examples([(str(prompt), str(answer)) for prompt, answer in pairs])
    try:
        splits = split(data, "classification", method=method, test=test, max_rows=max_rows)
    except DataError as error:
        assert error.where == "data.split"
        return
    parts = (splits.train, splits.validation, splits.test)
    assert all(parts)
    assert sum(map(len, parts)) == min(len(data), max_rows or len(data))
    assert len({row.id for part in parts for row in part}) == sum(map(len, parts))
    prompts = [{prompt_key(row) for row in part} for part in parts]
    assert not (prompts[0] & prompts[1] or prompts[0] & prompts[2] or prompts[1] & prompts[2])
    assert len(splits.test) <= max(1, test if test >= 1 else round(test * sum(map(len, parts))))


def test_own_files_are_used_whole() -> None:
    own = examples([("text 1", "label 1"), ("other", "label 0")], "test.csv")
    splits = split(rows(50), test_rows=own)
    assert splits.test == tuple(own)
    assert sizes(splits) == (45, 5, 2)
    assert "test is its own file with 2 rows" in splits.explanation
    both = split(rows(50), test_rows=own, validation_rows=own)
    assert sizes(both) == (50, 2, 2)


def test_max_rows_keeps_labels_and_counts() -> None:
    splits = split(rows(1000, labels=5), "classification", max_rows=100)
    assert sizes(splits) == (70, 10, 20)
    assert Counter(row.expected for part in (splits.train, splits.validation, splits.test) for row in part) == {
        f"label {number}": 20 for number in range(5)
    }
    assert "100 of 1,000 rows (data.max_rows)" in splits.explanation


def test_hashes_freeze_the_parts() -> None:
    splits = split(rows(30))
    assert set(splits.hashes) == {"train", "validation", "test"}
    assert splits.hashes["test"] == part_hash(splits.test[::-1])
    assert splits.hashes["test"] != part_hash(splits.test[1:])


def test_impossible_splits_are_explained() -> None:
    with pytest.raises(DataError, match="2 usable rows cannot give 1 for validation, 1 for test"):
        split(rows(2))
    with pytest.raises(DataError, match="no usable row to train on"):
        split([])
    with pytest.raises(DataError, match="test file has no usable row"):
        split(rows(10), test_rows=[])
    with pytest.raises(DataError, match="50 rows have only 1 distinct inputs"):
        split(examples([("same", str(number)) for number in range(50)]))


@pytest.mark.parametrize("value", [-0.1, 1.5, float("nan"), float("inf")])
def test_sizes_that_mean_nothing(value: float) -> None:
    with pytest.raises(RecipeError, match=r"data\.split\.test"):
        split(rows(10), test=value)
