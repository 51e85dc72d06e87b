"""Stores that outlive a run: made once, waited for, checked, made again where damaged, removed when unused."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from tests.tiny import ragged_samples
from tunesmith.errors import ResourceError
from tunesmith.runs.atomic import staged_folder
from tunesmith.text.keeping import KEPT_DAYS, kept_store, remove_unused
from tunesmith.text.store import StoredSamples, StoreWriter, pack


def make(folder: Path) -> StoredSamples:
    with staged_folder(folder) as staged, StoreWriter(staged, 300) as writer:
        writer.add(pack(ragged_samples(), writer.dtype))
        writer.finish({})
    return StoredSamples.open(folder)


def never(folder: Path) -> StoredSamples:
    raise AssertionError("made again")


def whole(store: StoredSamples) -> bool:
    pairs = zip(store, ragged_samples(), strict=True)
    return all(np.array_equal(a.ids, b.ids) and np.array_equal(a.weights, b.weights) for a, b in pairs)


def test_it_is_made_once(tmp_path):
    assert whole(kept_store(tmp_path / "tokens" / "a", make))
    assert whole(kept_store(tmp_path / "tokens" / "a", never))
    assert sorted(path.name for path in (tmp_path / "tokens").iterdir()) == ["a", "a.lock"]


@pytest.mark.parametrize("name", ["ids.bin", "rows.bin", "spans.bin", "index.json"])
@pytest.mark.parametrize("how", ["cut", "changed", "gone"])
def test_a_damaged_one_is_said_and_made_again(tmp_path, name, how):
    folder = tmp_path / "a"
    kept_store(folder, make)
    file = folder / name
    data = bytearray(file.read_bytes())
    if how == "gone":
        file.unlink()
    elif how == "cut":
        file.write_bytes(data[:-3])
    else:
        data[len(data) // 2] ^= 0x40
        file.write_bytes(data)
    said: list[str] = []
    assert whole(kept_store(folder, make, said.append))
    assert len(said) == 1 and "are damaged" in said[0] and str(folder) in said[0]
    assert whole(kept_store(folder, never, said.append)) and len(said) == 1


def slowly(folder: Path) -> StoredSamples:
    (folder.parent / f"made by {os.getpid()}").touch()
    time.sleep(0.5)
    return make(folder)


def keep(folder: Path, said: multiprocessing.Queue) -> None:  # type: ignore[type-arg]
    told: list[str] = []
    store = kept_store(folder, slowly, told.append)
    said.put((whole(store), told))


def test_of_two_processes_one_makes_it_and_the_other_waits(tmp_path):
    context = multiprocessing.get_context("fork")
    said = context.Queue()
    both = [context.Process(target=keep, args=(tmp_path / "a", said)) for _ in "ab"]
    for process in both:
        process.start()
    found = sorted((said.get(timeout=30) for _ in both), key=lambda one: len(one[1]))
    for process in both:
        process.join()
    assert len(list(tmp_path.glob("made by *"))) == 1
    assert found == [(True, []), (True, ["another process is tokenising the same rows: waiting for it"])]


def test_what_nobody_used_for_long_is_removed_when_another_is_made(tmp_path):
    for name in ("old", "used"):
        kept_store(tmp_path / name, make)
    (tmp_path / ".old.1234.tmp").mkdir()
    long_ago = time.time() - (KEPT_DAYS + 1) * 86_400
    for path in (tmp_path / "old" / "index.json", tmp_path / "used" / "index.json", tmp_path / ".old.1234.tmp"):
        os.utime(path, (long_ago, long_ago))
    mapped = StoredSamples.open(tmp_path / "old")
    kept_store(tmp_path / "used", never)
    said: list[str] = []
    kept_store(tmp_path / "new", make, said.append)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["new", "new.lock", "used", "used.lock"]
    assert len(said) == 1 and said[0].startswith("1 store(s)") and str(KEPT_DAYS) in said[0]
    assert whole(mapped)  # whoever reads it keeps its files


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="cannot be kept here") as caught:
        kept_store(tmp_path / "file" / "a", make)
    assert "TUNESMITH_CACHE" in str(caught.value)


def long_unused(*folders: Path) -> Path:
    for folder in folders:
        kept_store(folder, make)
    long_ago = time.time() - (KEPT_DAYS + 1) * 86_400
    for folder in folders:
        os.utime(folder / "index.json", (long_ago, long_ago))
    return folders[0]


def test_one_that_another_process_removes_meanwhile_is_passed_over(tmp_path, monkeypatch):
    long_unused(tmp_path / "gone", tmp_path / "old")
    real = Path.is_file

    def is_file(path: Path) -> bool:
        if path.parent.name == "gone":
            shutil.rmtree(path.parent, ignore_errors=True)
        return real(path)

    monkeypatch.setattr(Path, "is_file", is_file)
    assert remove_unused(tmp_path) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gone.lock"]
    assert remove_unused(tmp_path / "nowhere") == 0


def of_another_user(monkeypatch, *names: str, readable: bool = True) -> None:
    """These files as another user's: read, at best, and nothing else."""
    real_open, real_utime = os.open, os.utime

    def opened(path, flags, *more, **named):
        if Path(os.fsdecode(path)).name in names and (not readable or flags & (os.O_RDWR | os.O_WRONLY)):
            raise PermissionError(13, "Permission denied", str(path))
        return real_open(path, flags, *more, **named)

    def touched(path, *more, **named):
        if Path(path).name in names:
            raise PermissionError(1, "Operation not permitted", str(path))
        real_utime(path, *more, **named)

    monkeypatch.setattr(os, "open", opened)
    monkeypatch.setattr(os, "utime", touched)


def test_an_old_one_of_another_user_stays_and_the_new_one_is_made(tmp_path, monkeypatch):
    long_unused(tmp_path / "theirs", tmp_path / "old")
    of_another_user(monkeypatch, "theirs.lock", readable=False)
    said: list[str] = []
    assert whole(kept_store(tmp_path / "new", make, said.append))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "new.lock", "theirs", "theirs.lock"]
    assert len(said) == 1 and said[0].startswith("1 store(s)")


def test_one_that_cannot_be_removed_does_not_count_and_keeps_its_lock(tmp_path, monkeypatch):
    folder = long_unused(tmp_path / "theirs")

    def refuse(path, *more, **named):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(shutil, "rmtree", refuse)
    assert remove_unused(tmp_path) == 0
    assert folder.is_dir() and (tmp_path / "theirs.lock").is_file()


def test_one_that_another_user_made_is_opened(tmp_path, monkeypatch):
    kept_store(tmp_path / "a", make)
    of_another_user(monkeypatch, "a.lock", "index.json")
    assert whole(kept_store(tmp_path / "a", never))


def test_a_lock_that_is_only_read_still_locks(tmp_path, monkeypatch):
    folder = long_unused(tmp_path / "a")
    with (tmp_path / "a.lock").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        of_another_user(monkeypatch, "a.lock")
        assert remove_unused(tmp_path) == 0 and folder.is_dir()
    assert remove_unused(tmp_path) == 1 and not folder.exists()
