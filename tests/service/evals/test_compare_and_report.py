"""How sure a run is: its page, and two runs compared."""

from __future__ import annotations

import urllib.request
from typing import Any

import openai
import pytest

from tests.service.beside import Beside
from tests.service.evals.conftest import ALIKE, EXACT, ROWS, completions, eval_of, finished
from tunesmith.service.evals.compare import paired
from tunesmith.service.evals.summary import mean_interval, summarise
from tunesmith.service.store.nouns import OutputItem


def jsonl(answers: list[str], rows: list[dict[str, Any]] | None = None) -> Any:
    content = [row | {"sample": {"output_text": said}} for row, said in zip(rows or ROWS, answers, strict=True)]
    return {"type": "jsonl", "source": {"type": "file_content", "content": content}}


def compare(beside: Beside, eval_id: str, run: str, other: str) -> Any:
    return beside.client.get(f"/evals/{eval_id}/runs/{run}/compare/{other}", cast_to=object)


def test_two_runs_row_by_row(beside: Beside) -> None:
    made = eval_of(beside, EXACT, ALIKE)
    good = finished(beside, made, jsonl(["Paris", "Rome", "Madrid", "Athens", "x"]))
    # The other run has its rows in another order, and one row less.
    other = finished(beside, made, jsonl(["x", "y", "Rome", "x"], [ROWS[4], ROWS[2], ROWS[1], ROWS[0]]))
    told = compare(beside, made.id, good.id, other.id)
    assert told["rows"] == {"paired": 4, "only_run": 1, "only_other": 0}
    exact, alike = told["criteria"]
    rate = exact["pass_rate"]
    assert (rate["run"], rate["other"], rate["difference"]) == (0.75, 0.25, 0.5)
    assert (rate["both_passed"], rate["only_run_passed"], rate["only_other_passed"], rate["neither_passed"]) == (
        1, 2, 0, 1,
    )  # fmt: skip
    assert rate["p_value"] == 0.5 and rate["interval"][0] < 0 < 0.5 < rate["interval"][1]
    low, high = alike["mean_score"]["interval"]
    assert low <= alike["mean_score"]["difference"] <= high and 0 < alike["mean_score"]["p_value"] <= 1
    back = compare(beside, made.id, other.id, good.id)
    assert back["criteria"][0]["pass_rate"]["difference"] == -0.5


def test_what_cannot_be_compared(beside: Beside) -> None:
    made = eval_of(beside)
    one = finished(beside, made, jsonl(["Paris"], ROWS[:1]))
    other = finished(beside, made, jsonl(["Rome"], ROWS[1:2]))
    with pytest.raises(openai.BadRequestError, match="no row in common"):
        compare(beside, made.id, one.id, other.id)
    with pytest.raises(openai.BadRequestError, match="with itself"):
        compare(beside, made.id, one.id, one.id)
    elsewhere = eval_of(beside)
    with pytest.raises(openai.NotFoundError, match="No such Eval run object"):
        compare(beside, elsewhere.id, one.id, other.id)


def test_the_page_of_a_run(beside: Beside) -> None:
    made = eval_of(beside, EXACT, ALIKE)
    rows = [*ROWS[:2], {"item": {"land": "<script>alert(1)</script>", "city": "x & y"}}]
    run = finished(beside, made, completions(rows))
    assert run.report_url == f"{beside.url}/evals/{made.id}/runs/{run.id}/report"
    with urllib.request.urlopen(run.report_url) as answer:
        page = answer.read().decode()
        assert answer.headers["content-type"].startswith("text/html")
        assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "3 rows: 2 passed, 1 failed, 0 with errors" in page
    assert "66.7% (20.8% to 93.9%)" in page  # Wilson's interval of 2 of 3
    assert "<script>" not in page and "&lt;script&gt;" in page and "x &amp; y" in page
    assert "Bergen" in page and "gpt-4o-mini-2024-07-18" in page


def test_the_page_of_a_run_without_rows_yet(beside: Beside) -> None:
    from tunesmith.service.evals.report import report_page
    from tunesmith.service.store.nouns import Eval, EvalRun

    found = Eval("e", 1, "n", {}, ({"id": "c", "name": "c", "type": "python"},))
    page = report_page(beside.service, found, EvalRun("none", 1, "e", "r", None, "queued", {}))
    assert "0 rows" in page and "None." in page


def item(place: int, row: Any, *, score: float = 1.0, passed: bool = True, error: Any = None) -> OutputItem:
    result = {"name": "c", "score": score, "passed": passed} | ({"error": error} if error else {})
    status = "error" if error else "pass" if passed else "fail"
    return OutputItem(f"i{place}", 1, "r", place, status, row, (result,), {"usage": {}, "model": ""})


def test_copies_of_a_row_are_paired_in_order() -> None:
    ours = [item(0, {"a": 1}), item(1, {"a": 1}), item(2, {"a": 2})]
    theirs = [item(5, {"a": 2}), item(6, {"a": 1}), item(7, {"a": 1}), item(8, {"a": 1})]
    assert [(a.place, b.place) for a, b in paired(ours, theirs)] == [(0, 6), (1, 7), (2, 5)]


def test_errors_count_neither_way() -> None:
    items = [item(0, {}), item(1, {}, passed=False, score=0), item(2, {}, passed=False, score=0, error={"code": "x"})]
    summary = summarise(items, [{"id": "c"}])
    assert summary.result_counts == {"total": 3, "passed": 1, "failed": 1, "errored": 1}
    assert summary.per_testing_criteria_results[0]["pass_rate"] == 0.5
    nothing = summarise([], [{"id": "c"}]).per_testing_criteria_results[0]
    assert nothing["pass_rate"] is None and nothing["mean_score_interval"] is None


def test_intervals_of_means() -> None:
    from tunesmith.evaluation.statistics import wilson

    assert mean_interval([1.0, 0.0, 1.0]) == wilson(2, 3)
    assert mean_interval([0.5] * 4) == wilson(2.0, 4)
    assert mean_interval([3.0, 3.0]) == (3.0, 3.0)
    low, high = mean_interval([0.0, 4.0, 2.0, 3.0, 1.0, 4.0])
    assert 0 < low < 14 / 6 < high < 4.5
