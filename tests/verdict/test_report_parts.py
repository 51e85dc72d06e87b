"""What the sections of the report say, from what was measured."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from tests.verdict import report_samples
from tests.verdict.cases import cost
from tunesmith.evaluation.calibration import Calibration, ReliabilityBin
from tunesmith.evaluation.types import PairedDifference
from tunesmith.recipe.schema import Goal
from tunesmith.verdict import report_comparison, report_costs, report_training
from tunesmith.verdict.longer_prompts import longer_prompts_sentences
from tunesmith.verdict.report_calibration import reliabilities
from tunesmith.verdict.report_comparison import note_text
from tunesmith.verdict.report_data import ReportData
from tunesmith.verdict.report_mistakes import matrix_of
from tunesmith.verdict.report_preferences import preferences
from tunesmith.verdict.report_slices import slices
from tunesmith.verdict.report_subject import subject_of
from tunesmith.verdict.types import Forgetting


@pytest.fixture(scope="module")
def report() -> ReportData:
    return report_samples.evidence(240)


# Whom it is about.


def test_it_is_about_tuned_and_its_best_alternative(report: ReportData) -> None:
    subject = subject_of(report)
    assert (subject.name, subject.other_name, subject.tuned) == ("tuned", report.verdict.best_alternative, True)
    assert [subject.role(name) for name in ("tuned", "tuned_scored", str(subject.other_name), "zero_shot")] == [
        "tuned",
        "tuned",
        "best",
        "other",
    ]


def test_without_tuned_it_is_about_what_was_chosen() -> None:
    report = report_samples.stopped_before_training()
    subject = subject_of(report)
    assert (subject.name, subject.other_name, subject.tuned) == ("few_shot", "retrieval", False)
    undecided = replace(report, verdict=replace(report.verdict, candidate=None, best_alternative=None))
    assert subject_of(undecided).name == "few_shot"  # the highest value
    assert subject_of(replace(report, evaluations=())).evaluation is None


# Comparison.


def test_ways_of_answering_stand_side_by_side(report: ReportData) -> None:
    found = {one.label: one.ways for one in report_comparison.ways(report, subject_of(report))}
    assert set(found) == {"tuned", "few-shot"}
    assert [way.name for way in found["few-shot"]][1:] == ["under the grammar of the answer", "every label scored"]
    assert [way.unreadable for way in found["few-shot"]][1:] == [0, 0]
    assert found["few-shot"][0].unreadable > 0


def test_the_first_way_is_named_by_its_notes(report: ReportData) -> None:
    noted = tuple(
        replace(e, notes={**e.notes, "decoding": "free"}) if e.candidate == "tuned" else e for e in report.evaluations
    )
    found = report_comparison.ways(replace(report, evaluations=noted), subject_of(report))
    assert [one.ways[0].name for one in found if one.label == "tuned"] == ["free text"]


def test_ways_of_tuned_are_no_alternatives_in_the_chart(report: ReportData) -> None:
    chart = str(report_comparison.difference_chart(report, subject_of(report)))
    assert "over few-shot (scored)" in chart
    assert "over tuned" not in chart


def test_the_spread_over_trainings_says_where_it_comes_from(report: ReportData) -> None:
    spread = report_comparison.seed_spread(report, subject_of(report))
    assert spread is not None and report.seeds is not None
    share = re.search(r"it, ([\d.]+) % comes from the training", spread.sentence)
    assert share is not None
    variance = report.seeds.row_error**2 + report.seeds.seed_error**2
    assert float(share.group(1)) == pytest.approx(100 * report.seeds.seed_error**2 / variance, abs=0.06)
    assert "one training, rows alone" in str(spread.chart)
    assert report_comparison.seed_spread(replace(report, seeds=None), subject_of(report)) is None


# Slices.


def test_slices_are_the_worst_first_and_small_ones_are_counted(report: ReportData) -> None:
    found = slices(report, subject_of(report))
    assert found is not None and found.compared
    differences = [line.difference for line in found.lines if line.difference is not None]
    assert len(differences) == len(report_samples.TONES)
    assert differences == sorted(differences)
    assert "1 slice of fewer than 10 rows left out" in found.sentence
    for line in found.lines:
        assert line.other is not None and line.difference is not None
        assert line.score - line.other == pytest.approx(line.difference)
        assert 0 <= line.start <= 100 and line.start + line.width <= 100.001
    assert max(line.width for line in found.lines) == 50


def test_a_slice_that_is_surely_worse_is_named(report: ReportData) -> None:
    tuned = next(e for e in report.evaluations if e.candidate == "tuned")
    spoiled = replace(
        tuned,
        rows=tuple(
            replace(row, scores={**row.scores, "accuracy": 0.0}) if row.expected == "formal" else row
            for row in tuned.rows
        ),
    )
    changed = replace(report, evaluations=tuple(spoiled if e is tuned else e for e in report.evaluations))
    found = slices(changed, subject_of(changed))
    assert found is not None
    assert "surely worse against few-shot (scored) on label formal." in found.sentence
    assert (found.lines[0].name, found.lines[0].surely) == ("label formal", "worse")
    # The same rows of two conversations only: as few as that show nothing, as in the veto.
    together = {row.id: f"group {number % 2}" for number, row in enumerate(tuned.rows)}
    grouped = replace(changed, clusters=together)
    found = slices(grouped, subject_of(grouped))
    assert found is not None and not any(line.surely for line in found.lines)


def test_many_slices_are_folded_but_none_is_lost() -> None:
    report = report_samples.classification(1200, tuple(f"label{i:02d}" for i in range(60)), name="many")
    rows = next(e.rows for e in report.evaluations if e.candidate == "tuned")
    by_label = {f"label {label}": [row.id for row in rows if row.expected == label] for label in report.labels}
    found = slices(replace(report, slices=by_label), subject_of(report))
    assert found is not None
    assert (len(found.lines), len(found.more)) == (24, 36)
    assert {line.name for line in (*found.lines, *found.more)} == set(by_label)


def test_a_single_candidate_has_slices_without_differences(report: ReportData) -> None:
    alone = replace(
        report,
        evaluations=tuple(e for e in report.evaluations if e.candidate == "tuned"),
        verdict=replace(report.verdict, best_alternative=None),
    )
    found = slices(alone, subject_of(alone))
    assert found is not None and not found.compared
    assert [line.score for line in found.lines] == sorted(line.score for line in found.lines)
    assert slices(replace(report, slices={}), subject_of(report)) is None
    few = replace(report, slices={"input rare": report.slices["input rare"]})
    assert slices(few, subject_of(report)) is None


# Calibration, preferences, forgetting.


def reliability(ece: float, scaled: float | None, **more: Any) -> str:
    bins = (ReliabilityBin(0.0, 0.9, 0.85, 0.6, 50), ReliabilityBin(0.9, 1.0, 0.95, 0.9, 50))
    after = None if scaled is None else Calibration("tuned_scored", 100, scaled, 0.2, 0.4, bins)
    temperature = None if scaled is None else 1.4
    one = Calibration("tuned_scored", 100, ece, 0.3, 0.5, bins, temperature, after, fitted_on=80, **more)
    report = replace(report_samples.stopped_before_training(), calibration=(one,))
    return reliabilities(report, subject_of(report))[0].sentence


def test_confidence_is_told_in_words() -> None:
    sentence = reliability(0.15, 0.05)
    assert "90.0 % sure on average and right in 75.0 %: too sure of itself by 15.0 points" in sentence
    assert "temperature of 1.40, fitted on 80 validation rows, brings the calibration error down to 5.0 %" in sentence
    assert "does not help: the calibration error is then 20.0 %" in reliability(0.15, 0.2)
    assert "No temperature was fitted" in reliability(0.15, None)
    assert "3 rows without probabilities" in reliability(0.15, None, left_out=3)


def test_measures_stand_before_and_after_temperature(report: ReportData) -> None:
    found = reliabilities(report, subject_of(report))[0]
    rows = {name: (before, after) for name, before, after in found.rows}
    calibration = found.calibration
    assert calibration.scaled is not None
    assert rows["Brier score"] == (f"{calibration.brier:.3f}", f"{calibration.scaled.brier:.3f}")
    assert rows["calibration error (ECE)"][0] == f"{100 * calibration.ece:.1f} %"
    assert rows["the same by chance, were it calibrated"][0] == f"{100 * calibration.ece_by_chance:.1f} %"


def test_the_subjects_reliability_comes_first(report: ReportData) -> None:
    assert [one.title for one in reliabilities(report, subject_of(report))] == ["Tuned (scored)", "Few-shot (scored)"]


def test_preferences_say_whether_they_count(report: ReportData) -> None:
    found = preferences(report)
    assert found is not None and found.chart is not None
    people, judge = found.lines
    assert (people.source, people.counts, people.agreement) == (
        "People",
        True,
        "Krippendorff's alpha 0.71 (0.52 to 0.86)",
    )
    assert (judge.source, judge.counts, judge.agreement) == ("A judge", False, "")
    nothing = replace(report, preferences=(replace(report.preferences[0], win_rate=None),))
    found = preferences(nothing)
    assert found is not None and found.chart is None and found.lines[0].rate is None
    assert preferences(replace(report, preferences=())) is None


@pytest.mark.parametrize(
    ("forgetting", "said"),
    [
        (Forgetting(40.0, 44.0), "rose by 10.0 %. General instructions were not asked."),
        (Forgetting(40.0, 40.001), "is what it was."),
        (Forgetting(40.0, 38.0), "fell by 5.0 %."),
        (Forgetting(40.0, 41.0, None, 30, 0.0, 0.0), "The base followed none of 30 general instructions"),
        (
            Forgetting(40.0, 41.0, PairedDifference("tuned", "base", "m", -0.2, -0.3, -0.1, 0.01, 40), 40, 0.7, 0.5),
            "it has lost: -20.0 points (95 % CI -30.0 to -10.0)",
        ),
    ],
)
def test_what_was_forgotten(report: ReportData, forgetting: Forgetting, said: str) -> None:
    found = report_training.forgotten(replace(report, forgetting=forgetting))
    assert found is not None
    assert said in found.sentence
    assert (found.chart is not None) == (forgetting.skill is not None)


# Training.


def test_the_three_parts_stand_side_by_side(report: ReportData) -> None:
    found = report_training.parts(report, subject_of(report))
    assert found is not None
    rows = {name: rest for name, *rest in found.rows}
    assert found.step == 90
    assert rows["answer tokens right"] == ["97.0 %", "80.0 %", ""]
    value = next(v for v in report.comparison if (v.candidate, v.metric) == ("tuned", "accuracy"))
    assert rows["accuracy"][2].startswith(f"{100 * value.value:.1f} %")
    assert "3.3 times" in found.sentence and "by heart" in found.sentence


def test_parts_without_a_probe_take_the_steps_around(report: ReportData) -> None:
    bare = tuple({k: v for k, v in event.items() if k != "probe"} for event in report.history)
    found = report_training.parts(replace(report, history=bare), subject_of(report))
    assert found is not None
    assert "(of the steps around)" in found.rows[0][1]
    assert found.sentence == ""
    assert report_training.parts(replace(report, history=()), subject_of(report)) is None


def test_facts_are_written_for_people() -> None:
    facts = dict(report_training.training_facts({"tokens": 12345, "seconds": 200.0, "stopped_early": False, "x": None}))
    assert facts == {"tokens": "12,345", "time": "3.3 min", "stopped early": "no"}


def test_resources_are_means_and_highest_values(report: ReportData) -> None:
    found = {use.name: use for use in report_training.resources(report)}
    assert found["memory"].highest == "1.12 GiB"
    assert found["tokens per second"].mean == "2,800"
    assert "processor temperature" not in found
    assert len(report_training.resource_curves(report)) == 2


# Cost and mistakes.


def test_the_break_even_is_marked_where_it_is_in_sight(report: ReportData) -> None:
    costs = (cost("tuned", 1.0, 240.0), cost(str(report.verdict.best_alternative), 13.0), cost("zero_shot", 5.0))
    near = replace(report, costs=costs, goal=Goal(requests_per_month=10_000))
    chart = str(report_costs.cost_curve(near, subject_of(near)))
    assert "break-even with few-shot (scored), 20,000 requests" in chart
    far = replace(near, goal=Goal(requests_per_month=10))
    assert "break-even" not in str(report_costs.cost_curve(far, subject_of(far)))


def test_a_folded_matrix_counts_every_row_once() -> None:
    report = report_samples.banking()
    evaluation = subject_of(report).evaluation
    assert evaluation is not None
    matrix = matrix_of(report, evaluation)
    assert matrix.folded == 57 and matrix.label_count == 77
    assert len(matrix.labels) == len(matrix.counts) == 21
    assert all(len(line) == len(matrix.columns) == 22 for line in matrix.counts)
    assert [sum(line) for line in matrix.counts] == matrix.totals
    assert sum(matrix.totals) == len(evaluation.rows)
    assert min(min(line) for line in matrix.counts) >= 0


def test_notes_say_what_occurred_and_nothing_twice() -> None:
    first = {"k": 2, "decoding": "free", "instruction": "Name it.", "unanswered_rows": 0, "unanswerable_rows": 0,
             "k_used": {"mean": 1.5, "min": 1, "max": 2}, "model_changed": "a (3), b (4)"}  # fmt: skip
    assert note_text(first, {}) == "k 2, instruction Name it., really shown 1.5 on average, model changed a (3), b (4)"
    assert note_text({**first, "decoding": "grammar", "unanswered_rows": 3}, first) == "unanswered rows 3"
    assert note_text({"k": 0, "unanswerable_rows": 4, "fitted": False}, {}) == "4 rows did not fit, fitted False"


def test_passages_in_prompts_have_their_price_too() -> None:
    costs = {"zero_shot": cost("zero_shot", 1.0), "documents": replace(cost("documents", 3.0), prompt_tokens=40.0)}
    (sentence,) = longer_prompts_sentences(costs, 1000, "EUR")
    assert sentence.startswith("The passages in the prompts of documents make them 4.0 times as long (30 tokens more)")
    assert "adds 2.00 EUR to 1,000 requests and 2.00 EUR to a month" in sentence
