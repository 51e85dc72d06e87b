"""The whole application on PostgreSQL: files go in, are listed and deleted, and no odd text makes it fail."""

from __future__ import annotations

from pathlib import Path

from tests.service.apps import client_of, make_service
from tests.service.store.conftest import new_database
from tests.service.test_files import chat, lines, send


def test_files_on_postgresql(tmp_path: Path, postgresql: str) -> None:
    service = make_service(tmp_path, database=new_database(postgresql))
    with client_of(service) as client:
        made = [send(client, lines(chat(n + 1)), f"résumé {n}.jsonl").json()["id"] for n in range(5)]
        page = client.get("/v1/files?limit=3").json()
        assert [one["id"] for one in page["data"]] == made[:1:-1] and page["has_more"]
        assert client.delete(f"/v1/files/{made[2]}").json()["deleted"]
        rest = client.get(f"/v1/files?limit=3&after={made[2]}").json()
        assert [one["id"] for one in rest["data"]] == [made[1], made[0]] and not rest["has_more"]
        for odd in ("a%00b", "%ff", "😀", "' or 1=1 --", "a" * 2000):
            for path in (
                f"/v1/files/{odd}",
                f"/v1/files?purpose={odd[:50]}",
                f"/v1/fine_tuning/jobs?metadata[{odd}]=x",
            ):
                assert client.get(path).status_code in (200, 400, 404), path
        upload = {"filename": "a.bin", "purpose": "user_data", "bytes": 5, "mime_type": "x\x00y"}
        assert client.post("/v1/uploads", json=upload).status_code in (200, 400)
