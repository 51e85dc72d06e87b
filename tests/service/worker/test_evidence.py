"""What is told of a job's worth in every state, and that measuring it is in nobody's way."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.service.worker.bench import Bench, rows
from tunesmith.service.evidence import REPORT, VERDICT, report_html, report_of
from tunesmith.service.jobs.operations import cancel_job, delete_job, pause_job, resume_job
from tunesmith.service.store.nouns import Checkpoint, File, Job, Model
from tunesmith.service.worker.tidying import forget


@pytest.mark.parametrize(
    ("fields", "status", "said"),
    [
        ({"status": "running"}, "pending", "not finished yet"),
        ({"status": "paused"}, "pending", "not finished yet"),
        ({"status": "succeeded"}, "pending", "when no job needs the device"),
        ({"status": "succeeded", "evidence": "running"}, "running", None),
        ({"status": "succeeded", "evidence": "failed", "evidence_error": "One row."}, "failed", "One row."),
        ({"status": "succeeded", "evidence": "none"}, "none", "measures no evidence"),
        ({"status": "failed"}, "none", "the job failed"),
        ({"status": "cancelled"}, "none", "was cancelled"),
    ],
)
def test_every_state_is_told(tmp_path, fields: dict[str, Any], status, said):
    bench = Bench.at(tmp_path, evidence=True)
    job = bench.store.update(Job, bench.create(rows(0, 10)), **fields)
    report = report_of(bench.service, job)
    assert report["status"] == status and report["job_id"] == job.id and report["scores"] is None
    assert (report["message"] is None) == (said is None) and (said or "") in (report["message"] or "")
    assert report_html(bench.service, job) is None


def test_a_verdict_that_somebody_deleted_is_no_error(tmp_path):
    bench = Bench.at(tmp_path, evidence=True)
    job = bench.job(bench.create(rows(0, 10)))
    page = File("file-r", 1, REPORT, "fine-tune-results", 3, bench.service.blobs.add(b"<p>"))
    bench.store.add(page)
    ready = replace(job, status="succeeded", evidence="ready", result_files=("file-gone", "file-r"))
    report = report_of(bench.service, ready)
    assert (report["status"], report["verdict"], report["files"]) == ("ready", None, {REPORT: "file-r"})
    assert report_html(bench.service, ready) is not None
    bench.service.blobs.path(page.blob).unlink()
    assert report_html(bench.service, ready) is None and VERDICT not in report["files"]


@pytest.mark.slow
def test_a_twin_is_measured_gives_way_to_a_job_and_goes_on(tmp_path):
    bench = Bench.at(tmp_path, evidence=True)
    numbers = {"n_epochs": 2, "batch_size": 2}
    old = bench.create(rows(0, 40), hyperparameters=numbers)
    with bench.working():
        bench.until_status(old, "succeeded")
        bench.until(lambda: (tmp_path / "runs" / f"{old}-evidence" / "task.json").is_file())
        new = bench.create(rows(0, 40), hyperparameters=numbers)
        bench.until(lambda: bench.job(new).status != "validating_files", 30)
        assert bench.job(old).evidence == "pending", "it gave way"
        bench.until(lambda: all(bench.job(id).evidence == "ready" for id in (old, new)), 120)
    report = report_of(bench.service, bench.job(old))
    assert report["twin"] is True and "80 %" in report["measured_on"]
    assert {s["n"] for s in report["scores"]} == {8}
    again = report_of(bench.service, bench.job(new))
    assert [s["value"] for s in again["scores"]] == [s["value"] for s in report["scores"]], (
        "the same rows, the same way"
    )
    left = {p.name for p in (tmp_path / "runs" / old).iterdir()}
    assert "checkpoints" not in left and "adapter" in left and not (tmp_path / "inputs" / old).exists()
    forget(tmp_path, old)
    assert {p.name for p in (tmp_path / "runs").iterdir()} == {new, f"{new}-evidence"}
    tuned = bench.store.get(Model, bench.job(old).fine_tuned_model)
    assert (tmp_path / tuned.adapter / "adapter_model.safetensors").is_file()


@pytest.mark.slow
def test_a_paused_azure_job_leaves_a_checkpoint_to_deploy(tmp_path):
    bench = Bench.at(tmp_path)
    id = bench.create(rows(0, 40), flavour="azure", hyperparameters={"n_epochs": 20, "batch_size": 4})
    with bench.working():
        bench.until(lambda: len(bench.steps(id)) > 5)
        assert pause_job(bench.service, id, wait=60).status == "paused"
        (kept,) = bench.store.all(Checkpoint, {"job_id": id})
        model = bench.store.get(Model, kept.name)
        assert kept.step == bench.steps(id)[-1] and kept.name.endswith(f":ckpt-step-{kept.step}")
        assert model.kind == "checkpoint" and (tmp_path / model.adapter / "adapter_config.json").is_file()
        resume_job(bench.service, id)
        job = bench.until_status(id, "succeeded")
    steps = [one.step for one in bench.store.all(Checkpoint, {"job_id": id})]
    assert steps == [kept.step, 180, 190, 200] and ".ft-" in job.fine_tuned_model
    assert len(bench.store.all(Model, {"job_id": id})) == 4


def test_a_deleted_job_leaves_no_rows_behind(tmp_path):
    bench = Bench.at(tmp_path)
    id, other = bench.create(rows(0, 10)), bench.create(rows(0, 10))
    places = [f"inputs/{id}", f"runs/{id}", f"runs/{id}-evidence"]
    for place in (*places, f"runs/{other}"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "answers.jsonl").write_text("{}")
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / f"{id}.log").write_text("")
    cancel_job(bench.service, id)
    delete_job(bench.service, id)
    assert not any((tmp_path / place).exists() for place in (*places, f"logs/{id}.log"))
    assert (tmp_path / f"runs/{other}").is_dir()
