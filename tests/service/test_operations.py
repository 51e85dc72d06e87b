"""What whoever runs a server looks at: health, figures, log, audit; and requests that come twice."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families
from starlette.datastructures import Headers
from starlette.testclient import TestClient

from tests.service.apps import client_of, http_scope, make_service
from tunesmith.service import logs, repeats
from tunesmith.service.app import make_app
from tunesmith.service.context import Service
from tunesmith.service.entrance import Visit
from tunesmith.service.errors import ApiError
from tunesmith.service.keys import create_key
from tunesmith.service.settings import Limits
from tunesmith.service.store.nouns import AuditEntry, Job, Repeat


@pytest.fixture
def service(tmp_path: Path) -> Service:
    return make_service(tmp_path)


@pytest.fixture
def client(service: Service) -> Iterator[TestClient]:
    with client_of(service, worker_check=lambda: "ok") as client:
        yield client


def a_job(id: str, status: Any) -> Job:
    return Job(id, 1, "gpt-4o-mini", "embedded:base", "file-1", None, status, 1, "tunesmith", {"type": "supervised"})


# Health.


def test_alive_and_ready(client: TestClient) -> None:
    assert client.get("/healthz").json() == {"status": "ok"}
    answer = client.get("/readyz")
    assert answer.status_code == 200
    names = ("store", "disk", "engine", "worker", "shutdown")
    assert answer.json() == {"status": "ready", "checks": dict.fromkeys(names, "ok")}


class _BrokenStore:
    """A database that is away."""

    def count(self, *_: Any) -> int:
        raise ConnectionError("postgresql://user:secret@host/db")


def test_not_ready_says_what_is_missing_and_no_more(service: Service, tmp_path: Path) -> None:
    broken = replace(
        service,
        store=_BrokenStore(),  # type: ignore[arg-type]
        engine=None,
        settings=replace(service.settings, limits=Limits(free_disk=10**18)),
    )
    app = make_app(broken, worker_check=lambda: "down")
    with TestClient(app) as client:
        app.state.in_flight.draining = True
        answer = client.get("/readyz")
        assert answer.status_code == 503
        assert answer.json() == {
            "status": "not ready",
            "checks": {
                "store": "does not answer", "disk": "full", "engine": "none", "worker": "down", "shutdown": "under way",
            },
        }  # fmt: skip
        assert client.get("/healthz").status_code == 200
        assert str(tmp_path) not in answer.text and "secret" not in answer.text
    service.store.close()


def test_a_server_that_shuts_down_takes_nothing_new(service: Service) -> None:
    app = make_app(service)
    with TestClient(app) as client:
        app.state.in_flight.draining = True
        answer = client.get("/v1/models")
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "5"
        assert answer.json()["error"]["code"] == "server_shutting_down"
    service.store.close()


# Figures.


def figures(client: TestClient) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    text = client.get("/metrics").text
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_requests_are_counted_by_route_and_status(client: TestClient) -> None:
    for name in ("gpt-4o", "gpt-4", "no-such-model"):
        client.get(f"/v1/models/{name}")
    for i in range(5):
        client.get(f"/v1/nothing-{i}")
    client.request("PROPFIND", "/v1/models")
    found = figures(client)
    route = "/v1/models/{model:path}"
    counted = {key: value for key, value in found.items() if key[0] == "tunesmith_requests_total"}
    models = {dict(labels)["status"]: value for (_, labels), value in counted.items() if "{" in dict(labels)["route"]}
    assert models == {"200": 2, "404": 1}, counted
    assert found["tunesmith_requests_total", (("method", "GET"), ("route", "unmatched"), ("status", "404"))] == 5
    assert all(dict(labels)["method"] in ("GET", "other") for _, labels in counted), route
    assert found["tunesmith_requests_in_flight", ()] == 0


def test_latencies_jobs_and_engine_are_told(service: Service, client: TestClient) -> None:
    service.store.add_all([a_job("ftjob-1", "queued"), a_job("ftjob-2", "queued"), a_job("ftjob-3", "failed")])
    client.get("/v1/models")
    found = figures(client)
    assert found["tunesmith_request_seconds_count", (("route", "/v1/models"),)] == 1
    assert found["tunesmith_first_byte_seconds_count", (("route", "/v1/models"),)] == 1
    jobs = {labels[0][1]: value for (name, labels), value in found.items() if name == "tunesmith_jobs"}
    assert jobs["queued"] == 2 and jobs["failed"] == 1 and jobs["running"] == 0
    assert service.engine is not None
    for name, value in service.engine.state().items():
        assert found[f"tunesmith_engine_{name}", ()] == value


# Log.


def lines_of(records: list[logging.LogRecord]) -> list[dict[str, Any]]:
    return [json.loads(logs.JsonLines().format(record)) for record in records]


def test_each_request_is_one_line_of_json_without_secrets(client: TestClient, caplog: Any) -> None:
    with caplog.at_level(logging.INFO, logger="tunesmith.access"):
        answer = client.post(
            "/v1/fine_tuning/jobs?sig=QUERYSECRET",
            json={"model": "BODYSECRET"},
            headers={"authorization": "Bearer KEYSECRET"},
        )
        client.get("/healthz")
    [line] = lines_of([record for record in caplog.records if record.name == "tunesmith.access"])
    assert line["request_id"] == answer.headers["x-request-id"]
    assert (line["method"], line["path"], line["status"]) == ("POST", "/v1/fine_tuning/jobs", answer.status_code)
    assert line["route"] == "/v1/fine_tuning/jobs"
    assert line["bytes"] == len(answer.content)
    assert line["ms"] >= line["first_byte_ms"] > 0
    assert "SECRET" not in json.dumps(line)


def test_a_path_cannot_forge_a_line(client: TestClient, caplog: Any) -> None:
    with caplog.at_level(logging.INFO, logger="tunesmith.access"):
        client.get('/v1/x%0a{"status": 200}' + "y" * 5000)
    text = "\n".join(logs.JsonLines().format(record) for record in caplog.records if record.name == "tunesmith.access")
    assert "\n" not in text
    assert len(json.loads(text)["path"]) <= logs.LONGEST_PATH


def test_the_log_file_is_json_and_is_rotated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, before = logging.getLogger(), list(logging.getLogger().handlers)
    level = root.level
    monkeypatch.setattr(logs, "FILE_BYTES", 2_000)
    for handler in before:
        root.removeHandler(handler)
    try:
        logs.configure(tmp_path / "logs" / "server.jsonl")
        for i in range(100):
            logging.getLogger("uvicorn.error").info("line %d", i)
        try:
            raise ValueError("inside")
        except ValueError:
            logging.getLogger("tunesmith.service").exception("failed", extra={"request_id": "req_1"})
        written = sorted((tmp_path / "logs").iterdir())
        last = json.loads((tmp_path / "logs" / "server.jsonl").read_text().splitlines()[-1])
    finally:
        for handler in root.handlers[:]:
            root.removeHandler(handler)
            handler.close()
        for handler in before:
            root.addHandler(handler)
        root.setLevel(level)
    assert 2 < len(written) <= logs.FILES + 1
    assert all(file.stat().st_size <= 2_000 for file in written)
    assert last["request_id"] == "req_1" and "ValueError: inside" in last["traceback"]


# Audit.


def test_changes_are_remembered_with_who_and_what(tmp_path: Path) -> None:
    service = make_service(tmp_path, host="0.0.0.0")
    service.store.add(a_job("ftjob-1", "queued"))
    key, secret = create_key(service.store, "mine")
    with client_of(service) as client:
        headers = {"authorization": f"Bearer {secret}"}
        changed = client.post("/v1/fine_tuning/jobs/ftjob-1/cancel?x=QUERYSECRET", headers=headers)
        assert changed.status_code == 200, changed.text
        client.get("/v1/models", headers=headers)
        client.post("/v1/chat/completions", json={}, headers=headers)
        client.post("/v1/nothing", headers=headers)
        for _ in range(20):
            # Strangers cannot fill the disk.
            client.post("/v1/fine_tuning/jobs/ftjob-1/cancel", headers={"authorization": "Bearer wrong"})
        [entry] = service.store.all(AuditEntry)
    assert (entry.key_id, entry.status) == (key.id, 200)
    assert entry.action.startswith("POST /v1/fine_tuning/jobs/{") and entry.action.endswith("}/cancel")
    assert entry.target == "/v1/fine_tuning/jobs/ftjob-1/cancel"
    assert entry.request_id == changed.headers["x-request-id"]
    assert secret not in str(entry)


def test_what_was_kept_is_not_removed_unseen(service: Service) -> None:
    with client_of(service) as client:
        asked = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hi"}], "store": True}
        completion = client.post("/v1/chat/completions", json=asked).json()["id"]
        response = client.post("/v1/responses", json={"model": "gpt-4o-mini", "input": "hi"}).json()["id"]
        client.post("/v1/responses/input_tokens", json={"model": "gpt-4o-mini", "input": "hi"})
        assert client.post(f"/v1/chat/completions/{completion}", json={"metadata": {"a": "b"}}).status_code == 200
        for path in (f"/v1/chat/completions/{completion}", f"/v1/responses/{response}"):
            assert client.delete(path).status_code == 200
        told = [(one.action.split()[0], one.target) for one in service.store.all(AuditEntry)]
    assert sorted(told) == [
        ("DELETE", f"/v1/chat/completions/{completion}"),
        ("DELETE", f"/v1/responses/{response}"),
        ("POST", f"/v1/chat/completions/{completion}"),
    ]


def _app(service: Service, **endpoints: Any) -> FastAPI:
    app = make_app(service)
    for path, endpoint in endpoints.items():
        app.post(f"/v1/{path}")(endpoint)
    return app


def test_an_entry_is_there_before_the_answer_is(service: Service) -> None:
    app = _app(service, change=lambda: {"done": True})
    with TestClient(app) as client:
        answer = client.post("/v1/change")
        [entry] = service.store.all(AuditEntry)
    assert (entry.action, entry.target, entry.status) == ("POST /v1/change", "/v1/change", 200)
    assert entry.request_id == answer.headers["x-request-id"]
    assert entry.key_id is None
    service.store.close()


def test_a_store_that_takes_no_entry_does_not_undo_the_change(
    service: Service, caplog: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = _app(service, change=lambda: {"done": True})

    def full(_: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(service.store, "add", full)
    with TestClient(app) as client:
        answer = client.post("/v1/change")
    assert answer.json() == {"done": True}
    assert any("audit entry not stored" in record.message for record in caplog.records)
    service.store.close()


# The same request twice.


class Maker:
    """An endpoint that makes something each time it is asked."""

    def __init__(self) -> None:
        self.made = 0
        self.gate: threading.Event | None = None
        self.status = 200

    def __call__(self, body: dict[str, Any]) -> Any:
        if self.gate is not None:
            self.gate.wait(5)
        self.made += 1
        if self.status != 200:
            raise ApiError(self.status, "no")
        return {"id": f"made-{self.made}"}


@pytest.fixture
def maker() -> Maker:
    return Maker()


@pytest.fixture
def making(service: Service, maker: Maker, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    """A client of a path that makes things, with nothing else behind it."""
    monkeypatch.setattr(repeats, "_MAKES", re.compile("/v1/make"))

    def make(body: dict[str, Any]) -> Any:
        return maker(body)

    with TestClient(_app(service, make=make), raise_server_exceptions=False) as client:
        yield client
    service.store.close()


RETRY = {"x-stainless-retry-count": "1"}
FIRST = {"x-stainless-retry-count": "0"}


def test_a_retry_gets_the_answer_that_was_lost(making: TestClient, maker: Maker) -> None:
    first = making.post("/v1/make", json={"a": 1}, headers=FIRST)
    again = [making.post("/v1/make", json={"a": 1}, headers={"x-stainless-retry-count": n}) for n in ("1", "2")]
    assert maker.made == 1
    assert [one.json() for one in again] == [first.json()] * 2
    assert all(one.headers["idempotent-replayed"] == "true" for one in again)
    assert "idempotent-replayed" not in first.headers


def test_two_equal_requests_that_are_no_retries_are_two(making: TestClient, maker: Maker) -> None:
    ids = {making.post("/v1/make", json={"a": 1}, headers=FIRST).json()["id"] for _ in range(3)}
    ids |= {making.post("/v1/make", json={"a": 1}).json()["id"] for _ in range(2)}
    assert len(ids) == maker.made == 5


def test_a_retry_of_another_body_or_after_an_error_is_new(making: TestClient, maker: Maker) -> None:
    making.post("/v1/make", json={"a": 1}, headers=FIRST)
    assert making.post("/v1/make", json={"a": 2}, headers=RETRY).json() == {"id": "made-2"}
    maker.status = 429
    assert making.post("/v1/make", json={"a": 3}, headers=FIRST).status_code == 429
    maker.status = 200
    assert making.post("/v1/make", json={"a": 3}, headers=RETRY).json() == {"id": "made-4"}


def test_a_retry_that_overtakes_waits_for_the_first(making: TestClient, maker: Maker) -> None:
    maker.gate = threading.Event()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(making.post, "/v1/make", json={"a": 1}, headers=FIRST)
        while not repeats_under_way(making):
            pass
        second = pool.submit(making.post, "/v1/make", json={"a": 1}, headers=RETRY)
        maker.gate.set()
        assert first.result().json() == second.result().json() == {"id": "made-1"}
    assert maker.made == 1


async def _together(app: FastAPI, count: int, headers: dict[str, str]) -> None:
    """So many equal requests, none of which waits for another to be sent."""

    async def one() -> None:
        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b'{"a": 1}', "more_body": False}

        async def send(_: Any) -> None:
            pass

        given = {"content-type": "application/json", "content-length": "8", **headers}
        await app(http_scope("POST", "/v1/make", given), receive, send)

    await asyncio.gather(*(one() for _ in range(count)))


@pytest.mark.parametrize("headers", [{"idempotency-key": "k"}, RETRY])
def test_of_several_at_the_same_moment_one_makes_something(
    making: TestClient, maker: Maker, headers: dict[str, str]
) -> None:
    asyncio.run(_together(making.app, 8, headers))  # type: ignore[arg-type]
    assert maker.made == 1


def repeats_under_way(client: TestClient) -> bool:
    """Whether the application has a request in hand whose repetition would wait."""
    layer: Any = client.app.middleware_stack  # type: ignore[attr-defined]
    while layer is not None and not isinstance(layer, repeats.Repeats):
        layer = getattr(layer, "app", None)
    return bool(layer.under_way)


def test_a_key_of_repetition_is_good_for_a_day(
    making: TestClient, maker: Maker, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    headers = {"idempotency-key": "mine"}
    first = making.post("/v1/make", json={"a": 1}, headers=headers)
    assert making.post("/v1/make", json={"a": 1}, headers=headers).json() == first.json()
    reused = making.post("/v1/make", json={"a": 2}, headers=headers)
    assert reused.status_code == 400
    assert reused.json()["error"]["code"] == "idempotency_key_reused"
    [kept] = service.store.all(Repeat)
    service.store.update(Repeat, kept.id, created_at=kept.created_at - repeats.KEY_SECONDS - 1)
    assert making.post("/v1/make", json={"a": 2}, headers=headers).json() == {"id": "made-2"}


def test_a_key_that_is_too_long_is_refused(making: TestClient) -> None:
    answer = making.post("/v1/make", json={}, headers={"idempotency-key": "k" * 256})
    assert answer.status_code == 400
    assert "Idempotency-Key" in answer.json()["error"]["message"]


def test_answers_survive_the_server_and_old_ones_go(
    tmp_path: Path, maker: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repeats, "_MAKES", re.compile("/v1/make"))
    monkeypatch.setattr(repeats, "SWEEP", 1)
    for _ in range(2):
        service = make_service(tmp_path)

        def make(body: dict[str, Any]) -> Any:
            return maker(body)

        with TestClient(_app(service, make=make)) as client:
            answer = client.post("/v1/make", json={"a": 1}, headers={"idempotency-key": "k"})
            assert answer.json() == {"id": "made-1"}
            service.store.add(Repeat(f"old-{answer.headers['x-request-id']}", 1, "", 200, "{}"))
            client.post("/v1/make", json={"a": 2}, headers=FIRST)
            assert not [one for one in service.store.all(Repeat) if one.id.startswith("old-")]
        service.store.close()


def test_the_same_key_of_repetition_by_two_people_is_two() -> None:
    """What one key made is not shown to another."""
    names = set()
    for key_id in ("key_1", "key_2", None):
        visit = Visit("req_1", "POST", "/v1/make", "openai", key_id=key_id)
        scope: Any = {"path": "/v1/make", "headers": [], "state": {"visit": visit}}
        names.add(repeats._named(scope, Headers({}), "same", b"{}").name)
    assert len(names) == 3


def test_a_client_that_leaves_early_is_no_error(service: Service, caplog: Any) -> None:
    app = _app(service)
    sent: list[Any] = []

    async def gone() -> None:
        async def receive() -> dict[str, Any]:
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        headers = {"content-type": "application/json", "content-length": "9"}
        await app(http_scope("POST", "/v1/fine_tuning/jobs", headers), receive, send)

    with caplog.at_level(logging.INFO):
        asyncio.run(gone())
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
    service.store.close()
