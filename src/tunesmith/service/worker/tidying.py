"""What is removed when it is of no more use: what a training needs to go on, and a job's copies of its files."""

from __future__ import annotations

import shutil
from pathlib import Path

from tunesmith.service.store.interface import Store
from tunesmith.service.store.leases import job_lease
from tunesmith.service.store.nouns import Job
from tunesmith.service.worker.holder import is_free

_TO_GO_ON = ("checkpoints", "snapshots", "trunk")


def tidy(home: Path, job_id: str) -> None:
    """After the last work on a job: models, results and the run's records stay, the rows are the uploader's again."""
    inputs, *runs = _places(home, job_id)
    for run in runs:
        for name in _TO_GO_ON:
            shutil.rmtree(run / name, ignore_errors=True)
    shutil.rmtree(inputs, ignore_errors=True)  # last: `tidy_all` sees by them where there is something left to do


def tidy_all(store: Store, home: Path) -> None:
    """Tidy after jobs that ended while no process had them, or whose process was killed before it could."""
    inputs = home / "inputs"
    for folder in sorted(inputs.iterdir()) if inputs.is_dir() else ():
        job = store.get(Job, folder.name)
        if job is not None and is_over(job) and is_free(store, job_lease(job.id)):
            tidy(home, job.id)


def is_over(job: Job) -> bool:
    """Whether no worker has anything to do for a job any more."""
    return job.status in ("failed", "cancelled") or (
        job.status == "succeeded" and job.evidence not in ("pending", "running")
    )


def forget(home: Path, job_id: str) -> None:
    """Remove everything a worker wrote for a job that was deleted, answers to its rows included; its models stay.

    `job_id` must have been found in the store: it becomes part of paths.
    """
    for place in _places(home, job_id):
        shutil.rmtree(place, ignore_errors=True)
    (home / "logs" / f"{job_id}.log").unlink(missing_ok=True)


def _places(home: Path, job_id: str) -> tuple[Path, Path, Path]:
    """The folders of a job's files, of its run, and of the run that measures it (see `Desk`)."""
    return home / "inputs" / job_id, home / "runs" / job_id, home / "runs" / f"{job_id}-evidence"
