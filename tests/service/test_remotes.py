"""Models elsewhere under a name of one's own: from the configuration to the answer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from openai import BadRequestError, OpenAI

from tests.service.azure.serving import make_service, served
from tests.service.azure.test_jobs import rows
from tunesmith.errors import RecipeError
from tunesmith.inference.serving.engines import serving_engines
from tunesmith.service.catalogue import StoreCatalogue
from tunesmith.service.configuring import read_settings
from tunesmith.service.settings import RemoteModel, ServeSettings

SAY: Any = [{"role": "user", "content": "What is the largest mammal?"}]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenAI]:
    """A server that passes `far` on to another one."""
    home = tmp_path_factory.mktemp("homes")
    there = make_service(home / "there")
    with served(there) as far:
        config = home / "serve.yaml"
        config.write_text(f"remotes:\n  far: {{url: '{far}/v1', model: gpt-4o-mini, api_key_env: PATH}}\n")
        settings = read_settings(config, ServeSettings(home=home / "here"))
        here = make_service(home / "here")
        here = replace(
            here, settings=settings, catalogue=StoreCatalogue(settings, here.store), engine=serving_engines()
        )
        with served(here) as near:
            yield OpenAI(base_url=f"{near}/v1", api_key="local", max_retries=0)
        here.store.close()
    there.store.close()


def test_it_answers_whole_and_in_pieces(client: OpenAI) -> None:
    answer = client.chat.completions.create(model="far", messages=SAY)
    assert answer.choices[0].message.content == "Blue whale. Quite a big fish." and answer.model == "far"
    chunks = client.chat.completions.create(model="far", messages=SAY, stream=True)
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == "Blue whale. Quite a big fish."


def test_it_is_listed_without_its_address(client: OpenAI) -> None:
    model = client.models.retrieve("far").model_dump()
    assert model["tunesmith"] == {"base": "gpt-4o-mini", "kind": "registered"}
    assert "127.0.0.1" not in str(client.models.list().model_dump())


def test_its_tokens_are_not_counted_here(client: OpenAI) -> None:
    with pytest.raises(BadRequestError, match="tokens are not known here") as caught:
        client.responses.input_tokens.count(model="far", input="q")
    assert caught.value.param == "model"


def test_nothing_is_trained_on_it(client: OpenAI) -> None:
    file = client.files.create(file=("rows.jsonl", rows()), purpose="fine-tune")
    with pytest.raises(BadRequestError) as caught:
        client.fine_tuning.jobs.create(model="far", training_file=file.id)
    assert caught.value.param == "model" and "is served elsewhere" in caught.value.message


def test_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "serve.yaml").write_text(
        "remotes:\n  big: {url: https://api.example.org/v1, model: big-one, api_key_env: KEY}\n"
        "vllm:\n  org/base: http://127.0.0.1:8001/v1\n"
    )
    settings = read_settings(tmp_path / "serve.yaml", ServeSettings(home=tmp_path))
    assert settings.remotes == {"big": RemoteModel("https://api.example.org/v1", "big-one", "KEY")}
    assert settings.vllm == {"org/base": "http://127.0.0.1:8001/v1"}


@pytest.mark.parametrize(
    ("text", "places"),
    [
        ("remotes:\n  a: {url: ftp://x/v1, model: m}\n", ["remotes.a.url"]),
        (
            "remotes:\n  a: {url: https://x/v1}\n  b: {model: m, key: k}\n",
            ["remotes.a.model", "remotes.b.url", "remotes.b.key"],
        ),
        ("remotes:\n  a: {url: https://x/v1, model: m, api_key_env: sk-123}\n", ["remotes.a.api_key_env"]),
        ("vllm:\n  base: nowhere\n", ["vllm.base"]),
    ],
)
def test_what_is_wrong_with_it_is_told_at_once(tmp_path: Path, text: str, places: list[str]) -> None:
    (tmp_path / "serve.yaml").write_text(text)
    with pytest.raises(RecipeError) as caught:
        read_settings(tmp_path / "serve.yaml", ServeSettings(home=tmp_path))
    assert all(place in str(caught.value) for place in places)
