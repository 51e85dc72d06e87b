"""A job from `validating_files` to its end: files checked, recipe run, model asked, everything handed over at once."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from tunesmith.errors import TunesmithError
from tunesmith.runs import RunFolder, is_run
from tunesmith.service.jobs import events
from tunesmith.service.store.interface import LostLeaseError
from tunesmith.service.store.nouns import Event, Job, JobStatus
from tunesmith.service.worker.desk import Desk, Reason
from tunesmith.service.worker.faults import fault_of
from tunesmith.service.worker.inputs import lay_out
from tunesmith.service.worker.tidying import tidy

_LOG = logging.getLogger("tunesmith.worker.process")
_UNFINISHED: tuple[JobStatus, ...] = ("validating_files", "queued", "running")
FREE_SECONDS = 30.0
"""A process that lost the job has so long to let go of the run's folder."""


def check(desk: Desk) -> bool:
    """Look at the files of a job: afterwards it is queued, or failed with every fault told."""
    return _or_failed(desk, lambda: _check(desk))


def work_on(desk: Desk, draining: Callable[[], bool]) -> bool:
    """Take a job as far as it goes; False where it was handed back because the server ends."""
    if desk.job().status == "validating_files":
        check(desk)
    job = desk.job()
    if job.status not in ("queued", "running"):
        return True
    if draining():
        return False
    if job.status == "queued":
        started = desk.event(events.started(), "started")
        job = desk.write(events=[started], only_from=["queued"], status="running", run=job.id)
    return _or_failed(desk, lambda: _train(desk, job, draining))


def _or_failed(desk: Desk, work: Callable[[], bool]) -> bool:
    """Whatever goes wrong in a job's work is told on the job; what is wrong with the store is not its fault."""
    try:
        return work()
    except (LostLeaseError, SQLAlchemyError):
        raise
    except Exception as problem:
        _LOG.exception("job %s failed", desk.job_id)
        error = fault_of(problem, desk.settings.home)
        _end_failed(desk, error, [desk.event(events.failed(error["message"]), "failed")])
        return True


def _check(desk: Desk) -> bool:
    from tunesmith.service.jobs.bases import parameters_of
    from tunesmith.service.jobs.recipe import settled
    from tunesmith.service.jobs.rules import validate_job

    job = desk.job()
    if job.status != "validating_files":
        return True
    training, validation = lay_out(desk, job)
    checked = validate_job(job, training, validation)
    error = checked.error()
    if error is not None:
        told = [desk.event(events.failed(one.told()), f"fault/{i}") for i, one in enumerate(checked.faults)]
        _end_failed(desk, error, told)
        return True
    numbers = settled(job, checked, parameters_of(job.base))
    said = desk.event(events.validated(numbers["hyperparameters"]), "validated")
    desk.write(events=[said], only_from=["validating_files"], status="queued", **numbers)
    return True


def _train(desk: Desk, job: Job, draining: Callable[[], bool]) -> bool:
    from tunesmith.pipeline.run import run
    from tunesmith.service.jobs.bases import starting_base
    from tunesmith.service.jobs.events import Translator
    from tunesmith.service.jobs.recipe import recipe_of
    from tunesmith.service.worker.finishing import finish
    from tunesmith.service.worker.telling import Stopped, Telling

    training, validation = lay_out(desk, job)
    per_epoch = int(job.resolved["steps_per_epoch"]) if validation is not None else None
    telling = Telling(desk, Translator(steps_per_epoch=per_epoch), draining)
    if not free_in_time(desk.run):
        return False
    telling.catch_up()
    try:
        recipe = recipe_of(job, training, validation, starting_base(job, desk.store, desk.settings))
        telling.obey()
        result = run(recipe, out=desk.run, through="train", listener=telling)
    except Stopped as stopped:
        telling.flush()
        return _stopped(desk, stopped.reason, telling.last_step)
    telling.finish()
    finish(desk, result)
    if job.evidence == "none":
        tidy(desk.settings.home, desk.job_id)
    return True


def _stopped(desk: Desk, reason: Reason, step: int) -> bool:
    """What follows from a stop at a step, whose checkpoint is saved; False where the job is handed back."""
    done: dict[str, Any] = {"wish": None, "estimated_finish": None}
    if reason == "cancel":
        said = desk.event(events.cancelled(), "cancelled")
        desk.write(events=[said], only_from=["running"], status="cancelled", finished_at=int(time.time()), **done)
        tidy(desk.settings.home, desk.job_id)
    elif reason == "pause":
        kept = _paused_model(desk, step) if desk.flavour == "azure" and step else []
        said = desk.event(events.paused(step or None), f"paused/{time.time_ns()}")
        desk.write(add=kept, events=[said], only_from=["running"], status="paused", **done)
    return reason != "drain"


def _paused_model(desk: Desk, step: int) -> Sequence[Any]:
    """On Azure, a paused job has a model that can be deployed; without one it is paused all the same."""
    from tunesmith.service.worker.finishing import checkpoint_at

    try:
        return checkpoint_at(desk, step)
    except TunesmithError:
        _LOG.exception("no checkpoint was made of the paused job %s", desk.job_id)
        return []


def _end_failed(desk: Desk, error: dict[str, Any], told: Sequence[Event]) -> None:
    moment = int(time.time())
    desk.write(
        events=told, only_from=_UNFINISHED, status="failed", error=error, finished_at=moment, wish=None,
        estimated_finish=None,
    )  # fmt: skip
    tidy(desk.settings.home, desk.job_id)


def free_in_time(folder: Path) -> bool:
    """Wait until an earlier process, which is being ended, has let go of the run.

    False where it has not: it may be cut off from the store, and notice only later that the job is not its own.
    """
    end = time.monotonic() + FREE_SECONDS
    while is_run(folder) and RunFolder(folder).running:
        if time.monotonic() >= end:
            return False
        time.sleep(0.05)
    return True
