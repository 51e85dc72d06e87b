"""Who starts the processes that work on jobs, and looks after them.

A thread with a lane for each device, where one job at a time is trained, and one lane for checking the files of jobs
that wait behind a long one. A lane's process gets its order and is watched: its lease is prolonged while it lives, a
wish that it does not follow is enforced, a death is answered by another attempt. Where nothing is to be trained, a
device's lane makes the evidence of finished jobs, and stops that again when a job comes.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from tunesmith.service.errors import ApiError
from tunesmith.service.jobs import events
from tunesmith.service.jobs.lifecycle import FINAL
from tunesmith.service.settings import ServeSettings
from tunesmith.service.store import open_store
from tunesmith.service.store.interface import Blobs, LostLeaseError, Page, Store
from tunesmith.service.store.leases import job_lease
from tunesmith.service.store.nouns import Job, JobStatus, Lease
from tunesmith.service.worker.desk import Desk
from tunesmith.service.worker.faults import died
from tunesmith.service.worker.hand import Hand, start
from tunesmith.service.worker.holder import host, is_free, new_holder
from tunesmith.service.worker.orders import HANDED_BACK, Kind, Order
from tunesmith.service.worker.tidying import forget, is_over, tidy, tidy_all

_LOG = logging.getLogger("tunesmith.worker")

LEASE_SECONDS = 20.0
LOOK_SECONDS = 0.05
"""Between two looks at the processes."""
IDLE_SECONDS = 0.4
"""Between two looks at the store."""
MOST_ATTEMPTS = 3
"""Deaths of a job's process without a step's progress between them."""
CANCEL_SECONDS, PAUSE_SECONDS = 15.0, 180.0
"""A process has so long to follow a wish before it is killed; a long step is lost by that, so a pause waits for it."""
GIVE_WAY_SECONDS = 2.0
"""Evidence that shall give way has so long: its finished stages are kept in any case."""
TROUBLE_SECONDS = 5.0
"""After the store could not be reached."""
TIDY_SECONDS = 60.0
"""Between two looks for what ended jobs have left."""
_WAITING: tuple[JobStatus, ...] = ("validating_files", "queued", "running")
_OLDEST = Page(limit=64, order="asc")


@dataclass(slots=True)
class _Lane:
    """A place for one process. `device` is None where files are only checked; `next_look` on the monotonic clock."""

    device: str | None
    hand: Hand | None = None
    device_lease: Lease | None = None
    next_look: float = 0.0


class Supervisor:
    """The worker of a server, or of a machine that shares home folder and database with one.

    `start` returns at once; `stop` lets every process finish its step, and hands its job back.
    """

    def __init__(self, settings: ServeSettings) -> None:
        self.settings = settings
        self._ending = threading.Event()
        self._stop_by = self._tidy_at = 0.0
        self._thread: threading.Thread | None = None
        self._lanes = [_Lane(None), *(_Lane(device) for device in settings.devices)]

    @property
    def alive(self) -> bool:
        """Whether jobs are being worked on, or looked for."""
        return self._thread is not None and self._thread.is_alive()

    def start(self) -> None:
        """Begin to work. Raises what `open_store` raises."""
        if self._thread is not None:
            raise RuntimeError("this supervisor was started before")
        store, blobs = open_store(self.settings)
        self._thread = threading.Thread(target=self._run, args=(store, blobs), name="worker", daemon=True)
        self._thread.start()

    def stop(self, timeout: float = 30.0) -> None:
        """Hand back what is being worked on and end; a process that takes longer than `timeout` seconds is killed."""
        self._stop_by = time.monotonic() + timeout
        self._ending.set()
        if self._thread is not None:
            self._thread.join(timeout + 10)

    def _run(self, store: Store, blobs: Blobs) -> None:
        try:
            while not self._ending.wait(LOOK_SECONDS):
                for lane in self._lanes:
                    try:
                        self._tend(store, blobs, lane)
                    except (SQLAlchemyError, OSError, ApiError):
                        _LOG.exception("the worker could not go on for a moment")
                        lane.next_look = time.monotonic() + TROUBLE_SECONDS
                self._tidy(store)
            self._hand_back(store, blobs)
        finally:
            for lane in self._lanes:
                if lane.hand is not None:
                    lane.hand.kill()
            store.close()

    def _tidy(self, store: Store) -> None:
        moment = time.monotonic()
        if moment < self._tidy_at:
            return
        self._tidy_at = moment + TIDY_SECONDS
        try:
            tidy_all(store, self.settings.home)
        except (SQLAlchemyError, OSError):
            _LOG.exception("what ended jobs have left could not be removed")

    def _tend(self, store: Store, blobs: Blobs, lane: _Lane) -> None:
        if lane.hand is not None:
            self._watch(store, blobs, lane, lane.hand)
        moment = time.monotonic()
        if lane.hand is None and moment >= lane.next_look:
            lane.next_look = moment + IDLE_SECONDS
            self._look(store, lane)

    # What is at work.

    def _watch(self, store: Store, blobs: Blobs, lane: _Lane, hand: Hand) -> None:
        code = hand.process.poll()
        if code is not None:
            self._ended(store, blobs, lane, hand, code)
            return
        moment = time.monotonic()
        if moment >= hand.renew_at:
            hand.renew_at = moment + LEASE_SECONDS / 4
            self._renew(store, lane, hand)
        if moment < lane.next_look:
            return
        lane.next_look = moment + IDLE_SECONDS
        job = store.get(Job, hand.order.job_id)
        unwanted = job is None or job.wish is not None or (job.status in FINAL and hand.order.kind != "evidence")
        pausing = job is not None and job.wish == "pause"
        if hand.order.kind == "evidence" and self._first_waiting(store) is not None:
            hand.tell_to_stop(GIVE_WAY_SECONDS)
        elif unwanted:  # it sees the wish itself, and should be gone by then
            limit = moment + (PAUSE_SECONDS if pausing else CANCEL_SECONDS)
            hand.kill_at = limit if hand.kill_at is None else min(hand.kill_at, limit)
        if hand.kill_at is not None and moment >= hand.kill_at:
            hand.kill()

    def _renew(self, store: Store, lane: _Lane, hand: Hand) -> None:
        kept = store.renew(hand.order.lease, LEASE_SECONDS)
        if lane.device_lease is not None:
            lane.device_lease = store.renew(lane.device_lease, LEASE_SECONDS)
        if kept is None or (lane.device is not None and lane.device_lease is None):
            _LOG.warning("the lease on job %s was lost: its process is ended", hand.order.job_id)
            hand.kill()

    def _ended(self, store: Store, blobs: Blobs, lane: _Lane, hand: Hand, code: int) -> None:
        """Draw the conclusions of a process's end, and free its job and device."""
        lane.hand, lane.next_look = None, 0.0
        hand.close()
        if code == HANDED_BACK and not hand.told:
            lane.next_look = time.monotonic() + TROUBLE_SECONDS
        if code not in (0, HANDED_BACK):
            try:
                lane.next_look = time.monotonic() + self._died(store, blobs, hand, code)
            except LostLeaseError:
                _LOG.info("job %s is somebody else's by now", hand.order.job_id)
        store.release(hand.order.lease)
        if lane.device_lease is not None:
            store.release(lane.device_lease)
            lane.device_lease = None
        job = store.get(Job, hand.order.job_id)
        if job is None:
            forget(self.settings.home, hand.order.job_id)  # deleted while its evidence was being made
        elif is_over(job):
            tidy(self.settings.home, job.id)

    def _died(self, store: Store, blobs: Blobs, hand: Hand, code: int) -> float:
        """What becomes of a job whose process died; returns seconds to wait before the next one is begun."""
        order = hand.order
        job = store.get(Job, order.job_id)
        if job is None:
            return 0.0
        desk = Desk(self.settings, store, blobs, order.lease, job.id, job.flavour, patience=0.0)
        if order.kind == "evidence":
            if job.evidence not in ("pending", "running"):  # it was told to stop on its way out, all work done
                return 0.0
            again = hand.killed or hand.told
            error = None if again else f"the process ended unexpectedly ({_named(code) or f'exit code {code}'})"
            desk.write(only_from=["succeeded"], evidence="pending" if again else "failed", evidence_error=error)
            return 0.0
        if job.status in FINAL or job.status == "paused":
            return 0.0
        if job.wish == "cancel" or (hand.killed and job.wish is not None):
            _follow_wish(desk, job)
            return 0.0
        if hand.killed or hand.told:  # one that was just being started ends by the signal itself
            return 0.0
        # A step is told once: where more was told, the job came further than ever before, and this death is a first.
        further = store.next_seq(job.id) > hand.seq
        attempts = 1 if further else job.attempts + 1
        _LOG.error("the process of job %s died (%s), attempt %d", job.id, _named(code) or code, attempts)
        if attempts < MOST_ATTEMPTS:
            desk.write(only_from=_WAITING, attempts=attempts)
            return float(attempts)
        fault = died(attempts, _named(code))
        said = desk.event(events.failed(fault["message"]), "failed")
        moment = int(time.time())
        desk.write(
            events=[said], only_from=_WAITING, status="failed", error=fault, attempts=attempts, finished_at=moment,
            wish=None, estimated_finish=None,
        )  # fmt: skip
        return 0.0

    def _hand_back(self, store: Store, blobs: Blobs) -> None:
        """Have every process finish its step, and wait for it."""
        for lane in self._lanes:
            if lane.hand is not None:
                lane.hand.tell_to_stop(max(0.0, self._stop_by - time.monotonic()))
        while busy := [lane for lane in self._lanes if lane.hand is not None]:
            for lane in busy:
                hand = lane.hand
                if hand is None:
                    continue
                code = hand.process.poll()
                if code is not None:
                    self._ended(store, blobs, lane, hand, code)
                elif hand.kill_at is not None and time.monotonic() >= hand.kill_at:
                    hand.kill()
                elif time.monotonic() >= hand.renew_at:
                    hand.renew_at = time.monotonic() + LEASE_SECONDS / 4
                    self._renew(store, lane, hand)
            time.sleep(LOOK_SECONDS)

    # What waits.

    def _look(self, store: Store, lane: _Lane) -> None:
        """Give a free lane something to do, if there is something."""
        if lane.device is None:
            self._look_for_unchecked(store, lane)
            return
        kind: Kind | None = "train" if self._first_waiting(store) is not None else None
        if kind is None and self.settings.evidence and self._evidence_waits(store):
            kind = "evidence"
        if kind is None:
            return
        device = f"device:{host()}:{lane.device}"
        if not is_free(store, device):  # another supervisor of this machine has it
            return
        lane.device_lease = store.take_lease(device, new_holder(), LEASE_SECONDS)
        if lane.device_lease is None:
            return
        claimed = store.claim_job(new_holder(), LEASE_SECONDS, evidence=kind == "evidence")
        if claimed is None:
            store.release(lane.device_lease)
            lane.device_lease = None
            return
        self._begin(store, lane, kind, *claimed)

    def _look_for_unchecked(self, store: Store, lane: _Lane) -> None:
        """A job whose files nobody has looked at, while every device is busy with another job."""
        hands = [other.hand for other in self._lanes if other.device is not None]
        if any(hand is None or hand.order.kind == "evidence" for hand in hands):
            return
        for job in self._waiting(store, ("validating_files",)):
            lease = store.take_lease(job_lease(job.id), new_holder(), LEASE_SECONDS)
            if lease is not None:
                self._begin(store, lane, "validate", job, lease)
                return

    def _begin(self, store: Store, lane: _Lane, kind: Kind, job: Job, lease: Lease) -> None:
        _LOG.info("%s of job %s begins on %s", kind, job.id, lane.device or "no device")
        seq = store.next_seq(job.id)
        lane.hand = start(Order(kind, job.id, lease, lane.device or "cpu", self.settings), LEASE_SECONDS / 4)
        lane.hand.seq = seq

    def _first_waiting(self, store: Store) -> Job | None:
        return next(iter(self._waiting(store, _WAITING)), None)

    def _waiting(self, store: Store, statuses: Sequence[str]) -> list[Job]:
        """Jobs, oldest first, that nobody works on."""
        found = store.page(Job, _OLDEST, {"status": list(statuses)})
        return [job for job in found.items if is_free(store, job_lease(job.id))]

    def _evidence_waits(self, store: Store) -> bool:
        found = store.page(Job, _OLDEST, {"status": "succeeded", "evidence": ["pending", "running"]})
        return any(is_free(store, job_lease(job.id)) for job in found.items)


def _follow_wish(desk: Desk, job: Job) -> None:
    """Do what a job's process was asked for and did not do in time."""
    cleared: dict[str, Any] = {"wish": None, "estimated_finish": None}
    if job.wish == "cancel":
        said = desk.event(events.cancelled(), "cancelled")
        moment = int(time.time())
        desk.write(events=[said], only_from=_WAITING, status="cancelled", finished_at=moment, **cleared)
    elif job.status == "running":
        desk.write(
            events=[desk.event(events.paused(), f"paused/{time.time_ns()}")],
            only_from=["running"],
            status="paused",
            **cleared,
        )


def _named(code: int) -> str | None:
    """The signal that ended a process."""
    return signal.Signals(-code).name if code < 0 else None
