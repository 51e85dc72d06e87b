"""What a supervisor tells the process it starts, and how the process knows that the supervisor lives.

The order goes through the process's standard input, where no other process can read it (a database's URL may hold a
password), and that pipe stays open: when the supervisor ends, however it ends, the kernel closes its end, and the
process ends itself with all its children.
"""

from __future__ import annotations

import os
import pickle
import select
import signal
import struct
import sys
import threading
from dataclasses import dataclass
from typing import IO, Literal

from tunesmith.service.settings import ServeSettings
from tunesmith.service.store.nouns import Lease

Kind = Literal["validate", "train", "evidence"]
HANDED_BACK = 75
"""Exit code of a process that was told to stop before its work was done."""
PARENT_SECONDS = 0.5
"""Between two looks at who the parent is."""
_LENGTH = struct.Struct(">I")


@dataclass(frozen=True, slots=True)
class Order:
    """One job to be worked on: its files checked, trained (checked first where they are not), or its evidence made."""

    kind: Kind
    job_id: str
    lease: Lease
    device: str
    settings: ServeSettings


def send(order: Order, pipe: IO[bytes]) -> None:
    """Give an order to a process that was just started."""
    data = pickle.dumps(order)
    pipe.write(_LENGTH.pack(len(data)) + data)
    pipe.flush()


def receive() -> Order:
    """The order that was given to this process; from now on it ends when its supervisor does."""
    pipe = sys.stdin.buffer
    (length,) = _LENGTH.unpack(pipe.read(_LENGTH.size))
    order = pickle.loads(pipe.read(length))
    if not isinstance(order, Order):
        raise TypeError(f"not an order: {type(order).__name__}")
    threading.Thread(target=_end_with_the_supervisor, name="supervisor", daemon=True).start()
    return order


def _end_with_the_supervisor() -> None:
    """Wait for the end of the pipe, or for another parent, then kill the whole group: files are whole at any moment.

    The parent is looked at because a process that the server forked might hold the pipe open.
    """
    parent = os.getppid()
    while os.getppid() == parent:
        ready, _, _ = select.select([sys.stdin], [], [], PARENT_SECONDS)
        if ready and not os.read(sys.stdin.fileno(), 4096):
            break
    os.killpg(os.getpgrp(), signal.SIGKILL)
