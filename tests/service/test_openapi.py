"""The OpenAPI document is true, and nothing that can be derived from it makes the service fail."""

from __future__ import annotations

import itertools
import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from starlette.testclient import TestClient

from tests.postgresql import postgresql_server
from tests.service.apps import make_service
from tests.service.scripted import ScriptedEngine
from tunesmith.service.app import make_app
from tunesmith.service.schema import ERRORS
from tunesmith.service.settings import Limits

ROWS = "".join(
    json.dumps({"messages": [{"role": "user", "content": f"say {i}"}, {"role": "assistant", "content": str(i)}]}) + "\n"
    for i in range(12)
)
BATCH = json.dumps(
    {
        "custom_id": "a",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hi"}]},
    }
)


@dataclass(frozen=True)
class Api:
    """The document, and what exists: by the name of the field or of the path's part that asks for it."""

    document: Any
    known: dict[str, str]


@contextmanager
def app_on(home: Path, database: str | None = None) -> Iterator[FastAPI]:
    limits = Limits(free_disk=0, file=200_000, body=200_000)
    service = make_service(home, ScriptedEngine("fine", context=512), limits=limits, database=database)
    yield make_app(service)
    service.store.close()


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FastAPI]:
    with app_on(tmp_path_factory.mktemp("home")) as app:
        yield app


@pytest.fixture(scope="module")
def api(app: FastAPI) -> Api:
    return api_of(app)


def api_of(app: FastAPI) -> Api:
    # `/openai/v1` is `/v1` under another name.
    document = schemathesis.openapi.from_asgi("/openapi.json", app).exclude(path_regex="^/openai/v1/")
    with TestClient(app) as client:
        return Api(document, _known(client))


def _known(client: TestClient) -> dict[str, str]:
    """One of everything, made as a client would make it."""

    def made(path: str, **request: Any) -> str:
        answer = client.post(path, **request)
        assert answer.status_code in (200, 201), (path, answer.text)
        return str(answer.json()["id"])

    file = made("/v1/files", data={"purpose": "fine-tune"}, files={"file": ("a.jsonl", ROWS.encode())})
    lines = made("/v1/files", data={"purpose": "batch"}, files={"file": ("b.jsonl", BATCH.encode())})
    asked = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hi"}], "store": True}
    criterion = {"type": "string_check", "name": "is", "input": "{{item.a}}", "operation": "eq", "reference": "1"}
    schema = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
    evaluation = {
        "data_source_config": {"type": "custom", "item_schema": schema},
        "testing_criteria": [criterion],
    }
    source = {"type": "jsonl", "source": {"type": "file_content", "content": [{"item": {"a": "1"}}]}}
    eval_id = made("/v1/evals", json=evaluation)
    job = made("/v1/fine_tuning/jobs", json={"model": "gpt-4o-mini", "training_file": file})
    return {
        "model": "gpt-4o-mini",
        "deployment": "gpt-4o-mini",
        "file": file,
        "training_file": file,
        "input_file_id": lines,
        "job": job,
        "job_id": job,
        "completion_id": made("/v1/chat/completions", json=asked),
        "response_id": made("/v1/responses", json={"model": "gpt-4o-mini", "input": "hi"}),
        "upload_id": made(
            "/v1/uploads", json={"filename": "a", "purpose": "fine-tune", "bytes": 10, "mime_type": "text/jsonl"}
        ),
        "eval_id": eval_id,
        "run_id": made(f"/v1/evals/{eval_id}/runs", json={"data_source": source}),
        "batch_id": made(
            "/v1/batches",
            json={"input_file_id": lines, "endpoint": "/v1/chat/completions", "completion_window": "24h"},
        ),
    }


def check(api: Api, examples: int) -> list[str]:
    """What failed, with the request that did it: to every operation so many requests that fit the document, and so
    many that do not.
    """
    bounded = settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    failures: list[str] = []
    statuses: Counter[int] = Counter()
    modes = (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
    for mode, found in itertools.product(modes, api.document.get_all_operations()):
        operation = found.ok()
        if mode is GenerationMode.NEGATIVE and not len(operation.body):
            continue

        @bounded
        @given(operation.as_strategy(generation_mode=mode), st.booleans())
        def once(case: Any, likely: bool) -> None:
            if likely:
                _name_what_exists(case, api.known)
            statuses[never_fails(case)] += 1

        try:
            once()
        except AssertionError as failure:
            failures.append(f"{operation.label}: {failure}")
    some = min(examples, 4)
    assert statuses[200] > 10 * some and statuses[400] > 25 * some, statuses
    return failures


def _name_what_exists(case: Any, known: dict[str, str]) -> None:
    """So that requests get further than to what they name. Objects that would be gone afterwards are left alone."""
    if case.method == "DELETE":
        return
    for part in case.path_parameters or {}:
        guess = "job" if "/jobs/" in case.path else "file" if "/files/" in case.path else part
        name = known.get(guess if part == "id" else part)
        if name is not None:
            case.path_parameters[part] = name
    if isinstance(case.body, dict):
        for field in case.body:
            if field in known:
                case.body[field] = known[field]


def never_fails(case: Any) -> int:
    """No 5xx; and whatever is refused is refused in OpenAI's or Azure's words, with a request id. Returns the
    status.
    """
    response = case.call()
    told = f"{response.status_code} {response.text[:300]}\n{case.as_curl_command()[:1500]}"
    assert response.status_code < 500, told
    assert response.status_code not in (409, 422), told
    assert response.headers["x-request-id"], told
    if response.status_code >= 400:
        error = response.json()["error"]
        assert error["message"] and {"code", "message"} <= set(error), told
    return int(response.status_code)


def test_no_request_makes_the_service_fail(api: Api) -> None:
    failures = check(api, 1)
    assert not failures, "\n\n".join(failures)


@pytest.mark.skipif("TUNESMITH_LONG" not in os.environ, reason="takes long; set TUNESMITH_LONG=1")
def test_no_request_of_many_makes_the_service_fail(api: Api) -> None:
    failures = check(api, 40)
    assert not failures, "\n\n".join(failures)


@pytest.mark.slow
def test_no_request_makes_the_service_fail_on_postgresql(tmp_path: Path) -> None:
    with postgresql_server() as url, app_on(tmp_path, url) as app:
        failures = check(api_of(app), 8)
    assert not failures, "\n\n".join(failures)


def test_the_document_names_what_is_answered(app: FastAPI) -> None:
    document = app.openapi()
    assert "HTTPValidationError" not in document["components"]["schemas"]
    paths = document["paths"]
    for path in ("/v1/files", "/v1/fine_tuning/jobs", "/v1/chat/completions", "/openai/v1/files", "/openai/files",
                 "/healthz", "/readyz", "/metrics"):  # fmt: skip
        assert path in paths
    for methods in paths.values():
        for operation in methods.values():
            assert "422" not in operation["responses"]
            assert set(ERRORS) <= set(operation["responses"])
    names = [o["operationId"] for methods in paths.values() for o in methods.values()]
    assert len(set(names)) == len(names)


def test_every_part_of_the_contract_has_its_path(app: FastAPI) -> None:
    """Section 2.2 of the contract and section 3 for Azure, method by method."""
    wanted = Path(__file__).with_name("contract_paths.txt").read_text().split("\n")
    there = {f"{m.upper()} {_unnamed(path)}" for path, methods in app.openapi()["paths"].items() for m in methods}
    missing = [line for line in wanted if line and line not in there]
    assert not missing


def _unnamed(path: str) -> str:
    return re.sub(r"\{[^}]*\}", "{}", path)
