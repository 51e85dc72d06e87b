"""Who is answered: keys, their scopes, and requests that a browser sends for another site."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from tests.service.apps import client_of, http_scope, make_service
from tunesmith.errors import RecipeError
from tunesmith.service.auth import needed_scope
from tunesmith.service.context import Service
from tunesmith.service.keys import create_key, revoke_key
from tunesmith.service.server import check_keys
from tunesmith.service.settings import ServeSettings


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Service:
    """Bound to all addresses."""
    return make_service(tmp_path_factory.mktemp("home"), host="0.0.0.0")


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[TestClient]:
    with client_of(service) as client:
        yield client


def bearer(secret: str) -> dict[str, str]:
    return {"authorization": f"Bearer {secret}"}


def test_nothing_is_answered_without_a_key(service: Service, client: TestClient) -> None:
    assert client.post("/v1/chat/completions").status_code == 401
    for path in ("/v1/models", "/metrics", "/openapi.json", "/v1/nothing", "/openai/models?api-version=1"):
        answer = client.get(path)
        assert answer.status_code == 401, path
        assert "Authorization: Bearer" in answer.json()["error"]["message"]


def test_balancers_need_no_key(client: TestClient) -> None:
    assert client.get("/healthz").status_code == 200
    assert set(client.get("/readyz").json()) == {"status", "checks"}


@pytest.mark.parametrize("header", ["Bearer {}", "bearer {}", "Bearer   {} "])
def test_a_key_as_openais_clients_send_it(service: Service, client: TestClient, header: str) -> None:
    _, secret = create_key(service.store, "mine")
    assert client.get("/v1/models", headers={"authorization": header.format(secret)}).status_code == 200


def test_a_key_as_azures_clients_send_it(service: Service, client: TestClient) -> None:
    _, secret = create_key(service.store, "mine")
    assert client.get("/v1/models", headers={"api-key": secret}).status_code == 200


@pytest.mark.parametrize("given", ["sk-wrong", "", " ", "sk-ts-" + "x" * 10_000, "é"])
def test_a_wrong_key_is_401(service: Service, client: TestClient, given: str) -> None:
    create_key(service.store, "mine")
    answer = client.get("/v1/models", headers={"authorization": f"Bearer {given}".encode()})
    assert answer.status_code == 401
    assert answer.json()["error"]["code"] in ("invalid_api_key", None)


def test_revoked_and_expired_keys_are_401(service: Service, client: TestClient) -> None:
    key, secret = create_key(service.store, "mine")
    _, old = create_key(service.store, "old", expires_at=1)
    assert client.get("/v1/models", headers=bearer(secret)).status_code == 200
    revoke_key(service.store, key.id)
    for one in (secret, old):
        answer = client.get("/v1/models", headers=bearer(one))
        assert answer.status_code == 401
        assert answer.json()["error"]["code"] == "invalid_api_key"
        assert one not in answer.text


@pytest.mark.parametrize(
    ("method", "path", "scope"),
    [
        ("GET", "/v1/files", "read"),
        ("GET", "/v1/chat/completions", "read"),
        ("GET", "/metrics", "read"),
        ("POST", "/v1/chat/completions", "infer"),
        ("POST", "/v1/chat/completions/", "infer"),
        ("POST", "/openai/v1/completions", "infer"),
        ("POST", "/v1/responses", "infer"),
        ("DELETE", "/v1/responses/resp_1", "infer"),
        ("POST", "/v1/embeddings", "infer"),
        ("POST", "/openai/deployments/my-model/chat/completions", "infer"),
        ("POST", "/v1/batches", "infer"),
        ("POST", "/v1/batches/b/cancel", "infer"),
        ("POST", "/v1/evals/e/runs", "infer"),
        ("POST", "/v1/files", "train"),
        ("DELETE", "/v1/files/file-1", "train"),
        ("POST", "/v1/uploads/u/parts", "train"),
        ("POST", "/v1/fine_tuning/jobs", "train"),
        ("POST", "/openai/fine_tuning/jobs/j/cancel", "train"),
        ("DELETE", "/v1/models/ft:x", "train"),
        ("POST", "/v1/fine_tuning/alpha/graders/run", "train"),
        ("POST", "/v1/something/new", "train"),
        ("POST", "/v1/fine_tuning/checkpoints/ft:x:ckpt-step-1/permissions", "admin"),
        ("POST", "/openai/files/import", "admin"),
        (
            "PUT",
            "/subscriptions/s/resourceGroups/g/providers/Microsoft.CognitiveServices/accounts/a/deployments/d",
            "admin",
        ),
        ("DELETE", "/SUBSCRIPTIONS/s/resourcegroups/g", "admin"),
    ],
)
def test_what_a_request_needs(method: str, path: str, scope: str) -> None:
    assert needed_scope(method, path) == scope


@pytest.mark.parametrize(
    ("scopes", "allowed"),
    [
        (["read"], {"read"}),
        (["infer"], {"infer"}),
        (["train"], {"read", "train"}),
        (["read", "infer"], {"read", "infer"}),
        (["admin"], {"read", "infer", "train", "admin"}),
    ],
)
def test_a_key_may_do_what_its_scopes_say(
    service: Service, client: TestClient, scopes: list[str], allowed: set[str]
) -> None:
    _, secret = create_key(service.store, "one", scopes)
    requests = {
        "read": ("GET", "/v1/models"),
        "infer": ("POST", "/v1/chat/completions"),
        "train": ("POST", "/v1/fine_tuning/jobs"),
        "admin": ("POST", "/v1/fine_tuning/checkpoints/ft:x/permissions"),
    }
    for scope, (method, path) in requests.items():
        answer = client.request(method, path, headers=bearer(secret))
        if scope in allowed:
            assert answer.status_code not in (401, 403), (scope, answer.text)
        else:
            error = answer.json()["error"]
            assert answer.status_code == 403
            assert error["code"] == "insufficient_permissions"
            assert f"Missing scope: {scope}" in error["message"]


SCOPES = dict(line.rsplit(" ", 1) for line in Path(__file__).with_name("scopes.txt").read_text().splitlines())
"""Every request that may change something, without its root and the names in it, and what it needs."""


def operations(client: TestClient) -> list[tuple[str, str]]:
    """Method and path of every route."""
    paths = cast(FastAPI, client.app).openapi()["paths"]
    return [(method.upper(), path) for path, methods in paths.items() for method in methods]


def unrooted(path: str) -> str:
    return re.sub(r"^/(openai/v1|openai|v1)(?=/)", "", re.sub(r"\{[^}]*\}", "{}", path))


def test_every_route_needs_the_scope_that_is_written_down(client: TestClient) -> None:
    """A route that is added later fails here until somebody has said who may use it; until then it needs `train`."""
    found = {
        f"{method} {unrooted(path)}": needed_scope(method, path)
        for method, path in operations(client)
        if method != "GET"
    }
    assert found == SCOPES
    assert {needed_scope(method, path) for method, path in operations(client) if method == "GET"} == {"read"}


def test_every_route_refuses_keys_that_lack_its_scope(service: Service, client: TestClient) -> None:
    secrets = {scope: create_key(service.store, scope, [scope])[1] for scope in ("read", "infer", "train")}
    refused: list[tuple[str, str, str, int]] = []
    for method, path in operations(client):
        if path in ("/healthz", "/readyz"):
            continue
        needed = "read" if method == "GET" else SCOPES[f"{method} {unrooted(path)}"]
        refused.append((method, path, "", 401))
        refused += [
            (method, path, secret, 403)
            for scope, secret in secrets.items()
            if scope != needed and (scope, needed) != ("train", "read")
        ]

    async def status(method: str, path: str, secret: str) -> int:
        told: list[Any] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Any) -> None:
            told.append(message)

        await client.app(http_scope(method, path, bearer(secret) if secret else {}), receive, send)
        return int(told[0]["status"])

    async def wrong() -> list[tuple[str, str]]:
        return [(m, path) for m, path, secret, wanted in refused if await status(m, path, secret) != wanted]

    assert len(refused) > 400
    assert asyncio.run(wrong()) == []


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/fine_tuning/checkpoints/ft:x:ckpt-step-1/permissions%0A"),
        ("POST", "/openai/files/import%0A?api-version=1"),
        (
            "PUT",
            "/subscriptions/a%0Ab/resourceGroups/g/providers/Microsoft.CognitiveServices/accounts/a/deployments/dep",
        ),
    ],
)
def test_the_end_of_a_line_in_a_path_opens_nothing(
    service: Service, client: TestClient, method: str, path: str
) -> None:
    """A pattern that stops at the end of a line took these for requests that need `train` only."""
    _, secret = create_key(service.store, "train", ["train"])
    assert client.request(method, path, json={}, headers=bearer(secret)).status_code == 404


def test_loopback_needs_no_key_unless_told(tmp_path: Path) -> None:
    for name, settings, status in [("open", {}, 200), ("closed", {"require_key": True}, 401)]:
        with client_of(make_service(tmp_path / name, **settings)) as client:
            assert client.get("/v1/models", headers=bearer("anything")).status_code == status


def test_a_wider_server_without_a_key_does_not_start(tmp_path: Path) -> None:
    service = make_service(tmp_path, host="0.0.0.0")
    with pytest.raises(RecipeError, match="tunesmith keys create NAME --home") as refused:
        check_keys(service.settings, service.store)
    assert "0.0.0.0 can be reached from elsewhere" in str(refused.value)
    create_key(service.store, "old", expires_at=1)
    with pytest.raises(RecipeError):
        check_keys(service.settings, service.store)
    create_key(service.store, "good")
    check_keys(service.settings, service.store)
    check_keys(ServeSettings(home=service.settings.home), service.store)
    service.store.close()


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """A client of a server that only this machine can reach."""
    with client_of(make_service(tmp_path_factory.mktemp("home")), only_local=True) as client:
        yield client


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "localhost:8000", "LOCALHOST:1", "[::1]:8000"])
def test_names_of_this_machine_are_answered_on_loopback(local: TestClient, host: str) -> None:
    assert local.get("/v1/models", headers={"host": host}).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "", "192.168.0.5:80"])
def test_a_name_that_only_resolves_to_this_machine_is_not(local: TestClient, host: str) -> None:
    answer = local.get("/v1/models", headers={"host": host})
    assert answer.status_code == 403
    assert answer.json()["error"]["code"] == "host_not_allowed"


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://localhost:9999", "http://127.0.0.1:80001", "http://[", ""]
)
def test_pages_of_other_sites_are_not_answered(local: TestClient, origin: str) -> None:
    """A form or a cancel needs no preflight, so the browser's own rules would let it through."""
    headers = {"host": "127.0.0.1:8000", "origin": origin}
    requests = [("POST", "/v1/fine_tuning/jobs/ftjob-1/cancel"), ("POST", "/v1/files"), ("GET", "/v1/models")]
    for method, path in requests:
        answer = local.request(method, path, headers=headers)
        assert answer.status_code == 403
        assert answer.json()["error"]["code"] == "origin_not_allowed"


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_what_a_page_loads_from_here_without_an_origin_is_not_answered(local: TestClient, site: str) -> None:
    headers = {"host": "127.0.0.1:8000", "sec-fetch-mode": "no-cors", "sec-fetch-site": site}
    answer = local.get("/v1/files/file-1/content", headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "origin_not_allowed")
    for own in ("none", "same-origin"):
        assert local.get("/v1/models", headers={**headers, "sec-fetch-site": own}).status_code == 200


def test_cors_is_closed_and_our_own_origin_is_not_another(local: TestClient) -> None:
    own = {"host": "127.0.0.1:8000", "origin": "http://127.0.0.1:8000"}
    answer = local.get("/v1/models", headers=own)
    assert answer.status_code == 200
    foreign = {**own, "origin": "https://evil.example", "access-control-request-method": "POST"}
    preflight = local.options("/v1/files", headers=foreign)
    assert preflight.status_code == 403
    for one in (answer, preflight):
        assert not [name for name in one.headers if name.startswith("access-control")]
