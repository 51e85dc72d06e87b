"""Formats that were tried, in the report: why each was chosen or fell, and on which rows."""

from __future__ import annotations

from dataclasses import replace

from tests.verdict import report_samples
from tests.verdict.test_report_exports import LINES
from tunesmith.verdict.report import render_report
from tunesmith.verdict.report_tried import TriedData, TriedExport, tried

EXPORTS = (
    TriedExport("merged", "allowed; slower than onnx-int8", LINES[0], front=True, allowed=True),
    TriedExport("onnx-int8", "chosen", LINES[1], front=True, allowed=True, chosen=True),
    TriedExport("onnx-int4", "loses 1.9 points, 1.0 are allowed", LINES[2], front=True),
    TriedExport("openvino-int8", "not made: converting: <no such layer>"),
)
DATA = TriedData(EXPORTS, "speed", 0.01, 70, "accuracy 79.0 %, all the same")


def test_the_section_says_what_was_chosen_by_which_rows_and_why_others_fell():
    found = tried(DATA, confidence=0.95)
    assert found is not None and [one.cells.name for one in found.lines] == ["merged", "onnx-int8", "onnx-int4"]
    assert [(one.tone, one.front) for one in found.lines] == [("quiet", True), ("right", True), ("wrong", True)]
    assert found.sentences[0].startswith("4 formats were tried, 3 could be made. onnx-int8 is the fastest of those")
    assert found.not_made == (("openvino-int8", "not made: converting: <no such layer>"),) and len(found.charts) == 2
    page = render_report(replace(report_samples.banking(), tried=DATA))
    assert '<a href="#tried">Formats</a>' in page and "70 validation rows" in page
    assert ", all the same." in page and "&lt;no such layer&gt;" in page


def test_nothing_tried_nothing_shown_and_a_choice_that_failed_is_said():
    assert tried(None, confidence=0.95) is None and 'id="tried"' not in render_report(report_samples.banking())
    unconfirmed = tried(replace(DATA, confirmed=None), confidence=0.95)
    assert unconfirmed is not None and unconfirmed.sentences[1] == "The test rows do not confirm it."
    none = tried(replace(DATA, exports=EXPORTS[2:], best="size"), confidence=0.95)
    assert none is not None and "None of them is within the limits" in none.sentences[0] and len(none.lines) == 1
