"""Files appear whole or not at all, whatever the disk says."""

from __future__ import annotations

import errno
import os

import pytest

from tunesmith.errors import ResourceError
from tunesmith.runs import staged_file, staged_folder, write_bytes, write_json, write_text


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_written_and_replaced_whole(tmp_path):
    path = tmp_path / "deep" / "file.txt"
    write_text(path, "ünï")
    write_bytes(path, b"second")
    assert path.read_bytes() == b"second"
    assert names(path.parent) == ["file.txt"]
    write_json(tmp_path / "x.json", {"b": 1, "a": "ü"})
    assert (tmp_path / "x.json").read_text() == '{\n  "b": 1,\n  "a": "ü"\n}\n'


def test_json_refuses_nan_before_touching_the_file(tmp_path):
    write_json(tmp_path / "x.json", [1])
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "x.json", [float("nan")])
    assert (tmp_path / "x.json").read_text() == "[\n  1\n]\n"


def test_short_writes_are_continued(tmp_path, monkeypatch):
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, bytes(data)[:3]))
    write_bytes(tmp_path / "x", b"0123456789")
    assert (tmp_path / "x").read_bytes() == b"0123456789"


@pytest.mark.parametrize("call", ["write", "fsync"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_names_the_path_and_leaves_the_old_file(tmp_path, monkeypatch, call, code):
    path = tmp_path / "file.txt"
    write_text(path, "old")

    def full(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with pytest.raises(ResourceError, match=r"file\.txt: cannot be written: .*(space|quota)") as caught:
            write_text(path, "new" * 1000)
    assert caught.value.exit_code == 4
    assert "free some" in str(caught.value.fix)
    assert names(tmp_path) == ["file.txt"]
    assert path.read_text() == "old"


def test_no_permission(tmp_path, monkeypatch):
    def refuse(*_: object, **__: object) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(ResourceError, match=r"permission denied[\s\S]*--out DIR"):
        write_text(tmp_path / "x", "text")
    assert names(tmp_path) == []


def test_a_file_where_a_folder_should_be(tmp_path):
    (tmp_path / "x").write_text("")
    with pytest.raises(ResourceError, match="cannot be written"):
        write_text(tmp_path / "x" / "y.txt", "text")


def test_a_staged_file_is_dropped_when_its_writer_fails(tmp_path):
    write_text(tmp_path / "x", "old")
    with pytest.raises(RuntimeError), staged_file(tmp_path / "x") as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert names(tmp_path) == ["x"]
    assert (tmp_path / "x").read_text() == "old"


def test_a_staged_folder_leaves_alone_what_came_to_be_there_meanwhile(tmp_path):
    path = tmp_path / "export"
    with pytest.raises(ResourceError, match="written there meanwhile"), staged_folder(path, replace=False) as staged:
        (staged / "mine").write_text("1")
        path.mkdir()
        (path / "theirs").write_text("2")
    assert names(tmp_path) == ["export"] and names(path) == ["theirs"]


def test_a_staged_folder_replaces_the_old_one_whole(tmp_path):
    for content in ("first", "second"):
        with staged_folder(tmp_path / "adapter") as temporary:
            (temporary / content).mkdir()
            (temporary / content / "w").write_text(content)
    assert names(tmp_path) == ["adapter"]
    assert names(tmp_path / "adapter") == ["second"]
    with pytest.raises(RuntimeError), staged_folder(tmp_path / "adapter") as temporary:
        (temporary / "third").write_text("half")
        raise RuntimeError
    assert names(tmp_path) == ["adapter"]
    assert names(tmp_path / "adapter") == ["second"]
