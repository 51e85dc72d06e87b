"""Files appear whole or not at all: written under a temporary name, flushed to the disk, renamed.

A rename within one folder is atomic on POSIX file systems, so a reader sees the old file or the new one. The folder is
flushed too, or a power cut could undo the rename.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tunesmith.errors import ResourceError

_TEMPORARY = ".tmp"

_FIXES = {
    errno.ENOSPC: "free some space and run the same command again",
    errno.EDQUOT: "free some of your quota and run the same command again",
    errno.EACCES: "choose a folder you may write to with --out DIR",
    errno.EPERM: "choose a folder you may write to with --out DIR",
    errno.ENOTEMPTY: "something was written there meanwhile: choose another path, or remove it",
    errno.EROFS: "choose a folder on a writable disk with --out DIR",
}


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file whole; its folder is made where missing. Raises `ResourceError` naming the path."""
    with staged_file(path) as temporary:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            write_all(descriptor, data)
        finally:
            os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file whole. Raises `ResourceError` naming the path."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write JSON whole, keys in their order, NaN refused (`ValueError`). Raises `ResourceError` naming the path."""
    text = json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False) + "\n"
    # Half of a surrogate pair, which JSON can say and UTF-8 cannot, stays the escape that it was.
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


@contextmanager
def staged_file(path: Path) -> Iterator[Path]:
    """A temporary path for a library to write to; it takes the place of `path` when the block ends well."""
    with _errors_name(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = _temporary_beside(path)
        try:
            yield temporary
            flush(temporary)
            temporary.replace(path)
            flush(path.parent)
        finally:
            with suppress(OSError):  # gone after the rename; never worth hiding the error that led here
                temporary.unlink()


@contextmanager
def staged_folder(path: Path, *, replace: bool = True) -> Iterator[Path]:
    """A temporary folder to fill; it takes the place of the folder `path` when the block ends well.

    A folder cannot be renamed over a full one, so an old one is moved aside first: a power cut between the two renames
    leaves none, never a half-written one. Without `replace` one that came to be there meanwhile stays, and
    `ResourceError` is raised.
    """
    with _errors_name(path):
        temporary, aside = _temporary_beside(path), _temporary_beside(path)
        try:
            temporary.mkdir(parents=True)
            yield temporary
            for inner in [*temporary.rglob("*"), temporary]:
                flush(inner)
            if replace and path.exists():
                path.rename(aside)
            temporary.rename(path)
            flush(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            shutil.rmtree(aside, ignore_errors=True)


def is_temporary(path: Path) -> bool:
    """Whether a file or folder is one that was being written here, perhaps left by a killed process."""
    return path.name.startswith(".") and path.name.endswith(_TEMPORARY)


def remove_temporary(folder: Path) -> None:
    """Remove what killed processes left half-written in a folder and below; nobody may be writing there."""
    for path in [path for path in folder.rglob(f".*{_TEMPORARY}") if is_temporary(path)]:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def write_all(descriptor: int, data: bytes) -> None:
    """Write every byte: one `write` may take fewer, a nearly full disk for instance."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def flush(path: Path) -> None:
    """Flush a file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def resource_error(path: Path, error: OSError) -> ResourceError:
    """An operating system's refusal to write, told to a person."""
    reason = (error.strerror or str(error)).lower()
    fix = _FIXES.get(error.errno or 0, "check the path and the disk")
    return ResourceError(f"cannot be written: {reason}", where=str(path), fix=fix)


@contextmanager
def _errors_name(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise resource_error(path, error) from error


def _temporary_beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}{_TEMPORARY}")
