"""The base that names stand for is loaded while the server already answers."""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path

import pytest

from tests.service.apps import make_service, served
from tests.service.scripted import ScriptedEngine
from tunesmith.errors import EngineError
from tunesmith.inference.serving.types import Loaded, ModelRef


class SlowEngine(ScriptedEngine):
    """Takes its time to load, or cannot."""

    def __init__(self, seconds: float, *, fails: bool = False) -> None:
        super().__init__("fine")
        self.seconds, self.fails = seconds, fails
        self.loads: list[str] = []

    async def load(self, ref: ModelRef) -> Loaded:
        self.loads.append(ref.base)
        await asyncio.sleep(self.seconds)
        if self.fails:
            raise EngineError("its weights are damaged", where=ref.base)
        return await super().load(ref)


def test_files_and_jobs_do_not_wait_for_the_base(tmp_path: Path) -> None:
    engine = SlowEngine(60)
    begin = time.monotonic()
    with served(make_service(tmp_path, engine)) as server:
        assert server.ask("GET", "/v1/files")[0] == 200
        assert server.ask("GET", "/v1/fine_tuning/jobs")[0] == 200
        assert engine.loads == ["embedded:base"], "begun, and not by a request"
    assert time.monotonic() - begin < 30, "nor does the end wait for it"


def test_a_base_that_cannot_be_loaded_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "tunesmith.service")
    with served(make_service(tmp_path, SlowEngine(0, fails=True))) as server:
        assert server.ask("GET", "/v1/files")[0] == 200
        body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hi"}]}
        status, _, told = server.ask("POST", "/v1/chat/completions", body)
    assert status == 500 and told["error"]["code"] == "model_not_loaded" and "weights" not in told["error"]["message"]
    assert any("embedded:base could not be loaded" in line.getMessage() for line in caplog.records)


def test_a_base_that_is_no_part_of_the_package_is_loaded_when_it_is_asked(tmp_path: Path) -> None:
    engine = SlowEngine(0)
    with served(make_service(tmp_path, engine, aliases={"gpt-4o-mini": "some/large-model"})) as server:
        assert server.ask("GET", "/v1/files")[0] == 200
        assert engine.loads == []
