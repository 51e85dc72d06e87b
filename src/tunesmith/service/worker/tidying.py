"""What is removed when it is of no more use: what a training needs to go on, and a job's copies of its files."""

from __future__ import annotations

import shutil
from pathlib import Path

from tunesmith.service.worker.desk import Desk

_TO_GO_ON = ("checkpoints", "snapshots", "trunk")


def tidy(desk: Desk) -> None:
    """After the last work on a job: models, results and the run's records stay, the rows are the uploader's again."""
    for run in (desk.run, desk.twin):
        for name in _TO_GO_ON:
            shutil.rmtree(run / name, ignore_errors=True)
    shutil.rmtree(desk.inputs, ignore_errors=True)


def forget(home: Path, job_id: str) -> None:
    """Remove everything a worker wrote for a job that was deleted, answers to its rows included; its models stay.

    `job_id` must have been found in the store: it becomes part of paths.
    """
    for place in (Path("inputs") / job_id, Path("runs") / job_id, Path("runs") / f"{job_id}-evidence"):
        shutil.rmtree(home / place, ignore_errors=True)
    (home / "logs" / f"{job_id}.log").unlink(missing_ok=True)
