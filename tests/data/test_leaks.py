"""Held-out rows that were seen before, row by row."""

from __future__ import annotations

import random

import pytest

from tests.data.makers import by_code, examples, plain_text
from tunesmith.data import Example, check_examples, make_splits
from tunesmith.data.checks import split_leaks
from tunesmith.data.duplicates import find_near_duplicates, leaked_rows
from tunesmith.recipe.schema import Split


def text_of(number: int) -> str:
    return " ".join(plain_text(4 * number + k) for k in range(4))


def train_rows(count: int = 400) -> list[Example]:
    return examples([(text_of(n), f"answer {plain_text(n + 90_000)}") for n in range(count)], "train.jsonl")


def test_every_kind_of_leak_names_its_row_and_the_earlier_one() -> None:
    train = train_rows()
    test = examples(
        [
            (text_of(1000), "fresh"),
            (train[7].question, train[7].expected),
            (train[8].question.upper(), f" {train[8].expected}"),
            (train[9].question, "quite another answer"),
            (f"well, {train[10].question}", train[10].expected),
            (f"well, {train[11].question}", "quite another answer, and a long one that resembles nothing at all here"),
            (text_of(1001), train[12].expected),
        ],
        "test.jsonl",
    )
    found = leaked_rows(test, train)
    assert [(leak.line, leak.kind, leak.seen_line) for leak in found] == [
        (3, "row", 9), (4, "row", 10), (5, "prompt", 11), (6, "near", 12), (7, "near_prompt", 13)
    ]  # fmt: skip
    assert [leak.similarity == 1 for leak in found] == [True, True, True, False, False]
    assert all(0.8 <= leak.similarity < 1 for leak in found[3:])
    assert {leak.id for leak in found} == {row.id for row in test[1:6]}
    assert {(leak.source, leak.seen_source) for leak in found} == {("test.jsonl", "train.jsonl")}
    assert [leak.kind for leak in leaked_rows(test, train, near=False)] == ["row", "row", "prompt"]


def test_one_per_cent_of_the_test_rows() -> None:
    """Half exact and half near, some only in the prompt: all of them and nothing else."""
    draw = random.Random(0)
    train = train_rows(2000)
    pairs = [(text_of(5000 + n), f"answer {plain_text(n + 70_000)}") for n in range(1000)]
    planted = sorted(draw.sample(range(1000), 10))
    for number, place in enumerate(planted):
        row = train[draw.randrange(2000)]
        question = row.question if number % 2 else row.question.replace(" ", "  , ", 1)
        pairs[place] = (question, row.expected if number % 5 else "only the prompt was seen before")
    found = leaked_rows(examples(pairs, "test.jsonl"), train)
    assert [leak.line - 2 for leak in found] == planted
    assert {leak.kind for leak in found} == {"row", "prompt", "near", "near_prompt"}


def test_a_crowded_bucket_still_shows_the_likest() -> None:
    """All rows share two thirds of their text; the one row that is nearly repeated is found among them."""
    common = " ".join(plain_text(n) for n in range(8))
    train = examples([(f"{plain_text(n + 500)} {plain_text(n + 9000)} {common} {plain_text(n + 30_000)}", "a")
                      for n in range(3000)])  # fmt: skip
    row = train[1234]
    test = examples([(f"{row.question} too", "a"), (f"{text_of(7)} {common}", "a")], "test.csv")
    assert [(leak.line, leak.seen_line) for leak in leaked_rows(test, train)] == [(2, row.line)]


def test_nothing_leaks_where_there_is_nothing() -> None:
    assert leaked_rows([], train_rows(3)) == ()
    assert leaked_rows(train_rows(3), []) == ()


def test_findings_count_and_name_them() -> None:
    train = train_rows()
    test = examples(
        [*[(text_of(1000 + n), "x") for n in range(120)], (f"well, {train[3].question}", train[3].expected)], "t.csv"
    )
    splits = make_splits(train, None, test, Split(), task_type="generation")
    found = by_code(check_examples(train, task_type="generation", splits=splits))
    near = found["test_leak_near"]
    assert near.lines == (122,) and near.count == 1 and near.source == "t.csv"
    assert "1 of 121; line 122 is line 5 of train.jsonl (9" in near.message
    assert splits.test == tuple(test)  # a file of one's own is never altered


@pytest.mark.parametrize("ignore", [True, False])
def test_parts_of_one_file_are_compared_only_where_a_group_is_in_both(
    ignore: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = examples([(f"{text_of(n // 2)} {'indeed' if n % 2 else ''}", str(n)) for n in range(200)])
    split = Split(near_duplicates="ignore" if ignore else "together")
    splits = make_splits(rows, None, None, split, task_type="generation")
    clusters = dict(zip([row.id for row in rows], find_near_duplicates(rows).cluster, strict=True))
    asked: list[bool] = []

    def counted(held_out: object, seen: object, *, near: bool, **more: object) -> tuple[()]:
        asked.append(near)
        return ()

    expected = split_leaks(splits)
    assert bool(expected["test"]) == ignore
    monkeypatch.setattr("tunesmith.data.checks.leaked_rows", counted)
    split_leaks(splits, clusters=clusters)
    assert asked == [ignore, ignore]
