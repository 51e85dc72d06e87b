"""From the run's event log to the job's events and numbers; and the place where a running job hears what is wished.

The log is read from its beginning whenever a worker takes the job up, so what a killed one did not get to tell is told
by the next. An event's id comes from what it says (`step/17`), so nothing is kept twice.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from tunesmith.runs import RunFolder, is_run, read_events
from tunesmith.service.jobs.events import Draft, Translator
from tunesmith.service.store.nouns import Event
from tunesmith.service.worker.desk import Desk, Reason
from tunesmith.service.worker.faults import without_paths
from tunesmith.training.loop import StopRequested

FLUSH_SECONDS = 0.25
"""Events wait so long for others, to be written together."""
MOST_WAITING = 500
"""A transaction of more would keep all others from writing for too long."""
LOOK_SECONDS = 0.1
"""The store is asked so often, at most, what is wished."""


class Stopped(StopRequested):
    """The work ends at this step: `reason` says why."""

    def __init__(self, reason: Reason) -> None:
        self.reason = reason
        super().__init__(reason)


class Telling:
    """Hears a run's events (`pipeline.run(listener=…)`), writes the job's, and stops the run where that is wished.

    draining: whether this process was told to hand its work back.
    """

    def __init__(self, desk: Desk, translator: Translator, draining: Callable[[], bool]) -> None:
        self._desk, self._translator, self._draining = desk, translator, draining
        self._waiting: list[Event] = []
        self._changes: dict[str, Any] = {}
        self._flushed = self._looked = time.monotonic()
        self._began: tuple[float, int] | None = None
        self.last_step = 0

    def catch_up(self) -> None:
        """Tell what an earlier worker's log holds and the job's events do not."""
        if is_run(self._desk.run) and RunFolder(self._desk.run).events_file.is_file():
            for event in read_events(RunFolder(self._desk.run).events_file):
                self._hear(event)
            self.flush()

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Hear one event of the run that is going on. Raises `Stopped` where it shall go no further."""
        self._hear(event)
        if event["kind"] == "train_started":
            self._began = time.monotonic(), int(event["resumed_at"])
        if event["kind"] == "train_step":
            self._estimate(int(event["step"]), int(event["steps"]))
        moment = time.monotonic()
        if moment - self._flushed >= FLUSH_SECONDS:
            self.flush()
        if self._draining():
            self.flush()
            raise Stopped("drain")
        if moment - self._looked >= LOOK_SECONDS or event["kind"] in ("train_started", "stage_started"):
            self._looked = moment
            self.obey()

    def finish(self) -> None:
        """Tell what was held back to the end."""
        self._keep(self._translator.finish(), int(time.time()))
        self.flush()

    def flush(self) -> None:
        """Write what waits. Raises `LostLeaseError` where the job is another worker's by now."""
        if self._waiting or self._changes:
            self._desk.write(events=self._waiting, **self._changes)
            self._waiting, self._changes = [], {}
        self._flushed = time.monotonic()

    def _hear(self, event: Mapping[str, Any]) -> None:
        if event["kind"] == "train_step":
            self.last_step = int(event["step"])
        self._keep(self._translator.hear(event), _seconds(event))

    def _keep(self, drafts: list[Draft], at: int) -> None:
        home = self._desk.settings.home
        for draft in drafts:
            said = replace(draft, message=without_paths(draft.message, home))
            self._waiting.append(self._desk.event(said, _name(said), at))
        if len(self._waiting) >= MOST_WAITING:
            self.flush()

    def obey(self) -> None:
        """Raise `Stopped` where the job's user wishes it."""
        wish = self._desk.job().wish
        if wish is not None:
            self.flush()
            raise Stopped(wish)

    def _estimate(self, step: int, steps: int) -> None:
        """When the training should end, by the pace of the steps of this process so far."""
        if self._began is None or step <= self._began[1]:
            return
        pace = (time.monotonic() - self._began[0]) / (step - self._began[1])
        self._changes["estimated_finish"] = int(time.time() + pace * (steps - step)) + 1


def _name(draft: Draft) -> str:
    """What an event says, in short: the same whenever it is told."""
    if draft.type == "metrics":
        return f"step/{draft.data['step']}"
    return f"{draft.data['kind']}/{hashlib.sha256(draft.message.encode()).hexdigest()[:16]}"


def _seconds(event: Mapping[str, Any]) -> int:
    return int(datetime.fromisoformat(event["time"]).timestamp())
