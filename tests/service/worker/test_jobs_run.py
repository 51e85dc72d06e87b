"""Jobs from creation to their end, by a real worker with real processes."""

from __future__ import annotations

import io
import json
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from safetensors.numpy import load

from tests.service.worker.bench import MODEL, Bench, processes_of, rows, taken_up
from tunesmith.service.evidence import report_html, report_of
from tunesmith.service.jobs.operations import cancel_job, pause_job, resume_job
from tunesmith.service.store.nouns import Checkpoint, File, Job, Model
from tunesmith.service.worker.measuring import measure
from tunesmith.service.worker.working import work_on

NUMBERS = {"hyperparameters": {"n_epochs": 3, "batch_size": 2}}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bench, Job]:
    """A job with a validation file that has succeeded, and its evidence.

    The evidence is made by this process, since one of its own would import everything again.
    """
    bench = Bench.at(tmp_path_factory.mktemp("home"), evidence=True)
    id = bench.create(rows(0, 12), rows(12, 10), suffix="Colours 2", **NUMBERS)
    with bench.working(evidence=False):
        bench.until_status(id, "succeeded")
        bench.until(lambda: processes_of(id) == [])
    assert measure(taken_up(bench, id), lambda: False)
    return bench, bench.job(id)


def content(bench: Bench, file: File) -> bytes:
    assert file.blob is not None
    return Path(bench.service.blobs.path(file.blob)).read_bytes()


def test_events_are_those_of_a_hosted_job_in_their_order(done):
    bench, job = done
    told = [e.message for e in bench.events(job.id) if e.level == "info" and e.type == "message"]
    checkpoints = [c.name for c in bench.store.all(Checkpoint, {"job_id": job.id})]
    assert told[0].startswith(f"Created fine-tuning job: {job.id}")
    assert told[1:4] == [
        f"Validating training file: {job.training_file} and validation file: {job.validation_file}",
        "Files validated, moving job to queued state",
        "Fine-tuning job started",
    ]
    assert told[4:] == [
        f"Checkpoint created at step 6 with Snapshot ID: {checkpoints[0]}",
        f"Checkpoint created at step 12 with Snapshot ID: {checkpoints[1]}",
        f"New fine-tuned model created: {job.fine_tuned_model}",
        "The job has successfully completed",
    ]
    assert len(checkpoints) == 3 and checkpoints[2] == job.fine_tuned_model
    assert bench.steps(job.id) == list(range(1, 19))
    assert [e.seq for e in bench.events(job.id)] == list(range(1, len(bench.events(job.id)) + 1))
    last = [e for e in bench.events(job.id) if e.type == "metrics"][-1]
    assert last.message.startswith("Step 18/18: training loss=") and "full validation loss=" in last.message


def test_the_job_says_what_was_really_done(done):
    _, job = done
    assert job.status == "succeeded" and job.error is None and job.estimated_finish is None
    assert job.hyperparameters == {"n_epochs": 3, "batch_size": 2, "learning_rate_multiplier": 1.0}
    assert job.resolved["rank"] == 16 and "q_proj" in job.resolved["target_modules"]
    assert job.trained_tokens == job.resolved["tokens"] > 18 * 2 * 10
    assert job.fine_tuned_model is not None
    assert job.fine_tuned_model.startswith(f"ft:{MODEL}:tunesmith:colours-2:")


def test_models_answer_and_were_trained_differently(done):
    bench, job = done
    models = {m.step: m for m in bench.store.all(Model, {"job_id": job.id})}
    assert sorted(models) == [6, 12, 18]
    assert models[18].id == job.fine_tuned_model and models[18].kind == "tuned"
    assert [models[step].kind for step in (6, 12)] == ["checkpoint"] * 2
    weights = []
    for model in models.values():
        folder = bench.settings.home / str(model.adapter)
        assert model.base == "embedded:tiny" and (folder / "adapter_config.json").is_file()
        weights.append((folder / "adapter_model.safetensors").read_bytes())
    assert len(set(weights)) == 3


def test_results_are_the_numbers_then_the_adapter_then_the_evidence(done):
    bench, job = done
    files = [bench.store.get(File, id) for id in job.result_files]
    assert [f.filename for f in files] == [
        "step_metrics.csv",
        "adapter.zip",
        "verdict.json",
        "report.html",
        "answers.zip",
    ]
    assert {f.purpose for f in files} == {"fine-tune-results"}
    lines = content(bench, files[0]).decode().splitlines()
    assert lines[0] == "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy" and len(lines) == 19
    with zipfile.ZipFile(io.BytesIO(content(bench, files[1]))) as packed:
        assert packed.testzip() is None
        tensors = load(packed.read("adapter_model.safetensors"))
        assert json.loads(packed.read("adapter_config.json"))["peft_type"] == "LORA" and tensors
    with zipfile.ZipFile(io.BytesIO(content(bench, files[4]))) as packed:
        assert len(packed.read("tuned.jsonl").splitlines()) == 10
    assert all(f.bytes == len(content(bench, f)) for f in files)


def test_evidence_is_measured_on_the_validation_file(done):
    bench, job = done
    report = report_of(bench.service, job)
    assert (report["status"], report["twin"]) == ("ready", False), job.evidence_error
    tuned = [s for s in report["scores"] if s["candidate"] == "tuned"]
    assert tuned and all(s["n"] == 10 and s["low"] <= s["value"] <= s["high"] for s in tuned)
    candidates = {s["candidate"] for s in report["scores"]}
    assert {"zero_shot", "few_shot", "tuned"} < candidates
    assert {c["candidate"] for c in report["costs"]} <= candidates and report["headline"]
    page = report_html(bench.service, job)
    assert page is not None and page.read_text().startswith("<!doctype html")
    for text in (json.dumps(report), page.read_text()):
        assert str(bench.settings.home) not in text and "/site-packages" not in text


def test_nothing_of_the_work_is_left_running_or_half_written(done):
    bench, job = done
    assert processes_of(job.id) == []
    assert not [p for p in bench.settings.home.rglob(".*") if p.name.endswith(".tmp")]


def test_files_that_cannot_be_trained_on_fail_the_job_with_every_fault(tmp_path):
    bench = Bench.at(tmp_path)
    id = bench.create(rows(0, 7), rows(7, 3))
    with bench.working():
        job = bench.until_status(id, "failed")
    assert job.error is not None and job.error["code"] == "invalid_n_examples"
    assert job.error["message"] == "Training file has 7 example(s), but must have at least 10 examples"
    errors = [e for e in bench.events(id) if e.level == "error"]
    assert len(errors) == len(job.error["details"]) >= 1 and job.finished_at is not None
    assert report_of(bench.service, job)["status"] == "none"


def test_pause_and_resume_lose_no_step_and_cancel_ends_it(tmp_path):
    bench = Bench.at(tmp_path)
    id = bench.create(rows(0, 40), hyperparameters={"n_epochs": 50, "batch_size": 4})
    desk = taken_up(bench, id)  # in this process: others would import everything again
    with stopping(pause_job, bench, id, 5):
        assert work_on(desk, lambda: False)
    paused, at = bench.job(id), bench.steps(id)[-1]
    assert paused.status == "paused" and paused.wish is None and paused.estimated_finish is None
    assert bench.events(id)[-1].message == f"Fine-tuning job paused at step {at}" and at < 500
    resume_job(bench.service, id)
    with stopping(cancel_job, bench, id, at + 5):
        assert work_on(desk, lambda: False)
    cancelled, told = bench.job(id), bench.steps(id)
    assert cancelled.status == "cancelled" and cancelled.fine_tuned_model is None and cancelled.finished_at
    assert told == list(range(1, len(told) + 1)) and at < told[-1] < 500
    assert bench.events(id)[-1].message == "Fine-tuning job cancelled"
    assert [e.message for e in bench.events(id)].count("Fine-tuning job started") == 1
    assert not (tmp_path / "inputs" / id).exists() and not (tmp_path / "runs" / id / "checkpoints").exists()


@contextmanager
def stopping(stop: Callable[..., Job], bench: Bench, id: str, steps: int) -> Iterator[None]:
    """A user who cancels or pauses a job once more than so many steps were told."""

    def wait_and_stop() -> None:
        bench.until(lambda: len(bench.steps(id)) > steps)
        stop(bench.service, id, wait=30)

    user = threading.Thread(target=wait_and_stop)
    user.start()
    yield
    user.join(30)
