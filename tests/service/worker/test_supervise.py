"""What a supervisor does about processes that die, do not obey, or are in the way."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.service.worker.bench import Bench, rows
from tunesmith.service.jobs.operations import cancel_job, delete_job, pause_job
from tunesmith.service.store.leases import job_lease
from tunesmith.service.store.nouns import Job, Lease
from tunesmith.service.worker import supervise
from tunesmith.service.worker.hand import Hand
from tunesmith.service.worker.holder import new_holder, surely_gone
from tunesmith.service.worker.orders import HANDED_BACK, Order


@dataclass
class Played:
    """Processes that stand for the worker's: a shell command for each, in the order in which they are started."""

    commands: Callable[[Order], str]
    started: list[Order]

    def __call__(self, order: Order, renew_seconds: float) -> Hand:
        self.started.append(order)
        process = subprocess.Popen(["sh", "-c", self.commands(order)], stdin=subprocess.PIPE, start_new_session=True)
        return Hand(process, order, time.monotonic() + renew_seconds)


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Order], str]], Played]:
    def use(commands: Callable[[Order], str]) -> Played:
        played = Played(commands, [])
        monkeypatch.setattr(supervise, "start", played)
        monkeypatch.setattr(supervise, "TROUBLE_SECONDS", 0.1)
        monkeypatch.setattr(supervise, "IDLE_SECONDS", 0.05)
        return played

    return use


def running(bench: Bench, **fields: object) -> str:
    """A job that a worker which is gone was training."""
    id = bench.create(rows(0, 10))
    bench.store.update(Job, id, status="running", run=id, **fields)
    return id


def free(bench: Bench, id: str) -> bool:
    lease = bench.store.get(Lease, job_lease(id))
    return lease is None or lease.until <= time.time()


def test_a_process_that_dies_is_started_again_and_then_given_up(tmp_path, play):
    bench = Bench.at(tmp_path)
    id = running(bench)
    played = play(lambda order: "kill -9 $$")
    with bench.working():
        bench.until(lambda: bench.job(id).status == "failed", 20)
    job = bench.job(id)
    assert len(played.started) == job.attempts == supervise.MOST_ATTEMPTS
    assert job.error is not None and job.error["code"] == "server_error"
    assert "ended unexpectedly 3 times (SIGKILL: often too little memory)" in job.error["message"]
    assert bench.events(id)[-1].level == "error" and job.finished_at is not None
    assert free(bench, id)


def test_only_deaths_at_the_same_place_end_a_job(tmp_path, play):
    """A long job whose machine kills it now and then comes further each time, and is done one day."""
    bench = Bench.at(tmp_path)
    id = running(bench)
    deaths = supervise.MOST_ATTEMPTS + 1

    def step_and_die(order: Order) -> str:
        if len(played.started) <= deaths:
            bench.store.tell(id, f"Step {len(played.started)}")
            return "sleep 0.1; kill -9 $$"
        bench.store.move_job(id, "succeeded", only_from=["running"])
        return "exit 0"

    played = play(step_and_die)
    with bench.working():
        bench.until(lambda: bench.job(id).status != "running", 30)
    assert bench.job(id).status == "succeeded" and bench.job(id).attempts == 1


def test_what_ended_jobs_have_left_is_removed(tmp_path, play):
    """Of a job that was cancelled while it waited, and of one whose process was killed before it could tidy up."""
    bench = Bench.at(tmp_path, evidence=True)
    ids = {status: bench.create(rows(0, 10)) for status in ("cancelled", "succeeded", "paused")}
    for status, id in ids.items():
        bench.store.update(Job, id, status=status, evidence="ready" if status == "succeeded" else "pending")
        for place in (f"inputs/{id}", f"runs/{id}/checkpoints", f"runs/{id}-evidence/trunk", f"runs/{id}/adapter"):
            (tmp_path / place).mkdir(parents=True)
    play(lambda order: "exit 0")
    with bench.working():
        bench.until(lambda: len(list((tmp_path / "inputs").iterdir())) == 1, 10)
    assert [path.name for path in (tmp_path / "inputs").iterdir()] == [ids["paused"]]
    for status, id in ids.items():
        assert (tmp_path / "runs" / id / "adapter").is_dir()
        assert (tmp_path / "runs" / id / "checkpoints").is_dir() == (status == "paused")
        assert (tmp_path / "runs" / f"{id}-evidence" / "trunk").is_dir() == (status == "paused")


def test_a_job_that_is_deleted_while_it_is_measured_leaves_nothing(tmp_path, play, monkeypatch):
    monkeypatch.setattr(supervise, "CANCEL_SECONDS", 1.0)
    bench = Bench.at(tmp_path, evidence=True)
    id = bench.create(rows(0, 10))
    bench.store.update(Job, id, status="succeeded")
    folder = tmp_path / "runs" / f"{id}-evidence"
    played = play(lambda order: f"sleep 0.3; mkdir -p {folder}; echo >{folder}/answers.jsonl; sleep 60")
    with bench.working():
        bench.until(lambda: len(played.started) == 1, 20)
        delete_job(bench.service, id)
        bench.until(folder.is_dir, 20)
        bench.until(lambda: not folder.exists(), 20)


def test_work_that_is_handed_back_counts_as_no_death(tmp_path, play):
    bench = Bench.at(tmp_path)
    id = running(bench)
    played = play(lambda order: f"exit {HANDED_BACK}")
    with bench.working():
        bench.until(lambda: len(played.started) > 3, 20)
    assert bench.job(id).attempts == 0 and bench.job(id).status == "running" and free(bench, id)


@pytest.mark.parametrize(("stop", "status"), [(cancel_job, "cancelled"), (pause_job, "paused")])
def test_a_process_that_does_not_follow_a_wish_is_killed(tmp_path, play, monkeypatch, stop, status):
    monkeypatch.setattr(supervise, "CANCEL_SECONDS", 0.2)
    monkeypatch.setattr(supervise, "PAUSE_SECONDS", 0.2)
    bench = Bench.at(tmp_path)
    id = running(bench)
    played = play(lambda order: "trap '' TERM; sleep 60 & wait; sleep 60")
    with bench.working():
        bench.until(lambda: len(played.started) == 1, 20)
        assert stop(bench.service, id, wait=10).status == status
    assert bench.job(id).wish is None and len(played.started) == 1 and bench.job(id).attempts == 0


def test_stopping_tells_processes_to_hand_back_and_kills_those_that_do_not(tmp_path, play):
    bench = Bench.at(tmp_path, devices=("cpu", "cuda:0"))
    good, bad = running(bench), running(bench)
    commands = {
        good: f"trap 'exit {HANDED_BACK}' TERM; sleep 60 & wait",
        bad: "trap '' TERM; sleep 60 & wait; sleep 60",
    }
    played = play(lambda order: commands[order.job_id])
    supervisor = supervise.Supervisor(bench.settings)
    supervisor.start()
    bench.until(lambda: len(played.started) == 2, 20)
    assert {order.device for order in played.started} == {"cpu", "cuda:0"}
    time.sleep(0.3)  # until the shells have set their traps
    began = time.monotonic()
    supervisor.stop(1.0)
    assert not supervisor.alive and time.monotonic() - began < 5
    for id in (good, bad):
        assert bench.job(id).status == "running" and bench.job(id).attempts == 0 and free(bench, id)
    assert free(bench, "x") and all(one.until <= time.time() for one in bench.store.all(Lease))


def test_evidence_gives_way_to_a_job_and_goes_on_later(tmp_path, play):
    bench = Bench.at(tmp_path, evidence=True)
    old = bench.create(rows(0, 10))
    bench.store.update(Job, old, status="succeeded")
    commands = {"evidence": f"trap 'exit {HANDED_BACK}' TERM; sleep 60 & wait", "train": "sleep 0.2"}
    played = play(lambda order: commands[order.kind])
    with bench.working():
        bench.until(lambda: len(played.started) == 1, 20)
        time.sleep(0.3)
        new = bench.create(rows(0, 10))
        bench.until(lambda: len(played.started) > 1, 20)
        bench.store.update(Job, new, status="succeeded", evidence="none")
        bench.until(lambda: [o.kind for o in played.started][-1] == "evidence" and len(played.started) > 2, 20)
    kinds = [(order.kind, order.job_id) for order in played.started]
    assert kinds[0] == ("evidence", old) and kinds[1] == ("train", new) and kinds[-1] == ("evidence", old)
    assert bench.job(old).evidence == "pending" and bench.job(old).evidence_error is None


def test_evidence_whose_process_dies_is_given_up_and_the_job_stays_good(tmp_path, play):
    bench = Bench.at(tmp_path, evidence=True)
    id = bench.create(rows(0, 10))
    bench.store.update(Job, id, status="succeeded")
    played = play(lambda order: "kill -9 $$")
    with bench.working():
        bench.until(lambda: bench.job(id).evidence == "failed", 20)
    assert len(played.started) == 1 and bench.job(id).status == "succeeded"
    assert bench.job(id).evidence_error == "the process ended unexpectedly (SIGKILL)"


def test_evidence_that_is_ready_stays_so_when_its_process_dies_on_the_way_out(tmp_path, play):
    """It would be measured once more, and its files stand on the job twice."""
    bench = Bench.at(tmp_path, evidence=True)
    id = bench.create(rows(0, 10))
    bench.store.update(Job, id, status="succeeded")
    played = play(lambda order: "sleep 60")
    with bench.working() as supervisor:
        bench.until(lambda: len(played.started) == 1, 20)
        bench.store.update(Job, id, evidence="ready", result_files=("file-a", "file-b"))
        supervisor.stop(0.1)
    assert bench.job(id).evidence == "ready" and bench.job(id).evidence_error is None


def test_files_are_checked_while_the_device_is_busy(tmp_path, play):
    bench = Bench.at(tmp_path)
    first = running(bench)
    played = play(lambda order: "sleep 60" if order.kind == "train" else "sleep 0.1")
    with bench.working(limits=bench.settings.limits) as supervisor:
        bench.until(lambda: len(played.started) == 1, 20)
        second = bench.create(rows(0, 10))
        bench.until(lambda: len(played.started) > 1, 20)
        supervisor.stop(0.1)
    assert [(o.kind, o.job_id) for o in played.started[:2]] == [("train", first), ("validate", second)]


def test_two_workers_of_a_machine_share_its_device(tmp_path, play):
    bench = Bench.at(tmp_path)
    running(bench)
    running(bench)
    played = play(lambda order: "sleep 60")
    with bench.working() as one, bench.working() as other:
        bench.until(lambda: len(played.started) == 1, 20)
        time.sleep(0.5)
        assert len(played.started) == 1
        one.stop(0.1)
        other.stop(0.1)


def test_a_lost_lease_ends_the_process(tmp_path, play, monkeypatch):
    monkeypatch.setattr(supervise, "LEASE_SECONDS", 0.4)
    bench = Bench.at(tmp_path)
    id = running(bench)
    played = play(lambda order: "sleep 60")
    with bench.working() as supervisor:
        bench.until(lambda: len(played.started) == 1, 20)
        lease = played.started[0].lease
        bench.store.release(lease)
        assert bench.store.take_lease(job_lease(id), "somebody else", 60) is not None
        hands = [lane.hand for lane in supervisor._lanes if lane.hand is not None]
        bench.until(lambda: hands[0].process.poll() is not None, 10)
        time.sleep(0.3)
        assert len(played.started) == 1 and bench.job(id).status == "running"


def test_a_holder_is_known_to_be_gone_only_on_its_own_machine():
    assert not surely_gone(new_holder())
    child = subprocess.Popen(["sleep", "60"])
    mine = new_holder().split(" ")
    started = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[19]
    holder = f"{mine[0]} {child.pid} {started} abcd"
    assert not surely_gone(holder)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert surely_gone(holder)
    assert surely_gone(f"{mine[0]} {os.getpid()} {started} abcd"), "another process has its number now"
    assert not surely_gone(f"elsewhere|1234|- {child.pid} {started} abcd")
    assert not surely_gone("somebody")
