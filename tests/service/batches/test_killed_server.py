"""A server process that is killed in the middle of a batch and an eval, and started again."""

from __future__ import annotations

import io
import json
import random
import signal
import time
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.service.live import Live, free_port, live_server

TINY = "embedded:tiny"
ROWS = 60


def line(number: int) -> dict[str, Any]:
    messages = [{"role": "user", "content": f"row {number}"}]
    body = {"model": TINY, "max_tokens": 48, "temperature": 0, "messages": messages}
    return {"custom_id": f"r{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}


def kill_behind(server: Live, home: Path, rows: int) -> int:
    """Kill the server when the journal has more than so many rows; returns how many it has then."""
    until = time.monotonic() + 60
    while time.monotonic() < until and journalled(home) <= rows:
        time.sleep(0.02)
    server.process.send_signal(signal.SIGKILL)
    server.process.wait()
    assert rows < journalled(home) < ROWS
    return journalled(home)


def journalled(home: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in home.glob("batches/*.jsonl"))


@pytest.mark.slow
def test_everything_is_there_once(tmp_path: Path) -> None:
    port, chance = free_port(), random.Random(7)
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none")
    with live_server(tmp_path, "--no-worker", port=port) as server:
        data = "\n".join(json.dumps(line(i)) for i in range(ROWS)).encode()
        file = client.files.create(file=("in.jsonl", io.BytesIO(data)), purpose="batch")
        batch = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
        check: Any = {"type": "string_check", "name": "c", "operation": "ne", "input": "{{sample.output_text}}"}
        made = client.evals.create(
            data_source_config={"type": "custom", "item_schema": {"type": "object"}, "include_sample_schema": True},
            testing_criteria=[check | {"reference": "{{item.n}}"}],
        )
        source: Any = {"type": "file_content", "content": [{"item": {"n": f"row {i}"}} for i in range(ROWS)]}
        messages: Any = {"type": "template", "template": [{"role": "user", "content": "{{item.n}}"}]}
        run = client.evals.runs.create(
            made.id,
            data_source={
                "type": "completions",
                "model": TINY,
                "source": source,
                "input_messages": messages,
                "sampling_params": {"max_completion_tokens": 48},
            },
        )
        kept = kill_behind(server, tmp_path, chance.randrange(3, 12))
    with live_server(tmp_path, "--no-worker", port=port) as server:
        kill_behind(server, tmp_path, kept + chance.randrange(3, 12))
    with live_server(tmp_path, "--no-worker", port=port):
        until = time.monotonic() + 120
        while time.monotonic() < until:
            ended = client.batches.retrieve(batch.id), client.evals.runs.retrieve(run.id, eval_id=made.id)
            if all(one.status in ("completed", "failed", "expired") for one in ended):
                break
            time.sleep(0.5)
        assert [one.status for one in ended] == ["completed", "completed"], ended
        rows = [json.loads(one) for one in client.files.content(str(ended[0].output_file_id)).text.splitlines()]
        assert [row["custom_id"] for row in rows] == [f"r{i}" for i in range(ROWS)]
        items = list(client.evals.runs.output_items.list(run.id, eval_id=made.id, limit=100))
        assert [one.datasource_item_id for one in items] == list(range(ROWS))
        assert ended[1].result_counts.passed == ROWS
