"""Nested parts of the rows, the curve they give, and what follows from it."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.pipeline.conftest import tone_rows
from tunesmith.data.types import Example, Message
from tunesmith.errors import DataError, RecipeError
from tunesmith.evaluation.types import Evaluation, ScoredAnswer
from tunesmith.pipeline.extrapolation import extrapolate, fit_power_law
from tunesmith.pipeline.learning_curve import curve_of, run_learning_curve, subsets_of
from tunesmith.pipeline.learning_curve_page import render_curve
from tunesmith.pipeline.prepare import read_data
from tunesmith.pipeline.subsets import freeze_subsets, nested_order, nested_subsets
from tunesmith.recipe import load_recipe, parse_recipe
from tunesmith.recipe.schema import Task
from tunesmith.tasks import fit_task


def examples(labels: list[str]) -> list[Example]:
    return [
        Example(f"{i:016x}", (Message("user", f"q{i}"), Message("assistant", label)), label, i + 1, "rows")
        for i, label in enumerate(labels)
    ]


LABELS = st.lists(st.sampled_from("aaaaaaabbbbccd"), min_size=40, max_size=200)


@given(LABELS, st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_subsets_are_nested_stratified_and_do_not_depend_on_the_file(labels, seed):
    rows = examples(labels)
    small, half, whole = nested_subsets(rows, seed=seed, stratified=True)
    ids = [{example.id for example in subset.rows} for subset in (small, half, whole)]
    assert ids[0] < ids[1] < ids[2] == {example.id for example in rows}
    assert [len(one) for one in ids] == [round(share * len(rows)) for share in (0.25, 0.5, 1)]
    total = Counter(labels)
    for subset in (small, half):
        counts = Counter(example.expected for example in subset.rows)
        assert counts.keys() == total.keys()
        for label, count in total.items():
            assert abs(counts[label] - subset.share * count) <= 2
    again = nested_subsets(rows[::-1], seed=seed, stratified=True)
    assert [subset.sha256 for subset in again] == [subset.sha256 for subset in (small, half, whole)]


def test_another_seed_draws_other_rows():
    rows = examples(["a"] * 100)
    first, second = (nested_subsets(rows, seed=seed)[0].sha256 for seed in (0, 1))
    assert first != second
    assert [e.id for e in nested_order(rows, seed=0, stratified=False)] != [e.id for e in rows]


def test_too_few_rows_and_shares_that_are_none():
    with pytest.raises(DataError, match=r"20 training rows are too few[\s\S]*would have 5"):
        nested_subsets(examples(["a"] * 20))
    for shares in ((), (0.5, 0.5), (0.0, 1.0), (0.5, 1.5)):
        with pytest.raises(RecipeError, match="are no shares"):
            nested_subsets(examples(["a"] * 100), shares)


def test_frozen_subsets_stay_what_they_are(tmp_path):
    subsets = nested_subsets(examples(["a"] * 100))
    file = freeze_subsets(tmp_path, subsets, seed=0, test_sha256="t")
    written = file.read_text()
    found = json.loads(written)
    assert [s["rows"] for s in found["subsets"]] == [25, 50, 100]
    # A smaller subset is the beginning of the list.
    assert [row["id"] for row in found["rows"][:25]] == [e.id for e in subsets[0].rows]
    freeze_subsets(tmp_path, subsets, seed=0, test_sha256="t")
    assert file.read_text() == written
    others = nested_subsets(examples(["a"] * 101))
    for changed, test in ((others, "t"), (subsets, "another test")):
        with pytest.raises(DataError, match="other subsets are frozen here"):
            freeze_subsets(tmp_path, changed, seed=0, test_sha256=test)
    assert file.read_text() == written


@given(st.floats(0.06, 1.9), st.floats(0.02, 0.5), st.floats(0, 0.4))
@settings(max_examples=30, deadline=None)
def test_a_power_law_is_found_again(exponent, drop, floor):
    rows = np.array([100.0, 200.0, 400.0])
    errors = floor + drop * (rows / 100) ** -exponent
    a, b, c = fit_power_law(rows, errors[:, None])
    there = c + a * rows**-b
    assert there == pytest.approx(errors, abs=2e-3)
    beyond = (c + a * 800.0**-b)[0]
    assert beyond == pytest.approx(floor + drop * 8.0**-exponent, abs=0.02)


@given(st.lists(st.floats(0, 1), min_size=3, max_size=3))
@settings(max_examples=30, deadline=None)
def test_fits_never_promise_that_more_rows_harm_or_errors_below_zero(errors):
    a, b, c = fit_power_law(np.array([100.0, 200.0, 400.0]), np.array(errors)[:, None])
    assert a[0] >= 0 and c[0] >= 0 and 0.05 <= b[0] <= 2.0001


def answered(rows: list[int], right: float, n: int, seed: int = 1) -> np.ndarray:
    """Draws of accuracies [points, resamples] of n test rows on which later points are right where earlier ones are."""
    rng = np.random.default_rng(seed)
    level = rng.random(n)
    hits = np.array([(level < share) for share in rows_to_shares(rows, right)], dtype=float)
    weights = rng.multinomial(n, np.full(n, 1 / n), size=500)
    return hits @ weights.T / n


def rows_to_shares(rows: list[int], right: float) -> list[float]:
    return [1 - (1 - right) * (rows[0] / r) ** 0.5 for r in rows]


def test_a_rising_curve_says_that_more_helps_and_a_flat_one_that_it_does_not():
    rows = [250, 500, 1000]
    rising = answered(rows, 0.5, 2_000)
    found = extrapolate(rows, list(rising.mean(axis=1)), rising, min_gain=0.02, confidence=0.95)
    twice = found.predictions[0]
    assert found.answer == "more_data_helps" and [p.rows for p in found.predictions] == [2000, 4000]
    truth = rows_to_shares([250, 2000], 0.5)[1]
    assert twice.low <= truth <= twice.high and twice.gain_low > 0.02
    flat = np.repeat(answered([250], 0.7, 2_000), 3, axis=0)
    found = extrapolate(rows, list(flat.mean(axis=1)), flat, min_gain=0.02, confidence=0.95)
    assert found.answer == "more_data_does_not_help" and found.predictions[0].gain == pytest.approx(0, abs=1e-9)
    for same in (0.0, 1.0):  # nothing right, or everything: resamples cannot differ, so they show nothing
        alike = np.full((3, 2_000), same)
        found = extrapolate(rows, [same] * 3, alike, min_gain=0.02, confidence=0.95)
        assert found.answer == "cannot_tell"


def test_few_test_rows_cannot_tell():
    rows = [250, 500, 1000]
    rng = np.random.default_rng(0)
    hits = (rng.random((3, 40)) < np.array([[0.55], [0.6], [0.63]])).astype(float)
    draws = hits @ rng.multinomial(40, np.full(40, 1 / 40), size=500).T / 40
    found = extrapolate(rows, list(hits.mean(axis=1)), draws, min_gain=0.01, confidence=0.95)
    assert found.answer == "cannot_tell"
    assert extrapolate(rows[:2], [0.5, 0.6], draws[:2], min_gain=0.01, confidence=0.95) is None


def evaluation(task, test, right: int) -> Evaluation:
    rows = tuple(
        ScoredAnswer(e.id, "p", "", e.expected, e.expected if i < right else "cold!", {}, 1, 1, True)
        for i, e in enumerate(test)
    )
    return Evaluation("tuned", rows, (), 0.0, 0.0, 0.0)


@pytest.mark.parametrize(("test_rows", "words"), [(20, "20 test rows are too few"), (600, "should help")])
def test_the_curve_of_what_is_measured(test_rows, words):
    rows = examples(["warm", "cold"] * 400)
    test = examples(["warm", "cold"] * (test_rows // 2))
    recipe = parse_recipe({"data": "x.csv", "goal": {"metric": "accuracy"}, "verdict": {"min_gain": 0.01}})
    task = fit_task(Task(), "classification", rows)
    subsets = nested_subsets(rows, stratified=True)
    right = {200: 0.3, 400: 0.5, 800: 0.65}
    curve = curve_of(subsets, lambda s: evaluation(task, test, int(right[len(s.rows)] * test_rows)), task, recipe)
    assert [p.value for p in curve.points] == pytest.approx([0.3, 0.5, 0.65])
    assert all(p.low < p.value < p.high for p in curve.points)
    assert words in curve.conclusion
    assert (curve.extrapolation is None) == (test_rows == 20)
    page = render_curve(curve, "<x>")
    assert "&lt;x&gt;" in page and words in page and page.count('class="point tuned"') == 3
    assert ("loss-validation" in page.split("</style>")[1]) == (test_rows != 20)
    json.dumps(curve.to_dict(), allow_nan=False)


SHORT = ("train.max_steps=3", "train.evaluations=0", "evaluate.max_new_tokens=4", "evaluate.bootstrap=100")


def test_training_on_each_part_of_a_small_recipe_and_going_on(project, monkeypatch):
    monkeypatch.setenv("TUNESMITH_CACHE", str(project / "cache"))
    recipe = load_recipe(project / "recipe.yaml", list(SHORT))
    rows = read_data(recipe)
    told: list[dict] = []
    curve = run_learning_curve(recipe, rows, project / "curve", told.append)
    sizes = [len(subset.rows) for subset in subsets_of(recipe, rows)]
    assert [p.rows for p in curve.points] == sizes and sizes[-1] == len(rows.splits.train)
    assert curve.test_rows == 40 and curve.conclusion
    for size in sizes:
        manifest = json.loads((project / "curve" / f"rows-{size}" / "training.json").read_text())
        assert manifest["steps"] == 3
    assert json.loads((project / "curve" / "learning_curve.json").read_text())["conclusion"] == curve.conclusion
    assert (project / "curve" / "learning_curve.html").is_file()
    told.clear()
    again = run_learning_curve(recipe, rows, project / "curve", told.append)
    assert again == curve and not [e for e in told if e["kind"] == "train_step"]


def test_labels_in_an_order_are_stratified_as_others_are(project):
    recipe = load_recipe(project / "recipe.yaml")
    rows = read_data(recipe)
    drawn = {
        kind: [subset.sha256 for subset in subsets_of(recipe, replace(rows, task_type=kind))]
        for kind in ("classification", "ordinal", "generation")
    }
    assert drawn["ordinal"] == drawn["classification"] != drawn["generation"]


def test_the_command_freezes_the_parts(project, tunesmith):
    said = tunesmith("data", "subsets", "recipe.yaml", "--out", "parts", "--json")
    assert said.code == 0, said.err
    assert [s["share"] for s in said.json["subsets"]] == [0.25, 0.5, 1.0] and said.json["curve"] is None
    assert json.loads((project / "parts" / "subsets.json").read_text())["subsets"] == said.json["subsets"]
    assert tunesmith("data", "subsets", "recipe.yaml", "--out", "parts").code == 0
    changed = tunesmith("data", "subsets", "recipe.yaml", "--out", "parts", "--set", "data.split.seed=3", "--json")
    assert changed.code == 3 and "frozen" in changed.error["what"]
    assert len(tone_rows()) == 100
