"""Progress as it is shown, on terminals and in logs."""

from __future__ import annotations

import io

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rich.console import Console

from tunesmith.cli.display import LiveDisplay, PlainDisplay
from tunesmith.cli.progress import Progress, bar_text, size, sparkline
from tunesmith.cli.tables import comparison_table, histogram, lines_text, preview_text

from .fake_pipeline import EVENTS, ROWS


class Clock:
    """Time that passes when told."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def step(number: int, steps: int = 1000) -> dict[str, object]:
    event = next(event for event in EVENTS if event["kind"] == "train_step")
    return {**event, "step": number, "steps": steps}


def test_plain_lines_of_what_moves_come_every_two_seconds_at_most():
    stream, clock = io.StringIO(), Clock()
    display = PlainDisplay(stream, clock)
    display({"kind": "train_started", "steps": 1000, "rows": 5, "parameters": 9, "trainable": 3, "resumed_at": 40})
    for number in range(1, 41):
        clock.now = number * 0.25
        display(step(number))
    lines = stream.getvalue().splitlines()
    assert lines[0].endswith("continued at step 40")
    assert [line.split(" · ")[0] for line in lines[1:]] == [f"step {n}/1000" for n in (1, 9, 17, 25, 33)]
    display(step(1000))
    assert stream.getvalue().splitlines()[-1].startswith("step 1000/1000")


def test_the_first_of_many_says_nothing_of_the_time_left_as_it_waited_for_its_batch():
    event = {"label": "few_shot", "done": 1, "total": 80, "unit": "rows", "seconds": 9.0}
    assert bar_text(event) == "few_shot: 1/80 rows"
    assert bar_text({**event, "done": 33, "seconds": 9.9}) == "few_shot: 33/80 rows, 14.1 s left"
    assert bar_text({**event, "total": 1}) == "few_shot: 1/1 rows, 9.0 s"


def test_plain_lines_of_a_run():
    stream = io.StringIO()
    display = PlainDisplay(stream, Clock())
    for event in EVENTS:
        display(event)
    lines = stream.getvalue().splitlines()
    assert "baselines …" in lines and "baselines: done in 4.0 s" in lines
    assert "training …" in lines and "training: done in 2.0 s" in lines
    assert "few_shot: 40/80 rows, 2.0 s left" in lines and "few_shot: 80/80 rows, 4.0 s" in lines
    assert "step 4: validation loss 0.6000 · accuracy 50.0 % (best)" in lines
    assert "warning: one [row] was left out" in lines


def test_a_stage_done_before_is_called_so():
    stream = io.StringIO()
    PlainDisplay(stream)({"kind": "stage_finished", "stage": "train", "seconds": 0.0, "cached": True})
    assert stream.getvalue() == "train: done before\n"


def test_the_live_picture_shows_the_training():
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=120, height=40)
    with LiveDisplay(console) as display:
        for event in EVENTS[:-1]:
            display(event)
        picture = Console(file=io.StringIO(), width=120)
        picture.print(display.picture())
        drawn = picture.file.getvalue()
        display(EVENTS[-1])
    assert "training …" in drawn and "step 4/4" in drawn and "600 tokens/s" in drawn and "3 MiB" in drawn
    assert "\nloss █▃▂▁ 0.5000\n" in "\n".join(line.rstrip() for line in drawn.splitlines())
    assert "best at step 4" in drawn
    lasting = stream.getvalue()
    assert "one [row] was left out" in lasting and "done in 4.0 s" in lasting


def test_unknown_events_and_steps_before_their_start_do_no_harm():
    progress = Progress()
    for event in ({"kind": "something_new"}, step(3), {"kind": "validation", "step": 1, "best": True}):
        progress.see(event)
    assert progress.training is None


@example([-1.7e308, 1.7e308], 2)
@example([0.0, 5e-324], 2)
@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=200), st.integers(1, 60))
def test_sparklines_never_fail_and_fit(values, width):
    assert len(sparkline(values, width)) == min(width, len(values))


def test_sparklines_fall_and_rise():
    assert sparkline([4, 3, 2, 1]) == "█▆▃▁"
    assert sparkline([1, 1]) == "▁▁"
    assert sparkline([1, float("nan"), 8]) == "▁ █"


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=300))
def test_histograms_count_every_row(lengths):
    lines = histogram(lengths).plain.splitlines()
    assert len(lines) <= 10
    assert sum(int(line.rsplit(" ", 1)[1].replace(",", "")) for line in lines) == len(lengths)


def test_learnt_tokens_are_green_and_special_ones_visible():
    text = preview_text([("<|user|>", 0.0), ("a\tb\n", 0.0), ("[warm]", 1.0), ("<|end|>", 0.5)])
    assert text.plain == "<|user|>a→\tb↵\n[warm]<|end|>"
    styles = [str(span.style) for span in text.spans]
    assert styles[:2] == ["dim", "dim"] and all("green" in style for style in styles[2:])


def test_comparison_marks_the_best_and_leaves_gaps():
    console = Console(file=io.StringIO(), width=120)
    console.print(comparison_table(ROWS))
    zero_shot = next(line for line in console.file.getvalue().splitlines() if line.startswith("zero-shot"))
    assert zero_shot.split() == ["zero-shot", "25.0", "%", "20.0", "to", "30.0", "80"]


@pytest.mark.parametrize(
    ("lines", "text"), [((), ""), ((1, 2), "1, 2"), (tuple(range(1, 11)), "1, 2, 3, 4, 5, 6, 7, 8 and 2 more")]
)
def test_lines_are_shortened_for_people(lines, text):
    assert lines_text(lines) == text


def test_sizes():
    assert [size(n) for n in (2048, 3 * 2**20, 2.5 * 2**30)] == ["2 KiB", "3 MiB", "2.5 GiB"]
