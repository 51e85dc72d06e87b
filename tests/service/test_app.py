"""What every request meets, whatever it asks for: its id, its headers, and refusals in OpenAI's words."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from typing import Annotated, Any

import pytest
from fastapi import APIRouter, Depends, FastAPI, Request
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field
from starlette.responses import StreamingResponse
from starlette.testclient import TestClient

from tests.service.apps import make_service
from tunesmith.errors import DataError, EngineError, ResourceError
from tunesmith.service.app import make_app
from tunesmith.service.entrance import flavour_of_path
from tunesmith.service.errors import ApiError
from tunesmith.service.http import Body, Metadata, list_body, metadata_query, paging
from tunesmith.service.json_check import DEEPEST, MOST_VALUES, check_json
from tunesmith.service.store.interface import Page, UnknownCursorError

SECRET = "/home/somebody/secret-folder"


_Page = Annotated[Page, Depends(paging(default=20, largest=100))]


class Inner(Body):
    role: str
    content: str | list[str] | None = None


class Order(Body):
    """A body with one of everything that can be wrong."""

    model: str
    temperature: float | None = Field(None, ge=0, le=2)
    n: int | None = Field(None, ge=1, le=128)
    messages: list[Inner] | None = None
    metadata: Metadata | None = None


def _probe() -> APIRouter:
    """Endpoints that fail in every way that endpoints fail."""
    router = APIRouter()

    @router.post("/probe")
    def probe(order: Order) -> dict[str, Any]:
        return order.model_dump()

    @router.post("/probe/cancel")
    def cancel() -> dict[str, Any]:
        return {"cancelled": True}

    @router.get("/probe/list")
    def listed(page: _Page, metadata: Annotated[Any, Depends(metadata_query)]) -> Any:
        if page.after == "foreign":
            raise UnknownCursorError(page.after)
        return list_body([{"id": f"x-{page.limit}-{page.order}-{page.after}-{metadata}"}], False)

    @router.get("/probe/fail/{kind}")
    def fail(kind: str) -> None:
        raise {
            "api": ApiError(403, "no", code="training_not_available"),
            "data": DataError("row 3 is empty", where=SECRET, expected="a text", fix="fill it"),
            "resource": ResourceError("disk full", where=SECRET),
            "engine": EngineError(f"cannot load {SECRET}", where=SECRET),
            "bug": ZeroDivisionError(SECRET),
        }[kind]

    @router.get("/probe/stream")
    def stream() -> StreamingResponse:
        async def pieces() -> Any:
            yield b"begun "
            raise ZeroDivisionError(SECRET)

        return StreamingResponse(pieces(), media_type="text/event-stream")

    @router.post("/probe/raw")
    async def raw(request: Request) -> dict[str, int]:
        return {"bytes": len(await request.body())}

    return router


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FastAPI]:
    service = make_service(tmp_path_factory.mktemp("home"))
    made = make_app(service)
    made.include_router(_probe(), prefix="/v1")
    made.include_router(_probe(), prefix="/openai")
    yield made
    service.store.close()


@pytest.fixture(scope="module")
def client(app: FastAPI) -> Iterator[TestClient]:
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


def error_of(answer: Any, status: int = 400) -> dict[str, Any]:
    """The error of an answer, which has OpenAI's four fields and is told nothing of this machine."""
    assert answer.status_code == status, answer.text
    error: dict[str, Any] = answer.json()["error"]
    assert {"message", "type", "param", "code"} <= set(error)
    assert SECRET not in answer.text and "Traceback" not in answer.text and "detail" not in answer.json()
    return error


def test_every_answer_has_an_id_and_openais_headers(client: TestClient) -> None:
    answers = [client.get("/healthz"), client.get("/v1/nothing"), client.post("/v1/probe", content=b"")]
    ids = [answer.headers["x-request-id"] for answer in answers]
    assert all(re.fullmatch(r"req_[A-Za-z0-9]{24}", one) for one in ids)
    assert len(set(ids)) == 3
    for answer in answers:
        assert answer.headers["openai-version"] == "2020-10-01"
        assert answer.headers["openai-organization"] == "tunesmith"
        assert int(answer.headers["openai-processing-ms"]) >= 0
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_an_id_is_taken_from_nobody(client: TestClient) -> None:
    answer = client.get("/healthz", headers={"x-request-id": "req_mine\r\nx-evil: 1"})
    assert "mine" not in answer.headers["x-request-id"]
    assert "x-evil" not in answer.headers


@pytest.mark.parametrize("root", ["/v1", "/openai/v1"])
def test_an_unknown_url_in_openais_words(client: TestClient, root: str) -> None:
    error = error_of(client.get(f"{root}/nothing/here"), 404)
    assert error["message"] == f"Invalid URL (GET {root}/nothing/here)"
    assert error["type"] == "invalid_request_error"
    assert error["code"] is None and error["param"] is None


def test_a_wrong_method_names_the_right_ones(client: TestClient) -> None:
    answer = client.put("/v1/probe")
    assert error_of(answer, 405)["message"] == "Not allowed to PUT on /v1/probe. This URL takes POST."
    assert answer.headers["allow"] == "POST"


def test_a_long_or_odd_url_is_shown_short_and_harmless(client: TestClient) -> None:
    error = error_of(client.get("/v1/" + "x" * 5000 + "%00%0d%0a<script>"), 404)
    assert len(error["message"]) < 300


@pytest.mark.parametrize("path", ["/v1/models/../../../etc/passwd", "/v1/files/%2e%2e%2f%2e%2e%2fetc%2fpasswd/content"])
def test_path_tricks_find_nothing(client: TestClient, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code in (400, 404)
    assert "root:" not in answer.text


@pytest.mark.parametrize("path", ["/v1/probe/cancel%0A", "/v1/models/gpt-4o%0a", "/v1/files/a%00b", "/healthz%0D%0A"])
def test_no_url_has_control_characters(client: TestClient, path: str) -> None:
    for method in ("GET", "POST"):
        assert error_of(client.request(method, path), 404)["message"].startswith(f"Invalid URL ({method} ")


def test_the_dialect_is_told_by_the_path() -> None:
    azure = ("/openai/files", "/openai/deployments/x/chat/completions", "/subscriptions/1/resourceGroups/g")
    assert {flavour_of_path(path) for path in azure} == {"azure"}
    openai = ("/v1/files", "/openai/v1/files", "/openai/v1", "/healthz", "/openaiv1")
    assert {flavour_of_path(path) for path in openai} == {"openai"}


def test_azure_errors_have_azures_fields_and_ids(client: TestClient) -> None:
    answer = client.get("/openai/probe/fail/api?api-version=2024-10-21")
    error = error_of(answer, 403)
    assert {"target", "details"} <= set(error)
    assert answer.headers["apim-request-id"] == answer.headers["x-request-id"]


# Bodies.


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "it is empty, and this endpoint expects a JSON object"),
        (b"   ", "Expecting value at line 1"),
        (b"{", "at line 1, column 2"),
        (b'{"model": "m",}', "at line 1"),
        (b'{"model": "m", "temperature": NaN}', "NaN is no number in JSON"),
        (b'{"model": "m", "temperature": -Infinity}', "-Infinity is no number"),
        (b'{"model": "m", "temperature": 1e999}', "too large"),
        (b'{"model": "m", "n": ' + b"9" * 5000 + b"}", "too long"),
        (b"[" * 100_000, "nested deeper"),
        (b'{"model": ' + b"[" * 150 + b"]" * 150 + b"}", "nested deeper than 100 levels"),
        (b"[" + b"1," * MOST_VALUES + b"1]", "more than 200,000 values"),
        (b'{"model": "\\ud800"}', "surrogate"),
        (b'{"model": "\xff"}', "not UTF-8"),
        (b"[1]", "expected an object, but got an array"),
        (b"null", "it is empty"),
        (b'"text"', "expected an object, but got a string"),
        (b"17", "expected an object, but got an integer"),
    ],
)
def test_a_body_that_is_no_json_object(client: TestClient, body: bytes, said: str) -> None:
    error = error_of(client.post("/v1/probe", content=body, headers={"content-type": "application/json"}))
    assert error["message"].startswith("We could not parse the JSON body of your request")
    assert said in error["message"]
    assert error["param"] is None


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "application/xml; charset=utf-8"])
def test_a_wrong_content_type_says_which_is_right(client: TestClient, kind: str) -> None:
    error = error_of(client.post("/v1/probe", content=b'{"model": "m"}', headers={"content-type": kind}))
    assert error["message"].startswith(f"Unsupported content type: '{kind.split(';')[0]}'")
    assert "application/json" in error["message"]


def test_what_comes_with_a_cancel_is_not_looked_at(client: TestClient) -> None:
    """The official client sends the header and no body; others send anything."""
    for body in (b"", b"{", b"\xff", b"[" * 5000):
        answer = client.post("/v1/probe/cancel", content=body, headers={"content-type": "application/json"})
        assert answer.json() == {"cancelled": True}


@pytest.mark.parametrize(
    ("body", "message", "param", "code"),
    [
        ({}, "Missing required parameter: 'model'.", "model", "missing_required_parameter"),
        ({"model": "m", "top": 1}, "Unknown parameter: 'top'.", "top", "unknown_parameter"),
        (
            {"model": 3},
            "Invalid type for 'model': expected a string, but got an integer instead.",
            "model",
            "invalid_type",
        ),
        (
            {"model": "m", "n": "2"},
            "Invalid type for 'n': expected an integer, but got a string instead.",
            "n",
            "invalid_type",
        ),
        (
            {"model": "m", "temperature": True},
            "Invalid type for 'temperature': expected a number, but got a boolean instead.",
            "temperature",
            "invalid_type",
        ),
        (
            {"model": "m", "temperature": -0.5},
            "Invalid value for 'temperature': expected a value >= 0, but got -0.5 instead.",
            "temperature",
            "invalid_value",
        ),
        (
            {"model": "m", "n": 10**30},
            "Invalid value for 'n': expected a value <= 128, but got 1000000000000000000000000000000 instead.",
            "n",
            "invalid_value",
        ),
        (
            {"model": "m", "messages": [{"role": "user"}, {"content": "x"}]},
            "Missing required parameter: 'messages[1].role'.",
            "messages[1].role",
            "missing_required_parameter",
        ),
        (
            {"model": "m", "messages": [{"role": "user", "content": 5}]},
            "Invalid type for 'messages[0].content': expected a string or an array, but got an integer instead.",
            "messages[0].content",
            "invalid_type",
        ),
        (
            {"model": "m", "metadata": {str(i): "" for i in range(17)}},
            "Invalid value for 'metadata': expected at most 16 pairs, but got 17.",
            "metadata",
            "invalid_value",
        ),
    ],
)
def test_a_body_that_does_not_fit(client: TestClient, body: Any, message: str, param: str, code: str) -> None:
    error = error_of(client.post("/v1/probe", json=body))
    assert (error["message"], error["param"], error["code"]) == (message, param, code)
    assert "details" not in error


@pytest.mark.parametrize(
    "body",
    [
        {f"a{i}": 1 for i in range(5_000)},
        {"model": "m", "messages": [{"x": 1}] * 2_000},
        {"model": "m", "messages": [1] * 5_000},
        {"model": "m", "messages": [{"role": "user", "content": [1] * 5_000}]},
    ],
    ids=["fields", "items", "kinds", "inside"],
)
def test_thousands_of_problems_are_counted_and_not_told(client: TestClient, body: Any) -> None:
    """To list them took most of a minute for a body of 12 MB, and the server answered nobody meanwhile."""
    error = error_of(client.post("/v1/probe", json=body))
    assert re.match(r"Your request has \d+,\d{3} problems", error["message"])


def test_all_problems_come_at_once(client: TestClient) -> None:
    error = error_of(client.post("/v1/probe", json={"temperature": 9, "n": 0, "extra": 1, "messages": [{"x": 1}]}))
    told = {(one["param"], one["code"]) for one in error["details"]}
    assert told == {
        ("model", "missing_required_parameter"),
        ("temperature", "invalid_value"),
        ("n", "invalid_value"),
        ("extra", "unknown_parameter"),
        ("messages[0].role", "missing_required_parameter"),
        ("messages[0].x", "unknown_parameter"),
    }
    assert error["message"] == error["details"][0]["message"]


@pytest.mark.parametrize(
    ("query", "param", "said"),
    [
        ("limit=0", "limit", "expected a value >= 1, but got"),
        ("limit=101", "limit", "expected a value <= 100"),
        ("limit=ten", "limit", "expected an integer"),
        ("order=up", "order", "expected 'asc' or 'desc'"),
        ("after=foreign", "after", "'foreign' names no object of this list"),
        ("metadata=1", "metadata", "write metadata[key]=value"),
        ("metadata[]=1", "metadata", "write metadata[key]=value"),
    ],
)
def test_a_list_that_is_asked_for_wrongly(client: TestClient, query: str, param: str, said: str) -> None:
    error = error_of(client.get(f"/v1/probe/list?{query}"))
    assert error["param"] == param
    assert said in error["message"]


def test_a_list_that_is_asked_for_rightly(client: TestClient) -> None:
    body = client.get("/v1/probe/list?limit=7&order=asc&after=&metadata%5Ba%5D=b&api-version=1").json()
    assert body == {
        "object": "list",
        "data": [{"id": "x-7-asc-None-{'a': 'b'}"}],
        "has_more": False,
        "first_id": "x-7-asc-None-{'a': 'b'}",
        "last_id": "x-7-asc-None-{'a': 'b'}",
    }
    assert list_body([], False) == {"object": "list", "data": [], "has_more": False, "first_id": None, "last_id": None}


# What goes wrong inside.


def test_a_persons_mistake_is_400_and_names_no_path(client: TestClient) -> None:
    error = error_of(client.get("/v1/probe/fail/data"))
    assert error["message"] == "row 3 is empty. Expected a text. To do: fill it."


@pytest.mark.parametrize("root", ["/v1", "/openai"])
@pytest.mark.parametrize("kind", ["resource", "engine", "bug"])
def test_our_mistake_is_500_told_to_the_log_only(client: TestClient, caplog: Any, root: str, kind: str) -> None:
    with caplog.at_level(logging.ERROR, logger="tunesmith.service"):
        answer = client.get(f"{root}/probe/fail/{kind}")
    error = error_of(answer, 500)
    assert error["type"] == "server_error"
    assert answer.headers["x-request-id"] in error["message"]
    assert answer.headers["x-should-retry"] == "false"
    [record] = [one for one in caplog.records if one.name == "tunesmith.service"]
    assert record.request_id == answer.headers["x-request-id"]
    assert SECRET in str(record.exc_info)


def test_a_stream_that_breaks_is_cut_and_leaks_nothing(app: FastAPI, caplog: Any) -> None:
    with TestClient(app) as client, pytest.raises(ZeroDivisionError), caplog.at_level(logging.ERROR):
        client.get("/v1/probe/stream")
    assert any(record.message == "request failed" for record in caplog.records)


TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
PLAIN = st.none() | st.booleans() | st.integers() | st.floats(-1e9, 1e9) | TEXTS
NESTED = st.recursive(PLAIN, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4))


@given(NESTED)
def test_whatever_is_json_passes(value: Any) -> None:
    check_json(json.dumps(value).encode())


@given(st.binary(max_size=200))
def test_any_bytes_are_json_or_refused(data: bytes) -> None:
    try:
        check_json(data)
    except ApiError as error:
        assert error.status == 400
    else:
        json.loads(data)


@given(st.integers(1, 3 * DEEPEST), st.booleans())
def test_nesting_is_allowed_to_a_depth(levels: int, lists: bool) -> None:
    opening, closing = (b"[", b"]") if lists else (b'{"a":', b"}")
    data = opening * levels + b"1" + closing * levels
    if levels <= DEEPEST:
        check_json(data)
    else:
        with pytest.raises(ApiError, match="nested deeper"):
            check_json(data)
