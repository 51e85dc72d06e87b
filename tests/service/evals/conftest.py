from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.service.beside import Beside, last_text, served_beside
from tests.service.scripted import ScriptedEngine
from tunesmith.inference.serving.types import Ask

CAPITALS = {"France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Greece": "Athens", "Norway": "Oslo"}


def geographer(ask: Ask) -> str:
    """Knows all capitals but Norway's; judges by a form when it is held to one."""
    text = last_text(ask)
    if ask.decoding.form is not None or ask.decoding.grammar is not None:
        if "label" in str(ask.decoding):
            return json.dumps({"result": "label_a"})
        return '{"result": 0.25}' if "Rome" in text else '{"result": 1}'
    return next((city for land, city in CAPITALS.items() if land in text and land != "Norway"), "Bergen")


@pytest.fixture(scope="session")
def beside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Beside]:
    """A server whose model is a geographer."""
    with served_beside(tmp_path_factory.mktemp("home"), ScriptedEngine(geographer)) as found:
        yield found


SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"land": {"type": "string"}, "city": {"type": "string"}},
    "required": ["land", "city"],
}
EXACT: dict[str, Any] = {
    "type": "string_check",
    "name": "Exact",
    "operation": "eq",
    "input": "{{sample.output_text}}",
    "reference": "{{item.city}}",
}
ALIKE: dict[str, Any] = {
    "type": "text_similarity",
    "name": "Alike",
    "evaluation_metric": "fuzzy_match",
    "pass_threshold": 0.9,
    "input": "{{sample.output_text}}",
    "reference": "{{item.city}}",
}
ROWS: list[dict[str, Any]] = [{"item": {"land": land, "city": city}} for land, city in CAPITALS.items()]


def eval_of(beside: Beside, *criteria: dict[str, Any], sample: bool = True, **more: Any) -> Any:
    config: Any = {"type": "custom", "item_schema": SCHEMA, "include_sample_schema": sample}
    return beside.client.evals.create(
        name="capitals", data_source_config=config, testing_criteria=list(criteria) or [EXACT], **more
    )


def completions(rows: Any = None, **more: Any) -> Any:
    """A run's data: the capital of every land."""
    content = ROWS if rows is None else rows
    return {
        "type": "completions",
        "model": "gpt-4o-mini",
        "source": {"type": "file_content", "content": content},
        "input_messages": {
            "type": "template",
            "template": [
                {"role": "developer", "content": "Say the city only."},
                {"role": "user", "content": "Capital of {{item.land}}?"},
            ],
        },
        **more,
    }


def finished(beside: Beside, made: Any, data: Any, **more: Any) -> Any:
    """A run of an eval, at its end."""
    run = beside.client.evals.runs.create(made.id, data_source=data, **more)
    assert run.status == "queued" and run.result_counts.total == 0
    look = lambda: beside.client.evals.runs.retrieve(run.id, eval_id=made.id)  # noqa: E731
    return beside.wait(look, ("completed", "failed", "canceled"))


def upload(beside: Beside, path: Path, purpose: Any = "evals") -> str:
    with path.open("rb") as file:
        return beside.client.files.create(file=file, purpose=purpose).id
