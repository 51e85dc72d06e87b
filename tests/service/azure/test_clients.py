"""The official client's three ways to Azure, and the tutorial of Azure's documentation, against a real server."""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
import requests
from openai import AzureOpenAI, OpenAI
from starlette.testclient import TestClient

from tests.service.azure.serving import make_service, served, tuned
from tests.service.azure.test_jobs import rows
from tunesmith.service.context import Service
from tunesmith.service.filing import NewFile, keep_file
from tunesmith.service.ids import azure_id
from tunesmith.service.jobs import events, operations
from tunesmith.service.jobs.names import new_tuned_name
from tunesmith.service.jobs.results import PURPOSE, results_name, results_of
from tunesmith.service.store.nouns import Checkpoint, Event, Job

VERSION = "2024-10-21"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Service, str]]:
    service = make_service(tmp_path_factory.mktemp("home"))
    with served(service) as url:
        yield service, url
    service.store.close()


def azure(url: str, **more: Any) -> AzureOpenAI:
    return AzureOpenAI(api_key="local", api_version=VERSION, azure_endpoint=url, max_retries=0, **more)


@contextmanager
def worked_on(service: Service) -> Iterator[None]:
    """Stands in for a worker: takes up each job and tells what one tells, without training anything."""
    ended = threading.Event()

    def work() -> None:
        while not ended.wait(0.02):
            for job in service.store.all(Job, {"status": "validating_files"}):
                _work_on(service, job)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(10)


def _work_on(service: Service, job: Job) -> None:
    numbers = {"n_epochs": 10, "batch_size": 1, "learning_rate_multiplier": 1.0}
    service.store.move_job(job.id, "queued", only_from=["validating_files"], hyperparameters=numbers)
    operations.tell(service, job, events.validated(numbers))
    service.store.move_job(job.id, "running", only_from=["queued"])
    operations.tell(service, job, events.started())
    time.sleep(0.3)
    translator = events.Translator(steps_per_epoch=None)
    heard: list[dict[str, Any]] = [{"kind": "train_started", "steps": 100}]
    heard += [
        {"kind": "train_step", "step": step, "steps": 100, "loss": 1 / step, "token_accuracy": 0.75}
        for step in range(1, 101)
    ]
    for event in heard:
        for draft in translator.hear(event):
            operations.tell(service, job, draft)
    name = new_tuned_name(job)
    for step, shown in ((80, f"{name}:ckpt-step-80"), (90, f"{name}:ckpt-step-90"), (100, name)):
        tuned(service, shown, kind="tuned" if shown == name else "checkpoint", job_id=job.id, step=step)
        metrics = {"step": float(step), "train_loss": 1 / step}
        service.store.add(Checkpoint(azure_id("ftchkpt"), service.now(), job.id, shown, step, metrics))
    told = service.store.all(Event, {"job_id": job.id})
    new = NewFile(results_name(job.flavour), PURPOSE, flavour=job.flavour)
    file = keep_file(service.store, service.blobs, new, results_of(told, job.flavour), now=service.now())
    operations.tell(service, job, events.succeeded())
    operations.tell(service, job, events.model_made(name))
    operations.tell(service, job, events.results_made(file.id))
    service.store.move_job(
        job.id,
        "succeeded",
        only_from=["running"],
        fine_tuned_model=name,
        finished_at=service.now(),
        trained_tokens=48_000,
        result_files=(file.id,),
    )


def test_the_tutorial(running: tuple[Service, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Upload, create, poll, events, checkpoints, deploy through the management API, chat, delete the deployment."""
    service, url = running
    for name in ("training_set.jsonl", "validation_set.jsonl"):
        (tmp_path / name).write_bytes(rows())
    client = azure(url)
    ids = []
    for name in ("training_set.jsonl", "validation_set.jsonl"):
        with (tmp_path / name).open("rb") as file:
            ids.append(client.files.create(file=file, purpose="fine-tune").id)
    assert all(id.startswith("file-") and len(id) == 37 for id in ids)

    with worked_on(service):
        response = client.fine_tuning.jobs.create(
            training_file=ids[0], validation_file=ids[1], model="gpt-4o-mini-2024-07-18", seed=105
        )
        job_id = response.id
        assert response.status == "pending" and json.loads(response.model_dump_json(indent=2))["seed"] == 105
        seen = [response.status]
        until = time.monotonic() + 20
        while seen[-1] not in ["succeeded", "failed"]:
            assert time.monotonic() < until, seen
            time.sleep(0.05)
            seen.append(client.fine_tuning.jobs.retrieve(job_id).status)
        assert "running" in seen and set(seen) <= {"pending", "running", "succeeded"}
    assert job_id in [one.id for one in client.fine_tuning.jobs.list().data]

    page = client.fine_tuning.jobs.list_events(fine_tuning_job_id=job_id, limit=10)
    assert len(page.data) == 10 and page.has_more and json.loads(page.model_dump_json(indent=2))
    newest = [one.message for one in page.data]
    assert newest[0].startswith("Completed results file: file-")
    assert newest[1:4] == ["Postprocessing started.", "Job succeeded.", "Step 100: training loss=0.01"]
    everything = [one.id for one in client.fine_tuning.jobs.list_events(job_id, limit=10)]
    assert len(everything) == len(set(everything)) == service.store.next_seq(job_id) - 1

    checkpoints = client.fine_tuning.jobs.checkpoints.list(job_id).data
    response = client.fine_tuning.jobs.retrieve(job_id)
    model = response.fine_tuned_model
    assert model is not None and checkpoints[0].fine_tuned_model_checkpoint == model
    assert [one.fine_tuned_model_checkpoint for one in checkpoints[1:]] == [
        f"{model}:ckpt-step-90",
        f"{model}:ckpt-step-80",
    ]
    assert model.startswith("gpt-4o-mini-2024-07-18.ft-") and len(model) == len("gpt-4o-mini-2024-07-18.ft-") + 32
    csv = client.files.content(response.result_files[0]).text.splitlines()
    assert csv[0] == (
        "step,train_loss,train_mean_token_accuracy,valid_loss,validation_mean_token_accuracy,full_valid_loss,"
        "full_valid_mean_token_accuracy"
    )
    assert len(csv) == 101

    deploy_params = {"api-version": "2024-10-01"}
    deploy_headers = {"Authorization": "Bearer from az account get-access-token", "Content-Type": "application/json"}
    deploy_data = json.dumps(
        {
            "sku": {"name": "standard", "capacity": 1},
            "properties": {"model": {"format": "OpenAI", "name": model, "version": "1"}},
        }
    )
    request_url = (
        f"{url}/subscriptions/sub/resourceGroups/group/providers/Microsoft.CognitiveServices/accounts/resource"
        "/deployments/gpt-4o-mini-2024-07-18-ft"
    )
    made = requests.put(request_url, params=deploy_params, headers=deploy_headers, data=deploy_data, timeout=30)
    assert (made.status_code, made.reason) == (201, "Created")
    assert made.json()["properties"]["provisioningState"] == "Creating"
    until = time.monotonic() + 20
    while (state := requests.get(request_url, params=deploy_params, headers=deploy_headers, timeout=30).json())[
        "properties"
    ]["provisioningState"] != "Succeeded":
        assert time.monotonic() < until, state
        time.sleep(0.05)

    messages: Any = [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": "Does Azure OpenAI support customer managed keys?"},
    ]
    answer = client.chat.completions.create(model="gpt-4o-mini-2024-07-18-ft", messages=messages)
    assert answer.choices[0].message.content == "Blue whale. Quite a big fish." and answer.model == model

    gone = requests.delete(request_url, params=deploy_params, headers=deploy_headers, timeout=30)
    assert gone.status_code == 202
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-4o-mini-2024-07-18-ft", messages=messages)
    assert caught.value.code == "DeploymentNotFound"
    assert client.models.retrieve(model).id == model, "the model stays and can be deployed again"


SAY: Any = [{"role": "user", "content": "What is the largest mammal?"}]


def test_a_model_is_asked_by_its_own_name_where_nothing_is_deployed(running: tuple[Service, str]) -> None:
    _, url = running
    answer = azure(url).chat.completions.create(model="gpt-4o-mini", messages=SAY)
    assert answer.choices[0].message.content == "Blue whale. Quite a big fish."


def test_with_a_deployment_in_the_client_the_model_of_a_request_does_not_matter(running: tuple[Service, str]) -> None:
    service, url = running
    model = tuned(service, "gpt-4o-mini-2024-07-18.ft-" + "a" * 32)
    path = "/subscriptions/s/resourceGroups/g/providers/Microsoft.CognitiveServices/accounts/a/deployments/dep1"
    body = {"sku": {"name": "standard"}, "properties": {"model": {"format": "OpenAI", "name": model.id}}}
    assert requests.put(url + path, params={"api-version": "x"}, json=body, timeout=30).status_code == 201
    client = azure(url, azure_deployment="dep1")
    for name in ("gpt-4", "whatever"):
        answer = client.chat.completions.create(model=name, messages=SAY)
        assert answer.model == model.id
    with client.chat.completions.create(
        model="x", messages=SAY, stream=True, stream_options={"include_usage": True}
    ) as stream:
        chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "Blue whale. Quite a big fish."
    usage = chunks[-1].usage
    assert usage is not None and usage.completion_tokens > 0
    # Files, jobs and models lie beside the deployment, and are found there.
    assert client.models.retrieve(model.id).id == model.id
    assert isinstance(client.fine_tuning.jobs.list().data, list)
    # Clients of old put the deployment before these too.
    old = requests.get(f"{url}/openai/deployments/dep1/fine_tuning/jobs", params={"api-version": "x"}, timeout=30)
    assert old.status_code == 200


def test_what_goes_wrong_in_a_stream_is_told_in_azures_words(client: TestClient, service: Service) -> None:
    service.engine.fail_after = 2  # type: ignore[union-attr]
    body: dict[str, Any] = {"model": "gpt-4o-mini", "messages": SAY, "stream": True}
    for path in ("/openai/deployments/gpt-4o-mini/chat/completions?api-version=2024-10-21", "/v1/chat/completions"):
        answer = client.post(path, json=body)
        error = json.loads(answer.text.splitlines()[-2].removeprefix("data: "))["error"]
        azures = "target" in error and error["code"] == "internalFailure"
        assert azures == path.startswith("/openai/") and "The engine failed" in error["message"]


def test_completions_and_embeddings_by_deployment(running: tuple[Service, str]) -> None:
    _, url = running
    client = azure(url)
    answer = client.completions.create(model="babbage-002", prompt="The largest mammal is", max_tokens=200)
    assert answer.choices[0].text == "Blue whale. Quite a big fish."
    with pytest.raises(openai.BadRequestError) as caught:
        client.embeddings.create(model="gpt-4o-mini", input="a text", encoding_format="float")
    assert "makes no embeddings" in caught.value.message
    for call in (
        lambda: client.chat.completions.create(model="nothing", messages=SAY),
        lambda: client.completions.create(model="nothing", prompt="x"),
        lambda: client.embeddings.create(model="nothing", input="x"),
    ):
        with pytest.raises(openai.NotFoundError) as missing:
            call()
        assert missing.value.code == "DeploymentNotFound"
        assert "The API deployment for this resource does not exist." in missing.value.message


def test_what_azure_tells_as_openai_does_is_there_too(running: tuple[Service, str]) -> None:
    _, url = running
    client = azure(url)
    assert (
        client.responses.create(model="gpt-4o-mini", input="What is it?").output_text == "Blue whale. Quite a big fish."
    )
    assert client.batches.list().data == []
    assert client.evals.list().data == []
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="gpt-4o-mini", messages=SAY, temperature=-1)
    assert caught.value.code == "invalidPayload" and caught.value.param == "temperature"


def test_the_v1_address_speaks_as_openai_does(running: tuple[Service, str]) -> None:
    _, url = running
    client = OpenAI(base_url=f"{url}/openai/v1/", api_key="local", max_retries=0)
    file = client.files.create(file=("training_set.jsonl", io.BytesIO(rows())), purpose="fine-tune")
    job = client.fine_tuning.jobs.create(
        training_file=file.id, model="gpt-4o-mini-2024-07-18", extra_body={"trainingType": "Standard"}
    )
    assert job.status == "validating_files" and len(job.id) == len("ftjob-") + 24
    assert client.fine_tuning.jobs.cancel(job.id).status == "cancelled"
    assert client.chat.completions.create(model="gpt-4o-mini", messages=SAY).choices[0].message.role == "assistant"


def test_a_bearer_of_azures_directory_is_taken(running: tuple[Service, str]) -> None:
    _, url = running
    client = AzureOpenAI(azure_ad_token="eyJ0", api_version=VERSION, azure_endpoint=url, max_retries=0)
    assert client.models.list().data


def test_what_the_client_tells_of_a_refusal(running: tuple[Service, str]) -> None:
    _, url = running
    client = azure(url)
    with pytest.raises(openai.BadRequestError) as caught:
        client.files.create(file=("rows.jsonl", b"not json\n[1]\n"), purpose="fine-tune")
    assert caught.value.code == "jsonlValidationFailed" and caught.value.request_id
    assert caught.value.message.startswith("Error code: 400 - ")
    body: Any = caught.value.body
    assert body["target"] == "file" and {one["line"] for one in body["details"]} == {1, 2}
    with pytest.raises(openai.BadRequestError) as caught:
        client.fine_tuning.jobs.create(training_file="file-nothing", model="gpt-4o-mini-2024-07-18")
    assert caught.value.code == "invalidPayload" and caught.value.param == "training_file"
    with pytest.raises(openai.NotFoundError) as missing:
        client.fine_tuning.jobs.create(training_file="file-nothing", model="gpt-99")
    assert missing.value.code == "notFound" and "embedded:base" in missing.value.message


@pytest.mark.parametrize("mark", [b"\xef\xbb\xbf", b""])
def test_files_with_and_without_a_byte_order_mark(running: tuple[Service, str], mark: bytes) -> None:
    _, url = running
    client = azure(url)
    data = mark + rows().removeprefix(b"\xef\xbb\xbf")
    sent = requests.post(
        f"{url}/openai/files",
        params={"api-version": VERSION},
        headers={"api-key": "local"},
        data={"purpose": "fine-tune"},
        files={"file": ("training_set.jsonl", data, "application/json")},
        timeout=30,
    )
    assert sent.status_code == 201 and sent.json()["status"] == "processed"
    id = sent.json()["id"]
    assert client.files.content(id).read() == data
    assert id in [one.id for one in client.files.list(purpose="fine-tune")]
    assert client.files.delete(id).deleted is True
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(id)
