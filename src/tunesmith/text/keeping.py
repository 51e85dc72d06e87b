"""Stores of tokenised rows in a folder that outlives a run: made once, whole or not at all, and used again.

A store is a folder named by `store_key`; beside it lies a lock, so that of two processes that need the same rows one
makes the store and the other waits for it. A store that is damaged is made again; one that nobody opened for
`KEPT_DAYS` is removed when another one is made.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tunesmith.errors import ResourceError, VerificationError
from tunesmith.runs.atomic import is_temporary, resource_error
from tunesmith.text.store import StoredSamples

KEPT_DAYS = 30
_INDEX = "index.json"
_LOCK = ".lock"
Say = Callable[[str], None]
"""Hears a sentence for the user."""


def kept_store(folder: Path, make: Callable[[Path], StoredSamples], say: Say = lambda text: None) -> StoredSamples:
    """The store in `folder`, or what `make` writes there; one that is there already is checked against its hashes.

    Another process that makes it is waited for. Raises `ResourceError` where the folder cannot be written, and what
    `make` raises.
    """
    room = folder.parent
    try:
        room.mkdir(parents=True, exist_ok=True)
        with _waiting_lock(folder.with_name(folder.name + _LOCK), say):
            known = _known(folder, say)
            if known is not None:
                with suppress(OSError):  # another user's: how long it is kept is theirs to say
                    os.utime(folder / _INDEX)
                return known
            made = make(folder)
    except OSError as error:
        raise _unwritable(room, error) from error
    removed = remove_unused(room)
    if removed:
        say(f"{removed} store(s) of tokenised rows that were not used for {KEPT_DAYS} days were removed from {room}")
    return made


def remove_unused(room: Path, days: float = KEPT_DAYS) -> int:
    """Remove stores, and what killed processes left of some, that were not opened for so many days; returns how many.

    One that another process is making or opening stays, as does one that another user does not let go; somebody else
    may remove one meanwhile. Who has its files mapped keeps them.
    """
    before = time.time() - days * 86_400
    removed = 0
    with suppress(OSError):  # a room that cannot be listed is not tidied
        for folder in sorted(path for path in room.iterdir() if path.is_dir()):
            with suppress(OSError):
                removed += _removed(folder, before)
    return removed


def _removed(folder: Path, before: float) -> bool:
    """Whether this was a store that nobody used since, and is gone now."""
    index = folder / _INDEX
    if (index if index.is_file() else folder).stat().st_mtime > before:
        return False
    if is_temporary(folder):
        shutil.rmtree(folder, ignore_errors=True)
        return False
    lock = folder.with_name(folder.name + _LOCK)
    descriptor = _opened_lock(lock)
    try:
        if not _taken(descriptor):
            return False
        shutil.rmtree(folder)
        with suppress(OSError):
            lock.unlink()
        return True
    finally:
        os.close(descriptor)


def _known(folder: Path, say: Say) -> StoredSamples | None:
    """The store that is there, if it is whole."""
    if not folder.exists():
        return None
    try:
        return StoredSamples.open(folder)
    except VerificationError as error:
        say(f"the tokenised rows kept in {folder} are damaged ({error.what}): they are made again")
        shutil.rmtree(folder)
        return None


@contextmanager
def _waiting_lock(path: Path, say: Say) -> Iterator[None]:
    """Hold a lock file, waiting for whoever has it; the kernel frees it when its holder ends, however that ends."""
    descriptor = _opened_lock(path)
    try:
        if not _taken(descriptor):
            say("another process is tokenising the same rows: waiting for it")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _opened_lock(path: Path) -> int:
    """A descriptor of a lock file, made where there is none. One that another user made can be locked all the same."""
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)  # for writing, as network file systems want it
    except PermissionError:
        return os.open(path, os.O_RDONLY)


def _taken(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _unwritable(room: Path, error: OSError) -> ResourceError:
    told = resource_error(room, error)
    return ResourceError(
        f"tokenised rows cannot be kept here: {told.what}",
        where=str(room),
        fix="free some space, or set TUNESMITH_CACHE to a folder you may write to",
    )
