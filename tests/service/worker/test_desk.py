"""What a worker writes: all of it or nothing, nothing twice, and nothing once the job is another's."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from sqlalchemy.exc import OperationalError

from tests.service.worker.bench import Bench, rows
from tunesmith.errors import DataError, ResourceError
from tunesmith.service.errors import ApiError
from tunesmith.service.jobs import events
from tunesmith.service.jobs.events import Draft, Translator
from tunesmith.service.store.interface import LostLeaseError
from tunesmith.service.store.leases import job_lease
from tunesmith.service.store.nouns import Event, File, Job, Lease
from tunesmith.service.worker import desk as desk_module
from tunesmith.service.worker import telling as telling_module
from tunesmith.service.worker.desk import Desk
from tunesmith.service.worker.faults import fault_of, without_paths
from tunesmith.service.worker.inputs import lay_out
from tunesmith.service.worker.telling import Stopped, Telling


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench.at(tmp_path)


@pytest.fixture
def desk(bench: Bench) -> Desk:
    """A running job under a lease."""
    id = bench.create(rows(0, 10))
    bench.store.update(Job, id, status="running", run=id)
    lease = bench.store.take_lease(job_lease(id), "me", 60)
    assert lease is not None
    return Desk(bench.settings, bench.store, bench.service.blobs, lease, id, "openai")


def step(number: int) -> dict[str, object]:
    time = f"2026-11-21T10:00:{number:02}.000+00:00"
    return {"seq": number, "time": time, "kind": "train_step", "step": number, "steps": 20, "loss": 1.5}


def log_of(desk: Desk, count: int) -> None:
    """A run's log with so many steps, as a killed worker left it."""
    from tunesmith.runs import RunFolder

    with RunFolder.create_at(desk.run).events() as log:
        for number in range(1, count + 1):
            log.write("train_step", step=number, steps=20, loss=1.5)


def test_everything_of_a_moment_is_written_together(bench, desk):
    file = desk.result_file("a.csv", b"1,2")
    said = [desk.event(Draft(f"number {i}", {"kind": "x"}), f"x/{i}") for i in range(3)]
    before = len(bench.events(desk.job_id))
    job = desk.write(add=[file], events=said, only_from=["running"], trained_tokens=7)
    assert job.trained_tokens == 7 and bench.store.get(File, file.id) == file
    told = bench.events(desk.job_id)[before:]
    assert [(e.seq, e.message) for e in told] == [(before + 1 + i, f"number {i}") for i in range(3)]
    desk.write(events=[*said, desk.event(Draft("more", {"kind": "x"}), "x/3")])
    assert [e.message for e in bench.events(desk.job_id)[before:]] == ["number 0", "number 1", "number 2", "more"]


def test_where_the_job_has_moved_on_nothing_is_written(bench, desk):
    bench.store.move_job(desk.job_id, "cancelled", only_from=["running"])
    count = len(bench.events(desk.job_id))
    with pytest.raises(LostLeaseError):
        desk.write(
            add=[desk.result_file("a.csv", b"1")],
            events=[desk.event(events.succeeded(), "done")],
            only_from=["running"],
            status="succeeded",
        )
    assert bench.job(desk.job_id).status == "cancelled" and len(bench.events(desk.job_id)) == count
    assert bench.store.count(File, {"purpose": "fine-tune-results"}) == 0


def test_a_record_that_cannot_be_kept_undoes_the_rest(bench, desk):
    file = desk.result_file("a.csv", b"1")
    bench.store.add(file)
    with pytest.raises(ValueError, match="is there already"):
        desk.write(add=[file], only_from=["running"], status="succeeded")
    assert bench.job(desk.job_id).status == "running"


def test_who_lost_the_lease_writes_nothing(bench, desk):
    bench.store.release(desk.lease)
    with pytest.raises(LostLeaseError):
        desk.write(trained_tokens=1)
    other = bench.store.take_lease(desk.lease.id, "somebody else", 60)
    assert other is not None and other.token > desk.lease.token
    with pytest.raises(LostLeaseError):
        desk.write(events=[desk.event(events.started(), "started")])
    assert bench.job(desk.job_id).trained_tokens is None
    assert "Fine-tuning job started" not in [e.message for e in bench.events(desk.job_id)]


def test_a_lease_that_ran_out_and_that_nobody_took_is_still_good(bench, desk):
    bench.store.update(Lease, desk.lease.id, until=1.0)
    assert desk.write(trained_tokens=1).trained_tokens == 1


def test_what_a_killed_worker_did_not_tell_is_told_and_nothing_twice(bench, desk):
    log_of(desk, 5)
    first = Telling(desk, Translator(steps_per_epoch=None), lambda: False)
    first.catch_up()
    assert bench.steps(desk.job_id) == [1, 2, 3, 4, 5]
    again = Telling(desk, Translator(steps_per_epoch=None), lambda: False)
    again.catch_up()
    for number in (3, 4, 5, 6, 7):  # the checkpoint was at step 2
        again(step(number))
    again.finish()
    assert bench.steps(desk.job_id) == [1, 2, 3, 4, 5, 6, 7]


def test_a_step_held_back_for_its_validation_is_not_lost_by_a_kill(bench, desk):
    log_of(desk, 4)  # killed between step 4, an epoch's end, and its validation
    Telling(desk, Translator(steps_per_epoch=4), lambda: False).catch_up()
    assert bench.steps(desk.job_id) == [1, 2, 3]
    telling = Telling(desk, Translator(steps_per_epoch=4), lambda: False)
    telling.catch_up()
    started = {"time": "2026-11-21T10:00:00+00:00", "kind": "train_started", "steps": 20, "resumed_at": 2}
    telling(started)
    for number in (3, 4):
        telling(step(number))
    telling({"time": "2026-11-21T10:00:05+00:00", "kind": "validation", "step": 4, "loss": 0.5})
    telling(step(5))
    telling.finish()
    assert bench.steps(desk.job_id) == [1, 2, 3, 4, 5]
    assert [e.message for e in bench.events(desk.job_id)][-2].endswith("full validation loss=0.50")


def test_a_running_job_hears_wishes_and_says_when_it_will_end(bench, desk):
    telling = Telling(desk, Translator(steps_per_epoch=None), lambda: False)
    telling({"time": "2026-11-21T10:00:00+00:00", "kind": "train_started", "steps": 20, "resumed_at": 0})
    telling(step(1))
    telling.flush()
    assert bench.job(desk.job_id).estimated_finish is not None
    bench.store.update(Job, desk.job_id, wish="pause")
    with pytest.raises(Stopped) as stopped:
        telling.obey()
    assert stopped.value.reason == "pause"
    draining = Telling(desk, Translator(steps_per_epoch=None), lambda: True)
    with pytest.raises(Stopped) as stopped:
        draining(step(2))
    assert stopped.value.reason == "drain" and bench.steps(desk.job_id) == [1, 2]


def test_files_stay_for_the_job_though_they_are_deleted(bench, desk):
    job = bench.job(desk.job_id)
    training, validation = lay_out(desk, job)
    assert training.read_bytes() == rows(0, 10) and validation is None
    bench.service.blobs.path(bench.store.get(File, job.training_file).blob).unlink()
    bench.store.remove(File, job.training_file)
    assert lay_out(desk, job)[0].read_bytes() == rows(0, 10)


def test_a_file_that_is_gone_or_unreadable_is_named(bench, desk):
    job = bench.job(desk.job_id)
    bench.service.blobs.path(bench.store.get(File, job.training_file).blob).unlink()
    with pytest.raises(ApiError, match="cannot be read"):
        lay_out(desk, job)
    bench.store.remove(File, job.training_file)
    with pytest.raises(ApiError, match="was deleted before") as gone:
        lay_out(desk, job)
    assert gone.value.code == "invalid_training_file"


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/srv/x/y"), "insufficient_resources", "disk is full"),
        (ResourceError("cannot be written: no space left on device"), "insufficient_resources", "no space left"),
        (MemoryError(), "insufficient_resources", "out of memory"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried /x/y"), "insufficient_resources", "out of memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate"),
         "insufficient_resources", "out of memory"),
        (PermissionError(errno.EACCES, "Permission denied", "/srv/x"), "insufficient_resources", "may not read"),
        (DataError("no rows", where="/srv/x/a.jsonl"), "invalid_training_file", "No rows"),
        (ApiError(400, "The file f-1 was deleted.", code="invalid_training_file"), "invalid_training_file", "f-1"),
        (KeyError("secret /srv/x"), "server_error", "error of the server"),
    ],
)  # fmt: skip
def test_failures_are_told_in_words_and_without_paths(error, code, words):
    said = fault_of(error, Path("/srv/x"))
    assert said["code"] == code and words in said["message"]
    assert "/" not in said["message"] and "secret" not in said["message"]


def test_paths_are_cut_down_to_their_names_and_nothing_else():
    home = Path("/srv/my home/ts")
    text = "line 2 of /srv/my home/ts/inputs/ftjob-1/training.jsonl and /usr/lib/x.py, see https://a.b/c/d/e or 1/2/3"
    said = "line 2 of training.jsonl and x.py, see https://a.b/c/d/e or 1/2/3"
    assert without_paths(text, home) == said
    assert without_paths("<b>a</b></div></div> and/or/both", home) == "<b>a</b></div></div> and/or/both"


def test_ids_of_events_are_those_of_the_dialect(desk):
    azure = Desk(desk.settings, desk.store, desk.blobs, desk.lease, desk.job_id, "azure")
    draft = events.started()
    plain, other = desk.event(draft, "started"), azure.event(draft, "started")
    assert isinstance(plain, Event) and len(plain.id) == len("ftevent-") + 24
    assert len(other.id) == len("ftevent-") + 32 and int(other.id.removeprefix("ftevent-"), 16) >= 0
    assert desk.event(draft, "started", at=5).id == plain.id != desk.event(draft, "other").id


def test_a_store_that_cannot_be_reached_for_a_while_costs_nothing(bench, desk, monkeypatch):
    monkeypatch.setattr(desk_module, "RETRY_SECONDS", 0.01)
    real, failures = bench.store.work, [OperationalError("", {}, Exception("gone"))] * 3

    def unreachable(*arguments: object, **fields: object) -> object:
        if failures:
            raise failures.pop()
        return real(*arguments, **fields)

    monkeypatch.setattr(bench.store, "work", unreachable)
    assert desk.write(trained_tokens=5).trained_tokens == 5 and not failures
    failures.append(OperationalError("", {}, Exception("gone")))
    with pytest.raises(OperationalError):
        replace(desk, patience=-1.0).write(trained_tokens=6)


def test_what_a_long_log_holds_is_told_in_parts(bench, desk, monkeypatch):
    monkeypatch.setattr(telling_module, "MOST_WAITING", 7)
    written: list[int] = []
    real = bench.store.work

    def counted(*arguments: object, **fields: object) -> object:
        written.append(len(fields["events"]))
        return real(*arguments, **fields)

    monkeypatch.setattr(bench.store, "work", counted)
    log_of(desk, 20)
    Telling(desk, Translator(steps_per_epoch=None), lambda: False).catch_up()
    assert written == [7, 7, 6] and bench.steps(desk.job_id) == list(range(1, 21))
