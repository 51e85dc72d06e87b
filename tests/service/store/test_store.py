"""The store on SQLite and on PostgreSQL: what it promises, one call at a time and from many threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from tests.service.store.conftest import Open
from tests.service.store.records import event, file, job
from tunesmith.service.store.interface import AtMost, Page, UnknownCursorError
from tunesmith.service.store.nouns import Event, File, Job, Key, Lease, OutputItem
from tunesmith.service.store.sql import SqlStore


def ids(found: Sequence[File] | Sequence[Job]) -> list[str]:
    return [one.id for one in found]


def test_a_record_comes_back_as_it_was(opened: Open) -> None:
    """Text of every kind, numbers beyond 32 bits, JSON, tuples, None apart from empty; also from another opening."""
    full = job(
        created_at=2**40,
        suffix='"; drop table jobs; -- é 🦜 \u200b',
        metadata={"a": "b", "": "leer", 'q"$.x': "\U0001f600"},
        integrations=({"type": "wandb", "n": [1, 2.5, None, True]},),
        hyperparameters={"n_epochs": 3, "learning_rate_multiplier": 1e-05},
        result_files=("file-1", "file-2"),
        estimated_finish=None,
        error={},
    )
    bare = job("ftjob-2")
    opened().add_all([full, bare])
    again = opened()
    assert again.get(Job, "ftjob-1") == full and again.get(Job, "ftjob-2") == bare
    assert again.get(Job, "ftjob-2").metadata is None and again.get(Job, "ftjob-2").result_files == ()  # type: ignore[union-attr]
    assert again.get(Job, "ftjob-3") is None and again.get(File, "ftjob-1") is None


def test_an_id_is_taken_once_and_several_are_added_together_or_not_at_all(store: SqlStore) -> None:
    store.add(file("file-1"))
    with pytest.raises(ValueError, match="file-1"):
        store.add(file("file-1", filename="other"))
    with pytest.raises(ValueError):
        store.add_all([job("ftjob-1"), file("file-2"), file("file-1")])
    assert store.count(Job) == 0 and ids(store.all(File)) == ["file-1"]
    assert store.get(File, "file-1").filename == "a.jsonl"  # type: ignore[union-attr]


def test_pages_are_complete_and_keep_the_order_of_adding_among_equal_times(store: SqlStore) -> None:
    times = [5, 5, 3, 9, 5, 9, 1]
    store.add_all([file(f"file-{n}", created_at=t) for n, t in enumerate(times)])
    oldest_first = ["file-6", "file-2", "file-0", "file-1", "file-4", "file-3", "file-5"]
    assert ids(store.all(File)) == oldest_first
    for order, expected in (("asc", oldest_first), ("desc", oldest_first[::-1])):
        for limit in (1, 2, 3, 7, 100):
            seen: list[str] = []
            after, more = None, True
            while more:
                found = store.page(File, Page(limit, after, order))  # type: ignore[arg-type]
                assert 1 <= len(found.items) <= limit
                seen += ids(found.items)
                after, more = seen[-1], found.has_more
            assert seen == expected
    assert store.page(File, Page(limit=7)).has_more is False
    assert store.page(Job, Page()).items == ()


def test_a_list_is_narrowed_by_fields_and_metadata(store: SqlStore) -> None:
    store.add_all(
        [
            job("ftjob-1", metadata={"team": "a", "x.y": "1"}),
            job("ftjob-2", status="running", metadata={"team": "a"}, suffix="s"),
            job("ftjob-3", status="failed", metadata={"team": "b"}, finished_at=7),
            job("ftjob-4", finished_at=9),
        ]
    )
    assert ids(store.page(Job, Page(), metadata={"team": "a"}).items) == ["ftjob-2", "ftjob-1"]
    assert ids(store.page(Job, Page(), metadata={"team": "a", "x.y": "1"}).items) == ["ftjob-1"]
    for nothing in ({"team": "c"}, {"tea": "a"}, {"x": "1"}, {"team": "%"}, {"'": "a"}):
        assert store.page(Job, Page(), metadata=nothing).items == ()
    assert ids(store.all(Job, {"status": ("running", "failed")})) == ["ftjob-2", "ftjob-3"]
    assert ids(store.all(Job, {"suffix": None, "status": "queued"})) == ["ftjob-1", "ftjob-4"]
    assert ids(store.all(Job, {"finished_at": AtMost(8)})) == ["ftjob-3"]
    assert ids(store.all(Job, {"id": ()})) == []
    assert store.count(Job, {"status": "queued"}) == 2
    with pytest.raises(TypeError, match="nonsense"):
        store.all(Job, {"nonsense": 1})


def test_text_that_no_database_takes_harms_nothing(store: SqlStore) -> None:
    store.add(file("file-1", filename="a\ud800b"))
    assert store.get(File, "file-1") == file("file-1", filename="a\ufffdb")
    store.add(job("ftjob-1", metadata={"a": "x\0y", "b": "1", "c": "\ud800"}))
    assert store.get(Job, "ftjob-1").metadata == {"a": "x\0y", "b": "1", "c": "\ud800"}  # type: ignore[union-attr]
    for name in ("file\0", "\ud800", "file-1\0"):
        assert store.get(File, name) is None and store.all(File, {"purpose": name}) == ()
    for pair in ({"b": "2"}, {"\0": "1"}, {"b": "\0"}, {"\ud800": "\ud800"}):
        assert store.page(Job, Page(), metadata=pair).items == ()


def test_a_cursor_of_another_list_is_refused(store: SqlStore) -> None:
    store.add_all([file("file-1"), file("file-2", purpose="batch"), *(event(n, job) for job in "ab" for n in (1, 2))])
    with pytest.raises(UnknownCursorError):
        store.page(File, Page(after="file-2"), {"purpose": "fine-tune"})
    with pytest.raises(UnknownCursorError):
        store.page(Event, Page(after="ftevent-b-1"), {"job_id": "a"})
    with pytest.raises(UnknownCursorError):
        store.page(Job, Page(after="file-1"))


def test_who_deletes_while_paging_misses_nothing(store: SqlStore) -> None:
    store.add_all([file(f"file-{n}") for n in range(7)])
    seen: list[str] = []
    after, more = None, True
    while more:
        found = store.page(File, Page(2, after))
        for one in found.items:
            assert store.remove(File, one.id) and not store.remove(File, one.id)
        seen += ids(found.items)
        after, more = seen[-1], found.has_more
    assert seen == [f"file-{n}" for n in reversed(range(7))] and store.count(File) == 0
    store.add(file("file-3"))
    assert store.remove(File, "file-3")


def test_numbers_of_removed_rows_are_not_given_again(store: SqlStore) -> None:
    """Else a new file could stand behind the cursor of a removed one."""
    store.add(file("file-1"))
    store.remove(File, "file-1")
    store.add(file("file-2"))
    assert store.page(File, Page(after="file-1", order="desc")).items == ()
    assert ids(store.page(File, Page(after="file-1", order="asc")).items) == ["file-2"]


def test_a_record_is_changed_field_by_field(store: SqlStore) -> None:
    store.add(job())
    changed = store.update(Job, "ftjob-1", result_files=("file-9",), metadata=None, trained_tokens=2**40)
    assert changed == job(result_files=("file-9",), trained_tokens=2**40) == store.get(Job, "ftjob-1")
    assert store.update(Job, "ftjob-1") == changed
    assert store.update(Job, "ftjob-2", wish="cancel") is None
    with pytest.raises(TypeError, match="nonsense"):
        store.update(Job, "ftjob-1", nonsense=1)
    with pytest.raises(TypeError, match="nonsense"):
        store.move_job("ftjob-1", "running", only_from=["queued"], nonsense=1)


def test_a_job_moves_only_from_the_states_that_are_named(store: SqlStore) -> None:
    store.add(job())
    assert store.move_job("ftjob-1", "paused", only_from=["running"]) is None
    moved = store.move_job("ftjob-1", "running", only_from=["queued", "paused"], run="r")
    assert moved == job(status="running", run="r")
    assert store.move_job("ftjob-1", "running", only_from=["queued"]) is None
    assert store.move_job("ftjob-2", "running", only_from=["queued"]) is None


def test_of_eight_threads_that_move_a_job_one_wins(store: SqlStore) -> None:
    store.add(job())
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda n: store.move_job("ftjob-1", "running", only_from=["queued"], seed=n), range(8)))
    assert sum(one is not None for one in won) == 1
    assert store.get(Job, "ftjob-1") == next(one for one in won if one is not None)


def test_an_event_is_kept_once_and_told_ones_stand_behind_it(store: SqlStore) -> None:
    assert store.next_seq("ftjob-1") == 1
    assert store.append_event(event(1)) and store.append_event(event(3))
    assert not store.append_event(replace(event(3), id="ftevent-x", message="again"))
    told = store.tell("ftjob-1", "hello", type="metrics", data={"step": 1})
    assert (told.seq, told.level, told.data) == (4, "info", {"step": 1}) and told.id.startswith("ftevent-")
    assert store.next_seq("ftjob-1") == 5 and store.next_seq("ftjob-2") == 1
    page = store.page(Event, Page(2), {"job_id": "ftjob-1"})
    assert [one.seq for one in page.items] == [4, 3] and page.has_more
    assert [one.seq for one in store.page(Event, Page(2, page.items[-1].id), {"job_id": "ftjob-1"}).items] == [1]


def test_events_told_by_many_threads_have_numbers_without_gaps(store: SqlStore) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: store.tell(f"ftjob-{n % 2}", str(n)), range(80)))
    for name in ("ftjob-0", "ftjob-1"):
        assert [one.seq for one in store.all(Event, {"job_id": name})] == list(range(1, 41))


def test_an_azure_jobs_events_are_named_as_azure_does(store: SqlStore) -> None:
    store.add(job(flavour="azure"))
    name = store.tell("ftjob-1", "hello").id
    assert len(name) == len("ftevent-") + 32 and set(name[8:]) <= set("0123456789abcdef")


def test_items_stand_in_their_own_order(store: SqlStore) -> None:
    def item(place: int) -> OutputItem:
        return OutputItem(f"item-{place}", 1, "run", place, "pass", {}, ({"score": 0.5},), {})

    store.add_all([item(2), item(0), item(1)])
    assert store.all(OutputItem, {"run_id": "run"}) == (item(0), item(1), item(2))


def test_a_key_is_found_by_its_digest_and_kept_once(store: SqlStore) -> None:
    store.add(Key("key_1", 1, "a", "d", ("read",)))
    assert store.all(Key, {"digest": "d"})[0].scopes == ("read",)
    with pytest.raises(ValueError):
        store.add(Key("key_2", 1, "b", "d", ("read",)))


def test_each_job_is_claimed_once(opened: Open) -> None:
    """Eight threads, two openings of the database, fifty jobs, oldest first."""
    stores = [opened(), opened()]
    stores[0].add_all([job(f"ftjob-{n}", created_at=n) for n in range(50)])
    claimed: list[str] = []
    lock = threading.Lock()

    def work(number: int) -> None:
        mine = stores[number % 2]
        while (found := mine.claim_job(f"worker-{number}", 60)) is not None:
            assert found[1].id == f"job:{found[0].id}" and found[1].token == 1
            with lock:
                claimed.append(found[0].id)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert sorted(claimed) == sorted(f"ftjob-{n}" for n in range(50))
    # Claiming and noting are two steps, so neighbours may swap; the old ones were still first.
    assert {int(name[6:]) for name in claimed[:10]} <= set(range(20))


def test_only_waiting_jobs_are_claimed(store: SqlStore) -> None:
    states = ("validating_files", "queued", "running", "paused", "succeeded", "failed", "cancelled")
    store.add_all([job(f"ftjob-{state}", status=state, evidence="none") for state in states])
    claimed = []
    while (found := store.claim_job("w", 60)) is not None:
        claimed.append(found[0].status)
    assert claimed == ["validating_files", "queued", "running"]
    assert store.claim_job("w", 60, evidence=True) is None


def test_a_job_whose_worker_died_is_claimed_again(store: SqlStore) -> None:
    store.add(job(status="running"))
    first = store.claim_job("a", 60)
    assert first is not None and store.claim_job("b", 60) is None
    store.update(Lease, first[1].id, until=time.time() - 1)
    second = store.claim_job("b", 60)
    assert second is not None and second[1].token == first[1].token + 1
    assert store.renew(first[1], 60) is None
    store.release(first[1])
    assert store.claim_job("c", 60) is None, "who lost a lease cannot release it"
    store.release(second[1])
    assert store.claim_job("c", 60) is not None


def test_evidence_is_claimed_by_itself(store: SqlStore) -> None:
    store.add_all(
        [
            job("ftjob-1", status="queued"),
            job("ftjob-2", status="succeeded", evidence="ready"),
            job("ftjob-3", status="succeeded", evidence="pending"),
            job("ftjob-4", status="succeeded", evidence="running"),
        ]
    )
    found = [store.claim_job("w", 60, evidence=True) for _ in range(3)]
    assert [one[0].id if one else None for one in found] == ["ftjob-3", "ftjob-4", None]


def test_a_lease_is_held_by_one_until_it_is_over(store: SqlStore) -> None:
    first = store.take_lease("device:cpu", "a", 60)
    assert first is not None and store.take_lease("device:cpu", "b", 60) is None
    longer = store.renew(first, 90)
    assert longer is not None and longer.until > first.until and longer.token == first.token
    assert store.get(Lease, "device:cpu") == longer
    over = time.time() - 1
    store.update(Lease, "device:cpu", until=over)
    assert store.renew(first, 60) is not None, "over, but nobody has taken it"
    store.update(Lease, "device:cpu", until=over)
    second = store.take_lease("device:cpu", "b", 60)
    assert second is not None and second.token == first.token + 1
    same = store.take_lease("device:cpu", "b", 90)
    assert same is not None and same.token == second.token and same.until > second.until
    store.release(second)
    assert store.renew(second, 60) is None
    third = store.take_lease("device:cpu", "a", 60)
    assert third is not None and third.token == second.token + 1


def test_fields_that_are_not_wanted_are_left_unread(store: SqlStore) -> None:
    store.add_all([file(f"file-{n}", created_at=n, report={"rows": n}) for n in range(3)])
    found = store.page(File, Page(limit=2), without=("report",))
    assert [one.id for one in found.items] == ["file-2", "file-1"] and found.has_more
    assert found.items[0] == file("file-2", created_at=2)
    assert store.page(File, Page(limit=1)).items[0].report == {"rows": 2}
