"""`kill -9` of the server at any moment: the job goes on where it was; nothing is lost, doubled, or left running."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.service.worker.bench import Bench, processes_of, rows, taken_up
from tunesmith.service.store.nouns import Checkpoint, File, Job, Model
from tunesmith.service.worker.working import work_on

LONG = "TUNESMITH_LONG" in os.environ
KILLS, ROWS, EPOCHS = (10, 300, 3) if LONG else (2, 30, 2)


@contextmanager
def server(home: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A worker as a process of its own, killed at the end if it still lives."""
    command = [sys.executable, "-m", "tunesmith.cli", "worker", "--home", str(home), "--no-evidence"]
    with (home / "server.log").open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def killed_again_and_again(bench: Bench, id: str, moments: list[int], seconds: float) -> Job:
    """The job after the worker was killed whenever so many steps had been told (0: before its first)."""
    home = bench.settings.home
    for moment in moments:
        with server(home) as process:
            if moment:
                bench.until(lambda moment=moment: len(bench.steps(id)) >= moment, seconds)
            else:
                bench.until(lambda: processes_of(id) != [], seconds)
            os.kill(process.pid, signal.SIGKILL)
        bench.until(lambda: processes_of(id) == [], 5)
        assert bench.job(id).status != "succeeded", "it was over before it was killed"
    with server(home) as process:
        job = bench.until_status(id, "succeeded", seconds=seconds)
        process.terminate()
        assert process.wait(30) == 0
    return job


def require_whole(bench: Bench, job: Job, steps: int, epochs: int) -> None:
    """Everything is there, once."""
    assert bench.steps(job.id) == list(range(1, steps + 1))
    events = bench.events(job.id)
    assert [e.seq for e in events] == list(range(1, len(events) + 1))
    messages = [e.message for e in events]
    assert len(set(messages)) == len(messages)
    assert messages[-1] == "The job has successfully completed"
    checkpoints = bench.store.all(Checkpoint, {"job_id": job.id})
    assert [one.step for one in checkpoints] == [steps * (epoch + 1) // epochs for epoch in range(epochs)]
    assert checkpoints[-1].name == job.fine_tuned_model
    assert len(bench.store.all(Model, {"job_id": job.id})) == epochs
    assert [bench.store.get(File, id).filename for id in job.result_files] == ["step_metrics.csv", "adapter.zip"]
    assert len(bench.store.all(File, {"purpose": "fine-tune-results"})) == 2
    assert job.attempts == 0, "the end of a server is no fault of the job's"


def test_a_killed_server_loses_and_doubles_nothing(tmp_path):
    """And the training ends with the bits of one that was not interrupted, done by this process."""
    bench = Bench.at(tmp_path)
    data, numbers = (rows(0, ROWS), rows(ROWS, 10)), {"n_epochs": EPOCHS, "batch_size": 1}
    id, plain = (bench.create(*data, hyperparameters=numbers) for _ in range(2))
    bench.store.move_job(plain, "paused", only_from=["validating_files"])
    moments = [0, *sorted(random.Random(11).sample(range(1, ROWS * EPOCHS - 10), KILLS - 1))]
    job = killed_again_and_again(bench, id, moments, 120)
    require_whole(bench, job, steps=ROWS * EPOCHS, epochs=EPOCHS)
    print(f"killed when so many steps were told: {moments}")
    bench.store.move_job(plain, "validating_files", only_from=["paused"])
    assert work_on(taken_up(bench, plain), lambda: False)
    adapters = [bench.store.get(Model, bench.job(one).fine_tuned_model).adapter for one in (id, plain)]
    files = [(tmp_path / place / "adapter_model.safetensors").read_bytes() for place in adapters]
    assert files[0] == files[1]
