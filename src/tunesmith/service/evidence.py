"""What a job was worth, as the worker found it: read from the job's result files, in any state of the job.

Nothing here loads a model: the worker's process has measured and decided, and kept the verdict and the report's page.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunesmith.service.context import Service
from tunesmith.service.jobs.lifecycle import FINAL
from tunesmith.service.store.nouns import File, Job, Json

VERDICT, REPORT, ANSWERS = "verdict.json", "report.html", "answers.zip"
_WHY_NONE = {
    "failed": "the job failed, so there is no model to measure",
    "cancelled": "the job was cancelled, so there is no model to measure",
    "succeeded": "this server measures no evidence",
}


def report_of(service: Service, job: Job) -> Json:
    """The evidence of a job: `status` is pending, running, ready, failed or none; the rest is null until it is ready.

    `scores` has a row for each candidate and metric, with its confidence interval, `costs` one for each candidate.
    `files` names the files by which everything can be fetched.
    """
    files = result_files(service, job)
    status, message = _status(job)
    found = _kept(service, files) if status == "ready" else {}
    return {
        "object": "fine_tuning.job.report",
        "job_id": job.id,
        "model": job.fine_tuned_model,
        "status": status,
        "message": message,
        "headline": found.get("headline"),
        "measured_on": found.get("measured_on"),
        "twin": found.get("twin"),
        "verdict": found.get("verdict"),
        "scores": found.get("scores"),
        "candidates": found.get("candidates"),
        "costs": found.get("costs"),
        "training": _training(job),
        "files": {name: file.id for name, file in files.items()},
    }


def evidence_object(job: Job) -> Json:
    """What a job shows of its evidence: how far it is, and why it could not be made."""
    return {"status": _status(job)[0], "error": job.evidence_error}


def report_html(service: Service, job: Job) -> Path | None:
    """The report's page; None until there is one."""
    file = result_files(service, job).get(REPORT)
    return _path(service, file) if file is not None else None


def result_files(service: Service, job: Job) -> dict[str, File]:
    """The job's result files that are still there, by their names."""
    files = [service.store.get(File, id) for id in job.result_files]
    return {file.filename: file for file in files if file is not None}


def _status(job: Job) -> tuple[str, str | None]:
    if job.status in ("failed", "cancelled"):
        return "none", _WHY_NONE[job.status]
    if job.evidence == "none":
        return "none", _WHY_NONE["succeeded"]
    if job.status not in FINAL:
        return "pending", "the job is not finished yet; its evidence is measured after it has succeeded"
    if job.evidence == "pending":
        return "pending", "the evidence is measured when no job needs the device"
    return job.evidence, job.evidence_error


def _training(job: Job) -> Mapping[str, Any] | None:
    if job.status != "succeeded":
        return None
    names = (
        "tokens",
        "supervised_tokens",
        "seconds",
        "total_steps",
        "learning_rate",
        "rank",
        "alpha",
        "target_modules",
    )
    return {name: job.resolved[name] for name in names if name in job.resolved}


def _kept(service: Service, files: Mapping[str, File]) -> Mapping[str, Any]:
    """What the worker wrote; nothing where somebody deleted that file."""
    file = files.get(VERDICT)
    path = _path(service, file) if file is not None else None
    if path is None:
        return {}
    found: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _path(service: Service, file: File) -> Path | None:
    if file.blob is None:
        return None
    try:
        return Path(service.blobs.path(file.blob))
    except KeyError:
        return None
