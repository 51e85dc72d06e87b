"""The routes as the official client sees them, over a real socket."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import openai
import pytest
from starlette.testclient import TestClient

from tests.service.apps import make_service
from tests.service.azure.serving import served
from tests.service.jobs.made import MODEL, a_file, a_job, chat_rows
from tunesmith.service.context import Service
from tunesmith.service.ids import new_id
from tunesmith.service.jobs import events
from tunesmith.service.jobs.events import Translator
from tunesmith.service.jobs.operations import tell
from tunesmith.service.store.nouns import Checkpoint, Event, Job

NAME = "ft:gpt-4o-mini-2024-07-18:tunesmith:recipe-ner:abcdefgh:ckpt-step-101"


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Service, openai.OpenAI]]:
    made = make_service(tmp_path_factory.mktemp("home"))
    with served(made) as url:
        yield made, openai.OpenAI(base_url=f"{url}/v1", api_key="local", max_retries=0, timeout=10)
    made.store.close()


def test_create_and_retrieve(live: tuple[Service, openai.OpenAI]) -> None:
    service, client = live
    file = a_file(service, chat_rows(10))
    made = client.fine_tuning.jobs.create(training_file=file.id, model="gpt-4o-mini-2024-07-18", suffix="x", seed=105)
    found = client.fine_tuning.jobs.retrieve(made.id)
    assert found == made
    assert (found.object, found.status, found.seed, found.model) == ("fine_tuning.job", "validating_files", 105, MODEL)
    assert found.trained_tokens is None and found.fine_tuned_model is None and found.result_files == []
    assert found.error is not None and found.error.code is None
    assert found.hyperparameters.n_epochs == "auto"
    assert found.method is not None and found.method.type == "supervised"
    assert found.user_provided_suffix == "x"  # type: ignore[attr-defined]
    assert "organization_id" in found.model_dump_json(indent=2)


def test_cancel_pause_and_resume_send_no_body(live: tuple[Service, openai.OpenAI]) -> None:
    service, client = live
    job = a_job()
    service.store.add(job)
    assert client.fine_tuning.jobs.pause(job.id).status == "paused"  # type: ignore[comparison-overlap]
    assert client.fine_tuning.jobs.resume(job.id).status == "queued"
    assert client.fine_tuning.jobs.cancel(job.id).status == "cancelled"
    with pytest.raises(openai.BadRequestError) as refused:
        client.fine_tuning.jobs.cancel(job.id)
    assert refused.value.message == f"Error code: 400 - Job has already been cancelled: {job.id}"
    assert (refused.value.type, refused.value.request_id is not None) == ("invalid_request_error", True)


def test_unknown_jobs(live: tuple[Service, openai.OpenAI]) -> None:
    _, client = live
    jobs = client.fine_tuning.jobs
    calls: list[Any] = [
        jobs.retrieve,
        jobs.cancel,
        jobs.pause,
        jobs.resume,
        jobs.list_events,
        jobs.checkpoints.list,
    ]
    for call in calls:
        with pytest.raises(openai.NotFoundError) as refused:
            call("ftjob-nothing")
        assert (refused.value.code, refused.value.param) == ("fine_tune_not_found", "fine_tune_id")
        assert "Could not find fine tune: ftjob-nothing" in refused.value.message


def test_events_come_newest_first_and_page_by_page(live: tuple[Service, openai.OpenAI]) -> None:
    service, client = live
    job = a_job(status="running")
    service.store.add(job)
    for draft in (events.created(job, "embedded:base"), events.validating(job), events.validated({}), events.started()):
        tell(service, job, draft)
    translator = Translator(steps_per_epoch=None)
    for step in range(1, 42):
        (draft,) = translator.hear(
            {"kind": "train_step", "step": step, "steps": 41, "loss": 0.5, "token_accuracy": 0.5}
        )
        tell(service, job, draft)
    page = client.fine_tuning.jobs.list_events(job.id)
    assert len(page.data) == 20 and page.has_more
    assert page.data[0].message == "Step 41/41: training loss=0.50"
    assert page.data[0].type == "metrics"
    assert page.data[0].data == {"step": 41, "total_steps": 41, "train_loss": 0.5, "train_mean_token_accuracy": 0.5}
    everything = list(client.fine_tuning.jobs.list_events(job.id, limit=10))
    assert len(everything) == len({event.id for event in everything}) == 45
    assert [event.message for event in everything[-4:]] == [
        "Fine-tuning job started",
        "Files validated, moving job to queued state",
        "Validating training file: file-train",
        f"Created fine-tuning job: {job.id} ({MODEL} stands for the local base embedded:base)",
    ]
    assert everything[-1].data == {} and everything[-1].object == "fine_tuning.job.event"
    assert all(event.id.startswith("ftevent-") for event in everything)


def test_a_cursor_of_another_job_is_refused(live: tuple[Service, openai.OpenAI]) -> None:
    service, client = live
    one, other = a_job(), a_job()
    service.store.add_all([one, other])
    mine = tell(service, one, events.started())
    for after in (mine.id, "ftevent-nothing", one.id):
        with pytest.raises(openai.BadRequestError) as refused:
            client.fine_tuning.jobs.list_events(other.id, after=after)
        assert refused.value.param == "after"


@pytest.mark.parametrize("limit", ["0", "-1", "1001", "many", "1.5"])
def test_limits_out_of_range(live: tuple[Service, openai.OpenAI], limit: str) -> None:
    service, client = live
    job = a_job()
    service.store.add(job)
    for path in ("/fine_tuning/jobs", f"/fine_tuning/jobs/{job.id}/events", f"/fine_tuning/jobs/{job.id}/checkpoints"):
        with pytest.raises(openai.BadRequestError) as refused:
            client.get(path, cast_to=object, options={"params": {"limit": limit}})
        assert refused.value.param == "limit"


def test_jobs_by_metadata(live: tuple[Service, openai.OpenAI]) -> None:
    service, client = live
    wanted = [a_job(metadata={"team": "réd", "n": str(n)}) for n in range(3)]
    service.store.add_all([*wanted, a_job(metadata={"team": "blue"}), a_job()])
    found = list(client.fine_tuning.jobs.list(metadata={"team": "réd"}, limit=2))
    assert [job.id for job in found] == [job.id for job in reversed(wanted)]
    assert [job.id for job in client.fine_tuning.jobs.list(metadata={"team": "réd", "n": "1"})] == [wanted[1].id]
    assert list(client.fine_tuning.jobs.list(metadata={"team": "none"})) == []
    without = client.fine_tuning.jobs.list(extra_query={"metadata": "null"}).data
    assert without and all(job.metadata is None for job in without)
    newest = client.fine_tuning.jobs.list(limit=1).data
    assert len(newest) == 1 and newest[0].metadata is None


def test_a_failed_job_says_why(live: tuple[Service, openai.OpenAI]) -> None:
    service, client = live
    error = {"code": "invalid_n_examples", "message": "Too few.", "param": "training_file", "details": [{"lines": [1]}]}
    job = a_job(status="failed", error=error)
    service.store.add(job)
    told = client.fine_tuning.jobs.retrieve(job.id)
    assert told.evidence == {"status": "none", "error": None}, "nothing will be measured"  # type: ignore[attr-defined]
    found = told.error
    assert found is not None
    assert (found.code, found.message, found.param) == ("invalid_n_examples", "Too few.", "training_file")
    assert found.details == [{"lines": [1]}]  # type: ignore[attr-defined]


def test_checkpoints_and_their_permissions(live: tuple[Service, openai.OpenAI]) -> None:
    service, client = live
    job = a_job(status="succeeded")
    kept = []
    for step in (101, 202):
        metrics = {"step": step, "train_loss": 0.25, "full_valid_loss": 0.5}
        id = new_id("ftckpt", separator="_")
        kept.append(Checkpoint(id, 5, job.id, NAME.replace("101", str(step)), step, metrics))
    service.store.add_all([job, *kept])
    page = client.fine_tuning.jobs.checkpoints.list(job.id)
    assert [one.step_number for one in page.data] == [202, 101]
    one = page.data[1]
    assert one.fine_tuned_model_checkpoint == NAME and one.fine_tuning_job_id == job.id
    assert one.metrics.full_valid_loss == 0.5 and one.metrics.valid_loss is None
    assert one.object == "fine_tuning.job.checkpoint"
    raw = client.get(f"/fine_tuning/jobs/{job.id}/checkpoints", cast_to=object)
    assert (raw["first_id"], raw["last_id"], raw["has_more"]) == (kept[1].id, kept[0].id, False)  # type: ignore[index]

    permissions = client.fine_tuning.checkpoints.permissions
    made = permissions.create(NAME, project_ids=["p1", "p2", "p1"]).data
    again = permissions.create(NAME, project_ids=["p2", "p3"]).data
    assert [one.project_id for one in made] == ["p1", "p2"]
    assert again[0] == made[1], "a project has one permission"
    assert {one.project_id for one in permissions.list(NAME)} == {"p1", "p2", "p3"}
    assert [one.project_id for one in permissions.list(NAME, order="ascending", limit=1)] == ["p1", "p2", "p3"]
    assert [one.project_id for one in permissions.list(NAME, project_id="p2")] == ["p2"]
    gone = permissions.delete(made[0].id, fine_tuned_model_checkpoint=NAME)
    assert (gone.id, gone.deleted, gone.object) == (made[0].id, True, "checkpoint.permission")
    with pytest.raises(openai.NotFoundError):
        permissions.delete(made[0].id, fine_tuned_model_checkpoint=NAME)
    with pytest.raises(openai.NotFoundError):
        permissions.create("ft:nothing", project_ids=["p"])
    with pytest.raises(openai.BadRequestError) as refused:
        permissions.create(NAME, project_ids=[])
    assert refused.value.param == "project_ids"


def test_names_with_colons_come_raw_and_encoded(client: TestClient, service: Service) -> None:
    service.store.add(Checkpoint("ftckpt_1", 5, "ftjob-1", NAME, 101, {}))
    for path in (NAME, NAME.replace(":", "%3A")):
        answer = client.get(f"/v1/fine_tuning/checkpoints/{path}/permissions")
        assert answer.status_code == 200 and answer.json()["data"] == []


def test_the_other_root(client: TestClient, service: Service) -> None:
    job = a_job()
    service.store.add(job)
    assert (
        client.get(f"/openai/v1/fine_tuning/jobs/{job.id}").json()
        == client.get(f"/v1/fine_tuning/jobs/{job.id}").json()
    )


def waiting(service: Service) -> Service:
    return replace(service, settings=replace(service.settings, wait_jobs=True))


def test_retrieve_waits_for_the_end_with_a_client_of_little_patience(service: Service) -> None:
    """The client gives up after a second of silence; the job takes three."""
    job = a_job(status="running")
    service.store.add(job)

    def worker() -> None:
        time.sleep(3)
        service.store.move_job(job.id, "succeeded", only_from=["running"], fine_tuned_model="ft:x")

    with served(waiting(service)) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="local", max_retries=0, timeout=1.5)
        thread = threading.Thread(target=worker)
        thread.start()
        began = time.monotonic()
        found = client.fine_tuning.jobs.retrieve(job.id)
        assert 2.5 < time.monotonic() - began < 10
        assert (found.status, found.fine_tuned_model) == ("succeeded", "ft:x")
        thread.join()


def test_what_has_ended_or_is_paused_is_answered_at_once_and_create_never_waits(service: Service) -> None:
    done, paused = a_job(status="succeeded"), a_job(status="paused")
    service.store.add_all([done, paused])
    file = a_file(service, chat_rows(10))
    with served(waiting(service)) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="local", max_retries=0, timeout=10)
        began = time.monotonic()
        assert client.fine_tuning.jobs.retrieve(done.id).status == "succeeded"
        assert client.fine_tuning.jobs.retrieve(paused.id).status == "paused"  # type: ignore[comparison-overlap]
        assert client.fine_tuning.jobs.create(training_file=file.id, model=MODEL).status == "validating_files"
        assert time.monotonic() - began < 3


def test_waiting_ends_with_the_server_and_with_the_job(service: Service) -> None:
    from tunesmith.service.app import make_app

    job, other = a_job(status="running"), a_job(status="running")
    service.store.add_all([job, other])
    app = make_app(waiting(service))

    def end(then: Any) -> None:
        time.sleep(0.5)
        then()

    with TestClient(app) as client:
        threading.Thread(target=end, args=(lambda: setattr(app.state.in_flight, "draining", True),)).start()
        assert client.get(f"/v1/fine_tuning/jobs/{job.id}").json()["status"] == "running"
        app.state.in_flight.draining = False
        threading.Thread(target=end, args=(lambda: service.store.remove(Job, other.id),)).start()
        assert client.get(f"/v1/fine_tuning/jobs/{other.id}").json()["id"] == other.id


def test_deleting_takes_checkpoints_and_events_along(service: Service) -> None:
    from tunesmith.service.jobs.operations import delete_job

    job = a_job(status="succeeded")
    service.store.add_all([job, Checkpoint("ftckpt_1", 5, job.id, NAME, 101, {})])
    tell(service, job, events.succeeded())
    delete_job(service, job.id)
    assert service.store.get(Job, job.id) is None
    assert service.store.count(Checkpoint) == 0
    assert service.store.count(Event) == 0, "they may quote rows"


def test_the_report_as_numbers_and_as_a_page(client: TestClient, service: Service) -> None:
    page = a_file(service, b"<html>Use it</html>", filename="report.html", purpose="fine-tune-results")
    ready = a_job(status="succeeded", evidence="ready", result_files=(page.id,))
    pending = a_job(status="succeeded", evidence="pending")
    service.store.add_all([ready, pending])
    path = f"/v1/fine_tuning/jobs/{ready.id}/report"
    shown = client.get(path, headers={"accept": "text/html,*/*"})
    assert shown.text == "<html>Use it</html>"
    assert shown.headers["content-type"].startswith("text/html")
    assert shown.headers["content-security-policy"] == "sandbox allow-scripts"
    assert client.get(path).json()["status"] == "ready"
    path = f"/v1/fine_tuning/jobs/{pending.id}/report"
    assert client.get(path).json()["status"] == "pending"
    missing = client.get(path, headers={"accept": "text/html"})
    assert missing.status_code == 404
    said = f"There is no report of job {pending.id}: the evidence is measured when no job needs the device."
    assert missing.json()["error"]["message"] == said
    assert client.get("/v1/fine_tuning/jobs/ftjob-nothing/report").status_code == 404


@pytest.mark.parametrize("body", ["", "{broken", "null", '{"unknown": 1}', "\x00"])
def test_actions_never_look_at_a_body(client: TestClient, service: Service, body: str) -> None:
    job = a_job()
    service.store.add(job)
    headers = {"content-type": "application/json"}
    for action, status in (("pause", "paused"), ("resume", "queued"), ("cancel", "cancelled")):
        answer = client.post(f"/v1/fine_tuning/jobs/{job.id}/{action}", content=body, headers=headers)
        assert (answer.status_code, answer.json()["status"]) == (200, status)


@pytest.mark.parametrize("id", ["..%2F..%2Fetc%2Fpasswd", "%00", "%F0%9F%A6%86", "a" * 3000, "ftjob-%0a", "%ED%A0%80"])
@pytest.mark.parametrize("rest", ["", "/events", "/checkpoints", "/report", "/cancel"])
def test_ids_that_name_nothing(client: TestClient, id: str, rest: str) -> None:
    call = client.post if rest == "/cancel" else client.get
    answer = call(f"/v1/fine_tuning/jobs/{id}{rest}")
    assert answer.status_code in (400, 404), answer.text
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert len(answer.text) < 1000


@pytest.mark.parametrize("multiplier", [2, 0.1, 1e-6])
def test_multipliers_may_be_whole_numbers(client: TestClient, service: Service, multiplier: float) -> None:
    file = a_file(service, chat_rows(10))
    body = {"model": MODEL, "training_file": file.id, "hyperparameters": {"learning_rate_multiplier": multiplier}}
    job = client.post("/v1/fine_tuning/jobs", json=body).json()
    assert job["hyperparameters"]["learning_rate_multiplier"] == multiplier
