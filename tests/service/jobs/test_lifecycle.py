"""Every action in every state, against a table written here once more by hand."""

from __future__ import annotations

import threading
import time
from typing import get_args

import pytest

from tests.service.jobs.made import a_job
from tunesmith.service.context import Service
from tunesmith.service.errors import ApiError
from tunesmith.service.jobs.lifecycle import ALLOWED
from tunesmith.service.jobs.operations import cancel_job, delete_job, pause_job, resume_job
from tunesmith.service.store.nouns import Event, Job, JobStatus

STATES: tuple[JobStatus, ...] = get_args(JobStatus)
COMPLETED, FAILED, ENDED = "Job has already completed", "Job has already failed", "Job has already been cancelled"
OUTCOMES = {
    ("cancel", "validating_files"): "cancelled",
    ("cancel", "queued"): "cancelled",
    ("cancel", "running"): "wish",
    ("cancel", "paused"): "cancelled",
    ("cancel", "succeeded"): COMPLETED,
    ("cancel", "failed"): FAILED,
    ("cancel", "cancelled"): ENDED,
    ("pause", "validating_files"): "Job cannot be paused while its status is 'validating_files'",
    ("pause", "queued"): "paused",
    ("pause", "running"): "wish",
    ("pause", "paused"): "Job cannot be paused while its status is 'paused'",
    ("pause", "succeeded"): COMPLETED,
    ("pause", "failed"): FAILED,
    ("pause", "cancelled"): ENDED,
    ("resume", "validating_files"): "Job is not paused and cannot be resumed (its status is 'validating_files')",
    ("resume", "queued"): "Job is not paused and cannot be resumed (its status is 'queued')",
    ("resume", "running"): "Job is not paused and cannot be resumed (its status is 'running')",
    ("resume", "paused"): "queued",
    ("resume", "succeeded"): "Job is not paused and cannot be resumed (its status is 'succeeded')",
    ("resume", "failed"): "Job is not paused and cannot be resumed (its status is 'failed')",
    ("resume", "cancelled"): "Job is not paused and cannot be resumed (its status is 'cancelled')",
    ("delete", "validating_files"): "Job cannot be deleted while its status is 'validating_files'",
    ("delete", "queued"): "Job cannot be deleted while its status is 'queued'",
    ("delete", "running"): "Job cannot be deleted while its status is 'running'",
    ("delete", "paused"): "Job cannot be deleted while its status is 'paused'",
    ("delete", "succeeded"): "gone",
    ("delete", "failed"): "gone",
    ("delete", "cancelled"): "gone",
}
SAID = {"cancelled": "Fine-tuning job cancelled", "paused": "Fine-tuning job paused"}


def test_the_table_here_is_complete() -> None:
    assert set(OUTCOMES) == {(action, state) for action in ALLOWED for state in STATES}


@pytest.mark.parametrize(("action", "state"), list(OUTCOMES))
def test_action(service: Service, action: str, state: JobStatus) -> None:
    job, other = a_job(status=state), a_job(status=state)
    service.store.add_all([job, other])
    if action == "delete":
        for one in (job, other):
            service.store.tell(one.id, "Fine-tuning job started")
    expected = OUTCOMES[action, state]

    def act() -> Job:
        match action:
            case "cancel":
                return cancel_job(service, job.id, wait=0)
            case "pause":
                return pause_job(service, job.id, wait=0)
            case "resume":
                return resume_job(service, job.id)
        return delete_job(service, job.id)

    if expected.startswith("Job "):
        with pytest.raises(ApiError) as refused:
            act()
        assert refused.value.status == 400
        assert refused.value.message.startswith(f"{expected}: {job.id}")
        assert service.store.get(Job, job.id) == job, "nothing changed"
        return
    answer, now = act(), service.store.get(Job, job.id)
    if expected == "gone":
        assert now is None and not service.store.count(Event, {"job_id": job.id})
        assert service.store.count(Event) == 1, "another job's stays"
    elif expected == "wish":
        assert now is not None and (now.status, now.wish) == ("running", action)
    else:
        assert now is not None and now.status == answer.status == expected
        assert now.wish is None
        assert (now.finished_at is not None) == (expected == "cancelled")
        told = [event.message for event in service.store.all(Event, {"job_id": job.id})]
        assert told == [SAID.get(expected, "Fine-tuning job resumed, moving job to queued state")]


def test_cancelling_waits_for_a_worker_that_obeys(service: Service) -> None:
    job = a_job(status="running")
    service.store.add(job)

    def worker() -> None:
        while (seen := service.store.get(Job, job.id)) is None or seen.wish is None:
            time.sleep(0.01)
        service.store.move_job(job.id, "cancelled", only_from=["running"], wish=None)

    thread = threading.Thread(target=worker)
    thread.start()
    began = time.monotonic()
    assert cancel_job(service, job.id, wait=20).status == "cancelled"
    assert time.monotonic() - began < 10
    thread.join()


def test_cancelling_at_once_with_the_end_of_the_job_loses_to_it(service: Service) -> None:
    """The job ends between the look and the wish: the user is told that it has completed."""
    job = a_job(status="running")
    service.store.add(job)
    move = service.store.move_job

    def late(id: str, to: JobStatus, **more: object) -> Job | None:
        if to == "running":
            move(id, "succeeded", only_from=["running"])
        return move(id, to, **more)  # type: ignore[arg-type]

    service.store.move_job = late  # type: ignore[method-assign]
    with pytest.raises(ApiError, match="already completed"):
        cancel_job(service, job.id, wait=0)
