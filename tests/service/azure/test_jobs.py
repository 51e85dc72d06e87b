"""Fine-tuning jobs in Azure's dialect: shapes, statuses, texts, copying."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import requests
from starlette.testclient import TestClient

from tests.service.azure.serving import TUNED, make_service, served, tuned
from tunesmith.service.context import Service
from tunesmith.service.filing import NewFile, create_file
from tunesmith.service.ids import azure_id
from tunesmith.service.jobs import events, operations
from tunesmith.service.store.nouns import Checkpoint, Job

VERSION = {"api-version": "2024-10-21"}
JOBS = "/openai/fine_tuning/jobs"


def rows(count: int = 10) -> bytes:
    made = [
        {
            "messages": [
                {"role": "system", "content": "Pip is a factual helper that is a little rude."},
                {"role": "user", "content": f"What is {i} and {i}?"},
                {"role": "assistant", "content": f"It is {i + i}. Fingers would have done."},
            ]
        }
        for i in range(count)
    ]
    # Azure's documentation asks for a byte-order mark.
    return b"\xef\xbb\xbf" + "\n".join(map(json.dumps, made)).encode()


@pytest.fixture
def file_id(service: Service) -> str:
    writer = service.blobs.writer()
    writer.write(rows())
    return create_file(service, NewFile("training_set.jsonl", "fine-tune", flavour="azure"), writer).id


def create(client: TestClient, file_id: str, **more: Any) -> Any:
    body = {"model": "gpt-4o-mini-2024-07-18", "training_file": file_id, "seed": 105, **more}
    return client.post(JOBS, params=VERSION, json=body)


def made(client: TestClient, file_id: str, **more: Any) -> dict[str, Any]:
    answer = create(client, file_id, **more)
    assert answer.status_code == 201, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_every_field_of_a_job_just_made(client: TestClient, file_id: str) -> None:
    job = made(client, file_id)
    unset = {"n_epochs": -1, "batch_size": -1, "learning_rate_multiplier": -1}
    assert job == {
        "id": job["id"],
        "object": "fine_tuning.job",
        "created_at": job["created_at"],
        "finished_at": None,
        "status": "pending",
        "model": "gpt-4o-mini-2024-07-18",
        "fine_tuned_model": None,
        "training_file": file_id,
        "validation_file": None,
        "hyperparameters": unset,
        "method": {"type": "supervised", "supervised": {"hyperparameters": unset}},
        "result_files": None,
        "trained_tokens": None,
        "estimated_finish": None,
        "error": None,
        "seed": 105,
        "suffix": None,
        "metadata": None,
        "organization_id": None,
        "integrations": None,
        "evidence": {"status": "pending", "error": None},
    }
    assert job["id"].startswith("ftjob-") and len(job["id"]) == 38 and int(job["id"][6:], 16) >= 0


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("Standard", "Standard"),
        ("globalstandard", "GlobalStandard"),
        ("GlobalStandard", "GlobalStandard"),
        ("developerTier", "developerTier"),
        ("DeveloperTier", "developerTier"),
    ],
)
def test_tiers_are_taken_in_any_case(client: TestClient, file_id: str, sent: str, kept: str) -> None:
    assert made(client, file_id, trainingType=sent)["trainingType"] == kept


def test_an_unknown_tier_is_refused_by_name(client: TestClient, file_id: str) -> None:
    answer = create(client, file_id, trainingType="cheap")
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["target"] == "trainingType" and "GlobalStandard" in error["message"]


def test_minus_one_is_auto(client: TestClient, file_id: str, service: Service) -> None:
    job = made(client, file_id, hyperparameters={"n_epochs": -1, "batch_size": 2, "learning_rate_multiplier": -1})
    assert job["hyperparameters"] == {"n_epochs": -1, "batch_size": 2, "learning_rate_multiplier": -1}
    assert operations.find_job(service, job["id"]).hyperparameters == {
        "n_epochs": "auto",
        "batch_size": 2,
        "learning_rate_multiplier": "auto",
    }


@pytest.mark.parametrize(
    ("status", "told"),
    [
        ("validating_files", "pending"),
        ("queued", "pending"),
        ("running", "running"),
        ("paused", "paused"),
        ("succeeded", "succeeded"),
        ("failed", "failed"),
        ("cancelled", "cancelled"),
    ],
)
def test_statuses(client: TestClient, file_id: str, service: Service, status: Any, told: str) -> None:
    job = made(client, file_id)
    service.store.update(Job, job["id"], status=status)
    assert client.get(f"{JOBS}/{job['id']}", params=VERSION).json()["status"] == told


def test_why_a_job_failed(client: TestClient, file_id: str, service: Service) -> None:
    id = made(client, file_id)["id"]
    error = {"code": "invalid_n_examples", "param": "training_file", "message": "Training file has 7 example(s), but …"}
    service.store.update(Job, id, status="failed", error=error)
    assert client.get(f"{JOBS}/{id}", params=VERSION).json()["error"] == {
        "code": "jsonlValidationFailed",
        "message": error["message"],
        "param": "training_file",
        "target": "training_file",
        "innererror": {"code": "invalid_n_examples"},
    }


def test_the_same_job_in_both_dialects(client: TestClient, file_id: str) -> None:
    job = made(client, file_id)
    openai = client.get(f"/v1/fine_tuning/jobs/{job['id']}").json()
    assert openai["status"] == "validating_files" and openai["hyperparameters"]["n_epochs"] == "auto"
    assert openai["result_files"] == [] and openai["organization_id"] == "tunesmith"
    listed = client.get(JOBS, params=VERSION).json()
    assert listed == {"object": "list", "has_more": False, "data": [job]}


def test_events_in_azures_words(client: TestClient, file_id: str, service: Service) -> None:
    id = made(client, file_id)["id"]
    job = operations.find_job(service, id)
    translator = events.Translator(steps_per_epoch=None)
    drafts = [
        events.validated({"n_epochs": 3}),
        events.started(),
        *translator.hear({"kind": "train_started", "steps": 30}),
        *translator.hear({"kind": "train_step", "step": 1, "steps": 30, "loss": 0.0016478, "token_accuracy": 0.5}),
        events.warned("a thing to know"),
        events.checkpoint_made(20, f"{TUNED}:ckpt-step-20"),
        events.succeeded(),
        events.model_made(TUNED),
        events.results_made("file-175c81c590074388bdb49e8e0d91bac3"),
        events.cancelled(),
        events.paused(3),
        events.failed("it went wrong"),
    ]
    for draft in drafts:
        operations.tell(service, job, draft)
    listed = client.get(f"{JOBS}/{id}/events", params={**VERSION, "limit": 100}).json()
    assert list(listed) == ["object", "data", "has_more"]
    told = [(one["level"], one["message"]) for one in reversed(listed["data"])]
    assert told[0] == (
        "info",
        f"Created fine-tuning job: {id} (gpt-4o-mini-2024-07-18 stands for the local base embedded:base)",
    )
    assert told[2:] == [
        ("info", "Job enqueued. Waiting for jobs ahead to complete."),
        ("info", "Job started."),
        ("info", "Step 1: training loss=0.0016478"),
        ("warning", "a thing to know"),
        ("info", f"Checkpoint created at step 20 with Snapshot ID: {TUNED}:ckpt-step-20"),
        ("info", "Job succeeded."),
        ("info", "Postprocessing started."),
        ("info", "Completed results file: file-175c81c590074388bdb49e8e0d91bac3"),
        ("info", "Job canceled."),
        ("info", "Job paused."),
        ("error", "it went wrong"),
    ]
    step = next(one for one in listed["data"] if one["type"] == "metrics")
    assert step["data"] == {"step": 1, "train_loss": 0.0016478, "train_mean_token_accuracy": 0.5}
    assert all("data" not in one for one in listed["data"] if one["type"] == "message")
    assert all(one["id"].startswith("ftevent-") and len(one["id"]) == 40 for one in listed["data"])


def test_pages_of_events_hold_each_once(client: TestClient, file_id: str, service: Service) -> None:
    id = made(client, file_id)["id"]
    job = operations.find_job(service, id)
    for i in range(7):
        operations.tell(service, job, events.warned(f"w{i}"))
    seen: list[str] = []
    after: dict[str, Any] = {}
    while True:
        page = client.get(f"{JOBS}/{id}/events", params={**VERSION, "limit": 4, **after}).json()
        seen += [one["id"] for one in page["data"]]
        if not page["has_more"]:
            break
        after = {"after": seen[-1]}
    assert len(seen) == len(set(seen)) == service.store.next_seq(id) - 1 == 9


def test_the_ways_of_a_job(client: TestClient, file_id: str, service: Service) -> None:
    id = made(client, file_id)["id"]
    refused = client.post(f"{JOBS}/{id}/resume", params=VERSION)
    assert refused.status_code == 400 and refused.json()["error"]["code"] == "unexpectedEntityState"
    assert refused.json()["error"]["innererror"] == {"code": "invalid_job_status"}
    assert client.delete(f"{JOBS}/{id}", params=VERSION).status_code == 400, "it has not ended"
    service.store.update(Job, id, status="queued")
    # As the client sends it: a content type, and nothing behind it.
    empty = {"params": VERSION, "headers": {"content-type": "application/json"}}
    assert client.post(f"{JOBS}/{id}/pause", **empty).json()["status"] == "paused"
    assert client.post(f"{JOBS}/{id}/resume", **empty).json()["status"] == "pending"
    assert client.post(f"{JOBS}/{id}/cancel", **empty).json()["status"] == "cancelled"
    gone = client.delete(f"{JOBS}/{id}", **empty)
    assert gone.status_code == 204 and gone.content == b""
    missing = client.get(f"{JOBS}/{id}", params=VERSION)
    assert missing.status_code == 404 and missing.json()["error"]["code"] == "notFound"


def test_jobs_can_be_deleted_under_v1_too(client: TestClient, file_id: str) -> None:
    id = made(client, file_id)["id"]
    client.post(f"/openai/v1/fine_tuning/jobs/{id}/cancel")
    assert client.delete(f"/openai/v1/fine_tuning/jobs/{id}").status_code == 204
    assert client.delete(f"/v1/fine_tuning/jobs/{id}").status_code == 405, "OpenAI has no such call"


@pytest.mark.parametrize("path", [JOBS, f"{JOBS}/ftjob-1", "/openai/models", "/openai/files"])
def test_without_an_api_version_azure_knows_no_such_address(client: TestClient, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 404 and answer.json()["error"]["code"] == "404"
    assert answer.json()["error"]["message"].startswith("Resource not found")


@pytest.mark.parametrize("version", ["2024-10-21", "2025-04-01-preview", "2023-05-15", "v1", "preview", "anything"])
def test_any_api_version_will_do(client: TestClient, version: str) -> None:
    assert client.get(JOBS, params={"api-version": version}).status_code == 200


def test_all_mistakes_of_a_request_are_told_at_once(client: TestClient) -> None:
    answer = client.post(JOBS, params=VERSION, json={"model": 3, "colour": "red", "seed": -1})
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["code"] == "invalidPayload"
    assert {one["target"] for one in error["details"]} == {"model", "colour", "seed", "training_file"}


def checkpoint(service: Service, job_id: str, step: int = 90) -> str:
    name = f"{TUNED}:ckpt-step-{step}"
    tuned(service, name, kind="checkpoint", step=step, job_id=job_id)
    metrics = {"step": float(step), "total_steps": 100, "train_loss": 0.001}
    service.store.add(Checkpoint(azure_id("ftchkpt"), 9, job_id, name, step, metrics))
    return name


def test_checkpoints(client: TestClient, file_id: str, service: Service) -> None:
    id = made(client, file_id)["id"]
    names = [checkpoint(service, id, step) for step in (80, 90)]
    listed = client.get(f"{JOBS}/{id}/checkpoints", params=VERSION).json()
    assert [one["fine_tuned_model_checkpoint"] for one in listed["data"]] == names[::-1]
    assert listed["data"][0] == {
        "id": listed["data"][0]["id"],
        "object": "fine_tuning.job.checkpoint",
        "created_at": 9,
        "fine_tuned_model_checkpoint": names[1],
        "fine_tuning_job_id": id,
        "metrics": {"step": 90.0, "train_loss": 0.001},
        "step_number": 90,
    }


PREVIEW = {"aoai-copy-ft-checkpoints": "preview"}
TARGET = {"destinationResourceId": "/subscriptions/s2/resourceGroups/g/providers/x", "region": "westeurope"}


@pytest.mark.parametrize("root", ["/openai", "/openai/v1"])
@pytest.mark.parametrize("by_id", [False, True])
def test_copying_a_checkpoint(client: TestClient, file_id: str, service: Service, root: str, by_id: bool) -> None:
    id = made(client, file_id)["id"]
    name = checkpoint(service, id)
    key = service.store.all(Checkpoint)[0].id if by_id else name
    params = VERSION if root == "/openai" else {}
    path = f"{root}/fine_tuning/jobs/{id}/checkpoints/{key}/copy"
    refused = client.post(path, params=params, json=TARGET)
    assert refused.status_code == 400 and "aoai-copy-ft-checkpoints: preview" in refused.json()["error"]["message"]
    assert client.get(path, params=params, headers=PREVIEW).json()["copiedAccountDetails"] == []
    copied = client.post(path, params=params, headers=PREVIEW, json=TARGET)
    assert copied.status_code == 200
    assert copied.json() == {
        "checkpointedModelName": name,
        "fineTuningJobId": id,
        "copiedAccountDetails": [{**TARGET, "status": "Completed"}],
    }
    client.post(path, params=params, headers=PREVIEW, json=TARGET)
    client.post(path, params=params, headers=PREVIEW, json={**TARGET, "region": "eastus"})
    told = client.get(path, params=params, headers=PREVIEW).json()["copiedAccountDetails"]
    assert [one["region"] for one in told] == ["westeurope", "eastus"], "each once, none lost"


def test_a_checkpoint_of_another_job_is_not_copied(client: TestClient, file_id: str, service: Service) -> None:
    first, second = made(client, file_id)["id"], made(client, file_id)["id"]
    name = checkpoint(service, first)
    for job, key in ((second, name), (first, "nothing"), ("ftjob-x", name)):
        path = f"{JOBS}/{job}/checkpoints/{key}/copy"
        assert client.post(path, params=VERSION, headers=PREVIEW, json=TARGET).status_code == 404


def test_models_have_azures_fields_beside_the_clients(client: TestClient, service: Service) -> None:
    tuned(service, job_id="ftjob-1")
    model = client.get(f"/openai/models/{TUNED}", params=VERSION).json()
    assert model["id"] == TUNED and model["fine_tune"] == "ftjob-1" and model["model"] == "gpt-4o-mini-2024-07-18"
    assert model["status"] == "succeeded" and model["capabilities"]["chat_completion"] is True
    assert {"id", "created", "object", "owned_by"} <= model.keys()
    assert TUNED in [one["id"] for one in client.get("/openai/models", params=VERSION).json()["data"]]
    assert client.delete(f"/openai/models/{TUNED}", params=VERSION).json()["deleted"] is True
    answer = client.get(f"/openai/models/{TUNED}", params=VERSION)
    assert answer.status_code == 404 and answer.json()["error"]["code"] == "notFound"


def test_a_held_answer_is_told_in_azures_words_too(tmp_path: Path) -> None:
    service = make_service(tmp_path, wait_jobs=True)
    job = Job(
        "ftjob-1", 1, "gpt-4o-mini", "embedded:base", "file-1", None, "running", 1, "org", {"type": "supervised"},
        flavour="azure",
    )  # fmt: skip
    service.store.add(job)
    with (
        served(service) as url,
        requests.get(f"{url}{JOBS}/ftjob-1", params=VERSION, stream=True, timeout=30) as answer,
    ):
        pieces = answer.iter_content(1)
        assert next(pieces) == b" ", "the answer has begun while the job goes on"
        service.store.move_job("ftjob-1", "succeeded", only_from=["running"])
        told = json.loads(b"".join(pieces))
    assert told["status"] == "succeeded" and told["result_files"] is None
    service.store.close()
