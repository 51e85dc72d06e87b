"""An eval, its graders and a batch on a model that really answers."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.service.beside import Beside, served_beside
from tests.service.evals.conftest import ALIKE, ROWS, completions, finished

TINY = "embedded:tiny"


@pytest.fixture(scope="module")
def beside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Beside]:
    from tunesmith.inference.serving.engines import make_engine

    with served_beside(tmp_path_factory.mktemp("home"), make_engine()) as found:
        yield found


def test_an_eval_with_grading_models(beside: Beside) -> None:
    """A small untaught model: what it says is nonsense, and yet every grade can be read."""
    config: Any = {"type": "custom", "item_schema": {"type": "object"}, "include_sample_schema": True}
    asks = [{"role": "user", "content": "Is {{sample.output_text}} right?"}]
    criteria: Any = [
        ALIKE,
        {"type": "score_model", "name": "Score", "model": TINY, "input": asks, "range": [0, 10]},
        {
            "type": "label_model",
            "name": "Label",
            "model": TINY,
            "input": asks,
            "labels": ["right", "wrong"],
            "passing_labels": ["right"],
        },
    ]
    made = beside.client.evals.create(data_source_config=config, testing_criteria=criteria)
    data = completions(ROWS[:3], model=TINY, sampling_params={"max_completion_tokens": 8, "temperature": 0})
    run = finished(beside, made, data)
    assert run.status == "completed" and run.result_counts.errored == 0 and run.result_counts.total == 3
    items = list(beside.client.evals.runs.output_items.list(run.id, eval_id=made.id))
    for item in items:
        alike, score, label = item.results
        assert 0 <= alike.score <= 1 and 0 <= score.score <= 10 and label.score in (0.0, 1.0)
        assert label.sample is not None
        assert json.loads(label.sample["output"][0]["content"])["result"] in ("right", "wrong")  # type: ignore[index]
        assert 0 < item.sample.usage.completion_tokens <= 8
    (usage,) = run.per_model_usage
    assert usage.run_model_name == TINY and usage.invocation_count == 9


def test_a_batch_answers_as_the_route_does(beside: Beside) -> None:
    body = {"model": TINY, "temperature": 0, "max_tokens": 12}
    texts = ["The lamp", "A cat sat", "Once upon"]
    lines = [
        {
            "custom_id": text,
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {**body, "messages": [{"role": "user", "content": text}]},
        }
        for text in texts
    ]
    data = "\n".join(map(json.dumps, lines)).encode()
    file = beside.client.files.create(file=("in.jsonl", io.BytesIO(data)), purpose="batch")
    made = beside.client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
    ended = beside.wait(lambda: beside.client.batches.retrieve(made.id), ("completed", "failed", "expired"))
    assert ended.status == "completed" and ended.request_counts.completed == 3, ended
    found = map(json.loads, beside.client.files.content(ended.output_file_id).text.splitlines())
    said = {row["custom_id"]: row["response"]["body"]["choices"][0]["message"]["content"] for row in found}
    for text in texts:
        messages: Any = [{"role": "user", "content": text}]
        answer = beside.client.chat.completions.create(messages=messages, **body)  # type: ignore[call-overload]
        assert said[text] == answer.choices[0].message.content
