"""Exported models behind the service: named at the start, asked by the real client, each adapter by its own name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from openai import BadRequestError, NotFoundError, OpenAI

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from tests.inference.serving.made_onnx import engine_alone, save_onnx
from tests.service.live import live_server
from tunesmith.cli.main import invoke
from tunesmith.data.types import Message
from tunesmith.errors import RecipeError
from tunesmith.models.artifact import Artifact, Target, write_artifact
from tunesmith.service.asking.fingerprint import fingerprint
from tunesmith.service.configuring import read_settings
from tunesmith.service.exports import export_refs, parse_exports
from tunesmith.service.settings import ServeSettings

TEXTS = ["hello", "what is it?", "a longer question about nothing in particular", "why"]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return save_onnx(tmp_path_factory.mktemp("exports") / "small", {"formal": 2, "pirate": 3})


@pytest.fixture(scope="module")
def client(artifact: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenAI]:
    """The client of a server of its own, as a process."""
    flags = ("--artifact", f"support={artifact.folder}", "--no-worker")
    with live_server(tmp_path_factory.mktemp("home"), *flags) as live:
        yield OpenAI(base_url=f"{live.url}/v1", api_key="local", max_retries=0)


def ask(client: OpenAI, model: str, text: str, **more: Any) -> Any:
    turns: Any = [{"role": "user", "content": text}]
    return client.chat.completions.create(
        model=model, messages=turns, **{"temperature": 0, "max_completion_tokens": 20, **more}
    )


def test_adapters_asked_at_once_answer_each_as_the_engine_alone(client: OpenAI, artifact: Artifact) -> None:
    asked = [(variant, text) for text in TEXTS for variant in (None, "formal", "pirate")]
    expected = {
        variant: [
            one.text for one in engine_alone(artifact, variant).generate([(Message("user", t),) for t in TEXTS], 20)
        ]
        for variant in (None, "formal", "pirate")
    }
    assert len({tuple(texts) for texts in expected.values()}) == 3

    def answer(one: tuple[str | None, str]) -> str:
        variant, text = one
        name = "support" if variant is None else f"support:{variant}"
        if len(text) % 2:  # half of them in pieces
            chunks = ask(client, name, text, stream=True)
            return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        got = ask(client, name, text)
        assert got.model == name and got.usage.completion_tokens <= 20
        return str(got.choices[0].message.content)

    with ThreadPoolExecutor(len(asked)) as threads:
        found = list(threads.map(answer, asked))
    for (variant, text), said in zip(asked, found, strict=True):
        assert said == expected[variant][TEXTS.index(text)], (variant, text)


def test_its_names_are_listed_without_its_folder(client: OpenAI, artifact: Artifact) -> None:
    listed = [model.id for model in client.models.list()]
    assert listed[:3] == ["support", "support:formal", "support:pirate"]
    assert client.models.retrieve("support:formal").model_dump()["tunesmith"] == {"base": "small", "kind": "registered"}
    assert str(artifact.folder.parent) not in str([model.model_dump() for model in client.models.list()])
    first, second = (ask(client, name, "hello").system_fingerprint for name in ("support:formal", "support:pirate"))
    assert first != second


def test_scores_forms_and_completions_come_from_it_too(client: OpenAI) -> None:
    scored = ask(client, "support:pirate", "hello", logprobs=True, top_logprobs=2)
    told = scored.choices[0].logprobs.content
    assert told and all(one.logprob <= 0 and len(one.top_logprobs) == 2 for one in told)
    shape = {
        "type": "object",
        "properties": {"a": {"enum": ["x", "y"]}},
        "required": ["a"],
        "additionalProperties": False,
    }
    form: Any = {"type": "json_schema", "json_schema": {"name": "one", "schema": shape, "strict": True}}
    held = ask(client, "support", "hello", response_format=form, max_completion_tokens=100)
    assert json.loads(held.choices[0].message.content) in ({"a": "x"}, {"a": "y"})
    text = client.completions.create(model="support:formal", prompt="once", max_tokens=5, temperature=0)
    assert text.usage is not None and text.usage.completion_tokens <= 5


def test_what_is_not_there_or_cannot_be_trained_is_refused(client: OpenAI) -> None:
    with pytest.raises(NotFoundError, match="support:formal"):
        ask(client, "support:formall", "hello")
    with pytest.raises(BadRequestError, match="context") as long:
        ask(client, "support", "x" * 400)
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(BadRequestError, match="is an export and cannot be fine-tuned here"):
        client.fine_tuning.jobs.create(model="support", training_file="file-none")


# Settings.


def test_the_file_names_folders_beside_it_and_the_flag_adds_others(artifact: Artifact, tmp_path: Path) -> None:
    config = artifact.folder.parent / "serve.yaml"
    config.write_text(yaml.safe_dump({"artifacts": {"mine": "./small"}}))
    settings = read_settings(config, ServeSettings(home=tmp_path))
    assert settings.artifacts == {"mine": artifact.folder.resolve()}
    refs = export_refs(settings.artifacts)
    assert list(refs) == ["mine", "mine:formal", "mine:pirate"]
    assert (refs["mine:pirate"].engine, refs["mine:pirate"].variant) == ("onnx", "pirate")
    assert fingerprint(refs["mine"]) != fingerprint(refs["mine:pirate"])
    assert parse_exports((f"other={artifact.folder}",)) == {"other": artifact.folder}


def test_everything_wrong_with_them_is_told_at_once(artifact: Artifact, tmp_path: Path) -> None:
    other = tmp_path / "gguf"
    other.mkdir()
    write_artifact(replace(artifact, folder=other, target=Target("gguf", "q8_0"), files={}, adapters=()))
    config = tmp_path / "serve.yaml"
    config.write_text(
        yaml.safe_dump({"artifacts": {"a:b": str(artifact.folder), "none": "./nowhere", "llama": "./gguf"}})
    )
    with pytest.raises(RecipeError) as caught:
        read_settings(config, ServeSettings(home=tmp_path))
    for part in ("artifacts.a:b: a name has letters", "artifacts.none", "no export is here", "kind gguf"):
        assert part in str(caught.value), part
    with pytest.raises(RecipeError, match=r"no name with a folder.*given twice"):
        parse_exports(("nothing", "=x", f"a={other}", f"a={other}"))
    assert invoke(["serve", "--home", str(tmp_path / "home"), "--artifact", f"x={tmp_path / 'nowhere'}"]) == 2
