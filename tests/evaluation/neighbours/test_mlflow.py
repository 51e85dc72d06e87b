"""A run as MLflow records."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any

import pytest

from tests.evaluation.neighbours.made import make_evidence
from tunesmith.errors import RecipeError, ResourceError
from tunesmith.evaluation.neighbours import Options, write_as
from tunesmith.evaluation.neighbours.mlflow_records import numbers


def test_numbers_come_with_their_intervals(tmp_path: Path) -> None:
    evidence = make_evidence(tmp_path / "run")
    found = numbers(next(shown for shown in evidence.candidates if shown.name == "few_shot"))
    assert (found["accuracy"], found["accuracy.low"]) == (0.4, pytest.approx(0.3))
    assert (found["latency_p50"], found["k"], found["test_rows"]) == (0.5, 2.0, 5.0)
    assert (found["prompt_tokens"], found["answer_tokens"]) == (7.0, 3.0)


def test_without_mlflow_it_is_refused_and_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "mlflow" else find(name))
    with pytest.raises(RecipeError, match="mlflow is not installed"):
        write_as("mlflow", make_evidence(tmp_path / "run"), tmp_path / "out", Options())
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="mlflow is not installed (extra mlflow)")
def test_mlflow_gives_back_what_was_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    evidence = make_evidence(tmp_path / "run")
    made = write_as("mlflow", evidence, tmp_path / "out", Options())
    assert f"sqlite:///{tmp_path}/out/mlflow.db" in made.use
    mlflow: Any = importlib.import_module("mlflow")
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/out/mlflow.db")
    (experiment,) = [e for e in client.search_experiments() if e.name == "tunesmith"]
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {"run", "tuned", "few_shot", "trivial_majority"}
    whole = runs["run"]
    assert whole.data.tags["tunesmith.decision"] == "ship_tuned" and whole.data.params["data.train"].endswith(
        "rows.csv"
    )
    assert runs["few_shot"].data.tags["mlflow.parentRunId"] == whole.info.run_id
    assert runs["few_shot"].data.metrics["accuracy.high"] == 0.5
    assert [a.path for a in client.list_artifacts(runs["tuned"].info.run_id)] == ["tuned.jsonl"]
    assert {a.path for a in client.list_artifacts(whole.info.run_id)} == {
        *("comparison.json", "manifest.json", "verdict.json")
    }


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="mlflow is not installed (extra mlflow)")
def test_a_server_s_password_is_never_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    evidence = make_evidence(tmp_path / "run")
    for _ in range(2):  # what failed half-way does not bar the way
        with pytest.raises(ResourceError, match="MLFLOW_TRACKING_URI") as caught:
            write_as("mlflow", evidence, tmp_path / "out", Options())
        assert "secret" not in str(caught.value)
