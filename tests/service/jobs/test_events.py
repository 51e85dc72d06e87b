from __future__ import annotations

from typing import Any

import pytest

from tests.service.jobs.made import a_job
from tunesmith.service.jobs import events
from tunesmith.service.jobs.events import Draft, Translator, kind_of, shown_data
from tunesmith.service.store.nouns import Event


def step(number: int, total: int = 6, **more: Any) -> dict[str, Any]:
    return {"kind": "train_step", "step": number, "steps": total, "loss": number / 10, **more}


def validation(number: int, loss: float | None = 0.335) -> dict[str, Any]:
    return {"kind": "validation", "step": number, "loss": loss, "metrics": {}, "token_accuracy": 0.5}


def started(resumed_at: int = 0, total: int = 6, **more: int) -> dict[str, Any]:
    return {"kind": "train_started", "steps": total, "rows": 3, "resumed_at": resumed_at, **more}


def told(translator: Translator, *heard: dict[str, Any]) -> list[str]:
    return [draft.message for event in heard for draft in translator.hear(event)]


def test_texts_of_a_jobs_life() -> None:
    job = a_job(id="ftjob-1", validation_file="file-b")
    assert events.created(job, "embedded:base").message == (
        f"Created fine-tuning job: ftjob-1 ({job.model} stands for the local base embedded:base)"
    )
    assert events.created(job, job.model).message == "Created fine-tuning job: ftjob-1"
    assert events.validating(job).message == "Validating training file: file-train and validation file: file-b"
    assert events.validating(a_job()).message == "Validating training file: file-train"
    assert events.validated({}).message == "Files validated, moving job to queued state"
    assert events.started().message == "Fine-tuning job started"
    assert events.checkpoint_made(101, "ft:m:o:s:abc:ckpt-step-101").message == (
        "Checkpoint created at step 101 with Snapshot ID: ft:m:o:s:abc:ckpt-step-101"
    )
    assert events.model_made("ft:m:o:s:abc").message == "New fine-tuned model created: ft:m:o:s:abc"
    assert events.succeeded().message == "The job has successfully completed"
    assert events.failed("Bad.").level == "error"
    assert events.warned("Hm.").level == "warn"


def test_lines_of_a_training_with_a_validation_file() -> None:
    translator = Translator(steps_per_epoch=3)
    lines = told(
        translator,
        started(),
        step(1),
        step(2, watched_loss=0.314),
        step(3),
        validation(3),
        step(4),
        step(5),
        step(6),
        validation(6),
    )
    assert lines == [
        "Step 1/6: training loss=0.10",
        "Step 2/6: training loss=0.20, validation loss=0.31",
        "Step 3/6: training loss=0.30, full validation loss=0.34",
        "Step 4/6: training loss=0.40",
        "Step 5/6: training loss=0.50",
        "Step 6/6: training loss=0.60, full validation loss=0.34",
    ]
    assert translator.finish() == []


def test_the_numbers_of_a_step() -> None:
    (draft,) = Translator(steps_per_epoch=None).hear(
        step(2, token_accuracy=0.75, watched_loss=0.5, watched_token_accuracy=0.25, tokens_per_second=9.0)
    )
    assert draft.type == "metrics"
    assert draft.data == {
        "kind": "step",
        "step": 2,
        "total_steps": 6,
        "train_loss": 0.2,
        "train_mean_token_accuracy": 0.75,
        "valid_loss": 0.5,
        "valid_mean_token_accuracy": 0.25,
    }


def test_what_was_not_measured_is_left_out() -> None:
    (draft,) = Translator(steps_per_epoch=None).hear(step(1, loss=None, watched_loss=float("nan")))
    assert set(draft.data) == {"kind", "step", "total_steps"}


def test_a_run_that_goes_on_is_told_once() -> None:
    """Killed after step 5, continued from the checkpoint at step 3: 4 and 5 are taken again."""
    heard = [started(), *(step(n) for n in range(1, 6)), started(3), *(step(n) for n in range(4, 7))]
    assert told(Translator(steps_per_epoch=None), *heard) == [f"Step {n}/6: training loss=0.{n}0" for n in range(1, 7)]


def test_a_run_that_is_killed_anywhere_is_told_as_one_that_was_not() -> None:
    """Cut after any line of the log, and continued from any checkpoint there could be."""
    log: list[dict[str, Any]] = []
    for number in range(1, 7):
        log += [step(number, token_accuracy=number / 8)] + [validation(number)] * (number % 3 == 0)
    whole = told(Translator(), started(evaluate_every=3), *log)
    assert len(whole) == 6
    for cut in range(len(log) + 1):
        done = max((event["step"] for event in log[:cut]), default=0)
        complete = {event["step"] for event in log[:cut] if event["kind"] == "validation"} | {0, 1, 2, 4, 5}
        for checkpoint in sorted(complete & set(range(done + 1))):
            rest = [event for event in log if event["step"] > checkpoint]
            first, again = started(evaluate_every=3), started(checkpoint, evaluate_every=3)
            assert told(Translator(), first, *log[:cut], again, *rest) == whole, (cut, checkpoint)


def test_a_step_that_waits_for_its_validation_is_told_when_the_run_stops() -> None:
    translator = Translator(steps_per_epoch=3)
    assert told(translator, started(), step(3)) == []
    assert [draft.message for draft in translator.finish()] == ["Step 3/6: training loss=0.30"]


def test_a_validation_without_a_number_says_nothing_of_it() -> None:
    translator = Translator(steps_per_epoch=3)
    assert told(translator, step(3), validation(3, None)) == ["Step 3/6: training loss=0.30"]


def test_warnings_are_told_once() -> None:
    warning = {"kind": "warning", "text": "2 rows are longer than the context", "code": "too_long", "count": 2}
    translator = Translator(steps_per_epoch=None)
    assert told(translator, warning, warning) == [warning["text"]]


@pytest.mark.parametrize(
    ("text", "lines", "count", "said"),
    [
        ("rows are too long", [3], 1, "rows are too long: line 3"),
        ("rows are too long", [3, 9], 2, "rows are too long: lines 3, 9"),
        ("rows are too long", [3], 2_000, "rows are too long: lines 3 and 1,999 more"),
        ("rows are alike: 1, lines 2, 12", [2, 12], 2, "rows are alike: 1, lines 2, 12"),
        ("a row in line 7 is odd", [7], 1, "a row in line 7 is odd"),
    ],
)
def test_a_warning_names_its_lines_once(text: str, lines: list[int], count: int, said: str) -> None:
    assert told(Translator(), {"kind": "warning", "text": text, "lines": lines, "count": count}) == [said]


def test_other_events_say_nothing() -> None:
    assert told(Translator(steps_per_epoch=3), {"kind": "progress", "done": 1}, {"kind": "engine"}) == []


def test_a_kind_is_kept_and_not_shown() -> None:
    def kept(draft: Draft) -> Event:
        return Event("e", 1, "j", 1, message=draft.message, **draft.fields())

    line = Translator(steps_per_epoch=None).hear(step(1))[0]
    assert (kind_of(kept(line)), shown_data(kept(line))) == ("step", {"step": 1, "total_steps": 6, "train_loss": 0.1})
    made = events.model_made("ft:x")
    assert (kind_of(kept(made)), shown_data(kept(made))) == ("model", {})
