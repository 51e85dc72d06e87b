"""What a job says of itself once a worker has really trained it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.service.apps import client_of
from tests.service.jobs.made import chat_rows, lines
from tests.service.worker.bench import Bench, taken_up
from tunesmith.service.worker.working import check, work_on


def with_long_rows(count: int, places: list[int]) -> bytes:
    rows = chat_rows(count)
    for place in places:
        rows[place]["messages"][1]["content"] = f"{place} " + "word " * 3000
    return lines(rows)


def worked(bench: Bench, **request: Any) -> str:
    id = bench.create(**request)
    desk = taken_up(bench, id)
    assert check(desk) and work_on(desk, lambda: False)
    return id


def test_checkpoints_and_steps_of_a_job_with_rows_that_are_too_long(tmp_path: Path) -> None:
    bench = Bench.at(tmp_path)
    numbers = {"n_epochs": 4, "batch_size": 6}
    id = worked(bench, training=with_long_rows(13, [9, 4]), hyperparameters=numbers)
    job = bench.job(id)
    assert job.status == "succeeded", bench.log(id)
    # 13 rows were three steps an epoch; the eleven that fit are two.
    assert bench.steps(id) == list(range(1, 9))
    assert (job.resolved["total_steps"], job.resolved["steps_per_epoch"]) == (8, 2)
    (told,) = [e.message for e in bench.events(id) if e.level == "warn" and "longer than" in e.message]
    assert told.endswith(": lines 5, 10")
    with client_of(bench.service) as client:
        listed = client.get(f"/v1/fine_tuning/jobs/{id}/checkpoints").json()["data"]
    assert [one["step_number"] for one in listed] == [8, 6, 4], "the ends of the last three epochs"
    newest, *earlier = listed
    assert newest["fine_tuned_model_checkpoint"] == job.fine_tuned_model
    assert [one["fine_tuned_model_checkpoint"].rpartition(":")[2] for one in earlier] == ["ckpt-step-6", "ckpt-step-4"]
    assert all(set(one["metrics"]) == {"step", "train_loss", "train_mean_token_accuracy"} for one in listed)


def test_a_file_whose_rows_are_all_too_long(tmp_path: Path) -> None:
    bench = Bench.at(tmp_path)
    id = worked(bench, training=with_long_rows(12, list(range(12))), hyperparameters={"n_epochs": 1})
    error = bench.job(id).error
    assert error is not None and (error["code"], error["param"]) == ("invalid_training_file", "training_file")
    assert error["message"].startswith("The job failed due to an invalid training file. 12 row(s) are longer than")
    assert error["details"][0]["lines"] == list(range(1, 13)) and "\n" not in json.dumps(error)
    assert bench.events(id)[-1].message == error["message"]


def test_a_training_that_diverges(tmp_path: Path) -> None:
    bench = Bench.at(tmp_path)
    numbers = {"n_epochs": 1, "learning_rate_multiplier": 1e300}
    id = worked(bench, training=lines(chat_rows(10)), hyperparameters=numbers)
    error = bench.job(id).error
    assert error is not None and error["code"] == "invalid_hyperparameters"
    assert error["param"] == "hyperparameters.learning_rate_multiplier"
    assert error["message"].startswith("The training diverged: the loss is")
