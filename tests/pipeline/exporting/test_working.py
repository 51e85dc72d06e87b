"""The folder that exports are worked on in, and two processes that want the same one."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tunesmith.errors import ResourceError
from tunesmith.pipeline.exporting.working import scratch_folder
from tunesmith.runs import staged_folder


def test_nothing_is_left_whatever_ends_it(tmp_path):
    out = tmp_path / "new" / "export"
    with pytest.raises(KeyboardInterrupt), scratch_folder(out, out.with_name("other")) as scratch:
        (scratch / "large").write_bytes(b"0")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []  # a folder that was made for it goes too
    (tmp_path / "mine").mkdir()
    with scratch_folder(tmp_path / "mine" / "export"):
        pass
    assert list((tmp_path / "mine").iterdir()) == []


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path):
    out = tmp_path / "merged"
    child = os.fork()
    if child == 0:
        with scratch_folder(out) as scratch, staged_folder(out) as staged:
            (scratch / "large").write_bytes(b"0" * 1000)
            (staged / "half").write_bytes(b"0" * 1000)
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert not out.exists() and len([p for p in tmp_path.iterdir() if p.suffix == ".tmp"]) == 2
    others = tmp_path / ".merged.v2.0123.tmp"  # of an export to `merged.v2`, which may be written now
    others.mkdir()
    with scratch_folder(out) as scratch:
        assert {p for p in tmp_path.iterdir() if p.suffix == ".tmp"} == {scratch, others}
    assert list(tmp_path.iterdir()) == [others]


def test_two_at_once_do_not_write_the_same_path(tmp_path):
    out: Path = tmp_path / "merged"
    with scratch_folder(out):
        with pytest.raises(ResourceError, match=f"pid {os.getpid()}.* is writing merged there"), scratch_folder(out):
            pytest.fail("both were let in")
        with scratch_folder(tmp_path / "other"):
            pass
