"""One process writes a run at a time.

The lock is the kernel's (`flock`), so it ends with the process, however that ends; the pid in the file is for people.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tunesmith.errors import ResourceError
from tunesmith.runs.atomic import resource_error


@contextmanager
def locked(path: Path, what: str = "this run") -> Iterator[None]:
    """Hold the lock file `path` while `what` is written. Raises `ResourceError` naming the process that holds it."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise resource_error(path, error) from error
    try:
        if not _taken(descriptor):
            holder = _pid(descriptor)
            raise ResourceError(
                f"another process{f' (pid {holder})' if holder else ''} is writing {what}",
                where=str(path.parent),
                fix="wait for it, stop it, or write elsewhere with --out DIR",
            )
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        # The file stays: removing it would let a third process lock a new file while a second waits on this one.
        os.close(descriptor)


def is_locked(path: Path) -> bool:
    """Whether some process holds the lock now."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _taken(descriptor: int) -> bool:
    """Take the lock. Tried a few times, as `is_locked` of a process that lists runs holds it for an instant."""
    for attempt in range(4):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.02 * attempt)
        else:
            return True
    return False


def _pid(descriptor: int) -> str:
    text = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
    return text if text.isdigit() else ""
