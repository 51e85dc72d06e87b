"""Maths, regression and ordered labels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score, r2_score

from tests.tasks.rows import example
from tunesmith.errors import DataError, RecipeError
from tunesmith.recipe.schema import Task as TaskSpec
from tunesmith.tasks import Maths, Ordinal, Regression, fit_task, quick_score
from tunesmith.tasks.maths import as_number, final_answer
from tunesmith.tasks.ordinal import QuadraticKappa
from tunesmith.tasks.regression import RSquared


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("16 - 3 - 4 = 9 eggs, 9 * 2 = $18.\n#### 18", "18"),
        ("#### 1,250", "1250"),
        ("It is 5 + 3 = 8. The answer is 8.0 apples.", "8"),
        (r"so $x = \boxed{\frac{3}{6}}$", "1/2"),
        (r"\boxed{x^{2} + 1}", "x^{2}+1"),
        ("She has 3 left", "3"),
        ("from 10 to -2.50", "-5/2"),
        ("3-4", "4"),
        ("7/8 of it", "7/8"),
        ("2e3", "2000"),
        ("nothing here", None),
        ("", None),
        ("the answer is: yes", "yes"),
        (r"\boxed{unclosed 5", "5"),
        ("1/0", "1/0"),
        ("the answer is 5 * 12 = 60.", "60"),
        ("The answer is 5 * 12 = 60, since 60 = 5 dozen", "60"),
        ("The answer is 8, because 5 + 4 = 9 less 1", "8"),
        ("The answer is, of course, 1,250.5 - 0.5 = 1,250", "2501/2"),
        (r"the answer is \frac{1}{2}", "1/2"),
        (r"\boxed{1e5000}", "1e5000"),
        (r"\boxed{1e20000000}", "1e20000000"),
        (r"\boxed{1_000}", "1_000"),
        (r"\boxed{+5.}", "5"),
    ],
)
def test_final_answers(text: str, answer: str | None) -> None:
    assert final_answer(text) == answer


@given(st.text(max_size=60))
def test_any_text_has_a_final_answer_or_none(text: str) -> None:
    found = final_answer(text)
    assert found is None or found


@given(st.integers(-(10**9), 10**9), st.booleans())
def test_a_number_is_read_however_it_is_written(number: int, separated: bool) -> None:
    written = f"{number:,}" if separated else str(number)
    assert final_answer(f"so it is {written}.") == str(number)
    assert as_number(f"{written}.0") == number


@pytest.mark.parametrize("text", ["9" * 499, "9" * 496 + "e999", "." + "1" * 490 + "e-999", "1/" + "7" * 490])
def test_the_longest_numbers_can_be_written_out(text: str) -> None:
    assert as_number(text) is not None and final_answer(f"\\boxed{{{text}}}")
    assert as_number(text + "0" * 99) is None


def test_maths_scores_the_final_answer_only() -> None:
    rows = [example("2 and 2?", "#### 4"), example("1 and 2?", "3"), example("5?", "5"), example("0.1?", "0.1")]
    task = fit_task(TaskSpec(), "maths", rows)
    assert quick_score(task, ["2 + 2 = 4\n#### 4", "The answer is 3.0", "five", "0.11"], rows) == {"accuracy": 0.5}
    near = fit_task(TaskSpec(tolerance=0.05), "maths", rows)
    assert quick_score(near, ["4", "3", "5", "0.11"], rows) == {"accuracy": 1.0}
    third = fit_task(TaskSpec(tolerance=0.3), "maths", [example("q", "1")])
    assert quick_score(third, ["1.3"], [example("q", "1")]) == {"accuracy": 1.0}
    assert quick_score(third, ["1.3001"], [example("q", "1")]) == {"accuracy": 0.0}
    with pytest.raises(DataError, match=r"rows\.csv:7"):
        fit_task(TaskSpec(), "maths", [example("q", "no number", line=7)])
    assert isinstance(task, Maths) and task.slices(rows[0]) == {"numbers": "2"}


def test_regression_reads_one_number() -> None:
    task = Regression(0.0, 10.0)
    assert [task.parse(t) for t in ("7", " about 7.5 USD", "-1,000", "7 or 8", "7 and 7", "none", "1e400")] == [
        7.0, 7.5, -1000.0, None, 7.0, None, None,
    ]  # fmt: skip


def test_regression_scores() -> None:
    rows = [example(str(i), str(value)) for i, value in enumerate((0, 5, 10))]
    task = fit_task(TaskSpec(), "regression", rows)
    assert isinstance(task, Regression) and (task.low, task.high) == (0.0, 10.0)
    scores = quick_score(task, ["1", "5", "no idea"], rows)
    assert scores["mae_score"] == pytest.approx((0.9 + 1.0 + 0.0) / 3)
    assert scores["r2"] == pytest.approx(1 - (1 + 0 + 100) / 50)
    within = fit_task(TaskSpec(tolerance=1), "regression", rows)
    assert next(iter(within.metrics)) == "within_tolerance"
    assert quick_score(within, ["1", "7", "9.5"], rows)["within_tolerance"] == pytest.approx(2 / 3)
    tenth = Regression(0.0, 10.0, tolerance=0.1)
    shares = [quick_score(tenth, [text], [example("q", "1")])["within_tolerance"] for text in ("1.1", "0.9", "1.1001")]
    assert shares == [1.0, 1.0, 0.0]
    with pytest.raises(DataError, match="not a number"):
        fit_task(TaskSpec(), "regression", [example("a", "1"), example("b", "high")])


@pytest.mark.parametrize("shift", [0.0, 1e6])
def test_r2_is_that_of_scikit_learn(shift: float) -> None:
    draw = np.random.default_rng(0)
    truth = draw.normal(size=40) + shift
    answers = truth + draw.normal(scale=0.5, size=40)
    metric = RSquared(float(truth.min()), float(truth.max()))
    ours = float(metric.finish(metric.statistics(list(answers), list(truth)).sum(axis=0)))
    assert ours == pytest.approx(r2_score(truth, answers), abs=1e-6)


def test_r2_where_all_values_are_equal() -> None:
    metric = RSquared(3.0, 3.0)
    right, wrong = metric.statistics([3.0], [3.0]), np.array([[4.0, 0.0, 0.0, 1.0]])
    assert float(metric.finish(right.sum(axis=0))) == 1.0
    assert float(metric.finish(wrong.sum(axis=0))) == 0.0


LABELS = ("bad", "fair", "good", "great")


@pytest.mark.parametrize("seed", range(4))
def test_kappa_is_that_of_scikit_learn(seed: int) -> None:
    draw = np.random.default_rng(seed)
    truth = draw.integers(0, 4, 30)
    answers = np.clip(truth + draw.integers(-1, 2, 30), 0, 3)
    metric = QuadraticKappa(LABELS)
    statistics = metric.statistics([LABELS[i] for i in answers], [LABELS[i] for i in truth])
    expected = cohen_kappa_score(truth, answers, weights="quadratic", labels=range(4))
    assert float(metric.finish(statistics.sum(axis=0))) == pytest.approx(expected)


def test_ordinal_rewards_near_misses_and_counts_unreadable_as_farthest() -> None:
    rows = [example(str(i), label) for i, label in enumerate(LABELS)]
    task = fit_task(TaskSpec(labels=list(LABELS)), "ordinal", rows)
    assert isinstance(task, Ordinal) and next(iter(task.metrics)) == "quadratic_kappa"
    near = quick_score(task, ["fair", "fair", "great", "great"], rows)
    far = quick_score(task, ["great", "fair", "bad", "great"], rows)
    assert near["accuracy"] == far["accuracy"] == 0.5
    assert near["quadratic_kappa"] > far["quadratic_kappa"]
    assert near["adjacent_accuracy"] == 1.0 and near["mae_score"] == pytest.approx((2 / 3 + 1 + 2 / 3 + 1) / 4)
    metric = task.metrics["quadratic_kappa"]
    assert metric.statistics([None, None], ["bad", "good"])[:, 0].tolist() == [9.0, 4.0]
    assert float(metric.finish(metric.statistics(["bad"], ["bad"]).sum(axis=0))) == 1.0
    assert float(metric.finish(metric.statistics(["good"], ["bad"]).sum(axis=0))) == 0.0


def test_the_order_of_labels_is_given_or_that_of_numbers() -> None:
    numbers = fit_task(TaskSpec(), "ordinal", [example(str(i), str(i)) for i in (10, 2, 1)])
    assert isinstance(numbers, Ordinal) and numbers.labels == ("1", "2", "10")
    grades = fit_task(TaskSpec(), "ordinal", [example(str(i), text) for i, text in enumerate(("0.5", "-1", "3"))])
    assert isinstance(grades, Ordinal) and grades.labels == ("-1", "0.5", "3")
    for unordered in (("low", "high"), ("1", "high"), ("1", "1.0", "2"), ("nan", "1"), ("inf", "1")):
        with pytest.raises(RecipeError, match="order of the labels"):
            fit_task(TaskSpec(), "ordinal", [example(f"row {label}", label) for label in unordered])
    with pytest.raises(RecipeError) as caught:
        fit_task(TaskSpec(), "ordinal", [example(f"row {i}", ("high", "low", "medium")[i % 3]) for i in range(6)])
    assert "[low, medium, high]" in str(caught.value)
