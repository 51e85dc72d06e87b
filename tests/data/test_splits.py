"""Parts depend on content and seed, keep inputs together, and are explained."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.makers import examples, plain_text
from tunesmith.data import Example, Splits, make_splits, part_hash
from tunesmith.data.duplicates import find_near_duplicates, leaked_rows, prompt_key
from tunesmith.errors import DataError, RecipeError
from tunesmith.recipe.schema import Split


def split(rows: Sequence[Example], task_type: str = "generation", **keys: Any) -> Splits:
    max_rows = keys.pop("max_rows", None)
    validation, test = keys.pop("validation_rows", None), keys.pop("test_rows", None)
    return make_splits(rows, validation, test, Split(**keys), task_type=task_type, max_rows=max_rows)


def sizes(splits: Splits) -> tuple[int, int, int]:
    return len(splits.train), len(splits.validation), len(splits.test)


def rows(count: int, labels: int = 4) -> list[Example]:
    return examples([(plain_text(number), f"label {number % labels}") for number in range(count)])


def test_sizes_as_shares_and_numbers() -> None:
    assert sizes(split(rows(100))) == (70, 10, 20)
    assert sizes(split(rows(100), test=7, validation=3)) == (90, 3, 7)
    assert sizes(split(rows(100), test=0, validation=0.05)) == (95, 5, 0)
    assert sizes(split(rows(5))) == (3, 1, 1)


def test_order_of_the_file_changes_nothing() -> None:
    pairs = [(plain_text(number % 90), f"label {number % 7}") for number in range(300)]
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
    pairs = [(plain_text(number), "common" if number % 10 else "rare") for number in range(1000)]
    splits = split(examples(pairs), "classification")
    for part, count in ((splits.train, 700), (splits.validation, 100), (splits.test, 200)):
        counts = Counter(row.expected for row in part)
        assert counts == {"common": 0.9 * count, "rare": 0.1 * count}
    assert "every label in proportion" in splits.explanation


def test_grades_are_stratified_like_labels_and_numbers_are_not() -> None:
    pairs = [(plain_text(number), str(1 + number % 5)) for number in range(200)]
    graded = split(examples(pairs), "ordinal")
    assert Counter(row.expected for row in graded.test) == dict.fromkeys("12345", 8)
    assert "every label in proportion" in graded.explanation
    assert "at random" in split(examples(pairs), "regression").explanation


def test_labels_seen_once_or_twice_stay_in_training() -> None:
    pairs = [*[(plain_text(number), f"label {number % 3}") for number in range(90)], ("one", "once"), ("two", "twice"),
             ("three", "twice")]  # fmt: skip
    splits = split(examples(pairs), "classification")
    assert {"once", "twice"} <= {row.expected for row in splits.train}
    assert sizes(splits) == (93 - 9 - 19, 9, 19)


def test_too_many_single_labels_are_drawn_at_random_and_said_so() -> None:
    data = examples([(plain_text(number), f"label {number}") for number in range(20)])
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


def with_columns(rows: Sequence[Example], **columns: Sequence[Any]) -> list[Example]:
    return [replace(row, values={name: values[n] for name, values in columns.items()}) for n, row in enumerate(rows)]


def near_copies(count: int, every: int = 4) -> list[Example]:
    """Rows of which each `every`th has two near-duplicates."""
    texts = []
    for number in range(count):
        text = f"{plain_text(number)} {plain_text(number + 10_000)}"
        texts += [text, f"{text} and", f"the {text}"] if number % every == 0 else [text]
    return examples([(text, f"label {len(text) % 2}") for text in texts])


@pytest.mark.parametrize("method", ["random", "stratified", "order"])
def test_near_duplicates_never_straddle(method: str) -> None:
    data = near_copies(100)
    splits = split(data, "classification", method=method, seed=3)
    parts = (splits.train, splits.validation, splits.test)
    assert all(parts) and sum(map(len, parts)) == len(data) == 150
    assert leaked_rows(splits.test, [*splits.train, *splits.validation]) == ()
    assert leaked_rows(splits.validation, splits.train) == ()
    assert "75 rows in 25 groups" in splits.explanation
    apart = split(data, "classification", method=method, seed=3, near_duplicates="ignore")
    assert "near-duplicates" not in apart.explanation
    if method != "order":
        assert leaked_rows(apart.test, [*apart.train, *apart.validation])  # or the test above would prove nothing


def test_rows_that_are_all_alike_are_divided_all_the_same_and_it_is_said() -> None:
    frame = "Please compute the sum of the two numbers that are given at the end of this line:"
    data = examples([(f"{n} {frame} {n}", str(n)) for n in range(60)])
    assert len(set(find_near_duplicates(data).cluster)) < 10
    splits = split(data)
    assert sizes(splits) == (42, 6, 12)
    assert "near-duplicates are not kept together" in splits.explanation


def test_groups_of_a_column_stay_together() -> None:
    customers = [f"customer {number % 20}" for number in range(200)]
    data = with_columns(rows(200), who=customers)
    splits = split(data, "classification", group_by="who")
    seen = [{row.values["who"] for row in part} for part in (splits.train, splits.validation, splits.test)]
    assert not (seen[0] & seen[1] or seen[0] & seen[2] or seen[1] & seen[2])
    assert sizes(splits) == (140, 20, 40)
    assert "near-duplicates and rows with the same who kept together" in splits.explanation
    assert "labels are not in proportion" in splits.explanation


def test_groups_larger_than_the_part_wanted_are_taken_whole() -> None:
    data = with_columns(rows(90), who=[number % 3 for number in range(90)])
    assert sizes(split(data, group_by="who")) == (30, 30, 30)


def test_rows_without_a_group_are_on_their_own() -> None:
    data = with_columns(rows(100), who=[None] * 100)
    assert sizes(split(data, group_by="who")) == (70, 10, 20)


def test_impossible_groups_are_explained() -> None:
    data = with_columns(rows(20), who=["one"] * 20)
    with pytest.raises(DataError, match="'who' has 1 distinct values in 20 rows"):
        split(data, group_by="who")
    with pytest.raises(DataError, match="no row has a column 'whom'") as error:
        split(data, group_by="whom")
    assert "who" in str(error.value.expected)


def test_the_latest_rows_are_the_test() -> None:
    days = [f"2026-{1 + number // 28:02}-{1 + number % 28:02}" for number in range(100)]
    order = random.Random(0).sample(range(100), 100)
    data = with_columns(rows(100), day=[days[n] for n in order])
    splits = split(data, time="day")
    for part, later in ((splits.train, splits.validation), (splits.validation, splits.test)):
        assert max(row.values["day"] for row in part) < min(row.values["day"] for row in later)
    assert sizes(splits) == (70, 10, 20)
    assert "the latest rows, by time" in splits.explanation
    assert splits.hashes == split(data[::-1], time="day", method="time").hashes


def test_a_group_goes_where_its_latest_row_belongs() -> None:
    data = with_columns(
        rows(50), day=list(range(50)), who=["old and new" if n in (0, 49) else str(n) for n in range(50)]
    )
    splits = split(data, time="day", group_by="who", test=5, validation=5)
    assert {0, 49} <= {row.values["day"] for row in splits.test}
    assert max(row.values["day"] for row in splits.train) < min(
        row.values["day"] for row in splits.test if row.values["day"]
    )


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ([1, 2, None, 4], "1 rows have no time in 'day': lines 4"),
        (["2026-01-01", "2026-01-02", "soon", "31.01.2026"], "'soon'"),
        (["2026-01-01", "2026-01-02", "3", "4"], "dates in some rows and numbers in others"),
    ],
)
def test_rows_without_a_time_are_named(values: list[Any], problem: str) -> None:
    with pytest.raises(DataError, match=re.escape(problem)):
        split(with_columns(rows(4), day=values), time="day", test=1, validation=1)


def test_time_settings_that_contradict_each_other() -> None:
    with pytest.raises(RecipeError, match=r"split\.time"):
        split(rows(10), method="time")
    with pytest.raises(RecipeError, match="contradict"):
        split(rows(10), method="random", time="day")
    with pytest.raises(DataError, match="no row has a column 'day'"):
        split(rows(10), time="day")


def test_single_rows_are_drawn_alike_with_and_without_likeness() -> None:
    """What is drawn of rows that resemble nothing does not depend on whether likeness was looked for."""
    data = rows(300)
    assert split(data).hashes == split(data, near_duplicates="ignore").hashes
