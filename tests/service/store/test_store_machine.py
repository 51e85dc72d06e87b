"""The store against a plain model of it: whatever is done in whatever order, both hold the same."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.service.store.records import event, job
from tunesmith.service.settings import Limits, ServeSettings
from tunesmith.service.store import open_store
from tunesmith.service.store.interface import Page, UnknownCursorError
from tunesmith.service.store.nouns import Event, Job

IDS = st.sampled_from([f"ftjob-{n}" for n in range(6)])
STATES: Any = st.sampled_from(["queued", "running", "paused", "failed"])
WORDS = st.text(max_size=5)


class StoreMachine(RuleBasedStateMachine):
    """Jobs and events in lists; `removed` remembers where removed jobs stood."""

    @initialize()
    def begin(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.settings = ServeSettings(home=Path(self.folder.name), limits=Limits(free_disk=0))
        self.store = open_store(self.settings)[0]
        self.jobs: list[Job] = []
        self.removed: dict[str, tuple[int, int]] = {}
        self.places: dict[str, tuple[int, int]] = {}
        self.added = 0
        self.events: dict[str, dict[int, Event]] = {}

    @rule(id=IDS, time=st.integers(0, 3), metadata=st.dictionaries(WORDS, WORDS, max_size=2))
    def add(self, id: str, time: int, metadata: dict[str, str]) -> None:
        new = job(id, created_at=time, metadata=metadata)
        try:
            self.store.add(new)
        except ValueError:
            assert any(one.id == id for one in self.jobs)
            return
        assert not any(one.id == id for one in self.jobs)
        self.added += 1
        self.jobs.append(new)
        self.places[id] = (time, self.added)

    @rule(id=IDS, names=st.lists(WORDS, max_size=3))
    def update(self, id: str, names: list[str]) -> None:
        self._change(id, self.store.update(Job, id, result_files=tuple(names)), result_files=tuple(names))

    @rule(id=IDS, to=STATES, only_from=st.lists(STATES, max_size=3))
    def move(self, id: str, to: Any, only_from: list[Any]) -> None:
        may = any(one.id == id and one.status in only_from for one in self.jobs)
        moved = self.store.move_job(id, to, only_from=only_from)
        if may:
            self._change(id, moved, status=to)
        else:
            assert moved is None

    @rule(id=IDS)
    def remove(self, id: str) -> None:
        assert self.store.remove(Job, id) == any(one.id == id for one in self.jobs)
        if any(one.id == id for one in self.jobs):
            self.removed[id] = self.places.pop(id)
        self.jobs = [one for one in self.jobs if one.id != id]

    @rule(id=IDS, seq=st.integers(1, 4))
    def append(self, id: str, seq: int) -> None:
        known = self.events.setdefault(id, {})
        assert self.store.append_event(event(seq, id)) == (seq not in known)
        known.setdefault(seq, event(seq, id))

    @rule(id=IDS, message=WORDS)
    def tell(self, id: str, message: str) -> None:
        known = self.events.setdefault(id, {})
        told = self.store.tell(id, message)
        assert told.seq == max(known, default=0) + 1 == self.store.next_seq(id) - 1
        known[told.seq] = told

    @rule()
    def open_again(self) -> None:
        self.store.close()
        self.store = open_store(self.settings)[0]

    @rule(limit=st.integers(1, 4), order=st.sampled_from(["asc", "desc"]), after=IDS, status=st.none() | STATES)
    def page(self, limit: int, order: Any, after: str, status: Any) -> None:
        where = {} if status is None else {"status": status}
        listed = [one for one in self._in_order() if status in (None, one.status)]
        cursor = self.places.get(after) if any(one.id == after for one in listed) else None
        if cursor is None and after not in self.places:
            cursor = self.removed.get(after)
        if cursor is None:
            try:
                self.store.page(Job, Page(limit, after, order), where)
            except UnknownCursorError:
                return
            raise AssertionError("a cursor of another list was taken")
        wanted: Sequence[Job] = (
            [one for one in listed if self.places[one.id] > cursor]
            if order == "asc"
            else [one for one in reversed(listed) if self.places[one.id] < cursor]
        )
        found = self.store.page(Job, Page(limit, after, order), where)
        assert found.items == tuple(wanted[:limit]) and found.has_more == (len(wanted) > limit)

    @rule(key=WORDS, value=WORDS)
    def filter(self, key: str, value: str) -> None:
        wanted = [one for one in reversed(self._in_order()) if (one.metadata or {}).get(key) == value]
        assert self.store.page(Job, Page(100), metadata={key: value}).items == tuple(wanted)

    @invariant()
    def the_same_jobs_and_events(self) -> None:
        if not hasattr(self, "store"):
            return
        assert self.store.all(Job) == tuple(self._in_order())
        for id, known in self.events.items():
            assert self.store.all(Event, {"job_id": id}) == tuple(known[seq] for seq in sorted(known))

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()
            self.folder.cleanup()

    def _in_order(self) -> list[Job]:
        return sorted(self.jobs, key=lambda one: self.places[one.id])

    def _change(self, id: str, got: Job | None, **changes: Any) -> None:
        wanted = next((replace(one, **changes) for one in self.jobs if one.id == id), None)
        assert got == wanted
        self.jobs = [wanted if wanted is not None and one.id == id else one for one in self.jobs]


TestStore = StoreMachine.TestCase
TestStore.settings = settings(
    max_examples=10, stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
