from __future__ import annotations

import math
import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.evaluation.calibration import ReliabilityBin
from tunesmith.evaluation.statistics import wilson
from tunesmith.verdict.charts import Interval, Mark, Series, histogram, interval_chart, line_chart, nice_ticks, smoothed
from tunesmith.verdict.cost_chart import CostLine, RequestMark, cost_chart
from tunesmith.verdict.reliability_chart import reliability_chart


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


# Cost over requests.


def costs(*lines: CostLine, requests: float = 1000.0, marks: tuple[RequestMark, ...] = ()) -> ElementTree.Element:
    return parsed(cost_chart(lines, requests=requests, marks=marks, money=lambda v: f"{v:g}", title="<Cost>"))


def points(tree: ElementTree.Element, css: str) -> list[tuple[float, float]]:
    line = next(e for e in tree.iter("polyline") if e.get("class") == f"line {css}")
    return [(float(x), float(y)) for x, y in (pair.split(",") for pair in line.get("points", "").split())]


def test_lines_cross_where_the_one_has_paid_for_itself() -> None:
    tree = costs(
        CostLine("tuned", 100, 0.1, "tuned"),
        CostLine("prompt", 0, 0.3, "best"),
        marks=(RequestMark(500, "break-even"),),
    )
    assert "logarithmic" not in ElementTree.tostring(tree, "unicode")
    mark = next(e for e in tree.iter("line") if e.get("class") == "mark")
    at = 10 * float(mark.get("x1", "").rstrip("%"))
    above = [tuned[1] < prompt[1] for tuned, prompt in zip(points(tree, "tuned"), points(tree, "best"), strict=True)]
    xs = [x for x, _ in points(tree, "tuned")]
    crossing = next(x for x, higher in zip(xs, above, strict=True) if not higher)
    assert abs(crossing - at) <= xs[1] - xs[0] + 1e-6  # lower on the page is cheaper


def test_far_apart_costs_are_drawn_on_logarithmic_axes() -> None:
    tree = costs(CostLine("tuned", 240, 0.000_002, "tuned"), CostLine("prompt", 0, 0.000_02, "best"), requests=120_000)
    assert "both axes logarithmic" in ElementTree.tostring(tree, "unicode")
    drawn = points(tree, "best")
    slopes = {round((b[1] - a[1]) / (b[0] - a[0]), 2) for a, b in pairwise(drawn)}
    assert max(slopes) - min(slopes) < 0.05  # proportional cost is a straight line there
    assert drawn[-1][0] == 1000.0


def test_what_is_too_cheap_for_the_chart_is_said() -> None:
    tree = costs(CostLine("tuned", 1e6, 1, "tuned"), CostLine("majority", 0, 1e-9, "best"))
    assert "majority (too little for this chart)" in ElementTree.tostring(tree, "unicode")


def test_marks_out_of_sight_are_left_out_and_free_candidates_named() -> None:
    tree = costs(CostLine("a", 1, 0.1, "tuned"), CostLine("free", 0, 0, "best"), marks=(RequestMark(5000, "far"),))
    told = ElementTree.tostring(tree, "unicode")
    assert "far" not in told and "logarithmic" not in told
    assert {y for _, y in points(tree, "best")} == {260.0}  # on the ground
    apart = costs(CostLine("a", 1, 0.1, "tuned"), CostLine("b", 0, 0.001, "best"), CostLine("free", 0, 0, "other1"))
    told = ElementTree.tostring(apart, "unicode")
    assert "logarithmic" in told and "free (too little for this chart)" in told
    assert cost_chart([CostLine("free", 0, 0, "best")], requests=10, marks=(), money=str, title="T") == ""


@settings(max_examples=60, deadline=None)
@given(
    once=st.floats(0, 1e7), each=st.floats(0, 1e3), other=st.floats(1e-12, 1e3), requests=st.integers(1, 10**10),
    mark=st.floats(0.01, 2),
)  # fmt: skip
def test_any_costs_can_be_drawn(once: float, each: float, other: float, requests: int, mark: float) -> None:
    markup = cost_chart(
        [CostLine("a", once, each, "tuned"), CostLine("b", 0, other, "best")],
        requests=requests,
        marks=[RequestMark(mark * requests, "m")],
        money=lambda v: f"{v:g}",
        title="T",
    )
    assert not re.search(r"\b(nan|inf)\b", markup)
    for x, _ in points(parsed(markup), "best"):
        assert -0.1 <= x <= 1000.1


# Reliability.


def bins(*told: tuple[float, float, int]) -> list[ReliabilityBin]:
    return [ReliabilityBin(max(0, c - 0.05), c, c, a, n) for c, a, n in told]


def test_points_stand_at_their_confidence_and_accuracy() -> None:
    tree = parsed(reliability_chart(bins((0.2, 0.5, 40), (0.8, 0.75, 60)), (), title="<T>", confidence=0.95))
    dots = list(tree.iter("circle"))
    assert [(e.get("class"), e.get("cx"), e.get("cy")) for e in dots] == [
        ("dot tuned", "20.00%", "150.0"),
        ("dot tuned", "80.00%", "75.0"),
    ]
    whisker = next(e for e in tree.iter("line") if e.get("class") == "whisker tuned thin")
    low, high = wilson(20, 40, 0.95)
    assert (whisker.get("y1"), whisker.get("y2")) == (f"{300 * (1 - low):.1f}", f"{300 * (1 - high):.1f}")
    described = next(e for e in tree.iter("svg") if e.get("role") == "img").get("aria-label")
    assert described is not None and "40 answers 20% sure, 50% right" in described


def test_before_and_after_temperature_are_told_apart() -> None:
    tree = parsed(reliability_chart(bins((0.9, 0.6, 50)), bins((0.7, 0.6, 50)), title="T", confidence=0.95))
    assert [e.get("class") for e in tree.iter("circle")] == ["dot best", "dot tuned"]


def test_sure_answers_are_drawn_larger() -> None:
    tree = parsed(reliability_chart(bins((0.8, 0.8, 30), (1.0, 1.0, 30)), (), title="T", confidence=0.95))
    assert [e.get("cx") for e in tree.iter("circle")] == ["20.00%", "100.00%"]  # from 75 % on
    assert min(float(e.get("y1", "0")) for e in tree.iter("line")) >= 0


def test_many_bins_are_put_together_and_no_answer_is_lost() -> None:
    many = bins(*((0.05 * i, 0.05 * i, 10 + i) for i in range(1, 16)), (0.9, 0.0, 0))
    tree = parsed(reliability_chart(many, (), title="T", confidence=0.95))
    assert len(list(tree.iter("circle"))) == 8
    described = next(e for e in tree.iter("svg") if e.get("role") == "img").get("aria-label", "")
    assert sum(int(n) for n in re.findall(r"(\d+) answers", described)) == sum(one.n for one in many)


def test_no_answers_draw_no_points() -> None:
    assert not list(parsed(reliability_chart([], (), title="T", confidence=0.95)).iter("circle"))
