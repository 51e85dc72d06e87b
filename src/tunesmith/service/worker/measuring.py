"""What a finished job was worth: the alternatives, the tuned model, and the verdict, measured after it succeeded.

With a validation file this is the rest of the job's own run. Without one it is a run of its own, of the same settings
on a part of the rows (the twin), as there is nothing left on which the job's model could be judged. Either is stopped
when a job needs the device, and goes on later from its finished stages and answered rows.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from tunesmith.pipeline.continuing import asked_recipe
from tunesmith.pipeline.evidence import DECIDED_FROM
from tunesmith.pipeline.result import Result
from tunesmith.pipeline.run import run
from tunesmith.recipe.schema import Recipe
from tunesmith.runs import RunFolder
from tunesmith.service.evidence import ANSWERS, REPORT, VERDICT
from tunesmith.service.jobs.recipe import evidence_on, twin_recipe_of
from tunesmith.service.store.interface import LostLeaseError
from tunesmith.service.store.nouns import File, Job
from tunesmith.service.worker.desk import Desk
from tunesmith.service.worker.faults import fault_of, without_paths
from tunesmith.service.worker.inputs import lay_out
from tunesmith.service.worker.products import archive
from tunesmith.service.worker.telling import LOOK_SECONDS, Stopped
from tunesmith.service.worker.tidying import tidy
from tunesmith.service.worker.working import free_in_time
from tunesmith.verdict.headline import headline

_LOG = logging.getLogger("tunesmith.worker.process")


def measure(desk: Desk, draining: Callable[[], bool]) -> bool:
    """Make the evidence of a job; False where it was stopped before it was ready."""
    job = desk.job()
    if job.status != "succeeded" or job.evidence not in ("pending", "running"):
        return True
    desk.write(only_from=["succeeded"], evidence="running", evidence_error=None)
    try:
        recipe, folder, reason = _what_to_run(desk, job)
        if not free_in_time(folder):
            raise Stopped("lost")
        result = run(recipe, out=folder, through="verdict", listener=_until(desk, draining))
        files = _files(desk, job, result, reason)
    except Stopped:
        desk.write(only_from=["succeeded"], evidence="pending")
        return False
    except (LostLeaseError, SQLAlchemyError):
        raise
    except Exception as problem:
        _LOG.exception("the evidence of job %s failed", desk.job_id)
        desk.write(
            only_from=["succeeded"],
            evidence="failed",
            evidence_error=fault_of(problem, desk.settings.home)["message"],
        )
        tidy(desk.settings.home, desk.job_id)
        return True
    desk.write(
        add=files,
        only_from=["succeeded"],
        evidence="ready",
        result_files=(*job.result_files, *(file.id for file in files)),
    )
    tidy(desk.settings.home, desk.job_id)
    return True


def _what_to_run(desk: Desk, job: Job) -> tuple[Recipe, Path, str]:
    """Recipe and folder of the run that measures, and in words what it measures on."""
    training, validation = lay_out(desk, job)
    asked = asked_recipe(RunFolder.open(desk.run))
    own = evidence_on(training, validation, job.rows)  # type: ignore[arg-type]
    if own.twin:
        return twin_recipe_of(job, training, asked.base.model), desk.twin, own.reason
    return asked, desk.run, own.reason


def _until(desk: Desk, draining: Callable[[], bool]) -> Callable[[Mapping[str, Any]], None]:
    """A listener that stops the run when this process is told to give way, or the job is deleted."""
    looked = time.monotonic()

    def listen(event: Mapping[str, Any]) -> None:
        nonlocal looked
        if draining():
            raise Stopped("drain")
        if time.monotonic() - looked >= 10 * LOOK_SECONDS:
            looked = time.monotonic()
            desk.job()

    return listen


def _files(desk: Desk, job: Job, result: Result, reason: str) -> list[File]:
    """The verdict as JSON, the report as a page, and what every candidate answered to every test row."""
    found = [desk.result_file(VERDICT, _verdict(desk, job, result, reason))]
    if result.report is not None:
        found.append(desk.result_file(REPORT, _page(desk, result.report)))
    return [*found, archive(desk, result.folder.evaluation, ANSWERS)]


def _page(desk: Desk, report: Path) -> bytes:
    return without_paths(report.read_text(encoding="utf-8"), desk.settings.home).encode()


def _verdict(desk: Desk, job: Job, result: Result, reason: str) -> bytes:
    """What was measured and decided, without paths of this machine."""
    told = result.to_dict()
    said = {
        "job": job.id,
        "model": job.fine_tuned_model,
        "measured_on": reason,
        "twin": result.folder.path == desk.twin,
        "headline": headline(result.verdict) if result.verdict is not None else None,
        "verdict": asdict(result.verdict) if result.verdict is not None else None,
        "scores": told["comparison"],
        "candidates": told["candidates"],
        "costs": json.loads((result.folder.path / DECIDED_FROM).read_text(encoding="utf-8"))["costs"],
    }
    text = json.dumps(said, ensure_ascii=False, indent=1, default=str)
    return without_paths(text, desk.settings.home).encode()
