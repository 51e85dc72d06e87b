"""A real server on a real socket: crowds, odd clients, the end; and the command that starts it."""

from __future__ import annotations

import asyncio
import http.client
import itertools
import json
import logging
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import httpx2
import openai
import psutil
import pytest
import yaml
from fastapi import FastAPI
from starlette.responses import StreamingResponse

from tests.service.apps import Served, make_service, served
from tests.service.live import live_server
from tests.service.scripted import ScriptedEngine
from tunesmith.cli.main import invoke
from tunesmith.cli.serve import described
from tunesmith.errors import RecipeError, ResourceError
from tunesmith.service import connections, server
from tunesmith.service.configuring import read_settings
from tunesmith.service.keys import create_key
from tunesmith.service.server import address, bind
from tunesmith.service.settings import Limits, ServeSettings
from tunesmith.service.store import open_store

PROJECT = Path(__file__).resolve().parents[2]

long = pytest.mark.skipif("TUNESMITH_LONG" not in os.environ, reason="takes long; set TUNESMITH_LONG=1")


@pytest.fixture(autouse=True)
def no_handlers() -> Iterator[None]:
    """Logging as it was."""
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    yield
    for handler in root.handlers[:]:
        if handler not in before:
            root.removeHandler(handler)
            handler.close()
    root.setLevel(level)


def raw(port: int, data: bytes, wait: float = 5.0) -> bytes:
    """What comes back for these bytes, until the server closes or is silent."""
    with socket.create_connection(("127.0.0.1", port), timeout=wait) as one:
        one.sendall(data)
        one.settimeout(wait)
        parts = []
        try:
            while part := one.recv(65536):
                parts.append(part)
        except TimeoutError:
            pass
        return b"".join(parts)


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server with its usual settings."""
    with served(make_service(tmp_path_factory.mktemp("home")), slow_stream) as live:
        yield live


def slow_stream(app: FastAPI) -> None:
    """`/v1/stream/N`: N pieces, ten a second."""

    async def pieces(count: int) -> AsyncIterator[bytes]:
        for i in range(count):
            yield f"{i}\n".encode()
            await asyncio.sleep(0.1)

    @app.get("/v1/stream/{count}")
    async def stream(count: int) -> StreamingResponse:
        return StreamingResponse(pieces(count), media_type="text/plain")


# Clients that are not what they should be.


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(60) + b"\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nhost: a\r\nbad header\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nhost: a\r\ncontent-length: x\r\n\r\n",
        b"POST /v1/models HTTP/1.1\r\nhost: a\r\ncontent-length: " + b"9" * 5000 + b"\r\n\r\n",
    ],
    ids=["TLS", "no path", "no header", "no length", "odd length"],
)
def test_what_is_no_http_is_told_so_in_openais_body(usual: Served, data: bytes) -> None:
    head, _, body = raw(usual.port, data).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400")
    error = json.loads(body)["error"]
    assert error["type"] == "invalid_request_error"
    assert error["message"].startswith("Your request is no valid HTTP")
    assert usual.ask("GET", "/healthz")[0] == 200


def test_a_connection_without_a_request_is_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.2)
    with served(make_service(tmp_path)) as live:
        for data in (b"", b"GET /v1/models HT"):
            begun = time.monotonic()
            try:
                answer = raw(live.port, data)
            except ConnectionResetError:
                answer = b""
            assert answer == b""
            assert 0.1 < time.monotonic() - begun < 3
        assert live.ask("GET", "/healthz")[0] == 200


def test_connections_too_many_are_told_503_in_openais_body(tmp_path: Path) -> None:
    with served(make_service(tmp_path, limits=Limits(connections=3, free_disk=0))) as live:
        idle = [socket.create_connection(("127.0.0.1", live.port)) for _ in range(3)]
        time.sleep(0.1)
        status, headers, body = live.ask("GET", "/v1/models")
        assert status == 503
        assert headers["retry-after"] == "1"
        assert headers["connection"] == "close"
        assert body["error"]["code"] == "server_overloaded"
        for one in idle:
            one.close()
        time.sleep(0.1)
        assert live.ask("GET", "/v1/models")[0] == 200


def _survives(live: Served, count: int, most: int) -> None:
    """All are answered: as many as are taken with 200, the others with 503, and afterwards everything is as before."""
    command = [sys.executable, "-m", "tests.service.crowd", str(live.port), str(count)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, cwd=PROJECT)
    assert done.returncode == 0, done.stderr
    statuses = {int(status): many for status, many in json.loads(done.stdout).items()}
    assert set(statuses) == {200, 503}, statuses
    assert sum(statuses.values()) == count
    assert statuses[200] >= most * 0.9, statuses
    assert statuses[503] >= (count - most) * 0.9, statuses
    status, _, body = live.ask("GET", "/v1/models/gpt-4o")
    assert (status, body["id"]) == (200, "gpt-4o")


def test_more_parallel_connections_than_are_taken(tmp_path: Path) -> None:
    with served(make_service(tmp_path, limits=Limits(connections=60, free_disk=0))) as live:
        _survives(live, 300, 60)


@long
def test_ten_thousand_parallel_connections(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # All of them are open before the first asks, which takes a slow machine a while.
    monkeypatch.setattr(connections, "HEAD_SECONDS", 90)
    monkeypatch.setattr(connections, "HURRIED_SECONDS", 90)
    if connections.make_room(10_000) < 10_200:
        pytest.skip(f"this system allows {resource.getrlimit(resource.RLIMIT_NOFILE)[1]} open files")
    with served(make_service(tmp_path, limits=Limits(connections=2_000, free_disk=0))) as live:
        _survives(live, 10_000, 2_000)


def test_room_is_made_up_to_what_the_system_allows() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
        assert connections.make_room(100) == 1_000
        assert connections.make_room(10) == 1_000
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# Uploads.


def kept_bytes(home: Path) -> int:
    return sum(path.stat().st_size for path in (home / "blobs").rglob("*") if path.is_file())


def test_a_file_that_is_too_large_is_told_so_to_the_official_client(tmp_path: Path) -> None:
    """It writes the whole body before it reads: a server that hangs up early is a broken connection to it."""
    service = make_service(tmp_path, limits=Limits(file=100_000, batch_file=1, free_disk=0))
    with served(service) as live:
        client = openai.OpenAI(base_url=f"{live.url}/v1", api_key="local", max_retries=0)
        with pytest.raises(openai.APIStatusError) as refused:
            client.files.create(file=("big.jsonl", b"x" * 30_000_000), purpose="fine-tune")
        assert refused.value.status_code == 413
        assert "Maximum content size limit" in str(refused.value)
        assert refused.value.request_id is not None
    assert kept_bytes(tmp_path) == 0


def test_a_wrong_key_is_told_to_a_client_that_uploads(tmp_path: Path) -> None:
    with served(make_service(tmp_path, require_key=True)) as live:
        client = openai.OpenAI(base_url=f"{live.url}/v1", api_key="wrong", max_retries=0)
        with pytest.raises(openai.AuthenticationError):
            client.files.create(file=("big.jsonl", b"x" * 30_000_000), purpose="fine-tune")


@long
@pytest.mark.parametrize("declared", [True, False], ids=["says its size", "does not"])
def test_a_file_of_600_megabytes_is_refused_in_little_memory(tmp_path: Path, declared: bool) -> None:
    chunk, count = b'{"messages": []}\n' * 60_000, 590
    head = (
        b'--b\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n'
        b'--b\r\ncontent-disposition: form-data; name="file"; filename="big.jsonl"\r\n\r\n'
    )
    size = len(head) + len(chunk) * count
    assert size > 600_000_000
    with live_server(tmp_path, "--no-worker") as live:
        process = psutil.Process(live.process.pid)
        # The base is brought into memory at the start; it must not come in between.
        client = openai.OpenAI(base_url=f"{live.url}/v1", api_key="local")
        client.completions.create(model="gpt-4o-mini", prompt="a", max_tokens=1)
        before = process.memory_info().rss
        connection = http.client.HTTPConnection("127.0.0.1", int(live.url.rsplit(":", 1)[1]), timeout=120)
        headers = {"content-type": "multipart/form-data; boundary=b"}
        if declared:
            headers["content-length"] = str(size)
        body = itertools.chain([head], itertools.repeat(chunk, count))
        connection.request("POST", "/v1/files", body, headers, encode_chunked=not declared)
        answer = connection.getresponse()
        error = json.loads(answer.read())["error"]
        grown = process.memory_info().rss - before
        connection.close()
    assert answer.status == 413
    assert "exceeded" in error["message"] or "too large" in error["message"]
    assert grown < 100_000_000
    assert kept_bytes(tmp_path) == 0


def test_an_upload_that_breaks_off_leaves_nothing(tmp_path: Path) -> None:
    with served(make_service(tmp_path)) as live:
        head = (
            b"POST /v1/files HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 100000\r\n"
            b"content-type: multipart/form-data; boundary=b\r\n\r\n"
            b'--b\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n'
            b'--b\r\ncontent-disposition: form-data; name="file"; filename="../../x.jsonl"\r\n\r\n' + b"{}\n" * 5000
        )
        with socket.create_connection(("127.0.0.1", live.port)) as one:
            one.sendall(head)
            time.sleep(0.2)
        time.sleep(0.3)
        status, _, body = live.ask("GET", "/v1/files")
        assert (status, body["data"]) == (200, [])
    assert kept_bytes(tmp_path) == 0


# Streams.


def test_pieces_of_a_stream_are_not_held_back(usual: Served) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", usual.port, timeout=10)
    connection.request("GET", "/v1/stream/8")
    begun = time.monotonic()
    answer = connection.getresponse()
    assert answer.read1(100) == b"0\n"
    first = time.monotonic() - begun
    answer.read()
    assert first < (time.monotonic() - begun) - 0.5
    connection.close()


def test_a_client_that_leaves_in_mid_stream_ends_the_work(tmp_path: Path) -> None:
    engine = ScriptedEngine("word " * 600, per_piece=1, delay=0.02)
    with served(make_service(tmp_path, engine)) as live:
        client = openai.OpenAI(base_url=f"{live.url}/v1", api_key="local", max_retries=0)
        stream = client.chat.completions.create(
            model="gpt-4o-mini", messages=[{"role": "user", "content": "hi"}], stream=True
        )
        for _, _ in zip(range(3), stream, strict=False):
            pass
        assert engine.running == 1
        stream.close()
        until = time.monotonic() + 5
        while engine.running and time.monotonic() < until:
            time.sleep(0.02)
        assert engine.running == 0
        assert engine.closed == 1
        while live.server.app.state.in_flight.count and time.monotonic() < until:
            time.sleep(0.02)
        assert live.server.app.state.in_flight.count == 0


# The end.


def test_told_to_end_it_finishes_what_it_began(tmp_path: Path) -> None:
    with served(make_service(tmp_path), slow_stream) as live:
        connection = http.client.HTTPConnection("127.0.0.1", live.port, timeout=10)
        connection.request("GET", "/v1/stream/12")
        answer = connection.getresponse()
        live.server.handle_exit(signal.SIGTERM, None)
        status, headers, body = live.ask("GET", "/v1/models")
        assert status == 503
        assert headers["retry-after"] == "5"
        assert body["error"]["code"] == "server_shutting_down"
        assert live.ask("GET", "/readyz")[0] == 503
        assert live.ask("GET", "/healthz")[0] == 200
        assert answer.read().split() == [str(i).encode() for i in range(12)]
        connection.close()
        live.thread.join(10)
        assert not live.thread.is_alive()
        assert (live.background.begun, live.background.ended) == (1, 1)
        assert live.worker.stopped_within is not None
        engine = live.server.running.service.engine
        assert isinstance(engine, ScriptedEngine) and engine.draining


def test_what_takes_longer_than_the_drain_is_cut(tmp_path: Path) -> None:
    with served(make_service(tmp_path, drain_seconds=0), slow_stream) as live:
        connection = http.client.HTTPConnection("127.0.0.1", live.port, timeout=20)
        connection.request("GET", "/v1/stream/600")
        answer = connection.getresponse()
        begun = time.monotonic()
        live.server.handle_exit(signal.SIGTERM, None)
        live.thread.join(20)
        assert not live.thread.is_alive()
        assert time.monotonic() - begun < 15
        with pytest.raises((http.client.IncompleteRead, ConnectionError)):
            answer.read()
        connection.close()


# Retries.


class Forgetful(httpx2.BaseTransport):
    """Sends every request and loses the first answers."""

    def __init__(self, lost: int) -> None:
        self.inner, self.lost, self.sent = httpx2.HTTPTransport(), lost, 0

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        self.sent += 1
        answer = self.inner.handle_request(request)
        if self.sent <= self.lost:
            answer.read()
            raise httpx2.ReadError("the answer was lost", request=request)
        return answer


def test_a_retry_of_the_official_client_makes_nothing_twice(tmp_path: Path) -> None:
    made: list[str] = []

    def route(app: FastAPI) -> None:
        # In front of the real one, so that no training file is needed.
        @app.post("/v1/batches")
        def make(body: dict[str, Any]) -> dict[str, Any]:
            made.append(body["input_file_id"])
            return {"id": f"batch_{len(made)}", "object": "batch", "status": "validating"}

        app.router.routes.insert(0, app.router.routes.pop())

    with served(make_service(tmp_path), route) as live:
        transport = Forgetful(2)
        client = openai.OpenAI(
            base_url=f"{live.url}/v1", api_key="local", http_client=httpx2.Client(transport=transport)
        )
        batch = client.batches.create(input_file_id="file-1", endpoint="/v1/chat/completions", completion_window="24h")
        assert transport.sent == 3
        assert made == ["file-1"]
        assert batch.id == "batch_1"
        client.batches.create(input_file_id="file-1", endpoint="/v1/chat/completions", completion_window="24h")
        assert len(made) == 2


def test_a_file_that_is_sent_again_is_the_file_that_is_there(tmp_path: Path) -> None:
    rows = b"".join(
        b'{"messages": [{"role": "user", "content": "%d"}, {"role": "assistant", "content": "x"}]}\n' % i
        for i in range(10)
    )
    with served(make_service(tmp_path)) as live:
        transport = Forgetful(1)
        client = openai.OpenAI(
            base_url=f"{live.url}/v1", api_key="local", http_client=httpx2.Client(transport=transport)
        )
        file = client.files.create(file=("a.jsonl", rows), purpose="fine-tune")
        assert transport.sent == 2
        assert [one.id for one in client.files.list()] == [file.id]
        second = client.files.create(file=("a.jsonl", rows), purpose="fine-tune")
        assert second.id != file.id


# The command.


def test_a_port_that_is_taken_is_told_with_exit_code_4(tmp_path: Path, capsys: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert invoke(["serve", "--home", str(tmp_path), "--port", str(port)]) == 4
    said = capsys.readouterr().err
    assert f"cannot listen at 127.0.0.1, port {port}: address already in use" in said
    assert "--port" in said
    assert not (tmp_path / "store.sqlite").exists()


@pytest.mark.parametrize("flag", ["--home", "--log"])
def test_a_place_that_cannot_be_written_is_told_with_exit_code_4(tmp_path: Path, capsys: Any, flag: str) -> None:
    (tmp_path / "file").write_text("")
    place = str(tmp_path / "file" / "below")
    flags = ["--home", str(tmp_path / "home"), "--port", "0", flag, place]
    assert invoke(["serve", *flags]) == 4
    said = capsys.readouterr().err
    assert place in said and flag in said and "bug" not in said


def test_an_address_of_another_machine_cannot_be_listened_at() -> None:
    for host in ("203.0.113.7", "no-such-host.invalid"):
        with pytest.raises(ResourceError):
            bind(host, 0)


def test_wider_than_loopback_without_a_key_does_not_start(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert invoke(["serve", "--home", str(tmp_path), "--port", "0", "--host", "0.0.0.0"]) == 2
    said = capsys.readouterr().err
    assert "tunesmith keys create NAME --home" in said


def test_without_its_packages_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "tunesmith.service.server")
    assert invoke(["serve", "--port", "0"]) == 4
    assert "pip install 'tunesmith[serve]'" in capsys.readouterr().err


def test_the_address_that_clients_use() -> None:
    assert address("127.0.0.1", 80) == "http://127.0.0.1:80"
    assert address("0.0.0.0", 1) == "http://127.0.0.1:1"
    assert address("::", 1) == address("::1", 1) == "http://[::1]:1"
    assert address("box.local", 1) == "http://box.local:1"


def test_the_lines_to_paste(capsys: Any) -> None:
    assert invoke(["env", "--url", "http://box:9/", "--key", "a b"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "export OPENAI_BASE_URL=http://box:9/v1",
        "export OPENAI_API_KEY='a b'",
        "export AZURE_OPENAI_ENDPOINT=http://box:9",
        "export AZURE_OPENAI_API_KEY='a b'",
        "export OPENAI_API_VERSION=2024-10-21",
    ]


def test_the_same_for_programs(tmp_path: Path, capsys: Any) -> None:
    assert invoke(["env", "--json"]) == 0
    variables = json.loads(capsys.readouterr().out)
    assert variables["OPENAI_BASE_URL"] == "http://127.0.0.1:8000/v1"
    told = described("http://127.0.0.1:8000", ServeSettings(home=tmp_path))
    assert told["environment"] == variables and not told["keys_required"]
    closed = described("http://127.0.0.1:8000", ServeSettings(home=tmp_path, require_key=True))
    assert not [name for name in closed["environment"] if name.endswith("KEY")]


def test_what_is_said_at_the_start(tmp_path: Path) -> None:
    from tunesmith.cli.serve import greeting, settings_from

    settings = settings_from(tmp_path, None, None, {"database": "postgresql://me:secret@db/x", "worker": False})
    said = greeting("http://127.0.0.1:8000", settings)
    assert "export OPENAI_BASE_URL=http://127.0.0.1:8000/v1" in said
    assert "embedded:base stands for gpt-4o-mini-2024-07-18, gpt-4o-mini, gpt-4o-2024-08-06 and" in said
    assert str(tmp_path / "logs" / "server.jsonl") in said
    assert "secret" not in said
    assert "tunesmith worker" in said


# Settings.


def test_flags_before_environment_before_file_before_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tunesmith.cli.serve import settings_from

    file = tmp_path / "serve.yaml"
    file.write_text(yaml.safe_dump({"port": 1, "host": "::1", "home": "/from-file", "database": "sqlite:///file"}))
    monkeypatch.setenv("TUNESMITH_HOME", "/from-environment")
    monkeypatch.setenv("TUNESMITH_DATABASE", "sqlite:///environment")
    found = settings_from(None, file, None, {"port": 2})
    assert (found.port, found.host, found.home, found.database) == (
        2, "::1", Path("/from-environment"), "sqlite:///environment",
    )  # fmt: skip
    found = settings_from(Path("/from-flag"), file, "-", {"database": "sqlite:///flag"})
    assert (found.port, found.home, found.database, found.log) == (1, Path("/from-flag"), "sqlite:///flag", None)
    monkeypatch.delenv("TUNESMITH_HOME")
    assert settings_from(None, file, None, {}).home == Path("/from-file")


def test_every_setting_can_stand_in_the_file(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    file = tmp_path / "serve.yaml"
    file.write_text(
        "devices: [cpu, 'cuda:0']\nwait_jobs: true\nresults_encoding: auto\norganization: acme\n"
        "limits: {file: 5, requests_per_minute: 60}\n"
        "aliases: {gpt-4o: ./model, small: embedded:base}\n"
    )
    found = read_settings(file, ServeSettings(home=tmp_path))
    assert found.devices == ("cpu", "cuda:0") and found.wait_jobs and found.results_encoding == "auto"
    assert found.limits == Limits(file=5, requests_per_minute=60)
    assert found.aliases["gpt-4o"] == str(model)
    assert found.aliases["small"] == found.aliases["gpt-4"] == "embedded:base"


def test_a_new_home_is_its_owners_alone_and_another_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir(mode=0o755)
    for name, mode in (("new", 0o700), ("old", 0o755)):
        store, _ = open_store(ServeSettings(home=tmp_path / name))
        store.close()
        assert (tmp_path / name).stat().st_mode & 0o777 == mode


def test_a_log_to_standard_error_can_stand_in_the_file(tmp_path: Path) -> None:
    from tunesmith.cli.serve import settings_from

    file = tmp_path / "serve.yaml"
    file.write_text("log: '-'\n")
    assert settings_from(tmp_path, file, None, {}).log is None
    assert settings_from(tmp_path, file, str(tmp_path / "x"), {}).log == tmp_path / "x"


@pytest.mark.parametrize("name", ["connections", "body", "batch_rows", "queued_jobs"])
def test_a_limit_of_nothing_at_all_is_refused(tmp_path: Path, name: str) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text(f"limits: {{{name}: 0, home: 0, requests_per_minute: 0, request_seconds: 0}}\n")
    with pytest.raises(RecipeError, match=f"limits.{name}: input should be greater") as refused:
        read_settings(file, ServeSettings(home=tmp_path))
    assert "2 settings" not in str(refused.value)


def test_a_server_that_cannot_start_its_parts_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cannot(_: Any) -> None:
        raise OSError("no processes left")

    monkeypatch.setattr("tunesmith.service.background.Background.start", cannot)
    settings = ServeSettings(home=tmp_path, port=0, worker=False, log=tmp_path / "log.jsonl")
    with pytest.raises(ResourceError, match="could not start its parts"):
        server.serve(settings)
    assert "no processes left" in (tmp_path / "log.jsonl").read_text()


def test_all_faults_of_a_file_are_told_at_once(tmp_path: Path) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text(
        "port: 99999\nprot: 1\nresults_encoding: zip\ndevices: []\norganization: 'A B'\nlimits: {file: -1, fil: 2}\n"
    )
    with pytest.raises(RecipeError) as refused:
        read_settings(file, ServeSettings(home=tmp_path))
    said = str(refused.value)
    for name in ("port:", "prot: there is no such setting", "results_encoding:", "devices:", "organization:",
                 "limits.file:", "limits.fil: there is no such setting"):  # fmt: skip
        assert name in said
    assert str(file) in said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [", "line 2: this is no YAML"),
        ("- a", "settings are names with values"),
        ("aliases: {a: embedded:nothing}", "aliases.a: there is no embedded:nothing; there are embedded:base"),
        ("aliases: {a: ./nothing}", "is no folder of a model"),
        ("aliases: {a: ''}", "aliases.a: a name and a base are texts"),
    ],
)
def test_a_file_that_is_wrong(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text(text + "\n")
    with pytest.raises(RecipeError) as refused:
        read_settings(file, ServeSettings(home=tmp_path))
    assert said in str(refused.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no such file"):
        read_settings(tmp_path / "nothing.yaml", ServeSettings(home=tmp_path))


def test_a_key_opens_a_server_that_asks_for_one(tmp_path: Path) -> None:
    settings = ServeSettings(home=tmp_path)
    store, _ = open_store(settings)
    _, secret = create_key(store, "mine")
    store.close()
    with served(make_service(tmp_path, require_key=True)) as live:
        client = openai.OpenAI(base_url=f"{live.url}/v1", api_key=secret, max_retries=0)
        assert any(model.id == "gpt-4o" for model in client.models.list())
        azure = openai.AzureOpenAI(azure_endpoint=live.url, api_key=secret, api_version="2024-10-21", max_retries=0)
        assert azure.models.list().data
        with pytest.raises(openai.AuthenticationError) as refused:
            openai.OpenAI(base_url=f"{live.url}/v1", api_key="wrong", max_retries=0).models.list()
        assert refused.value.code == "invalid_api_key"
    assert threading.active_count() < 100


@pytest.mark.parametrize("kind", [ServeSettings, Limits])
def test_every_setting_is_documented_with_its_default(kind: Any) -> None:
    page = (PROJECT / "docs" / "service.md").read_text()
    prefix = "limits." if kind is Limits else ""
    for one in fields(kind):
        if one.name == "limits":
            continue
        row = next((line for line in page.splitlines() if line.startswith("|") and f"`{prefix}{one.name}`" in line), "")
        assert row, one.name
        if isinstance(one.default, bool | int) and one.default is not MISSING:
            told = str(one.default).lower() if isinstance(one.default, bool) else f"{one.default:_}"
            assert f"`{told}`" in row or f"`{one.default}`" in row, row


def test_every_test_that_the_security_page_names_exists() -> None:
    page = (PROJECT / "docs" / "service-security.md").read_text()
    file, named = "", 0
    for path, test in re.findall(r"`((?:[\w/]+\.py|…)?)(?:::)?(test_\w+)?`|`(?:[a-z]+/)`", page):
        if not path and not test:
            continue
        file = path if path.endswith(".py") else file
        source = (PROJECT / "tests" / "service" / file).read_text()
        if test:
            named += 1
            assert f"def {test}(" in source, f"{file}::{test}"
    assert named > 30
    for folder in re.findall(r"`([a-z]+/)`", page):
        assert list((PROJECT / "tests" / "service" / folder).glob("test_*.py")), folder


def test_the_command_serves_and_ends_when_it_is_told_to(tmp_path: Path) -> None:
    store, _ = open_store(ServeSettings(home=tmp_path))
    _, secret = create_key(store, "mine")
    with live_server(tmp_path, "--require-key") as live:
        said = live.log.read_text()
        assert f"Tunesmith serves on {live.url}" in said
        assert "export OPENAI_API_KEY='your key'" in said
        client = openai.OpenAI(base_url=f"{live.url}/v1", api_key=secret, max_retries=0)
        assert client.models.retrieve("gpt-4o-mini").id == "gpt-4o-mini"
        later = create_key(store, "made while it runs")[1]
        assert client.with_options(api_key=later).models.list().data
        store.close()
        with pytest.raises(openai.AuthenticationError):
            client.with_options(api_key="local").models.list()
        live.process.send_signal(signal.SIGTERM)
        assert live.process.wait(60) == 0
    lines = [json.loads(line) for line in (tmp_path / "logs" / "server.jsonl").read_text().splitlines()]
    asked = [line for line in lines if line["logger"] == "tunesmith.access"]
    assert [line["route"] for line in asked] == ["/v1/models/{model:path}", "/v1/models", "unmatched"]
    assert [line["status"] for line in asked] == [200, 200, 401]
    assert any(line["message"].startswith("shutting down") for line in lines)
    assert secret not in (tmp_path / "logs" / "server.jsonl").read_text()
