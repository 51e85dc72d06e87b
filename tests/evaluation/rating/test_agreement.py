"""Coefficients of agreement against other implementations, published examples and simulation."""

from __future__ import annotations

import numpy as np
import pytest

from tunesmith.errors import DataError
from tunesmith.evaluation.rating import (
    chance_p_value,
    cohen_kappa,
    fleiss_kappa,
    krippendorff_alpha,
)

LABELS = ("a", "b", "tie", "both_bad")


def two_raters(n: int, copied: float, seed: int) -> tuple[list[str], list[str]]:
    """The second copies the first with this probability, else draws anew."""
    generator = np.random.default_rng(seed)
    first = generator.choice(LABELS, n, p=(0.4, 0.3, 0.2, 0.1))
    other = generator.choice(LABELS, n, p=(0.25, 0.25, 0.3, 0.2))
    return list(first), list(np.where(generator.random(n) < copied, first, other))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("copied", [0.0, 0.4, 0.9])
def test_cohens_kappa_and_its_interval_are_those_of_statsmodels(seed, copied):
    inter_rater = pytest.importorskip("statsmodels.stats.inter_rater")
    first, second = two_raters(60, copied, seed)
    table = np.zeros((4, 4))
    for one, other in zip(first, second, strict=True):
        table[LABELS.index(one), LABELS.index(other)] += 1
    theirs = inter_rater.cohens_kappa(table)
    ours = cohen_kappa(first, second)
    assert ours.value == pytest.approx(theirs.kappa, abs=1e-12)
    assert (ours.low, ours.high) == pytest.approx((theirs.kappa_low, min(theirs.kappa_upp, 1.0)), abs=1e-9)
    assert ours.n == 60 and ours.raters == 2
    assert ours.observed == pytest.approx(np.trace(table) / 60)


def test_complete_agreement_on_few_rows_is_not_certain():
    few = cohen_kappa(["a", "b"] * 5, ["a", "b"] * 5)
    many = cohen_kappa(["a", "b"] * 100, ["a", "b"] * 100)
    assert few.value == many.value == 1.0 and few.high == many.high == 1.0
    assert few.low < 0.6 < 0.9 < many.low < 1.0


def test_one_label_alone_says_nothing():
    assert cohen_kappa(["a"] * 9, ["a"] * 9).value is None
    assert krippendorff_alpha([{"x": "a", "y": "a"}] * 9).value is None
    assert fleiss_kappa(np.array([[3.0, 0.0]] * 9)).value is None
    assert cohen_kappa(["a"] * 9, ["a"] * 9).observed == 1.0
    one_sided = cohen_kappa(["a"] * 8 + ["b"] * 8, ["a"] * 16)  # the second never says anything else
    assert one_sided.value == pytest.approx(0.0)


@pytest.mark.parametrize(("first", "second"), [([], []), (["a"], ["a", "b"])])
def test_lists_that_do_not_belong_together_are_refused(first, second):
    with pytest.raises(DataError):
        cohen_kappa(first, second)
    with pytest.raises(DataError):
        chance_p_value(first, second)


def test_kappas_interval_covers():
    """Over drawn samples, the interval holds the true value about as often as it says."""
    generator = np.random.default_rng(3)
    joint = np.array([[0.30, 0.08, 0.04], [0.06, 0.25, 0.04], [0.05, 0.06, 0.12]])
    expected = joint.sum(axis=1) @ joint.sum(axis=0)
    true = (np.trace(joint) - expected) / (1 - expected)
    held = 0
    for _ in range(200):
        cells = generator.choice(9, 150, p=joint.ravel())
        found = cohen_kappa([LABELS[c // 3] for c in cells], [LABELS[c % 3] for c in cells])
        held += found.low <= true <= found.high
    assert 0.91 <= held / 200 <= 0.985


def test_judging_by_chance_is_hardly_ever_taken_for_agreement():
    """Under independence p is uniform: at most about 2.5 % under 0.025, whatever the frequencies of labels are."""
    generator = np.random.default_rng(8)
    under = 0
    for seed in range(80):
        first = generator.choice(LABELS[:3], 40, p=(0.7, 0.2, 0.1))
        second = generator.choice(LABELS[:3], 40, p=(0.8, 0.1, 0.1))
        under += chance_p_value(list(first), list(second), seed=seed) <= 0.025
    assert under <= 7  # 2 expected; more than 7 has a probability under 0.001
    first, second = two_raters(60, 0.6, 1)
    assert chance_p_value(first, second) < 0.001
    assert chance_p_value(["a"] * 30 + ["b"] * 10, ["a"] * 40) == 1.0


def test_p_value_is_that_of_fishers_test_for_two_labels():
    """With two labels, permuting is drawing from the hypergeometric distribution."""
    from scipy.stats import fisher_exact

    first = ["a"] * 12 + ["b"] * 10
    second = ["a"] * 9 + ["b"] * 3 + ["a"] * 3 + ["b"] * 7
    exact = fisher_exact([[9, 3], [3, 7]], alternative="greater").pvalue
    assert chance_p_value(first, second) == pytest.approx(exact, abs=0.005)


@pytest.mark.parametrize("seed", range(3))
def test_fleiss_kappa_is_that_of_statsmodels(seed):
    inter_rater = pytest.importorskip("statsmodels.stats.inter_rater")
    generator = np.random.default_rng(seed)
    leaning = generator.dirichlet([0.6] * 3, size=25)
    counts = np.array([generator.multinomial(4, p) for p in leaning]).astype(float)
    found = fleiss_kappa(counts)
    assert found.value == pytest.approx(inter_rater.fleiss_kappa(counts, method="fleiss"), abs=1e-12)
    assert found.low < found.value < found.high and found.raters == 4 and found.n == 25


def test_fleiss_wants_as_many_ratings_for_every_row():
    with pytest.raises(DataError):
        fleiss_kappa(np.array([[2.0, 1.0], [1.0, 1.0]]))
    with pytest.raises(DataError):
        fleiss_kappa(np.array([[1.0, 0.0]]))


# Krippendorff 2011, section C: four observers, twelve units, five values, missing ratings; nominal alpha is 0.743.
PUBLISHED = (
    "1 2 3 3 2 1 4 1 2 . . .",
    "1 2 3 3 2 2 4 1 2 5 . 3",
    ". 3 3 3 2 3 4 2 2 5 1 .",
    "1 2 3 3 2 4 4 1 2 5 1 .",
)


def test_alpha_is_that_of_the_published_example():
    lines = [line.split() for line in PUBLISHED]
    rows = [{str(who): line[unit] for who, line in enumerate(lines) if line[unit] != "."} for unit in range(12)]
    found = krippendorff_alpha(rows)
    assert found.value == pytest.approx(0.743, abs=5e-4)
    assert (found.n, found.raters) == (11, 4)  # the last unit has one rating and says nothing
    assert found.low < 0.743 < found.high


@pytest.mark.parametrize("seed", range(4))
def test_alpha_is_disagreement_over_all_pairs_of_ratings(seed):
    """Against the definition, written out pair by pair."""
    generator = np.random.default_rng(seed)
    rows = []
    for _ in range(15):
        truth = generator.choice(LABELS)
        raters = generator.choice(["x", "y", "z", "w"], generator.integers(1, 5), replace=False)
        rows.append({str(r): str(truth if generator.random() < 0.6 else generator.choice(LABELS)) for r in raters})
    kept = [list(row.values()) for row in rows if len(row) > 1]
    values = [value for row in kept for value in row]
    n = len(values)
    seen = sum(
        (row[i] != row[j]) / (len(row) - 1) for row in kept for i in range(len(row)) for j in range(len(row)) if i != j
    )
    possible = sum(values[i] != values[j] for i in range(n) for j in range(n) if i != j)
    assert krippendorff_alpha(rows).value == pytest.approx(1 - (seen / n) / (possible / (n * (n - 1))), abs=1e-12)


def test_alpha_of_two_raters_is_scotts_pi_with_its_correction():
    first, second = two_raters(50, 0.5, 2)
    shares = np.array([(first + second).count(label) / 100 for label in LABELS])
    observed = np.mean([one == other for one, other in zip(first, second, strict=True)])
    pi = (observed - shares @ shares) / (1 - shares @ shares)
    rows = [{"x": one, "y": other} for one, other in zip(first, second, strict=True)]
    assert krippendorff_alpha(rows).value == pytest.approx(pi + (1 - pi) / 100, abs=1e-12)
