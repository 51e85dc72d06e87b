"""The test rows that lie in the report, and what is left out of them where there are too many."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.verdict import report_samples
from tunesmith.verdict.report_data import ReportData
from tunesmith.verdict.report_rows import Group, groups_of, rows_of
from tunesmith.verdict.report_subject import subject_of


@pytest.fixture(scope="module")
def report() -> ReportData:
    return report_samples.classification(160)


def packed(report: ReportData, groups: list[Group] | None = None, **more: Any) -> tuple[dict[str, Any], str]:
    rows = rows_of(report, subject_of(report), groups or [], **more)
    assert rows is not None
    return json.loads(rows.script), rows.sentence


def test_every_row_holds_what_every_candidate_said(report: ReportData) -> None:
    data, sentence = packed(report)
    assert sentence == "All 160 test rows are here."
    texts = data["texts"]
    by_name = {evaluation.candidate: evaluation for evaluation in report.evaluations}
    main = by_name["tuned"]
    names = [name.replace("few-shot", "few_shot").replace("zero-shot", "zero_shot") for name in data["candidates"]]
    assert names[:2] == ["tuned", report.verdict.best_alternative]
    assert len(data["rows"]) == data["total"] == 160
    for at, (number, row_id, question, expected, said) in enumerate(data["rows"]):
        row = main.rows[at]
        assert (number, texts[row_id], texts[expected]) == (at + 1, row.id, row.expected)
        assert texts[question] in row.prompt
        assert len(said) == len(names)
        for name, (answer, score, flags, *_) in zip(names, said, strict=True):
            if name in by_name:
                theirs = by_name[name].rows[at]
                assert texts[answer] == theirs.answer
                assert score == theirs.scores["accuracy"]
                assert bool(flags & 1) == (theirs.parsed is None)
                assert bool(flags & 2) == (not theirs.stopped)


def test_scored_answers_say_how_sure_they_are() -> None:
    report = report_samples.evidence(160)
    data, _ = packed(report)
    at = data["candidates"].index("tuned (scored)")
    row = next(e for e in report.evaluations if e.candidate == "tuned_scored").rows[0]
    assert row.probabilities is not None
    assert data["rows"][0][4][at][3] == round(max(row.probabilities.values()), 3)
    assert len(data["rows"][0][4][0]) == 3  # of free answers nothing is known


def test_texts_are_kept_once(report: ReportData) -> None:
    data, _ = packed(report)
    assert len(set(data["texts"])) == len(data["texts"])


def test_what_does_not_fit_is_left_out_and_counted(report: ReportData) -> None:
    main = subject_of(report).evaluation
    assert main is not None
    wrong = {row.id for row in main.rows if row.scores["accuracy"] < 1}
    all_of_them, _ = packed(report)
    fitting = len(json.dumps(all_of_them)) // 3
    data, sentence = packed(report, most_bytes=fitting)
    here = {data["texts"][row[1]] for row in data["rows"]}
    assert 0 < len(here) < 160
    assert wrong <= here  # wrong ones first
    assert f"{len(here)} of 160 test rows are here" in sentence
    assert f"{160 - len(here)} are left out" in sentence
    assert [row[0] for row in data["rows"]] == sorted(row[0] for row in data["rows"])
    assert packed(report, most_bytes=fitting)[0] == data  # the same rows every time


def test_long_texts_are_shortened_before_rows_are_left_out(report: ReportData) -> None:
    main = subject_of(report).evaluation
    assert main is not None
    rows = tuple(replace(row, answer=f"{row.id} " + "word " * 1500) for row in main.rows)
    long = replace(report, evaluations=(replace(main, rows=rows), *(e for e in report.evaluations if e is not main)))
    whole, _ = packed(long)
    assert any("more characters" in text for text in whole["texts"])
    less, sentence = packed(long, most_bytes=300_000)
    assert len(less["rows"]) == 160
    assert max(map(len, less["texts"])) < max(map(len, whole["texts"]))
    assert "left out" not in sentence or "candidates" in sentence


def test_a_candidate_that_skipped_a_row_says_nothing_there(report: ReportData) -> None:
    first, *rest = report.evaluations
    fewer = replace(report, evaluations=(replace(first, rows=first.rows[5:]), *rest))
    data, _ = packed(fewer)
    place = data["candidates"].index("zero-shot")
    assert [row[4][place] for row in data["rows"][:5]] == [None] * 5
    assert data["rows"][5][4][place] is not None


def test_a_score_that_is_no_number_does_not_spoil_the_page(report: ReportData) -> None:
    other = next(e for e in report.evaluations if e.candidate == "zero_shot")
    rows = (replace(other.rows[0], scores={"accuracy": float("nan"), "macro_f1": 0.0}), *other.rows[1:])
    kept = tuple(replace(e, rows=rows) if e is other else e for e in report.evaluations)
    data, _ = packed(replace(report, evaluations=kept))
    place = data["candidates"].index("zero-shot")
    assert data["rows"][0][4][place][1] is None


def test_a_row_whose_own_score_is_no_number_is_not_left_out(report: ReportData) -> None:
    main = next(e for e in report.evaluations if e.candidate == "tuned")
    rows = (replace(main.rows[0], scores={"accuracy": float("nan"), "macro_f1": 0.0}), *main.rows[1:])
    kept = tuple(replace(e, rows=rows) if e is main else e for e in report.evaluations)
    data, sentence = packed(replace(report, evaluations=kept))
    assert sentence == "All 160 test rows are here." and data["rows"][0][4][0][1] is None


def test_groups_point_to_their_rows(report: ReportData) -> None:
    main = subject_of(report).evaluation
    assert main is not None
    ids = [row.id for row in main.rows]
    groups = [Group("Slices", "two", [ids[3], ids[7], "gone"]), Group("Slices", "none", ["gone"])]
    rows = rows_of(report, subject_of(report), groups)
    assert rows is not None
    assert json.loads(rows.script)["groups"] == [["Slices", "two", [3, 7], 3]]
    assert rows.places == {("Slices", "two"): 0}


def test_confused_labels_are_a_group_of_the_rows_that_were() -> None:
    report = report_samples.classification(160)
    main = subject_of(report).evaluation
    assert main is not None
    wrong = next(row for row in main.rows if row.scores["accuracy"] < 1 and row.parsed is not None)
    (group,) = groups_of(report, subject_of(report), [(wrong.expected, str(wrong.parsed), 1, 20)], (), ())
    chosen = [row for row in main.rows if row.id in group.ids]
    assert wrong in chosen
    assert {(row.expected, row.parsed) for row in chosen} == {(wrong.expected, wrong.parsed)}


@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=40))
def test_no_text_ends_the_element_it_lies_in(report: ReportData, text: str) -> None:
    main = subject_of(report).evaluation
    assert main is not None
    nasty = f"</script><!--<script>\u2028{text}"
    changed = replace(report, evaluations=(replace(main, rows=(replace(main.rows[0], answer=nasty),)),))
    rows = rows_of(changed, subject_of(changed), [])
    assert rows is not None
    assert not set("<>&\u2028\u2029") & set(rows.script)
    assert nasty in json.loads(rows.script)["texts"]


def test_nothing_was_evaluated() -> None:
    report = replace(report_samples.stopped_before_training(), evaluations=())
    assert rows_of(report, subject_of(report), []) is None
