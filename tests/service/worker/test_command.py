"""`tunesmith worker` says when it has ended although nobody told it to."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from tunesmith.cli.main import invoke
from tunesmith.service import logs
from tunesmith.service.worker import supervise


class Dead:
    """A supervisor whose thread has ended."""

    alive = False

    def __init__(self, settings: Any) -> None:
        self.settings = settings

    def start(self) -> None: ...

    def stop(self, timeout: float) -> None: ...


def test_a_worker_that_ends_by_itself_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(supervise, "Supervisor", Dead)
    monkeypatch.setattr(logs, "configure", lambda _: None)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    assert invoke(["worker", "--home", str(tmp_path)]) not in (0, 1)
    assert "the worker has ended by itself" in capsys.readouterr().err
