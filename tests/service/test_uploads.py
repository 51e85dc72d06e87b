"""Files in parts, and large or broken uploads over a real connection."""

from __future__ import annotations

import hashlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import openai
import psutil
import pytest
from starlette.testclient import TestClient

from tests.service.apps import client_of, make_service
from tests.service.azure.serving import served
from tests.service.test_files import Clock, blobs_of, chat, lines
from tunesmith.service import uploading
from tunesmith.service.context import Service
from tunesmith.service.errors import ApiError
from tunesmith.service.filing import sweep
from tunesmith.service.settings import Limits
from tunesmith.service.store.nouns import File, Upload, UploadPart

DATA = lines(chat(60))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def service(tmp_path: Path, clock: Clock) -> Service:
    return replace(make_service(tmp_path / "home"), now=clock)


@pytest.fixture
def client(service: Service) -> Iterator[TestClient]:
    with client_of(service) as client:
        yield client


def begin(client: TestClient, size: int = len(DATA), **more: Any) -> Any:
    body = {"filename": "a.jsonl", "purpose": "fine-tune", "bytes": size, "mime_type": "text/jsonl", **more}
    return client.post("/v1/uploads", json=body)


def part(client: TestClient, upload: str, data: bytes) -> Any:
    return client.post(f"/v1/uploads/{upload}/parts", files={"data": ("upload", data, "application/octet-stream")})


def complete(client: TestClient, upload: str, *parts: str, **more: Any) -> Any:
    return client.post(f"/v1/uploads/{upload}/complete", json={"part_ids": list(parts), **more})


def test_parts_become_a_file_in_the_order_that_is_named(client: TestClient, service: Service, clock: Clock) -> None:
    made = begin(client, expires_after={"anchor": "created_at", "seconds": 7200}).json()
    assert made == {
        "id": made["id"],
        "object": "upload",
        "bytes": len(DATA),
        "created_at": clock.now,
        "filename": "a.jsonl",
        "purpose": "fine-tune",
        "status": "pending",
        "expires_at": clock.now + 3600,
        "file": None,
    }
    assert made["id"].startswith("upload_")
    last = part(client, made["id"], DATA[2000:]).json()
    first = part(client, made["id"], DATA[:2000]).json()
    assert first == {
        "id": first["id"], "object": "upload.part", "created_at": clock.now, "upload_id": made["id"],
    }  # fmt: skip
    clock.now += 10
    done = complete(client, made["id"], first["id"], last["id"], md5=hashlib.md5(DATA).hexdigest()).json()
    assert done["status"] == "completed" and done["file"]["object"] == "file" and done["file"]["bytes"] == len(DATA)
    assert done["file"]["created_at"] == clock.now and done["file"]["expires_at"] == clock.now + 7200
    assert client.get(f"/v1/files/{done['file']['id']}/content").content == DATA
    assert service.store.count(UploadPart) == 0 and len(blobs_of(service)) == 1, "the parts are gone"
    assert complete(client, made["id"], first["id"], last["id"]).json() == done, "asked again, answered again"
    told = complete(client, made["id"], last["id"], first["id"])
    assert told.status_code == 400 and "is completed" in told.json()["error"]["message"]
    for path in ("parts", "cancel"):
        files = {"data": ("upload", b"x")} if path == "parts" else None
        assert client.post(f"/v1/uploads/{made['id']}/{path}", files=files).status_code == 400
    assert service.store.count(File) == 1


def test_the_official_client_uploads_in_chunks(service: Service, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(DATA)
    with served(service) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0) as client:
        done = client.uploads.upload_file_chunked(
            file=path, mime_type="text/jsonl", purpose="fine-tune", part_size=1000, md5=hashlib.md5(DATA).hexdigest()
        )
        assert done.status == "completed" and done.file is not None and done.file.filename == "rows.jsonl"
        assert client.files.content(done.file.id).read() == DATA
        begun = client.uploads.create(bytes=5, filename="a.bin", mime_type="x/y", purpose="user_data")
        assert client.uploads.cancel(begun.id).status == "cancelled"
        with pytest.raises(openai.BadRequestError, match="is cancelled"):
            client.uploads.parts.create(begun.id, data=b"hello")
        with pytest.raises(openai.NotFoundError, match="No such Upload object"):
            client.uploads.complete("upload_none", part_ids=["part_1"])


def test_parts_that_do_not_add_up_leave_the_upload_open(client: TestClient, service: Service) -> None:
    upload, other = (begin(client).json()["id"] for _ in range(2))
    one, two = (part(client, upload, piece).json()["id"] for piece in (DATA[:500], DATA[500:]))
    foreign = part(client, other, DATA).json()["id"]
    for parts, more, message in (
        ([], {}, "part_ids"),
        ([one], {}, "500 bytes together"),
        ([one, one], {}, "named twice"),
        ([one, "part_none"], {}, "part_none"),
        ([foreign], {}, foreign),
        ([one, two], {"md5": "0" * 32}, "MD5"),
        ([one, two], {"md5": "\u00e9"}, "MD5"),
        ([two, one], {}, "not a dictionary"),
    ):
        told = complete(client, upload, *parts, **more)
        assert told.status_code == 400 and message in told.json()["error"]["message"]
    assert service.store.count(File) == 0
    assert complete(client, upload, one, two).status_code == 200
    assert client.post(f"/v1/uploads/{other}/cancel").json()["status"] == "cancelled"
    assert client.post(f"/v1/uploads/{other}/cancel").json()["status"] == "cancelled"
    assert complete(client, other, foreign).status_code == 400
    assert service.store.count(UploadPart) == 0 and len(blobs_of(service)) == 1


def test_an_upload_expires_after_its_hour(client: TestClient, service: Service, clock: Clock) -> None:
    upload = begin(client).json()["id"]
    one = part(client, upload, DATA).json()["id"]
    clock.now += 3599
    assert part(client, upload, b"more").status_code == 200
    clock.now += 1
    for told in (
        part(client, upload, b"x"),
        complete(client, upload, one),
        client.post(f"/v1/uploads/{upload}/cancel"),
    ):
        assert told.status_code == 400 and f"Upload {upload} is expired" in told.json()["error"]["message"]
    assert len(blobs_of(service)) == 2
    sweep(service)
    assert blobs_of(service) == [] and service.store.count(UploadPart) == 0
    kept = service.store.get(Upload, upload)
    assert kept is not None and kept.status == "expired"


def test_a_completion_that_was_cut_off_is_finished(client: TestClient, service: Service, clock: Clock) -> None:
    """The process died between keeping the file and saying so: the client asks again, or nobody does."""
    for asks_again in (True, False):
        upload = begin(client).json()["id"]
        one = part(client, upload, DATA).json()["id"]
        assert complete(client, upload, one).status_code == 200
        kept = service.store.update(Upload, upload, status="pending", part_ids=())
        assert kept is not None
        if asks_again:
            one = part(client, upload, DATA).json()["id"]
            assert complete(client, upload, one).json()["file"]["id"] == kept.file_id
        else:
            clock.now += 3600
            sweep(service)
        found = service.store.get(Upload, upload)
        assert found is not None and found.status == "completed"
    assert service.store.count(File) == 2


@pytest.mark.parametrize("moment", ["before it is read", "after its file was made"])
def test_an_upload_that_is_cancelled_while_it_is_completed_leaves_no_file(
    client: TestClient, service: Service, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    upload = begin(client).json()["id"]
    sent = part(client, upload, DATA).json()["id"]
    name = "_parts" if moment == "before it is read" else "create_file"
    real = getattr(uploading, name)

    def cancelled_then(*arguments: Any, **more: Any) -> Any:
        found = real(*arguments, **more)
        assert uploading.cancel_upload(service, upload).status == "cancelled"
        return found

    monkeypatch.setattr(uploading, name, cancelled_then)
    refused = complete(client, upload, sent)
    assert refused.status_code == 400 and "is cancelled, and cannot be completed" in refused.json()["error"]["message"]
    assert service.store.get(Upload, upload).status == "cancelled"  # type: ignore[union-attr]
    assert service.store.all(File) == () and service.store.all(UploadPart) == () and blobs_of(service) == []


def test_a_part_that_comes_after_the_end_is_not_kept(client: TestClient, service: Service) -> None:
    upload = service.store.get(Upload, begin(client).json()["id"])
    assert upload is not None
    writer = service.blobs.writer()
    writer.write(b"late")
    uploading.cancel_upload(service, upload.id)
    with pytest.raises(ApiError, match="takes no more parts"):
        uploading.add_part(service, upload, writer)
    assert service.store.all(UploadPart) == () and blobs_of(service) == []


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({"bytes": 0}, "bytes", "invalid_value"),
        ({"bytes": 8_000_000_001}, "bytes", "invalid_value"),
        ({"bytes": "5"}, "bytes", "invalid_type"),
        ({"bytes": 10**400}, None, None),
        ({"purpose": "fine-tune-results"}, "purpose", "invalid_value"),
        ({"filename": ""}, "filename", "invalid_value"),
        ({"filename": "a\nb"}, "filename", "invalid_value"),
        ({"mime_type": ""}, "mime_type", "invalid_value"),
        ({"nonsense": 1}, "nonsense", "unknown_parameter"),
        ({"expires_after": {"anchor": "now", "seconds": 3600}}, "expires_after.anchor", "invalid_value"),
        ({"expires_after": {"anchor": "created_at", "seconds": 1}}, "expires_after[seconds]", "invalid_value"),
    ],
)
def test_an_upload_that_cannot_be_is_refused(
    client: TestClient, service: Service, body: dict[str, Any], param: str | None, code: str | None
) -> None:
    told = begin(client, **{"size": 5, **{("size" if key == "bytes" else key): body[key] for key in body}})
    assert told.status_code == 400
    assert code is None or (told.json()["error"]["param"], told.json()["error"]["code"]) == (param, code)
    assert service.store.count(Upload) == 0


def test_parts_have_limits(tmp_path: Path) -> None:
    service = make_service(tmp_path, limits=Limits(free_disk=0, part=10_000))
    with client_of(service) as client:
        upload = begin(client, 15_000).json()["id"]
        assert part(client, upload, bytes(10_001)).status_code == 413
        told = part(client, upload, b"").json()["error"]
        assert told["message"] == "The part is empty."
        for _ in range(4):
            assert part(client, upload, bytes(10_000)).status_code == 200
        told = part(client, upload, bytes(10_000))
        assert told.status_code == 400 and "50,000 bytes by now" in told.json()["error"]["message"]
        told = client.post(f"/v1/uploads/{upload}/parts", files={"nonsense": (None, "x")}).json()["error"]
        assert [one["param"] for one in told["details"]] == ["nonsense", "data"]
        assert client.post("/v1/uploads/upload_none/parts", files={"data": ("a", b"x")}).status_code == 404


def test_a_large_file_may_come_in_parts(tmp_path: Path) -> None:
    """The limit of one request is not the limit of a file, except for rows that a job reads whole."""
    service = make_service(tmp_path, limits=Limits(free_disk=0, file=1_000, part=5_000))
    with client_of(service) as client:
        upload = begin(client, purpose="user_data").json()["id"]
        pieces = [DATA[start : start + 5_000] for start in range(0, len(DATA), 5_000)]
        parts = [part(client, upload, piece).json()["id"] for piece in pieces]
        assert complete(client, upload, *parts).json()["file"]["bytes"] == len(DATA) > 1_000
        told = begin(client)
        assert told.status_code == 400 and "<= 1000" in told.json()["error"]["message"]


HEAD = (
    b"--xx\r\nContent-Disposition: form-data; name=\"purpose\"\r\n\r\nuser_data\r\n"
    b"--xx\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.bin\"\r\n\r\n"
)  # fmt: skip


def connected(url: str) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)


def send_chunks(connection: http.client.HTTPConnection, size: int) -> None:
    """A form with a file of so many bytes, without saying how many."""
    connection.putrequest("POST", "/v1/files")
    connection.putheader("Content-Type", "multipart/form-data; boundary=xx")
    connection.putheader("Transfer-Encoding", "chunked")
    connection.endheaders()
    piece = bytes(1_000_000)
    for data in (HEAD, *(piece for _ in range(size // len(piece))), b"\r\n--xx--\r\n"):
        connection.send(f"{len(data):x}\r\n".encode() + data + b"\r\n")
    connection.send(b"0\r\n\r\n")


def too_large(home: Path, limits: Limits, size: int) -> int:
    """Bytes by which this process has grown while a file was refused."""
    service = make_service(home, limits=limits)
    with served(service) as url:
        connection = connected(url)
        send_chunks(connection, 1_000_000)
        assert connection.getresponse().read()
        with watched_memory() as grown:
            send_chunks(connection, size)
            answer = connection.getresponse()
            told = json.loads(answer.read())["error"]
        assert answer.status == 413 and told["code"] == "content_too_large"
        connection.close()
        assert len(blobs_of(service)) == 1
        assert connected_get(url)["data"][0]["bytes"] == 1_000_000
    assert len(grown) > 3, "nobody looked"
    return max(grown)


@contextmanager
def watched_memory() -> Iterator[list[int]]:
    """Bytes by which this process is larger than now, looked at all the time."""
    me, seen, end = psutil.Process(), list[int](), threading.Event()
    before = me.memory_info().rss

    def watch() -> None:
        while not end.wait(0.005):
            seen.append(me.memory_info().rss - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield seen
    finally:
        end.set()
        watcher.join()


def connected_get(url: str) -> Any:
    connection = connected(url)
    connection.request("GET", "/v1/files")
    found = json.loads(connection.getresponse().read())
    connection.close()
    return found


def test_a_file_that_is_too_large_needs_no_memory(tmp_path: Path) -> None:
    assert too_large(tmp_path, Limits(free_disk=0, file=30_000_000), 60_000_000) < 20_000_000


@pytest.mark.slow
def test_600_megabytes_are_refused_in_flat_memory(tmp_path: Path) -> None:
    assert too_large(tmp_path, Limits(free_disk=0), 600_000_000) < 20_000_000


def test_a_half_sent_file_leaves_nothing(service: Service) -> None:
    with served(service) as url:
        for length in (len(HEAD) + 3_000_000, None):
            where = urlsplit(url)
            with socket.create_connection((where.hostname or "", where.port or 0)) as raw:
                size = f"Content-Length: {length}" if length else "Transfer-Encoding: chunked"
                head = (
                    f"POST /v1/files HTTP/1.1\r\nHost: {where.netloc}\r\nContent-Type: multipart/form-data; boundary=xx"
                )
                raw.sendall(f"{head}\r\n{size}\r\n\r\n".encode())
                body = HEAD + bytes(2_000_000)
                raw.sendall(body if length else f"{len(body):x}\r\n".encode() + body + b"\r\n")
                until = time.monotonic() + 10
                while not blobs_of(service) and time.monotonic() < until:
                    time.sleep(0.01)
                assert len(blobs_of(service)) == 1, "the part was never begun, so nothing is shown"
            until = time.monotonic() + 10
            while blobs_of(service) and time.monotonic() < until:
                time.sleep(0.01)
            assert blobs_of(service) == []
        assert connected_get(url)["data"] == [] and service.store.count(File) == 0
