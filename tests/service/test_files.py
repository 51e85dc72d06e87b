"""Files: taken in whole or not at all, every problem told at the upload, listed, read, expired, deleted."""

from __future__ import annotations

import asyncio
import io
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from tests.service.apps import client_of, make_service
from tests.service.azure.serving import served
from tests.service.store.records import job
from tunesmith.service import file_checks, filing
from tunesmith.service.context import Service
from tunesmith.service.filing import NewFile, delete_file, keep_file, sweep
from tunesmith.service.settings import Limits
from tunesmith.service.store.nouns import File, Job
from tunesmith.service.sweeping import regularly_swept

Rows = list[dict[str, Any]]
FIELDS = {
    "id", "object", "bytes", "created_at", "expires_at", "filename", "purpose", "status", "status_details",
}  # fmt: skip


def chat(count: int = 12) -> Rows:
    return [
        {"messages": [{"role": "user", "content": f"Number {n}?"}, {"role": "assistant", "content": f"It is {n}."}]}
        for n in range(count)
    ]


def lines(rows: Rows) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


class Clock:
    now = 1_700_000_000

    def __call__(self) -> int:
        return self.now


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


def send(
    client: TestClient, data: bytes, name: str = "a.jsonl", purpose: str | None = "fine-tune", **fields: str
) -> Any:
    form = ({} if purpose is None else {"purpose": purpose}) | fields
    return client.post("/v1/files", data=form, files={"file": (name, data, "application/octet-stream")})


def blobs_of(service: Service) -> list[str]:
    """Everything that lies in the folder of blobs."""
    folder = service.settings.home / "blobs"
    return sorted(path.name for path in folder.rglob("*") if path.is_file() and path.name != "lock")


def test_a_file_comes_back_as_it_was_sent(client: TestClient, service: Service) -> None:
    data = lines(chat())
    made = send(client, data)
    assert made.status_code == 200
    body = made.json()
    assert body.keys() == FIELDS | {"report"} and body["id"].startswith("file-") and len(body["id"]) == 29
    assert body | {"report": None, "id": None} == {
        "id": None,
        "object": "file",
        "bytes": len(data),
        "created_at": 1_700_000_000,
        "expires_at": None,
        "filename": "a.jsonl",
        "purpose": "fine-tune",
        "status": "processed",
        "status_details": None,
        "report": None,
    }
    assert body["report"] == {
        "object": "file.report", "rows": 12, "method": "supervised", "errors": [], "notes": [],
    }  # fmt: skip
    assert client.get(f"/v1/files/{body['id']}").json() == body
    content = client.get(f"/v1/files/{body['id']}/content", headers={"accept": "application/binary"})
    assert content.content == data and content.headers["content-type"] == "application/octet-stream"
    assert content.headers["content-length"] == str(len(data)) and "1970" not in content.headers["last-modified"]
    assert content.headers["x-content-type-options"] == "nosniff"
    assert 'attachment; filename="a.jsonl"' in content.headers["content-disposition"]
    assert len(blobs_of(service)) == 1


def test_the_official_client_goes_through_it(service: Service, tmp_path: Path) -> None:
    path = tmp_path / "tmp_recipe_finetune_training.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + lines(chat()))
    with served(service) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0) as client:
        with path.open("rb") as opened:
            made = client.files.create(file=opened, purpose="fine-tune")
        assert (made.filename, made.status, made.bytes) == (path.name, "processed", path.stat().st_size)
        named = io.BytesIO(lines(chat(3)))
        named.name = "named.jsonl"
        second = client.files.create(
            file=named, purpose="fine-tune", expires_after={"anchor": "created_at", "seconds": 3600}
        )
        assert second.expires_at == second.created_at + 3600
        assert [one.id for one in client.files.list(limit=1)] == [second.id, made.id], "two requests"
        assert [one.id for one in client.files.list(purpose="batch")] == []
        assert client.files.wait_for_processing(made.id).id == made.id
        assert client.files.content(made.id).read() == path.read_bytes()
        assert client.files.delete(made.id).deleted is True
        with pytest.raises(openai.NotFoundError, match=f"No such File object: {made.id}") as gone:
            client.files.retrieve(made.id)
        assert gone.value.param == "id" and gone.value.type == "invalid_request_error" and gone.value.request_id
        with pytest.raises(openai.BadRequestError) as told:
            client.files.create(file=("x.jsonl", b"[1]\n"), purpose="fine-tune")
        assert "Line 1 is not a dictionary" in str(told.value) and told.value.param == "file"


def test_lines_that_are_no_objects_are_all_told_in_openais_words(client: TestClient, service: Service) -> None:
    good = json.dumps(chat(1)[0])
    data = "\n".join([good, '{"messages": [', good, "[1, 2]", "", "name,age,and more", '"x"', "12", "true"]).encode()
    told = send(client, data + b"\n\xff\xfe{}")
    assert told.status_code == 400
    error = told.json()["error"]
    assert error["message"].startswith(
        "Expected file to have JSONL format, where every line is a JSON dictionary. Line 2 is not a dictionary "
        '(HINT: line starts with: "{"messages...").'
    )
    assert "Line 4 is not a dictionary" in error["message"] and "Line 6" in error["message"]
    assert "(and 4 more)" in error["message"] and "Line 7" not in error["message"]
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", "file", None)
    assert [one["line"] for one in error["details"]] == [2, 4, 6, 7, 8, 9, 10]
    reasons = [one["reason"] for one in error["details"]]
    assert "not valid JSON" in reasons[0] and "array" in reasons[1] and "string" in reasons[3]
    assert "number" in reasons[4] and "boolean" in reasons[5] and "UTF-8" in reasons[6]
    assert all(one["fix"] for one in error["details"])
    assert service.store.count(File) == 0 and blobs_of(service) == []


def test_what_fails_a_job_later_is_reported_at_once_and_does_not_stop_the_upload(client: TestClient) -> None:
    rows: Rows = chat(5)
    rows[1]["messages"][0].pop("role")
    rows[2]["messages"][1]["weight"] = 0.5
    rows[3]["messages"].append({"role": "robot", "content": "beep"})
    rows[4] = {"text": "neither"}
    body = send(client, lines(rows)).json()
    assert body["status"] == "processed" and body["report"]["rows"] == 5
    errors = {one["code"]: one for one in body["report"]["errors"]}
    assert errors.keys() >= {
        "role_missing", "hosted_weight", "unknown_role", "hosted_not_its_format", "hosted_too_few_rows",
    }  # fmt: skip
    few = errors["hosted_too_few_rows"]
    assert few["error_code"] == "invalid_n_examples" and few["for_training"]
    assert few["message"] == "Training file has 5 example(s), but must have at least 10 examples"
    role = errors["role_missing"]
    assert role["message"] == (
        "The job failed due to an invalid training file. Invalid file format. "
        "Example 2, message 1 Discriminator 'role' is missing in value"
    )
    assert (role["lines"], role["error_code"], role["param"]) == ([2], "invalid_training_file", "training_file")
    assert errors["hosted_not_its_format"]["lines"] == [5]
    assert all(one["fix"] and one["reason"] for one in errors.values())
    assert "report" not in client.get("/v1/files").json()["data"][0]


def test_text_that_no_model_can_be_given_is_refused(client: TestClient, service: Service) -> None:
    rows = chat()
    rows[2]["messages"][0]["content"] = "half a pair \ud800"
    rows[5]["messages"][0]["content"] = "half a pair \udc00"
    told = send(client, lines(rows))
    assert told.status_code == 400 and "surrogate" in told.json()["error"]["message"]
    assert told.json()["error"]["details"][0]["line"] == 3 and blobs_of(service) == []


@pytest.mark.parametrize(
    ("row", "method"),
    [
        (chat(1)[0], "supervised"),
        ({"prompt": "a", "completion": "b"}, "supervised"),
        (
            {
                "input": {"messages": [{"role": "user", "content": "a"}]},
                "preferred_output": [{"role": "assistant", "content": "b"}],
                "non_preferred_output": [{"role": "assistant", "content": "c"}],
            },
            "dpo",
        ),
        ({"messages": [{"role": "user", "content": "a"}], "answer": "b"}, "reinforcement"),
    ],
)
def test_the_method_is_guessed_from_the_rows(client: TestClient, row: dict[str, Any], method: str) -> None:
    report = send(client, lines([row] * 10)).json()["report"]
    assert report["method"] == method and report["errors"] == []


def test_a_large_file_is_looked_at_in_pieces(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines are those of the whole file, numbers are of all pieces, and small pieces are not too small files."""
    monkeypatch.setattr(file_checks, "PIECE", 500)
    rows = chat(40)
    for bad in (7, 25, 39):
        rows[bad]["messages"][1]["weight"] = 0.25
    data = lines(rows[:20]) + b"\n" * 1200 + lines(rows[20:])
    report = send(client, data).json()["report"]
    assert report["rows"] == 40 and [one["code"] for one in report["errors"]] == ["hosted_weight"]
    assert report["errors"][0]["lines"] == [8, 1226, 1240] and report["errors"][0]["count"] == 3
    assert report["errors"][0]["reason"].startswith("a weight between 0 and 1: line 8, message 2")
    assert "(and 2 more)" in report["errors"][0]["reason"]


def test_a_large_file_is_looked_at_by_another_process(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same report, and the same refusal."""
    good, bad = lines([*chat(11), {"nonsense": 1}]), lines(chat()) + b"[]\n{\n"
    here = send(client, good).json()["report"], send(client, bad)
    monkeypatch.setattr(filing, "LARGEST_HERE", 10)
    assert here[0]["errors"] and send(client, good).json()["report"] == here[0]
    there = send(client, bad)
    assert (there.status_code, there.json()) == (400, here[1].json()) and len(there.json()["error"]["details"]) == 2


def test_a_process_that_looks_at_a_file_ends_with_the_server(tmp_path: Path) -> None:
    """Killed or not: the end of the pipe that it was given is the end of it, long before the file's."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines(chat(20_000)))
    command = [sys.executable, "-m", "tunesmith.service.file_checks_apart", str(path), "a.jsonl", "fine-tune", "openai"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.communicate(timeout=60)[0] == b"" and process.returncode == 1


def test_other_names_other_purposes(client: TestClient, service: Service) -> None:
    told = send(client, lines(chat()), "rows.csv").json()["error"]
    assert told["message"] == "Invalid file format for Fine-Tuning API. Must be .jsonl"
    assert send(client, b"", "a.jsonl").json()["error"]["message"] == "File is empty."
    assert "blank lines" in send(client, b"\n \n").json()["error"]["details"][0]["reason"]
    assert "Line 2" in send(client, b"{}\n[]", purpose="batch").json()["error"]["message"]
    assert send(client, b'{"custom_id": "a"}', "b.txt", "batch").status_code == 200
    assert send(client, b"\x00\xff anything", "c.bin", "user_data").status_code == 200
    for purpose in ("fine-tune-results", "batch_output", "nonsense", ""):
        told = send(client, lines(chat()), purpose=purpose).json()["error"]
        assert (told["param"], told["code"]) == ("purpose", "invalid_value") and "'fine-tune'" in told["message"]
    assert service.store.count(File) == 2


def test_fields_that_are_wrong_are_all_told(client: TestClient, service: Service) -> None:
    told = send(client, lines(chat()), purpose=None, nonsense="1", **{"expires_after[anchor]": "now"}).json()["error"]
    assert told["message"] == "Unknown parameter: 'nonsense'." and told["code"] == "unknown_parameter"
    assert [(one["param"], one["code"]) for one in told["details"]] == [
        ("nonsense", "unknown_parameter"),
        ("purpose", "missing_required_parameter"),
        ("expires_after[seconds]", "missing_required_parameter"),
        ("expires_after[anchor]", "invalid_value"),
    ]
    for seconds, code in (("3599", "invalid_value"), ("2592001", "invalid_value"), ("soon", "invalid_type")):
        after = {"expires_after[anchor]": "created_at", "expires_after[seconds]": seconds}
        told = send(client, lines(chat()), **after).json()["error"]
        assert (told["param"], told["code"]) == ("expires_after[seconds]", code)
    told = client.post("/v1/files", files={"purpose": (None, "fine-tune")}).json()["error"]
    assert told["message"] == "Missing required parameter: 'file'."
    told = client.post("/v1/files", files={"purpose": (None, "fine-tune"), "file": (None, "text")}).json()["error"]
    assert (told["param"], told["code"]) == ("file", "invalid_type")
    told = client.post("/v1/files", files=[("file", ("a", b"1")), ("file", ("b", b"2"))]).json()["error"]
    assert told["code"] == "duplicate_parameter"
    assert service.store.count(File) == 0 and blobs_of(service) == []


def test_the_purpose_may_stand_behind_the_file(client: TestClient) -> None:
    parts = [("file", ("a.jsonl", lines(chat()))), ("purpose", (None, "fine-tune"))]
    assert client.post("/v1/files", files=parts).status_code == 200


NAMES = [
    "../../../etc/passwd.jsonl", "/etc/passwd.jsonl", "C:\\x.jsonl", "..jsonl", "a\\..\\b.jsonl", "‮lnosj.jsonl",
    "résumé 🦜.jsonl", "'; drop table files; --.jsonl", "%2e%2e%2fa.jsonl", "a" * 400 + ".jsonl", "con.jsonl",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_a_name_and_never_a_path(client: TestClient, service: Service, name: str) -> None:
    before = set(service.settings.home.parent.rglob("*"))
    made = send(client, lines(chat()), name)
    if made.status_code == 400:
        assert "printable" in made.json()["error"]["message"] and not name.isprintable()
        return
    assert made.json()["filename"].split("\\")[-1] == name.split("\\")[-1]
    new = set(service.settings.home.parent.rglob("*")) - before
    assert len([path for path in new if path.is_file()]) == 1, "its bytes, under their hash"
    content = client.get(f"/v1/files/{made.json()['id']}/content")
    assert content.content == lines(chat()) and "\n" not in content.headers["content-disposition"]


@pytest.mark.parametrize("id", ["file-x", "../../etc/passwd", "%2e%2e%2fstore.sqlite", "a%00b", "é", "a" * 3000, ".."])
def test_an_id_is_looked_up_and_never_a_path(client: TestClient, id: str) -> None:
    for path in (f"/v1/files/{id}", f"/v1/files/{id}/content"):
        answer = client.get(path)
        assert answer.status_code in (404, 405) and "error" in answer.json()


BOUNDARY = "xxBOUNDARYxx"
PART = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n'


@pytest.mark.parametrize(
    ("kind", "body", "message"),
    [
        ("application/json", b"{}", "Unsupported content type: 'application/json'"),
        ("", b"", "Unsupported content type: ''"),
        ("multipart/form-data", PART.encode(), "boundary is missing"),
        (f"multipart/form-data; boundary={'x' * 300}", b"", "boundary is too long"),
        (f"multipart/form-data; boundary={BOUNDARY}", b"", "ends before its last boundary"),
        (f"multipart/form-data; boundary={BOUNDARY}", b"nonsense", "does not keep to its boundary"),
        (f"multipart/form-data; boundary={BOUNDARY}", PART.encode(), "ends before its last boundary"),
        (f"multipart/form-data; boundary={BOUNDARY}", PART.encode()[:40], "ends before its last boundary"),
        (
            f"multipart/form-data; boundary={BOUNDARY}",
            f"--{BOUNDARY}\r\nContent-Type: text/plain\r\n\r\nx\r\n--{BOUNDARY}--".encode(),
            "a part has no name",
        ),
        (f"multipart/form-data; boundary={BOUNDARY}", (PART * 60).encode(), "Duplicate parameter: 'purpose'"),
        (
            f"multipart/form-data; boundary={BOUNDARY}",
            "".join(PART.replace("purpose", f"p{n}") for n in range(60)).encode(),
            "more than 50 parts",
        ),
        (
            f"multipart/form-data; boundary={BOUNDARY}",
            PART.replace("fine-tune", "x" * 20_000).encode(),
            "it is too long",
        ),
    ],
)
def test_a_malformed_form_is_told(client: TestClient, service: Service, kind: str, body: bytes, message: str) -> None:
    told = client.post("/v1/files", content=body, headers={"content-type": kind})
    assert told.status_code == 400 and message in told.json()["error"]["message"]
    assert blobs_of(service) == []


_KEYS = st.sampled_from(
    ["messages", "role", "content", "tools", "tool_calls", "function", "arguments", "weight", "prompt", "completion",
     "input", "preferred_output", "non_preferred_output", "parallel_tool_calls", "user", "assistant"]
)  # fmt: skip


@settings(max_examples=30, deadline=None)
@given(cut=st.integers(0, 900), noise=st.binary(max_size=8))
def test_no_form_breaks_the_server(cut: int, noise: bytes) -> None:
    """Whatever is cut from a form or stands in its middle, it is a file or a 400 that says what is wrong."""
    whole = PART.encode() + (
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n'.encode()
        + lines(chat(5))
        + f"\r\n--{BOUNDARY}--\r\n".encode()
    )
    body = whole[: min(cut, len(whole))] + noise + (whole[cut:] if len(noise) % 2 else b"")
    answer = _shared_client().post(
        "/v1/files", content=body, headers={"content-type": f"multipart/form-data; boundary={BOUNDARY}"}
    )
    assert answer.status_code in (200, 400)
    assert "id" in answer.json() or answer.json()["error"]["message"]


JSON: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS | st.text(max_size=3), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=30, deadline=None)
@given(rows=st.lists(st.dictionaries(_KEYS, JSON, max_size=4), max_size=12))
def test_no_rows_break_the_server(rows: list[dict[str, Any]]) -> None:
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    answer = send(_shared_client(), data)
    assert answer.status_code in (200, 400)
    if answer.status_code == 200:
        assert answer.json()["report"]["rows"] == len(rows)
    else:
        assert answer.json()["error"]["message"]


_shared: list[TestClient] = []


def _shared_client() -> TestClient:
    return _shared[0]


@pytest.fixture(autouse=True, scope="module")
def _one_client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with client_of(make_service(tmp_path_factory.mktemp("shared"))) as client:
        _shared.append(client)
        yield
        _shared.clear()


def test_a_file_that_is_too_large_is_refused_while_it_comes(tmp_path: Path) -> None:
    service = make_service(tmp_path, limits=Limits(free_disk=0, file=300_000, batch_file=100_000))
    with client_of(service) as client:
        assert send(client, bytes(300_000), "a.bin", "user_data").status_code == 200
        for size, purpose in ((300_001, "user_data"), (2_000_000, "user_data"), (100_001, "batch")):
            told = send(client, bytes(size), "a.bin", purpose)
            assert told.status_code == 413 and told.json()["error"]["code"] == "content_too_large"
        late = [("file", ("a.jsonl", bytes(100_001))), ("purpose", (None, "batch"))]
        assert client.post("/v1/files", files=late).status_code == 413
        assert len(blobs_of(service)) == 1


def test_a_full_disk_is_told(tmp_path: Path) -> None:
    with client_of(make_service(tmp_path, limits=Limits(free_disk=10**18))) as client:
        told = send(client, lines(chat()))
        assert told.status_code == 400 and told.json()["error"]["code"] == "exceeded_quota"
        assert str(tmp_path) not in told.text


def test_lists_have_pages_orders_and_ends(client: TestClient, clock: Clock) -> None:
    made = []
    for n in range(5):
        clock.now += n % 2
        made.append(send(client, lines(chat(n + 1)), purpose="fine-tune" if n else "evals").json()["id"])
    newest = made[::-1]
    every = client.get("/v1/files").json()
    assert every["object"] == "list" and [one["id"] for one in every["data"]] == newest
    assert (every["first_id"], every["last_id"], every["has_more"]) == (newest[0], newest[-1], False)
    page = client.get("/v1/files", params={"limit": 2, "after": newest[1]}).json()
    assert [one["id"] for one in page["data"]] == newest[2:4] and page["has_more"]
    assert [one["id"] for one in client.get("/v1/files?order=asc&limit=2").json()["data"]] == made[:2]
    assert [one["id"] for one in client.get("/v1/files?purpose=evals").json()["data"]] == made[:1]
    empty = client.get("/v1/files?purpose=vision").json()
    assert (empty["data"], empty["first_id"], empty["last_id"], empty["has_more"]) == ([], None, None, False)
    for query in ("limit=0", "limit=10001", "limit=x", "order=up", "after=file-none", f"after={made[0]}&purpose=batch"):
        told = client.get(f"/v1/files?{query}")
        assert told.status_code == 400 and told.json()["error"]["param"] in ("limit", "order", "after")


def test_a_file_expires_at_its_second(client: TestClient, service: Service, clock: Clock) -> None:
    after = {"expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"}
    made = send(client, lines(chat()), **after).json()
    stays = send(client, lines(chat(11))).json()
    assert made["expires_at"] == clock.now + 3600
    clock.now += 3599
    assert client.get(f"/v1/files/{made['id']}").status_code == 200
    clock.now += 1
    for path in ("", "/content"):
        assert client.get(f"/v1/files/{made['id']}{path}").status_code == 404
    assert [one["id"] for one in client.get("/v1/files").json()["data"]] == [stays["id"]]
    assert service.store.count(File) == 1 and len(blobs_of(service)) == 1


def test_a_deleted_file_is_gone_from_the_disk(client: TestClient, service: Service) -> None:
    first, second = (send(client, lines(chat())).json()["id"] for _ in range(2))
    assert client.delete(f"/v1/files/{first}").json() == {"id": first, "object": "file", "deleted": True}
    assert len(blobs_of(service)) == 1, "the other file has the same bytes"
    assert client.delete(f"/v1/files/{second}").status_code == 200
    assert blobs_of(service) == [] and client.delete(f"/v1/files/{second}").status_code == 404


@pytest.mark.parametrize(
    "going",
    [
        {"status": "queued"},
        {"status": "running", "training_file": "file-other", "validation_file": True},
        {"status": "paused"},
        {"status": "succeeded", "evidence": "pending"},
    ],
)
def test_a_deleted_file_stays_for_its_job_until_that_ends(
    client: TestClient, service: Service, going: dict[str, Any]
) -> None:
    id = send(client, lines(chat())).json()["id"]
    named = {key: id if value is True else value for key, value in going.items()}
    service.store.add(job("ftjob-1", **{"training_file": id, **named}))
    assert client.delete(f"/v1/files/{id}").json()["deleted"] is True
    assert client.get(f"/v1/files/{id}").status_code == 404 and client.get("/v1/files").json()["data"] == []
    assert client.delete(f"/v1/files/{id}").status_code == 404
    kept = service.store.get(File, id)
    assert kept is not None and kept.blob is not None and service.blobs.path(kept.blob).read_bytes() == lines(chat())
    assert sweep(service) == 0 and service.store.get(File, id) is not None
    service.store.update(Job, "ftjob-1", status="failed", evidence="none")
    assert sweep(service) == 1 and service.store.get(File, id) is None and blobs_of(service) == []


def test_files_of_the_service_itself_are_kept_once(service: Service) -> None:
    new = NewFile("step_metrics.csv", "fine-tune-results")
    for data in (b"a,b\n", [b"a,", b"b\n"]):
        made = keep_file(service.store, service.blobs, new, data, now=5, id="file-result")
        assert (made.bytes, made.purpose, made.created_at) == (4, "fine-tune-results", 5)
    assert service.store.count(File) == 1 and len(blobs_of(service)) == 1
    with client_of(service) as client:
        assert client.get("/v1/files/file-result/content").content == b"a,b\n"
        assert [one["id"] for one in client.get("/v1/files?purpose=fine-tune-results").json()["data"]] == [
            "file-result"
        ]
        delete_file(service, "file-result")


def test_a_file_that_is_being_imported_has_no_content_yet(client: TestClient, service: Service) -> None:
    service.store.add(File("file-1", 5, "a.jsonl", "fine-tune", 0, None, status="pending"))
    told = client.get("/v1/files/file-1/content")
    assert told.status_code == 400 and "not ready" in told.json()["error"]["message"]
    assert client.get("/v1/files/file-1").json()["status"] == "pending"


def test_equal_uploads_at_the_same_time_share_their_bytes(client: TestClient, service: Service) -> None:
    from concurrent.futures import ThreadPoolExecutor

    work: Callable[[int], Any] = lambda n: send(client, lines(chat(10 + n % 2))).json()["id"]  # noqa: E731
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(work, range(24)))
        assert len(set(made)) == 24 and len(blobs_of(service)) == 2
        gone = list(pool.map(lambda id: client.delete(f"/v1/files/{id}").status_code, made))
    assert gone == [200] * 24 and blobs_of(service) == []


def test_a_running_server_sweeps(service: Service, clock: Clock) -> None:
    """At once and again and again, also after a time that failed."""
    kept = keep_file(service.store, service.blobs, NewFile("a.csv", "batch_output", 3600), b"a", now=clock.now)
    failures = iter([True, False, False, False])
    real = service.store.all

    def sometimes(*arguments: Any, **more: Any) -> Any:
        if next(failures, False):
            raise OSError("the disk is away")
        return real(*arguments, **more)

    async def run() -> None:
        service.store.all = sometimes  # type: ignore[method-assign]
        async with regularly_swept(service, 0.02):
            await asyncio.sleep(0.15)
            assert service.store.get(File, kept.id) is not None
            clock.now += 3600
            until = time.monotonic() + 5
            while service.store.get(File, kept.id) is not None and time.monotonic() < until:
                await asyncio.sleep(0.02)

    asyncio.run(run())
    assert service.store.get(File, kept.id) is None and blobs_of(service) == []
