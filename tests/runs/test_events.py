"""The event log: append-only, whole lines, increasing numbers."""

from __future__ import annotations

import errno
import json
import os
from datetime import datetime

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.errors import ResourceError, VerificationError
from tunesmith.runs import EventLog, read_events


def test_events_are_written_numbered_and_heard(tmp_path):
    heard = []
    with EventLog(tmp_path / "e.jsonl", [heard.append]) as log:
        log.write("train_step", step=1, loss=0.5)
        log.write("note", text="ünï\nline")
        assert [e["kind"] for e in log.read()] == ["train_step", "note"]
    with EventLog(tmp_path / "e.jsonl") as log:
        log.relay({"kind": "more", "text": "told elsewhere"})
    events = list(read_events(tmp_path / "e.jsonl"))
    assert [e["seq"] for e in events] == [1, 2, 3]
    assert heard == events[:2]
    assert (events[2]["kind"], events[2]["text"]) == ("more", "told elsewhere")
    assert all(datetime.fromisoformat(e["time"]).tzinfo is not None for e in events)


@settings(max_examples=40, deadline=None)
@given(cut=st.integers(1, 200), repeat=st.integers(1, 3))
def test_a_torn_last_line_is_cut_off_wherever_it_tore(tmp_path_factory, cut, repeat):
    path = tmp_path_factory.mktemp("log") / "e.jsonl"
    with EventLog(path) as log:
        log.write("a", text="ü" * 20)
        kept = path.stat().st_size
        log.write("b", text="x" * 20)
    whole = path.read_bytes()
    torn = max(kept, len(whole) - cut)
    path.write_bytes(whole[:torn])
    assert [e["kind"] for e in read_events(path)] == ["a"]
    for number in range(repeat):
        with EventLog(path) as log:
            assert log.write("c")["seq"] == 2 + number
    assert [e["kind"] for e in read_events(path)] == ["a", *["c"] * repeat]


def test_a_torn_line_longer_than_a_block_and_a_log_that_is_only_torn(tmp_path):
    path = tmp_path / "e.jsonl"
    with EventLog(path) as log:
        log.write("a")
    with path.open("ab") as file:
        file.write(b'{"text": "' + b"x" * 200_000)
    with EventLog(path) as log:
        assert log.write("b")["seq"] == 2
    path.write_bytes(b'{"seq": 1')
    with EventLog(path) as log:
        assert log.write("a")["seq"] == 1
    assert len(path.read_bytes().splitlines()) == 1


def test_a_line_that_is_no_event_is_named(tmp_path):
    (tmp_path / "e.jsonl").write_text('{"seq": 1, "kind": "a"}\nnonsense\n')
    with pytest.raises(VerificationError, match="line 2"):
        EventLog(tmp_path / "e.jsonl")
    (tmp_path / "e.jsonl").write_text("[1]\n")
    with pytest.raises(VerificationError, match="line 1"):
        list(read_events(tmp_path / "e.jsonl"))


def test_numbers_and_paths_become_json(tmp_path):
    with EventLog(tmp_path / "e.jsonl") as log:
        log.write("x", nan=float("nan"), inf=[float("inf")], np=np.float32(0.5), n=np.int64(3), path=tmp_path, t=(1, 2))
        with pytest.raises(TypeError, match="object"):
            log.write("y", value=object())
    line = json.loads((tmp_path / "e.jsonl").read_text())
    assert (line["nan"], line["inf"], line["np"], line["n"], line["t"]) == (None, [None], 0.5, 3, [1, 2])
    assert line["path"] == str(tmp_path)


def test_a_full_disk_leaves_only_whole_lines(tmp_path, monkeypatch):
    path = tmp_path / "e.jsonl"
    log = EventLog(path)
    log.write("a")
    write, taken = os.write, []

    def fills_up(descriptor: int, data: bytes) -> int:
        if taken:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        taken.append(write(descriptor, bytes(data)[:5]))
        return taken[0]

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", fills_up)
        with pytest.raises(ResourceError, match="no space left"):
            log.write("b")
    assert taken == [5]
    assert log.write("c")["seq"] == 2
    log.close()
    log.close()
    assert [e["kind"] for e in read_events(path)] == ["a", "c"]
