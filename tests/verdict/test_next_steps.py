"""What to try next: each step only where it was measured, the largest gain first, and never a made-up number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from tests.verdict.report_samples import classification, extraction, generation
from tunesmith.data.types import Finding
from tunesmith.evaluation.types import Evaluation, MetricValue, ScoredAnswer
from tunesmith.recipe.schema import Goal
from tunesmith.verdict.more_rows import MoreRows
from tunesmith.verdict.next_steps import NextStep, next_steps
from tunesmith.verdict.report_data import ReportData


def codes(steps: Sequence[NextStep]) -> list[str]:
    return [step.code for step in steps]


def step(data: ReportData, code: str) -> NextStep:
    return next(one for one in next_steps(data, limit=20) if one.code == code)


def tuned(data: ReportData) -> Evaluation:
    return next(e for e in data.evaluations if e.candidate == "tuned")


def with_tuned(data: ReportData, rows: Sequence[ScoredAnswer], **more: Any) -> ReportData:
    own = replace(tuned(data), rows=tuple(rows))
    others = tuple(e for e in data.evaluations if e.candidate != "tuned")
    return replace(data, evaluations=(*others, own), **more)


def plain(n: int = 100, right: int = 80) -> ReportData:
    """A run whose tuned model has `right` of `n` rows right, and nothing else to say."""
    data = classification(n=n, labels=("a", "b", "c", "d"))
    rows = [
        replace(row, answer=row.expected if i < right else _other(row.expected),
                parsed=row.expected if i < right else _other(row.expected), stopped=True,
                scores={name: float(i < right) for name in row.scores})
        for i, row in enumerate(tuned(data).rows)
    ]  # fmt: skip
    return with_tuned(data, rows, findings=(), history=(), slices={})


def _other(label: str) -> str:
    return {"a": "b", "b": "c", "c": "d", "d": "a"}[label]


def _changed(data: ReportData, count: int, **more: Any) -> ReportData:
    """The last `count` rows, which are wrong, otherwise."""
    rows = list(tuned(data).rows)
    return with_tuned(data, [*rows[:-count], *(replace(row, **more) for row in rows[-count:])])


def test_unreadable_and_cut_answers_gain_at_most_what_they_lose() -> None:
    data = _changed(plain(), 10, parsed=None, answer="well …")
    found = step(data, "decode_by_grammar")
    # 80 of the 90 others are right: as good as those, ten rows bring ten times 8/9.
    assert found.gain == pytest.approx(0.1 * 80 / 90) and found.bound == "at_most"
    assert found.expected == "at most +8.9 points" and found.settings == {"evaluate.decoding": ["grammar", "free"]}
    assert "10 of 100 answers could not be read" in found.reason
    cut = _changed(plain(), 10, parsed=None, stopped=False)
    assert "longer_answers" in codes(next_steps(cut)) and "decode_by_grammar" not in codes(next_steps(cut))
    text = with_tuned(generation(), [replace(r, parsed=None) for r in tuned(generation()).rows[:5]])
    assert "decode_by_grammar" not in codes(next_steps(text, limit=20))


def test_a_grammar_is_not_proposed_where_it_was_tried_and_a_better_way_is() -> None:
    data = _changed(plain(), 10, parsed=None, answer="well …")
    own = tuned(data)
    value = next(m.value for m in own.metrics if m.metric == "accuracy")
    better = MetricValue("tuned_grammar", "accuracy", value + 0.05, 0.0, 1.0, 100)
    mended = [replace(row, scores=dict.fromkeys(row.scores, 1.0)) for row in own.rows[-5:]]
    way = replace(own, candidate="tuned_grammar", metrics=(better,), rows=(*own.rows[:-5], *mended))
    both = replace(data, evaluations=(*data.evaluations, way))
    found = next_steps(both, limit=20)
    assert "decode_by_grammar" not in codes(found) and "teach_the_form" in codes(found)
    assert step(both, "better_way").gain == pytest.approx(0.05)
    assert step(both, "better_way").bound == "about"
    free = replace(way, candidate="tuned_free", metrics=(replace(better, candidate="tuned_free"),))
    data_of_grammar = replace(data, evaluations=(*data.evaluations, free))
    assert step(data_of_grammar, "better_way").settings == {"evaluate.decoding": ["free"]}
    by_chance = replace(way, rows=(*own.rows[:-3], *mended[-3:]))  # three rows of a hundred: 1.8 standard errors
    assert "better_way" not in codes(next_steps(replace(data, evaluations=(*data.evaluations, by_chance)), limit=20))
    exported = replace(way, candidate="tuned_onnx", metrics=(replace(better, candidate="tuned_onnx"),))
    assert "better_way" not in codes(next_steps(replace(data, evaluations=(*data.evaluations, exported)), limit=20))
    worse = replace(way, rows=own.rows, metrics=(replace(better, value=value - 0.05),))
    assert "better_way" not in codes(next_steps(replace(data, evaluations=(*data.evaluations, worse)), limit=20))


def test_more_rows_gain_what_the_learning_curve_says() -> None:
    data = plain()
    assert step(data, "measure_learning_curve").gain is None
    known = replace(data, more_rows=MoreRows(672, 0.042, 0.01, 0.07))
    found = step(known, "more_rows")
    assert (found.gain, found.bound, found.expected) == (0.042, "about", "about +4.2 points")
    assert "672" in found.action and "336" in found.action and "between 1.0 and 7.0 points" in found.reason
    assert "measure_learning_curve" not in codes(next_steps(known, limit=20))
    flat = replace(data, more_rows=MoreRows(672, 0.0001, -0.01, 0.01))
    assert not {"more_rows", "measure_learning_curve"} & set(codes(next_steps(flat, limit=20)))


def test_the_slice_that_costs_most_is_named() -> None:
    data = plain(right=80)  # the last twenty rows are wrong
    ids = [row.id for row in tuned(data).rows]
    slices = {"easy": ids[:30], "label d": [*ids[:10], *ids[-20:]], "few": ids[-5:], "all": ids}
    found = step(replace(data, slices=slices), "worst_slice")
    # 10 of its 30 rows are right, and all 70 others.
    assert "“label d”" in found.action and found.gain == pytest.approx(0.3 * (1 - 1 / 3))
    assert "33.3 %" in found.reason and "80.0 %" in found.reason


def test_two_labels_that_are_confused_are_named() -> None:
    data = plain()
    rows = list(tuned(data).rows)
    swapped = [replace(row, expected="a" if i % 2 else "b", answer="b" if i % 2 else "a", parsed="b" if i % 2 else "a")
               for i, row in enumerate(rows[-20:])]  # fmt: skip
    found = step(with_tuned(data, [*rows[:-20], *swapped]), "confused_labels")
    assert "“a” from “b”" in found.action and found.gain == pytest.approx(0.2)
    assert "20 of 20 wrong answers" in found.reason
    spread = [replace(row, expected=f"x{i}", answer=f"y{i}", parsed=f"y{i}") for i, row in enumerate(rows[-20:])]
    assert "confused_labels" not in codes(next_steps(with_tuned(data, [*rows[:-20], *spread]), limit=20))


def test_a_grammar_is_proposed_only_where_answers_have_a_form() -> None:
    data = replace(_changed(plain(), 10, parsed=None, answer="well …"), task="tool_calls")
    found = codes(next_steps(data, limit=20))
    assert "decode_by_grammar" not in found and "teach_the_form" in found


def test_a_label_is_not_confused_with_itself() -> None:
    rows = [replace(row, parsed=row.expected.strip()) for row in tuned(plain()).rows]  # right, and yet worth 0
    assert "confused_labels" not in codes(next_steps(with_tuned(plain(), rows), limit=20))


def test_a_near_miss_costs_less_than_a_row() -> None:
    data = plain()
    near = [replace(row, expected="a", answer="b", parsed="b", scores=dict.fromkeys(row.scores, 0.75))
            for row in tuned(data).rows[-20:]]  # fmt: skip
    found = step(with_tuned(data, [*tuned(data).rows[:-20], *near], task="ordinal"), "confused_labels")
    assert found.gain == pytest.approx(20 * 0.25 / 100)


def test_labels_that_look_wrong() -> None:
    noisy = Finding("label_noise", "warning", "labels that look wrong", "look at them", 24)
    data = replace(plain(), findings=(noisy,), split_sizes={"train": 336, "validation": 44, "test": 100})
    found = step(data, "mend_labels")
    assert found.gain == pytest.approx(0.6 * 24 / 480) and "24 of 480" in found.reason
    assert "mend_labels" not in codes(next_steps(plain(), limit=20))


def _events(values: Sequence[float]) -> tuple[Mapping[str, Any], ...]:
    return tuple(
        {"kind": "validation", "step": 10 * (i + 1), "loss": 1.0, "metrics": {"accuracy": value}, "best": False}
        for i, value in enumerate(values)
    )


def test_a_training_that_still_rises_may_go_on() -> None:
    rising = replace(plain(), history=_events([0.4, 0.5, 0.58, 0.64, 0.70]))
    found = step(rising, "train_longer")
    assert found.gain == pytest.approx(0.06) and found.bound == "at_most"
    for values in ([0.4, 0.6, 0.7, 0.7, 0.7], [0.4, 0.7, 0.6, 0.6, 0.5], [0.4, 0.7], []):
        assert "train_longer" not in codes(next_steps(replace(plain(), history=_events(values)), limit=20))


def test_diagnoses_of_the_training_are_passed_on_with_their_settings() -> None:
    record = {"code": "overfitting", "remedy": "train fewer epochs", "seen": "validation loss rose from 0.4 to 0.9",
              "changes": {"train.epochs": 3.0}}  # fmt: skip
    data = replace(plain(), training={"diagnoses": [record]}, history=_events([0.4, 0.5, 0.6, 0.7, 0.8]))
    found = step(data, "training_overfitting")
    assert found.action == "Train fewer epochs." and found.settings == {"train.epochs": 3.0} and found.gain is None
    assert found.expected == "not known" and "train_longer" not in codes(next_steps(data, limit=20))


def test_rows_that_were_left_out_and_a_target_that_is_missed() -> None:
    long = Finding("row_too_long", "warning", "too long", "shorten", 31)
    endless = Finding("end_not_learnt", "warning", "no end is learnt", "choose another template", 4)
    data = replace(plain(), findings=(long, endless), goal=Goal(target=0.99))  # type: ignore[call-arg]
    found = next_steps(data, limit=20)
    assert {"rows_too_long", "end_not_learnt", "larger_base"} <= set(codes(found))
    assert "31 of 336" in step(data, "rows_too_long").reason
    assert "tunesmith bases" in step(data, "larger_base").action


def test_known_gains_come_first_in_order_and_the_list_is_bounded() -> None:
    data = replace(_changed(plain(), 10, parsed=None), more_rows=MoreRows(672, 0.3, 0.2, 0.4), history=_events([0.4]))
    found = next_steps(data, limit=20)
    gains = [one.gain for one in found]
    known = [gain for gain in gains if gain is not None]
    assert known == sorted(known, reverse=True) and gains[: len(known)] == known
    assert found[0].code == "more_rows" and len(next_steps(data, limit=1)) == 1
    assert all(one.action.endswith(".") or one.action.endswith("…") for one in found)


def test_nothing_is_proposed_for_what_was_not_tuned() -> None:
    data = plain()
    alone = replace(data, evaluations=tuple(e for e in data.evaluations if e.candidate != "tuned"), training=None)
    assert next_steps(alone) == ()


@pytest.mark.parametrize("sample", [classification, extraction, generation])
def test_whole_reports_have_steps_that_read_as_sentences(sample: Any) -> None:
    for one in next_steps(sample(), limit=20):
        assert one.action and one.reason.endswith(".") and (one.gain is None or 0 < one.gain <= 1)
