"""Findings about examples as a whole."""

from __future__ import annotations

import time

import pytest

from tests.data.makers import by_code, examples, plain_text
from tunesmith.data import CODES, check_examples, infer_task, make_splits
from tunesmith.data.types import Splits
from tunesmith.errors import DataError
from tunesmith.recipe.schema import Split


def enough(count: int = 200, labels: tuple[str, ...] = ("x", "y")) -> list[tuple[str, str]]:
    """So many clean rows that nothing is found."""
    return [(plain_text(number), labels[number % len(labels)]) for number in range(count)]


def test_clean_rows_give_no_finding() -> None:
    assert check_examples(examples(enough()), task_type="classification") == []


def test_no_examples() -> None:
    finding = by_code(check_examples([], task_type="generation"))["no_usable_rows"]
    assert finding.severity == "error"


def test_exact_copies_list_every_line() -> None:
    found = by_code(
        check_examples(examples([("a", "x"), ("b", "y"), ("a", "x"), ("a", "x"), *enough()]), task_type="auto")
    )
    assert set(found) == {"duplicate_row"}
    assert found["duplicate_row"].lines == (2, 4, 5)
    assert found["duplicate_row"].count == 2
    assert "lines 2, 4, 5" in found["duplicate_row"].message


def test_same_input_with_different_answers() -> None:
    rows = [("a", "x"), ("b", "y"), ("a", "y"), ("a", "x"), *enough()]
    found = by_code(check_examples(examples(rows), task_type="classification"))
    assert found["conflicting_answers"].lines == (2, 4, 5)
    assert found["conflicting_answers"].count == 1


def test_files_are_looked_at_separately() -> None:
    rows = [*examples(enough(), "train.csv"), *examples(enough(), "test.csv")]
    assert check_examples(rows, task_type="classification") == []


@pytest.mark.parametrize("count", [2, 10_000])
def test_identical_rows_are_one_fast_error(count: int) -> None:
    rows = examples([("same", "x")] * count)
    start = time.perf_counter()
    found = {finding.code: finding for finding in check_examples(rows, task_type=infer_task(rows))}
    assert time.perf_counter() - start < 2
    assert found["identical_rows"].severity == "error"
    assert found["identical_rows"].count == count
    assert found["identical_rows"].lines == tuple(range(2, count + 2))
    assert "duplicate_row" not in found
    with pytest.raises(DataError, match=r"1 distinct inputs|cannot give"):
        make_splits(rows, None, None, Split(), task_type="generation")


def test_labels() -> None:
    rows = [*enough(), ("p", "Card Lost"), ("q", "card  lost"), ("r", "card  lost"), ("s", "rare"), ("t", "x ")]
    found = by_code(check_examples(examples(rows), task_type="classification"))
    assert found["label_rare"].lines == (203, 204)
    assert found["label_seen_once"].lines == (202, 205, 206)
    assert found["label_seen_once"].count == 3
    assert found["label_variants"].lines == (202, 206)
    assert "'Card Lost' beside 'card  lost'" in found["label_variants"].message
    assert found["label_imbalance"].severity == "warning"
    assert "'card  lost' has 2" in found["label_imbalance"].message
    assert check_examples(examples(rows), task_type="generation") == []


def test_grades_are_labels_too() -> None:
    rows = examples([(plain_text(number), str(1 + number % 3)) for number in range(120)] + [("all alone", "7")])
    found = {finding.code for finding in check_examples(rows, task_type="ordinal")}
    assert "label_seen_once" in found
    assert "label_seen_once" not in {finding.code for finding in check_examples(rows, task_type="regression")}


def test_one_label_only() -> None:
    found = by_code(check_examples(examples(enough(labels=("x",))), task_type="classification"))
    assert found["single_label"].severity == "error"


def test_answers_that_copy_the_input() -> None:
    found = by_code(check_examples(examples([("copy", " copy"), *enough()]), task_type="generation"))
    assert found["answer_equals_input"].lines == (2,)


def test_extraction_answers_that_are_not_json() -> None:
    rows = [(plain_text(number), '["a"]') for number in range(150)] + [("b", "['a']"), ("c", '"text"')]
    found = by_code(check_examples(examples(rows), task_type="extraction"))
    assert found["answer_not_json"].lines == (152, 153)


def test_few_rows() -> None:
    assert by_code(check_examples(examples(enough(99)), task_type="auto"))["too_few_rows"].count == 99


def test_planted_leaks_are_found_row_by_row() -> None:
    train = enough(300)
    test = [(plain_text(1000 + number), "x") for number in range(150)]
    test[10], test[20], test[30] = train[7], train[8], (train[9][0], "neither")
    validation = [(plain_text(2000 + number), "y") for number in range(20)]
    validation[3] = train[0]
    parts = [examples(train), examples(validation, "validation.csv"), examples(test, "test.csv")]
    splits = make_splits(*parts, Split(), task_type="classification")
    found = by_code(check_examples(parts[0], task_type="classification", splits=splits))
    assert found["test_leak_row"].lines == (12, 22)
    assert found["test_leak_row"].source == "test.csv"
    assert "line 12 is line 9 of train.csv" in found["test_leak_row"].message
    assert found["test_leak_prompt"].lines == (32,)
    assert found["validation_leak_row"].lines == (5,)
    assert found["label_not_in_train"].lines == (32,)
    assert set(found) == {"test_leak_row", "test_leak_prompt", "validation_leak_row", "label_not_in_train"}


def test_leak_from_validation_into_the_test() -> None:
    shared = [("seen in validation", "x")]
    splits = Splits(
        tuple(examples(enough())), tuple(examples(shared, "v.csv")), tuple(examples(shared, "t.csv")), {}, ""
    )  # fmt: skip
    found = by_code(check_examples(examples(enough()), task_type="generation", splits=splits))
    assert "line 2 is line 2 of v.csv" in found["test_leak_row"].message


def test_splits_of_ours_never_leak() -> None:
    rows = examples([*enough(), *enough()[:50], *[(plain_text(number), "other") for number in range(30)]])
    splits = make_splits(rows, None, None, Split(), task_type="generation")
    codes = {finding.code for finding in check_examples(rows, task_type="generation", splits=splits)}
    assert codes == {"duplicate_row", "near_duplicate", "conflicting_answers", "few_test_rows"}


def test_every_finding_says_why_and_what_to_do() -> None:
    rows = [("a", "x"), ("a", "x"), ("my mail is bob@gmail.com", "y"), *enough()]
    for found in check_examples(examples(rows), task_type="classification"):
        assert found.why == CODES[found.code].why and found.fix == CODES[found.code].fix


def test_quick_compares_nothing_by_likeness_and_full_doubts_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr("tunesmith.data.checks.noise_findings", lambda rows, tell: asked.append("noise") or [])
    near = ("a question about the weather in spring", "a question about the weather in springs")
    rows = examples([*enough(), *[(text, "x") for text in near]])
    codes = {
        depth: {f.code for f in check_examples(rows, task_type="classification", depth=depth)}
        for depth in ("quick", "usual", "full")
    }
    assert "near_duplicate" not in codes["quick"] and "near_duplicate" in codes["usual"] & codes["full"]
    assert asked == ["noise"]


def test_a_test_that_was_trained_on_is_an_error() -> None:
    rows = examples(enough(), "train.csv")
    same = examples(enough()[:60], "test.csv")
    splits = make_splits(rows, None, same, Split(validation=0), task_type="generation")
    found = by_code(check_examples(rows, task_type="generation", splits=splits))
    assert found["test_is_train"].severity == "error"
    assert found["test_is_train"].lines == tuple(range(2, 62))
    fewer = examples([*enough()[:29], *[(plain_text(5000 + n), "x") for n in range(31)]], "test.csv")
    splits = make_splits(rows, None, fewer, Split(validation=0), task_type="generation")
    codes = {f.code for f in check_examples(rows, task_type="generation", splits=splits)}
    assert "test_is_train" not in codes and "test_leak_row" in codes


def test_few_test_rows_name_the_smallest_difference() -> None:
    splits = make_splits(examples(enough()), None, None, Split(test=50), task_type="generation")
    found = by_code(check_examples(examples(enough()), task_type="generation", splits=splits))
    assert "14 points" in found["few_test_rows"].message
