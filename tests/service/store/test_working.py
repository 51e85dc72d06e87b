"""What a worker writes at one moment, on both databases, and many workers at once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.service.store.records import event, file, job
from tunesmith.service.store.interface import LostLeaseError
from tunesmith.service.store.leases import job_lease
from tunesmith.service.store.nouns import Event, File, Job, Lease
from tunesmith.service.store.sql import SqlStore


def held(store: SqlStore) -> Lease:
    store.add(job(status="running"))
    lease = store.take_lease(job_lease("ftjob-1"), "me", 60)
    assert lease is not None
    return lease


def test_all_is_kept_and_events_are_numbered_behind_the_others(store):
    lease = held(store)
    store.tell("ftjob-1", "told by the server")
    first, second = replace(event(0), id="ftevent-a"), replace(event(0), id="ftevent-b")
    changed = store.work(lease, "ftjob-1", add=[file()], events=[first], only_from=["running"], trained_tokens=3)
    assert changed is not None and changed.trained_tokens == 3 and store.get(File, "file-1") is not None
    store.work(lease, "ftjob-1", events=[first, second])
    told = store.all(Event, {"job_id": "ftjob-1"})
    assert [(e.seq, e.id) for e in told][1:] == [(2, "ftevent-a"), (3, "ftevent-b")]


def test_nothing_is_kept_where_the_status_is_another(store):
    lease = held(store)
    moved = store.work(lease, "ftjob-1", add=[file()], events=[event(0)], only_from=["queued"], trained_tokens=3)
    assert moved is None and store.get(File, "file-1") is None and not store.all(Event, {"job_id": "ftjob-1"})
    assert store.work(lease, "ftjob-none", add=[file()]) is None and store.get(File, "file-1") is None


def test_nothing_is_kept_without_the_lease(store):
    lease = held(store)
    store.release(lease)
    taken = store.take_lease(lease.id, "me", 60)  # the same holder, but at another time
    assert taken is not None and taken.token > lease.token
    with pytest.raises(LostLeaseError):
        store.work(lease, "ftjob-1", add=[file()], trained_tokens=3)
    assert store.get(File, "file-1") is None and store.get(Job, "ftjob-1").trained_tokens is None
    assert store.work(taken, "ftjob-1", trained_tokens=3) is not None


def test_server_and_worker_tell_at_once_and_no_number_is_given_twice(opened: Callable[[], SqlStore]):
    worker, server = opened(), opened()
    lease = held(worker)

    def tell() -> None:
        for number in range(20):
            server.tell("ftjob-1", f"server {number}")

    thread = threading.Thread(target=tell)
    thread.start()
    for number in range(20):
        worker.work(lease, "ftjob-1", events=[replace(event(0), id=f"ftevent-{number}")])
    thread.join()
    assert [e.seq for e in worker.all(Event, {"job_id": "ftjob-1"})] == list(range(1, 41))
