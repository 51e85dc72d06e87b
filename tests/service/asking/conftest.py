from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.service.apps import make_service
from tests.service.azure.serving import served
from tests.service.scripted import ScriptedEngine
from tunesmith.service.context import Service


@dataclass(frozen=True)
class House:
    """A server with its engine and a client; `url` ends with `/v1`."""

    service: Service
    engine: ScriptedEngine
    client: openai.OpenAI
    url: str

    def says(self, script: Any) -> ScriptedEngine:
        """Have the engine answer so from now on, and forget what was asked."""
        self.engine.script = script
        self.engine.asks.clear()
        return self.engine


@pytest.fixture(scope="session")
def open_house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., House]]:
    """`open_house(engine)`: a server of its own, on a port of its own, until the end of the tests."""
    with ExitStack() as stack:

        def opened(engine: ScriptedEngine, **settings: Any) -> House:
            home: Path = tmp_path_factory.mktemp("home")
            service = make_service(home, engine, **settings)
            url = stack.enter_context(served(service)) + "/v1"
            client = stack.enter_context(openai.OpenAI(base_url=url, api_key="none", max_retries=0))
            return House(service, engine, client, url)

        yield opened


@pytest.fixture(scope="session")
def house(open_house: Callable[..., House]) -> House:
    """The server that most tests ask."""
    return open_house(ScriptedEngine("fine"))
