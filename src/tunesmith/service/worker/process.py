"""The process that works on one job: `python -m tunesmith.service.worker.process`, started by a supervisor.

Its order comes through standard input (see `orders`). It ends with 0 when the job is where it should be, with
`HANDED_BACK` when it was told to stop (SIGTERM) before that; with anything else it has died, and the supervisor tries
again. Nothing heavy is imported before the order is read.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from types import FrameType

from sqlalchemy.exc import SQLAlchemyError

from tunesmith.service.store import open_store
from tunesmith.service.store.interface import LostLeaseError
from tunesmith.service.store.nouns import Job
from tunesmith.service.worker.desk import Desk
from tunesmith.service.worker.orders import HANDED_BACK, Order, receive

_LOG = logging.getLogger("tunesmith.worker.process")
_NICE = {"validate": 5, "train": 5, "evidence": 15}
"""Answering requests comes first, then training, then evidence."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out one order; returns the exit code."""
    _arguments().parse_args(arguments)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    told = threading.Event()

    def stop(_number: int, _frame: FrameType | None) -> None:
        told.set()

    signal.signal(signal.SIGTERM, stop)
    order = receive()
    os.nice(_NICE[order.kind])
    store, blobs = open_store(order.settings)
    try:
        job = store.get(Job, order.job_id)
        if job is None:
            _LOG.info("job %s was deleted", order.job_id)
            return 0
        desk = Desk(order.settings, store, blobs, order.lease, job.id, job.flavour)
        return 0 if _carry_out(order, desk, told.is_set) else HANDED_BACK
    except LostLeaseError:
        _LOG.info("job %s was taken over or moved on: nothing is left to do here", order.job_id)
        return 0
    except SQLAlchemyError:
        _LOG.exception("job %s is handed back, as the store fails", order.job_id)
        return HANDED_BACK
    finally:
        store.close()


def _carry_out(order: Order, desk: Desk, draining: Callable[[], bool]) -> bool:
    """Do what was ordered; False where it was handed back unfinished."""
    from tunesmith.service.worker.working import check, work_on

    match order.kind:
        case "validate":
            return check(desk)
        case "train":
            return work_on(desk, draining)
        case "evidence":
            from tunesmith.service.worker.measuring import measure

            return measure(desk, draining)


def _arguments() -> argparse.ArgumentParser:
    """What stands on the command line says to people which process is which."""
    parser = argparse.ArgumentParser(prog="python -m tunesmith.service.worker.process")
    for name in ("--kind", "--job", "--device"):
        parser.add_argument(name)
    return parser


if __name__ == "__main__":
    sys.exit(main())
