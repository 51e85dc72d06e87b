"""Bytes by their SHA-256, in files under `home/blobs`; no name that a user gave is part of a path.

A part that is being written is locked by its writer. When a process dies the system lets the lock go, and whoever opens
the folder next removes the part: nothing half-sent stays, and nothing that is still written is touched.

A blob is removed when no record names it, which is looked up while nobody can name or remove another. What was just
written has no record yet: its writer holds a lock on it (`finish(hold=True)`), or it is left alone for a while.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from tunesmith.service.errors import ApiError
from tunesmith.service.settings import Limits

GRACE_SECONDS = 600
"""A blob that nobody holds and no record names is kept so long after `add`: its record may be about to be written."""

_SHA = re.compile(r"[0-9a-f]{64}")
_LOOK_AT_DISK_EVERY = 16_000_000


class FolderBlobs:
    """Blobs in one folder, used from many threads and processes."""

    def __init__(self, home: Path, limits: Limits) -> None:
        self.home = home
        self.limits = limits
        self.folder = home / "blobs"
        self.parts = self.folder / "parts"
        self.parts.mkdir(parents=True, exist_ok=True)
        (self.folder / "lock").touch()
        self._remove_dead_parts()

    def writer(self) -> FileWriter:
        """Raises `ApiError` (`exceeded_quota`) where the disk is too full to begin."""
        self.check_room(0)
        return FileWriter(self)

    def path(self, sha: str) -> Path:
        path = self._place(sha)
        if not path.is_file():
            raise KeyError(sha)
        return path

    def add(self, data: bytes) -> str:
        writer = self.writer()
        try:
            writer.write(data)
            return writer.finish()
        finally:
            writer.abandon()

    def remove(self, sha: str, unused: Callable[[], bool]) -> bool:
        """Remove a blob if `unused` says so of the records, and nobody has just written it."""
        path = self._place(sha)
        with self.locked():
            try:
                file = path.open("rb")
            except FileNotFoundError:
                return False
            with file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    return False
                if time.time() - os.fstat(file.fileno()).st_mtime < GRACE_SECONDS or not unused():
                    return False
                path.unlink()
        return True

    def remove_unused(self, used: Callable[[str], bool]) -> int:
        """Remove every blob that is not `used`; returns how many."""
        found = [path.name for path in self.folder.glob("??/*") if _SHA.fullmatch(path.name)]
        return sum(self.remove(sha, lambda sha=sha: not used(sha)) for sha in found)  # type: ignore[misc]

    def check_room(self, more: int) -> None:
        """Raises `ApiError` where `more` bytes would leave less free than the limits want."""
        free = shutil.disk_usage(self.folder).free
        if free - more < self.limits.free_disk:
            raise _quota(
                f"the server's disk has {free / 1e6:,.0f} MB left, and keeps {self.limits.free_disk / 1e6:,.0f}"
            )
        if self.limits.home:
            used = sum(map(_size, self.folder.rglob("*")))
            if used + more > self.limits.home:
                raise _quota(f"files may take {self.limits.home / 1e6:,.0f} MB, and take {used / 1e6:,.0f}")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody else names or removes a blob meanwhile."""
        with (self.folder / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _place(self, sha: str) -> Path:
        if not _SHA.fullmatch(sha):
            raise KeyError(sha)
        return self.folder / sha[:2] / sha

    def _remove_dead_parts(self) -> None:
        for path in self.parts.iterdir():
            try:
                with path.open("rb") as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    path.unlink()
            except (BlockingIOError, FileNotFoundError):
                continue


class FileWriter:
    """Writes a part and counts; `finish` names it. Until then, and after `abandon`, nothing is there."""

    def __init__(self, blobs: FolderBlobs) -> None:
        self.size = 0
        self._blobs = blobs
        self._hash = hashlib.sha256()
        self._looked_at = 0
        self._finished = False
        self._held: IO[bytes] | None = None
        self._path, self._file = new_part(blobs.parts)

    def write(self, data: bytes) -> None:
        self.size += len(data)
        if self.size - self._looked_at > _LOOK_AT_DISK_EVERY:
            self._looked_at = self.size
            self._blobs.check_room(len(data))
        self._hash.update(data)
        with _told_when_full():
            self._file.write(data)

    def written(self) -> Path:
        """The part as it is by now, to be looked at before it gets its name."""
        with _told_when_full():
            self._file.flush()
        return self._path

    def finish(self, *, hold: bool = False) -> str:
        """With `hold` nobody removes the blob before `release`, and somebody may at once after it."""
        sha = self._hash.hexdigest()
        place = self._blobs._place(sha)
        with _told_when_full():
            self._file.flush()
            os.fsync(self._file.fileno())
        if not place.parent.is_dir():
            place.parent.mkdir(exist_ok=True)
            _flush_folder(self._blobs.folder)
        with self._blobs.locked():
            self._finished = True
            if place.is_file() and place.stat().st_size == self.size:
                self._path.unlink()
                self._held = place.open("rb")
                fcntl.flock(self._held, fcntl.LOCK_SH)
                self._file.close()
            else:
                self._path.rename(place)
                self._held = self._file
                if hold:
                    os.utime(place, (0, 0))
            if not hold:
                os.utime(place)
        _flush_folder(place.parent)
        if not hold:
            self.release()
        return sha

    def release(self) -> None:
        """The record is written, or will not be."""
        if self._held is not None:
            self._held.close()
            self._held = None

    def abandon(self) -> None:
        """Leave nothing; after `finish` this only releases."""
        if not self._finished:
            self._finished = True
            self._path.unlink(missing_ok=True)
            # Closing writes what is left in memory; on a full disk that fails again, and it is not wanted any more.
            with suppress(OSError):
                self._file.close()
        self.release()


def _size(path: Path) -> int:
    """Of a file; 0 for a folder, and for a file that was removed meanwhile."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return 0
    return found.st_size if stat.S_ISREG(found.st_mode) else 0


def new_part(folder: Path, suffix: str = "") -> tuple[Path, IO[bytes]]:
    """An empty file for what is being written, locked as long as it is open."""
    while True:
        path = folder / (secrets.token_hex(16) + suffix)
        file = path.open("xb")
        fcntl.flock(file, fcntl.LOCK_EX)
        # Between its making and its locking another process may have taken it for a dead one's.
        if path.exists():
            return path, file
        file.close()


def _flush_folder(folder: Path) -> None:
    """A new name outlives a power cut only when its folder is flushed too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _told_when_full() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _quota("the server's disk is full") from error
        raise


def _quota(why: str) -> ApiError:
    return ApiError(400, f"There is no room for this file: {why}.", param="file", code="exceeded_quota")
