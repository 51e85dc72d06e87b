from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.verdict.charts import Interval, Mark, Series, histogram, interval_chart, line_chart, nice_ticks, smoothed


def parsed(markup: str) -> ElementTree.Element:
    """Well-formed, or this raises."""
    return ElementTree.fromstring(f"<div>{markup}</div>")


def chart(*lines: Interval, bars: bool = True, mark: float = 0.9) -> str:
    return interval_chart(
        lines, title="T", number=lambda v: f"{100 * v:.1f} %", tick=str, marks=[Mark(mark, "<target>")],
        bars=bars, confidence=0.95,
    )  # fmt: skip


def test_an_interval_stands_where_its_numbers_are() -> None:
    tree = parsed(chart(Interval("tuned", 0.5, 0.25, 0.75, "tuned"), Interval("<b>few</b>", 0.1, 0.0, 0.2)))
    whisker = next(e for e in tree.iter("line") if e.get("class") == "whisker tuned")
    assert (whisker.get("x1"), whisker.get("x2")) == ("25.00%", "75.00%")
    assert next(e for e in tree.iter("rect")).get("width") == "50.00%"
    assert next(e for e in tree.iter("circle")).get("cx") == "50.00%"
    described = next(e for e in tree.iter("div") if e.get("role") == "img").get("aria-label")
    assert described is not None
    assert "tuned 50.0 %, 95 % interval 25.0 % to 75.0 %" in described
    assert "<b>few</b>" in described


def test_negative_differences_have_room() -> None:
    tree = parsed(chart(Interval("d", -0.2, -0.4, 0.1), bars=False, mark=-0.5))
    places = [float(e.get("x1", "0%").rstrip("%")) for e in tree.iter("line")]
    assert min(places) == 0
    assert max(places) == 100
    assert not list(tree.iter("rect"))


def test_lines_are_thinned_but_keep_their_ends() -> None:
    points = tuple((float(i), math.sin(i)) for i in range(10_000))
    markup = line_chart([Series("loss", points, "best")], title="Loss", x_label="step", number=str, best_x=5000.0)
    drawn = next(iter(parsed(markup).iter("polyline"))).get("points", "").split()
    assert len(drawn) == 400
    assert (drawn[0].split(",")[0], drawn[-1].split(",")[0]) == ("0.0", "1000.0")
    assert "best, step 5000" in markup


def test_what_is_not_a_number_is_left_out() -> None:
    markup = line_chart(
        [Series("loss", ((1, 2.0), (2, float("nan")), (3, 1.0)), "best", dots=True)], title="L", x_label="s", number=str
    )
    assert len(list(parsed(markup).iter("circle"))) == 2
    assert "nan" not in markup
    assert line_chart([Series("loss", ((1, float("inf")),), "best")], title="L", x_label="s", number=str) == ""
    assert line_chart([], title="L", x_label="s", number=str) == ""


def test_a_single_point_is_drawn() -> None:
    parsed(line_chart([Series("m", ((5, 0.5),), "tuned", dots=True)], title="M", x_label="s", number=str, best_x=5))


def test_columns_rise_with_their_counts() -> None:
    tree = parsed(histogram([("tuned", "tuned", [0, 4, 8]), ("few", "best", [2, 0, 0])], title="H"))
    heights = [float(e.get("height", "0")) for e in tree.iter("rect")]
    assert heights == [90.0, 180.0, 45.0]


@settings(max_examples=200, deadline=None)
@given(low=st.floats(-1e6, 1e6), width=st.floats(1e-6, 1e6))
def test_ticks_are_round_and_span_the_range(low: float, width: float) -> None:
    ticks = nice_ticks(low, low + width)
    room = 1e-6 * max(width, abs(low))
    assert ticks[0] <= low + room
    assert ticks[-1] >= low + width - room
    assert 2 <= len(ticks) <= 13


def test_ticks_of_no_width_and_of_no_number() -> None:
    assert len(nice_ticks(0.0, 0.0)) >= 2
    assert len(nice_ticks(3.0, 3.0)) >= 2
    with pytest.raises(ValueError, match="cannot be drawn"):
        nice_ticks(0.0, math.inf)


def test_smoothing_starts_at_the_first_value_and_keeps_a_constant() -> None:
    assert smoothed([(0, 4.0), (1, 4.0), (2, 4.0)]) == ((0, 4.0), (1, 4.0), (2, 4.0))
    assert smoothed([]) == ()
    assert re.match(r"4\.0", str(smoothed([(0, 4.0), (1, 0.0)])[0][1]))
