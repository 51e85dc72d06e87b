"""What a report shows of the search that chose a run's settings."""

from __future__ import annotations

import re
from typing import Any

from tunesmith.pipeline.searching.page import render_page
from tunesmith.verdict.report_search import SearchData, SearchTrial, searched, value_text


def trial(number: int, score: float | None, **values: Any) -> SearchTrial:
    error = "train.batch_size: not enough memory\n  to do: lower it" if score is None else None
    return SearchTrial(number, values, score, None if score is None else 1 - score, 1.5, error)


def data(*trials: SearchTrial, best: int = 1, **more: Any) -> SearchData:
    return SearchData("accuracy", False, "tpe", 3, trials, best, **more)


def test_a_value_is_shown_as_a_recipe_writes_it() -> None:
    assert [value_text(one) for one in (True, None, 0.00031234567, 8, "dora")] == [
        "true", "none", "0.0003123", "8", "dora",
    ]  # fmt: skip


def test_without_a_search_nothing_is_shown() -> None:
    assert searched(None) is None


def test_every_trial_stands_in_the_table_failed_ones_with_their_reason() -> None:
    shown = searched(data(trial(1, 0.5, rate=1e-4), trial(2, None, rate=1e-3), trial(3, 0.75, rate=1e-5), best=3))
    assert shown is not None
    assert [(line.number, line.score, line.note, line.best) for line in shown.lines] == [
        (1, "50.0 %", "", False),
        (2, "failed", "train.batch_size: not enough memory", False),
        (3, "75.0 %", "", True),
    ]
    assert shown.sentence.startswith("3 trials (1 failed) by TPE, seed 3; validation rows chose trial 3: rate 1e-05.")


def test_a_logarithmic_setting_has_powers_of_ten_on_its_axis() -> None:
    trials = [trial(i, i / 10, rate=10.0**-i) for i in range(2, 6)]
    shown = searched(data(*trials, best=5, log=frozenset({"rate"})))
    assert shown is not None
    picture = str(shown.charts[1])
    assert "logarithmic" in picture
    labels = re.findall(r'<text class="tick" x="[\d.]+%"[^>]*>([^<]+)</text>', picture)
    assert labels == ["1e-05", "0.0001", "0.001", "0.01"]
    places = [float(x) for x in re.findall(r'<circle[^>]* cx="([\d.]+)%"', picture)]
    assert sorted(places) == sorted([97.0, 65.67, 34.33, 3.0])


def test_a_setting_that_had_one_value_only_has_no_picture() -> None:
    shown = searched(data(trial(1, 0.5, rate=1.0, rank=4), trial(2, 0.6, rate=1.0, rank=8), best=2))
    assert shown is not None
    assert len(shown.charts) == 2, "the best so far, and by rank"
    alone = searched(data(trial(1, 0.5, rate=1.0)))
    assert alone is not None and alone.charts == ()


def test_a_page_escapes_what_stands_in_a_recipe() -> None:
    page = render_page(data(trial(1, 0.5, name="<script>x"), trial(2, 0.4, name="y")), "<b>tones")
    assert "<script>x" not in page and "<b>tones" not in page
    assert "&lt;script&gt;x" in page


def test_many_trials_leave_the_lowest_scores_out_of_the_table() -> None:
    shown = searched(data(*(trial(i, i / 1000, rate=float(i)) for i in range(1, 251)), best=250))
    assert shown is not None
    assert (len(shown.lines), shown.more) == (200, 50)
    assert shown.lines[0].number == 51
