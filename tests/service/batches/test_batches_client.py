"""Batches through the official client: input, errors, results, cancelling, expiry, restarts."""

from __future__ import annotations

import asyncio
import io
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.service.apps import make_service
from tests.service.beside import Beside, last_text, served_beside
from tests.service.scripted import ScriptedEngine
from tunesmith.service.batches.checking import MOST_REQUESTS, check_input, request_at
from tunesmith.service.batches.operations import WINDOW_SECONDS
from tunesmith.service.batches.running import journal_path, run_batch
from tunesmith.service.gate import Gate
from tunesmith.service.inner import Inner
from tunesmith.service.store.nouns import Batch, File

ENDS = ("completed", "failed", "expired", "cancelled")


@pytest.fixture(scope="module")
def beside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Beside]:
    engine = ScriptedEngine(lambda ask: ask.prompt if isinstance(ask.prompt, str) else last_text(ask).upper())
    with served_beside(tmp_path_factory.mktemp("home"), engine) as found:
        yield found


def chat(number: int, text: str | None = None, **more: Any) -> dict[str, Any]:
    body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": text or f"row {number}"}], **more}
    return {"custom_id": f"r{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}


def upload(beside: Beside, lines: list[Any], purpose: Any = "batch") -> str:
    data = "".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in lines)
    return beside.client.files.create(file=("in.jsonl", io.BytesIO(data.encode())), purpose=purpose).id


def start(beside: Beside, lines: list[Any], endpoint: Any = "/v1/chat/completions", **more: Any) -> Any:
    file = upload(beside, lines)
    return beside.client.batches.create(input_file_id=file, endpoint=endpoint, completion_window="24h", **more)


def finished(beside: Beside, batch: Any) -> Any:
    return beside.wait(lambda: beside.client.batches.retrieve(batch.id), ENDS)


def rows(beside: Beside, file: str | None) -> list[dict[str, Any]]:
    assert file is not None
    return [json.loads(line) for line in beside.client.files.content(file).text.splitlines()]


def test_from_file_to_file(beside: Beside) -> None:
    batch = start(beside, [chat(i) for i in range(30)], metadata={"a": "b"})
    assert batch.id.startswith("batch_") and batch.object == "batch" and batch.status == "validating"
    assert batch.expires_at == batch.created_at + WINDOW_SECONDS and batch.metadata == {"a": "b"}
    assert batch.output_file_id is None and batch.errors is None
    ended = finished(beside, batch)
    assert ended.status == "completed" and ended.model == "gpt-4o-mini" and ended.error_file_id is None
    assert (ended.request_counts.total, ended.request_counts.completed, ended.request_counts.failed) == (30, 30, 0)
    assert ended.in_progress_at <= ended.finalizing_at <= ended.completed_at and ended.cancelled_at is None
    assert ended.usage.total_tokens == ended.usage.input_tokens + ended.usage.output_tokens > 0
    found = rows(beside, ended.output_file_id)
    assert [one["custom_id"] for one in found] == [f"r{i}" for i in range(30)]
    first = found[3]
    assert first["id"].startswith("batch_req_") and first["error"] is None
    assert first["response"]["status_code"] == 200 and first["response"]["request_id"].startswith("req_")
    assert first["response"]["body"]["choices"][0]["message"]["content"] == "ROW 3"
    assert first["response"]["body"]["object"] == "chat.completion"
    file = beside.client.files.retrieve(ended.output_file_id)
    assert file.purpose == "batch_output" and file.filename == f"{batch.id}_output.jsonl"
    assert beside.client.batches.list(limit=1).data[0].id == batch.id
    assert not journal_path(beside.service, beside.service.store.get(Batch, batch.id)).exists()  # type: ignore[arg-type]


def test_rows_that_fail_lie_in_a_file_of_their_own(beside: Beside) -> None:
    lines = [chat(0), chat(1, temperature=9), chat(2, "x" * 5000), chat(3, tool_choice="x", y=1)]
    ended = finished(beside, start(beside, lines))
    assert ended.status == "completed"
    assert (ended.request_counts.completed, ended.request_counts.failed) == (1, 3)
    assert [one["custom_id"] for one in rows(beside, ended.output_file_id)] == ["r0"]
    failed = rows(beside, ended.error_file_id)
    assert [one["response"]["status_code"] for one in failed] == [400] * 3
    assert failed[0]["response"]["body"]["error"]["param"] == "temperature"
    assert failed[1]["response"]["body"]["error"]["code"] == "context_length_exceeded"


@pytest.mark.parametrize(
    ("endpoint", "body", "reads"),
    [
        ("/v1/completions", {"prompt": "abc", "max_tokens": 3}, lambda body: body["choices"][0]["text"] == "abc"),
        ("/v1/responses", {"input": "abc"}, lambda body: body["output"][0]["content"][0]["text"] == "ABC"),
    ],
)
def test_other_endpoints(beside: Beside, endpoint: str, body: dict[str, Any], reads: Any) -> None:
    line = {"custom_id": "x", "method": "POST", "url": endpoint, "body": {"model": "gpt-4o-mini", **body}}
    ended = finished(beside, start(beside, [line], endpoint))
    (row,) = rows(beside, ended.output_file_id)
    assert reads(row["response"]["body"]), row
    assert ended.usage.output_tokens == 3


def test_embeddings_are_refused_row_by_row(beside: Beside) -> None:
    body = {"model": "gpt-4o-mini", "input": "x"}
    line = {"custom_id": "x", "method": "POST", "url": "/v1/embeddings", "body": body}
    ended = finished(beside, start(beside, [line], "/v1/embeddings"))
    assert ended.status == "completed" and ended.request_counts.failed == 1 and ended.output_file_id is None
    assert rows(beside, ended.error_file_id)[0]["response"]["body"]["error"]["message"]


def test_every_error_of_a_file_with_its_line(beside: Beside) -> None:
    lines = [
        chat(0),
        "",
        chat(0),
        chat(4) | {"url": "/v1/completions", "method": "GET"},
        {"custom_id": "r5"},
        chat(6, stream=True),
        chat(7) | {"body": 3, "more": 1},
        chat(8, model="nothing"),
        chat(9) | {"custom_id": ""},
        "",
    ]
    ended = finished(beside, start(beside, lines))
    assert ended.status == "failed" and ended.failed_at is not None and ended.request_counts.total == 0
    found = [(one.line, one.code, one.param) for one in ended.errors.data]
    assert found == [
        (3, "duplicate_custom_id", "custom_id"),
        (4, "invalid_method", "method"),
        (4, "invalid_url", "url"),
        (5, "missing_required_parameter", "method"),
        (5, "missing_required_parameter", "url"),
        (5, "missing_required_parameter", "body"),
        (6, "invalid_stream", "body.stream"),
        (7, "unknown_parameter", "more"),
        (7, "invalid_body", "body"),
        (9, "invalid_custom_id", "custom_id"),
        (None, "model_not_found", "body.model"),
    ]
    assert ended.errors.object == "list" and "is on line 1 already" in ended.errors.data[0].message


def test_many_errors_are_counted(beside: Beside) -> None:
    ended = finished(beside, start(beside, [{"custom_id": f"r{i}"} for i in range(50)]))
    assert len(ended.errors.data) == 101 and "50 more errors" in ended.errors.data[-1].message


def test_lines_that_are_no_requests(tmp_path: Path) -> None:
    """As a file may hold them that was checked at upload by other rules."""
    path = tmp_path / "in.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1\n\n[1]\n\xff\n' + b"[" * 100_000 + b"\n")
    found = check_input(path, "/v1/completions")
    assert [(one.line, one.code) for one in found.errors] == [
        (1, "invalid_json_line"), (3, "invalid_request"), (4, "invalid_json_line"), (5, "invalid_json_line"),
    ]  # fmt: skip
    path.write_bytes(b"\n \n")
    assert [one.code for one in check_input(path, "/v1/completions").errors] == ["empty_file"]


def test_too_many_requests(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    asked = {"method": "POST", "url": "/v1/x", "body": {"model": "m"}}
    lines = [json.dumps({"custom_id": str(i), **asked}) + "\n" for i in range(MOST_REQUESTS + 1)]
    path.write_text("".join([*lines, "no JSON, and never read\n"]))
    assert [one.code for one in check_input(path, "/v1/x").errors] == ["too_many_requests"]
    path.write_text("".join(lines[:MOST_REQUESTS]) + "\n")
    found = check_input(path, "/v1/x")
    assert not found.errors and found.model == "m"
    assert request_at(path, found.offsets[49_999])["custom_id"] == "49999"


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"endpoint": "/v1/images/generations"}, "endpoint"),
        ({"completion_window": "1h"}, "completion_window"),
        ({"input_file_id": "file-nothing"}, "input_file_id"),
        ({"extra_body": {"priority": 1}}, "priority"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 1}}, "output_expires_after.seconds"),
    ],
)
def test_a_batch_that_cannot_be(beside: Beside, change: dict[str, Any], param: str) -> None:
    given: Any = {"endpoint": "/v1/chat/completions", "completion_window": "24h", "input_file_id": "x", **change}
    if param != "input_file_id":
        given["input_file_id"] = upload(beside, [chat(0)])
    with pytest.raises(openai.BadRequestError) as caught:
        beside.client.batches.create(**given)
    assert caught.value.param == param


def test_a_file_of_another_purpose(beside: Beside) -> None:
    file = upload(beside, [chat(0)], "user_data")
    with pytest.raises(openai.BadRequestError, match="has the purpose 'user_data'"):
        beside.client.batches.create(input_file_id=file, endpoint="/v1/chat/completions", completion_window="24h")


def test_result_files_may_expire(beside: Beside) -> None:
    after: Any = {"anchor": "created_at", "seconds": 3_600}
    ended = finished(beside, start(beside, [chat(0)], output_expires_after=after))
    file = beside.client.files.retrieve(ended.output_file_id)
    assert file.expires_at == file.created_at + 3_600


def test_no_such_batch(beside: Beside) -> None:
    for ask in (beside.client.batches.retrieve, beside.client.batches.cancel):
        with pytest.raises(openai.NotFoundError, match="No such Batch object: batch_x"):
            ask("batch_x")


def test_cancelled_with_what_was_finished(tmp_path: Path) -> None:
    with served_beside(tmp_path, ScriptedEngine("word " * 10, delay=0.01)) as beside:
        batch = start(beside, [chat(i) for i in range(60)])
        until = time.monotonic() + 10
        while len(beside.engine.asks) < 20 and time.monotonic() < until:
            time.sleep(0.01)
        assert beside.client.batches.cancel(batch.id).status == "cancelling"
        ended = finished(beside, batch)
        assert ended.status == "cancelled" and ended.cancelling_at <= ended.cancelled_at
        assert 0 < ended.request_counts.completed < 60 and ended.request_counts.total == 60
        kept, left = rows(beside, ended.output_file_id), rows(beside, ended.error_file_id)
        assert len(kept) == ended.request_counts.completed
        assert {one["custom_id"] for one in kept + left} == {f"r{i}" for i in range(60)} and len(kept + left) == 60
        assert {one["error"]["code"] for one in left} == {"batch_cancelled"}
        assert beside.engine.running == 0 and beside.client.batches.cancel(batch.id).status == "cancelled"


def test_a_completed_batch_is_not_cancelled(beside: Beside) -> None:
    batch = finished(beside, start(beside, [chat(0)]))
    with pytest.raises(openai.BadRequestError, match="Cannot cancel a batch with status 'completed'"):
        beside.client.batches.cancel(batch.id)


def test_a_restart_does_no_row_twice(tmp_path: Path) -> None:
    with served_beside(tmp_path, ScriptedEngine("word " * 10, delay=0.005)) as first:
        batch = start(first, [chat(i) for i in range(60)])
        until = time.monotonic() + 10
        while len(first.engine.asks) < 24 and time.monotonic() < until:
            time.sleep(0.01)
    record = first.service.store.get(Batch, batch.id)
    assert record is not None and record.status == "in_progress"
    journal = journal_path(first.service, record)
    done = journal.read_text().count("\n")
    assert 0 < done < 60
    with journal.open("ab") as file:
        file.write(b'{"place": 59, "row": {"cust')  # as a crash leaves it
    with served_beside(tmp_path, ScriptedEngine("word " * 10)) as second:
        ended = finished(second, batch)
        assert ended.status == "completed" and ended.request_counts.completed == 60
        assert len(second.engine.asks) == 60 - done
        assert [one["custom_id"] for one in rows(second, ended.output_file_id)] == [f"r{i}" for i in range(60)]


def test_broken_off_while_the_files_were_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with served_beside(tmp_path, ScriptedEngine("x"), working=False) as first:
        batch = start(first, [chat(i) for i in range(3)])
    service = make_service(tmp_path, ScriptedEngine("x"))
    add = service.store.add

    def breaks(record: Any) -> None:
        add(record)
        if isinstance(record, File):
            raise SystemExit  # the process ends right after the output file was kept

    monkeypatch.setattr(service.store, "add", breaks)
    record = service.store.get(Batch, batch.id)
    assert record is not None
    with pytest.raises(SystemExit):
        asyncio.run(run_batch(service, Inner(service).post, Gate(None), record))
    assert service.store.get(Batch, batch.id).status == "finalizing"  # type: ignore[union-attr]
    with served_beside(tmp_path, ScriptedEngine("y")) as second:
        ended = finished(second, batch)
        assert ended.status == "completed" and second.engine.asks == []
        assert len(second.service.store.all(File, {"purpose": "batch_output"})) == 1
        assert len(rows(second, ended.output_file_id)) == 3


def test_expired(tmp_path: Path) -> None:
    engine = ScriptedEngine("word " * 5, delay=0.005)
    service = make_service(tmp_path, engine)
    # A day passes when ten requests were begun.
    service = replace(service, now=lambda: int(time.time()) + (WINDOW_SECONDS if len(engine.asks) >= 10 else 0))
    with served_beside(tmp_path, engine, service=service) as beside:
        ended = finished(beside, start(beside, [chat(i) for i in range(40)]))
        assert ended.status == "expired" and ended.expired_at >= ended.expires_at
        kept, left = rows(beside, ended.output_file_id), rows(beside, ended.error_file_id)
        assert len(kept) == ended.request_counts.completed >= 10 and len(kept) + len(left) == 40
        assert {one["error"]["code"] for one in left} == {"batch_expired"}
        assert ended.request_counts.failed == len(left)


def test_the_input_may_be_gone(tmp_path: Path) -> None:
    with served_beside(tmp_path, ScriptedEngine("x"), working=False) as first:
        batch = start(first, [chat(0)])
        first.service.store.remove(File, batch.input_file_id)
    with served_beside(tmp_path, ScriptedEngine("x")) as second:
        ended = finished(second, batch)
        assert ended.status == "failed" and ended.errors.data[0].code == "file_not_found"


def test_endpoints_in_azures_words(beside: Beside) -> None:
    """Its dated API leaves out the version in endpoints; in lines it takes both."""
    lines = [{**chat(0), "url": "/chat/completions"}, chat(1), {**chat(2), "url": "/embeddings"}]
    root = beside.url.removesuffix("/v1")
    azure = openai.AzureOpenAI(azure_endpoint=root, api_key="none", api_version="2024-10-21", max_retries=0)
    asked: Any = {"endpoint": "/chat/completions", "completion_window": "24h"}
    wrong = azure.batches.create(input_file_id=upload(beside, lines), **asked)
    assert wrong.endpoint == "/chat/completions"
    ended = finished(beside, wrong)
    assert [(one.line, one.code) for one in ended.errors.data] == [(3, "invalid_url")] and ended.failed_at
    right = finished(beside, azure.batches.create(input_file_id=upload(beside, lines[:2]), **asked))
    assert [one["custom_id"] for one in rows(beside, right.output_file_id)] == ["r0", "r1"]
    with pytest.raises(openai.BadRequestError, match="'/chat/completions' is not one of '/v1/chat/completions'"):
        beside.client.batches.create(input_file_id=wrong.input_file_id, **asked)
    same = finished(beside, start(beside, lines[:1]))
    assert same.errors.data[0].code == "invalid_url", "OpenAI's endpoint and lines are the same word"


def test_our_own_mistake_ends_a_batch_and_says_when(beside: Beside, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunesmith.service.batches.running.check_input", lambda *_: 1 / 0)
    ended = finished(beside, start(beside, [chat(0)]))
    assert ended.status == "failed" and ended.failed_at >= ended.created_at
    assert [one.code for one in ended.errors.data] == ["server_error"]
