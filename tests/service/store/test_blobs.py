"""Bytes on the disk: there as a whole or not at all, once each, and gone when nothing names them."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from tunesmith.service.errors import ApiError
from tunesmith.service.settings import Limits
from tunesmith.service.store.blobs import GRACE_SECONDS, FolderBlobs

NO_LIMITS = Limits(free_disk=0)


@pytest.fixture
def blobs(tmp_path: Path) -> FolderBlobs:
    return FolderBlobs(tmp_path, NO_LIMITS)


def left(blobs: FolderBlobs) -> list[str]:
    """Every file there is, apart from the lock."""
    return sorted(path.name for path in blobs.folder.rglob("*") if path.is_file() and path.name != "lock")


def test_bytes_are_kept_once_under_their_hash(blobs: FolderBlobs) -> None:
    sha = blobs.add(b"hello")
    assert sha == hashlib.sha256(b"hello").hexdigest() == blobs.add(b"hello")
    assert blobs.path(sha).read_bytes() == b"hello" and left(blobs) == [sha]
    assert blobs.path(blobs.add(b"")).read_bytes() == b""


def test_a_name_that_is_no_hash_is_no_path(blobs: FolderBlobs) -> None:
    blobs.add(b"hello")
    (blobs.home / "secret").write_text("x")
    for name in ("../secret", "", "..", "0" * 64, "0" * 63 + "/", "A" * 64, "/etc/passwd", "0" * 64 + "\n"):
        with pytest.raises(KeyError):
            blobs.path(name)


def test_nothing_is_there_before_the_end_and_after_giving_up(blobs: FolderBlobs) -> None:
    writer = blobs.writer()
    writer.write(b"he")
    writer.write(b"llo")
    assert writer.size == 5 and writer.written().read_bytes() == b"hello"
    with pytest.raises(KeyError):
        blobs.path(hashlib.sha256(b"hello").hexdigest())
    writer.abandon()
    writer.abandon()
    assert left(blobs) == []


def test_parts_of_living_writers_are_left_alone_and_dead_ones_removed(blobs: FolderBlobs, tmp_path: Path) -> None:
    living = blobs.writer()
    living.write(b"hello")
    living.written()
    code = textwrap.dedent(
        """
        import sys, time
        from pathlib import Path
        from tunesmith.service.settings import Limits
        from tunesmith.service.store.blobs import FolderBlobs
        writer = FolderBlobs(Path(sys.argv[1]), Limits(free_disk=0)).writer()
        writer.write(b"half")
        writer.written()
        print("ready", flush=True)
        time.sleep(60)
        """
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline() == b"ready\n"
        assert len(left(FolderBlobs(tmp_path, NO_LIMITS))) == 2, "both are being written"
        os.kill(other.pid, signal.SIGKILL)
    assert len(left(FolderBlobs(tmp_path, NO_LIMITS))) == 1
    sha = living.finish()
    assert blobs.path(sha).read_bytes() == b"hello"


def test_a_blob_goes_when_nothing_names_it_and_nobody_has_just_written_it(blobs: FolderBlobs) -> None:
    writer = blobs.writer()
    writer.write(b"hello")
    sha = writer.finish(hold=True)
    assert not blobs.remove(sha, lambda: True), "its record is about to be written"
    writer.release()
    assert not blobs.remove(sha, lambda: False), "a record names it"
    assert blobs.remove(sha, lambda: True) and left(blobs) == []
    assert not blobs.remove(sha, lambda: True)


def test_a_blob_that_is_written_again_stays(blobs: FolderBlobs) -> None:
    """Two uploads of the same bytes: the first is deleted while the second is about to get its record."""
    first = blobs.writer()
    first.write(b"hello")
    sha = first.finish(hold=True)
    first.release()
    second = blobs.writer()
    second.write(b"hello")
    assert second.finish(hold=True) == sha
    assert not blobs.remove(sha, lambda: True)
    second.release()
    assert blobs.remove(sha, lambda: True)


def test_bytes_without_a_holder_are_kept_for_a_while(blobs: FolderBlobs) -> None:
    old, new, named = (blobs.add(data) for data in (b"old", b"new", b"named"))
    for sha in (old, named):
        past = blobs.path(sha).stat().st_mtime - GRACE_SECONDS - 1
        os.utime(blobs.path(sha), (past, past))
    assert blobs.remove_unused(lambda sha: sha == named) == 1
    assert left(blobs) == sorted([new, named])


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ApiError) as told:
        FolderBlobs(tmp_path, Limits(free_disk=10**18)).writer()
    assert told.value.status == 400 and told.value.code == "exceeded_quota"
    small = FolderBlobs(tmp_path, Limits(free_disk=0, home=20_000_000))
    writer = small.writer()
    with pytest.raises(ApiError) as told:
        for _ in range(40):
            writer.write(bytes(1_000_000))
    writer.abandon()
    assert told.value.code == "exceeded_quota" and str(tmp_path) not in told.value.message
    assert writer.size < 40_000_000 and left(small) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
@pytest.mark.parametrize("size", [10, 100_000])
def test_a_disk_that_is_full_in_the_middle_is_told(blobs: FolderBlobs, size: int) -> None:
    writer = blobs.writer()
    writer._file.close()
    writer._file = Path("/dev/full").open("wb")  # noqa: SIM115
    with pytest.raises(ApiError) as told:
        writer.write(bytes(size))
        writer.finish()
    assert told.value.code == "exceeded_quota" and "full" in told.value.message
    writer.abandon()
    assert left(blobs) == []


@pytest.fixture(autouse=True)
def _no_file_is_left_open() -> Iterator[None]:
    folder = Path("/proc/self/fd")
    before = len(list(folder.iterdir())) if folder.is_dir() else 0
    yield
    assert not folder.is_dir() or len(list(folder.iterdir())) <= before
