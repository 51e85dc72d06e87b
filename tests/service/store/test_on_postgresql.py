"""The whole application on PostgreSQL: files, evals and batches, and no odd text makes it fail."""

from __future__ import annotations

from pathlib import Path

from tests.service.apps import client_of, make_service
from tests.service.beside import served_beside
from tests.service.evals.conftest import ALIKE, completions, eval_of, finished
from tests.service.scripted import ScriptedEngine
from tests.service.store.conftest import emptied_database
from tests.service.test_files import chat, lines, send
from tunesmith.service.store.nouns import EvalRun, OutputItem


def test_files_on_postgresql(tmp_path: Path, postgresql: str) -> None:
    service = make_service(tmp_path, database=emptied_database(postgresql))
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


def test_evals_and_batches_on_postgresql(tmp_path: Path, postgresql: str) -> None:
    service = make_service(tmp_path, ScriptedEngine("Paris"), database=emptied_database(postgresql))
    with served_beside(tmp_path, None, service=service) as beside:
        made = eval_of(beside, ALIKE, metadata={"a": "b"})
        run = finished(beside, made, completions())
        assert (run.status, run.result_counts.total, run.result_counts.passed) == ("completed", 5, 1)
        items = beside.client.evals.runs.output_items
        pages = [items.list(run.id, eval_id=made.id, limit=2)]
        while pages[-1].has_more:
            pages.append(items.list(run.id, eval_id=made.id, limit=2, after=pages[-1].data[-1].id))
        assert [one.datasource_item_id for page in pages for one in page.data] == list(range(5))
        assert len(items.list(run.id, eval_id=made.id, status="failed").data) == 4
        beside.client.evals.delete(made.id)
        assert service.store.count(OutputItem) == service.store.count(EvalRun) == 0
        bodies = [{"model": "gpt-4o-mini", "messages": [{"role": "user", "content": text}]} for text in ("é", "😀")]
        asked = [
            {"custom_id": f"r{i}", "method": "POST", "url": "/v1/chat/completions", "body": body}
            for i, body in enumerate([*bodies, {"model": "gpt-4o-mini", "messages": []}])
        ]
        file = beside.client.files.create(file=("b.jsonl", lines(asked)), purpose="batch").id
        batch = beside.client.batches.create(
            input_file_id=file, endpoint="/v1/chat/completions", completion_window="24h"
        )
        ended = beside.wait(lambda: beside.client.batches.retrieve(batch.id), ("completed", "failed"))
        assert ended.status == "completed" and ended.usage.total_tokens > 0
        assert (ended.request_counts.completed, ended.request_counts.failed) == (2, 1)
        assert len(beside.client.files.content(ended.output_file_id).text.splitlines()) == 2
    service.store.close()
