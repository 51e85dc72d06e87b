"""What goes wrong outside a job's files ends as a readable error on the job. In this process, to see real failures."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.service.worker.bench import MODEL, Bench, rows, taken_up
from tests.tiny import save_base
from tests.training.small import full_disk
from tunesmith.runs import RunFolder
from tunesmith.service.jobs.operations import cancel_job
from tunesmith.service.store.interface import LostLeaseError
from tunesmith.service.store.nouns import File, Job
from tunesmith.service.worker import working
from tunesmith.service.worker.working import check, work_on


def failed(bench: Bench, id: str) -> dict[str, Any]:
    """The error of a job that has failed as it should."""
    job = bench.job(id)
    assert job.status == "failed" and job.error is not None and job.finished_at is not None
    last = bench.events(id)[-1]
    assert (last.level, last.message) == ("error", job.error["message"])
    assert str(bench.settings.home) not in last.message and "/" not in last.message
    return dict(job.error)


def test_a_base_that_is_gone(tmp_path):
    base = save_base(tmp_path / "base")
    bench = Bench.at(tmp_path / "home", aliases={MODEL: str(base)})
    id = bench.create(rows(0, 10))
    shutil.rmtree(base)
    assert work_on(taken_up(bench, id), lambda: False)
    error = failed(bench, id)
    assert (error["code"], error["param"]) == ("model_not_found", "model")


def test_a_base_that_is_damaged(tmp_path):
    base = save_base(tmp_path / "base")
    bench = Bench.at(tmp_path / "home", aliases={MODEL: str(base)})
    id = bench.create(rows(0, 10))
    desk = taken_up(bench, id)
    assert check(desk) and bench.job(id).status == "queued"
    (base / "model.safetensors").write_bytes(b"not weights")
    assert work_on(desk, lambda: False)
    assert failed(bench, id)["code"] == "model_error"


def test_a_disk_that_is_full(tmp_path):
    bench = Bench.at(tmp_path)
    id = bench.create(rows(0, 10), hyperparameters={"n_epochs": 1})
    desk = taken_up(bench, id)
    assert check(desk)
    with full_disk(700_000):  # the store still fits, a checkpoint does not
        assert work_on(desk, lambda: False)
    error = failed(bench, id)
    assert error["code"] == "insufficient_resources" and "file too large" in error["message"]


def test_a_file_that_was_deleted_before_it_was_read(tmp_path):
    bench = Bench.at(tmp_path)
    id = bench.create(rows(0, 10))
    bench.store.remove(File, bench.job(id).training_file)
    assert check(taken_up(bench, id))
    error = failed(bench, id)
    assert error["code"] == "invalid_training_file" and error["param"] == "training_file"


def test_a_job_that_was_cancelled_meanwhile_is_left_alone(tmp_path):
    bench = Bench.at(tmp_path)
    id = bench.create(rows(0, 10))
    desk = taken_up(bench, id)
    real = desk.store.work

    def cancelled_first(*arguments: Any, **fields: Any) -> Any:
        cancel_job(bench.service, id)
        return real(*arguments, **fields)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(desk.store, "work", cancelled_first)
        with pytest.raises(LostLeaseError):
            check(desk)
    job = bench.job(id)
    assert job.status == "cancelled" and bench.events(id)[-1].message == "Fine-tuning job cancelled"
    assert work_on(desk, lambda: False) and bench.job(id) == job


def test_a_server_that_ends_before_the_work_began_gets_the_job_back(tmp_path):
    bench = Bench.at(tmp_path)
    id = bench.create(rows(0, 10))
    assert not work_on(taken_up(bench, id), lambda: True)
    assert bench.store.get(Job, id).status == "queued" and not Path(tmp_path / "runs").exists()


def test_a_job_whose_run_another_process_still_writes_is_handed_back_and_not_failed(tmp_path, monkeypatch):
    """A worker that is cut off from the database learns only later that its job was given to another."""
    monkeypatch.setattr(working, "FREE_SECONDS", 0.2)
    bench = Bench.at(tmp_path)
    id = bench.create(rows(0, 10))
    desk = taken_up(bench, id)
    assert check(desk)
    with RunFolder.create_at(desk.run).lock():
        assert not work_on(desk, lambda: False)
    job = bench.job(id)
    assert job.status == "running" and job.error is None
