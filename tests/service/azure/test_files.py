"""Files in Azure's dialect, those imported from an address above all."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from tests.service.azure.serving import make_service
from tests.service.azure.test_jobs import rows
from tunesmith.service.app import make_app
from tunesmith.service.store.nouns import File

VERSION = {"api-version": "2024-10-21"}
IMPORT = "/openai/files/import"


class _Far(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        bodies = {"/rows.jsonl": rows(), "/broken.jsonl": b'{"messages": []}\nnonsense\n', "/large": b"x" * 5_000}
        body = bodies.get(self.path.partition("?")[0])
        self.send_response(200 if body is not None else 403)
        self.send_header("Content-Length", str(len(body or b"")))
        self.end_headers()
        self.wfile.write(body or b"")

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def far() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Far)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def client_of(home: Path, **settings: Any) -> TestClient:
    service = make_service(home, **settings)
    return TestClient(make_app(service), base_url="http://127.0.0.1:8000", raise_server_exceptions=False)


def wanted(url: str, **more: Any) -> dict[str, Any]:
    return {"purpose": "fine-tune", "filename": "training_set.jsonl", "content_url": url, **more}


def kept(home: Path) -> list[Path]:
    return [path for path in (home / "blobs").rglob("*") if path.is_file() and path.name != "lock"]


@pytest.mark.parametrize("root", ["/openai", "/openai/v1"])
def test_a_file_is_taken_in_from_an_address(tmp_path: Path, far: str, root: str) -> None:
    with client_of(tmp_path, fetch_urls=True, fetch_private=True) as client:
        params = VERSION if root == "/openai" else {}
        url = f"{far}/rows.jsonl?sig=abc%3D"
        made = client.post(f"{root}/files/import", params=params, json=wanted(url))
        file = made.json()
        assert made.status_code == 201 and file["status"] == "processed" and file["bytes"] == len(rows())
        assert file["filename"] == "training_set.jsonl" and file["purpose"] == "fine-tune"
        assert len(file["id"]) == (37 if root == "/openai" else 29)
        assert client.get(f"/openai/files/{file['id']}/content", params=VERSION).content == rows()


def test_importing_is_off_unless_switched_on(tmp_path: Path, far: str) -> None:
    with client_of(tmp_path) as client:
        answer = client.post(IMPORT, params=VERSION, json=wanted(f"{far}/rows.jsonl"))
        error = answer.json()["error"]
        assert answer.status_code == 403 and error["code"] == "forbidden" and error["target"] == "content_url"
        assert "POST /openai/files" in error["message"] and "fetch_urls" in error["message"]


def test_a_private_address_needs_a_switch_of_its_own(tmp_path: Path, far: str) -> None:
    with client_of(tmp_path, fetch_urls=True) as client:
        for url in (f"{far}/rows.jsonl", "http://169.254.169.254/latest/meta-data/", "http://localhost:1/x"):
            answer = client.post(IMPORT, params=VERSION, json=wanted(url))
            assert answer.status_code == 400 and answer.json()["error"]["code"] == "fileImportFailed"
            assert "no private addresses" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("body", "code", "target"),
    [
        ({"content_url": "file:///etc/passwd"}, "fileImportFailed", "content_url"),
        ({"content_url": "/etc/passwd"}, "fileImportFailed", "content_url"),
        ({"content_url": "FAR/nothing"}, "fileImportFailed", "content_url"),
        ({"content_url": "FAR/large"}, "fileImportFailed", "content_url"),
        ({"content_url": "FAR/broken.jsonl"}, "jsonlValidationFailed", "file"),
        ({"content_url": "FAR/rows.jsonl", "filename": "rows.csv"}, "jsonlValidationFailed", "file"),
        ({"content_url": "FAR/rows.jsonl", "purpose": "nonsense"}, "invalidPayload", "purpose"),
        ({"content_url": "FAR/rows.jsonl", "filename": "a\nb.jsonl"}, "invalidPayload", "filename"),
        ({"content_url": 3}, "invalidPayload", "content_url"),
        ({"content_url": "FAR/rows.jsonl", "extra": 1}, "invalidPayload", "extra"),
    ],
)
def test_what_cannot_be_imported_leaves_nothing(
    tmp_path: Path, far: str, body: dict[str, Any], code: str, target: str
) -> None:
    settings = make_service(tmp_path).settings.limits
    from dataclasses import replace

    limits = replace(settings, file=4_000)
    with client_of(tmp_path, fetch_urls=True, fetch_private=True, limits=limits) as client:
        if isinstance(body["content_url"], str):
            body = {**body, "content_url": body["content_url"].replace("FAR", far)}
        answer = client.post(IMPORT, params=VERSION, json=wanted("", **body))
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["target"]) == (400, code, target)
        service = client.app.state.service  # type: ignore[attr-defined]
        assert service.store.count(File) == 0 and kept(tmp_path) == []


@pytest.mark.parametrize("name", ["../../escape.jsonl", "/etc/cron.d/x.jsonl", "C:\\fine-tuning\\training_set.jsonl"])
def test_a_file_name_is_a_name_and_never_a_path(tmp_path: Path, name: str) -> None:
    with client_of(tmp_path) as client:
        made = client.post(
            "/openai/files",
            params=VERSION,
            data={"purpose": "fine-tune"},
            files={"file": (name, rows(), "application/json")},
        )
        assert made.status_code == 201, made.text
        assert {path.parent.parent for path in kept(tmp_path)} == {tmp_path / "blobs"}
        assert not (tmp_path.parent.parent / "escape.jsonl").exists()


def test_lists_have_azures_shape(tmp_path: Path) -> None:
    with client_of(tmp_path) as client:
        for _ in range(2):
            client.post(
                "/openai/files", params=VERSION, data={"purpose": "fine-tune"}, files={"file": ("a.jsonl", rows())}
            )
        listed = client.get("/openai/files", params={**VERSION, "limit": 1}).json()
        assert list(listed) == ["object", "data", "has_more"] and listed["has_more"] is True
        rest = client.get("/openai/files", params={**VERSION, "after": listed["data"][0]["id"]}).json()
        assert len(rest["data"]) == 1 and rest["has_more"] is False
        strange = client.get("/openai/files", params={**VERSION, "after": "ftjob-1"})
        assert strange.status_code == 400 and strange.json()["error"]["target"] == "after"
