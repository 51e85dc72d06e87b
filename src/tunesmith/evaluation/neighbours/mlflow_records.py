"""A run as MLflow records: one run with the recipe and the verdict, and below it one of each candidate.

Metrics come with their intervals (`accuracy`, `accuracy.low`, `accuracy.high`). Records go to DIR/mlflow.db with files
in DIR/artifacts, or to the server that `MLFLOW_TRACKING_URI` names; nothing is sent anywhere else.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import time
from pathlib import Path
from typing import Any

from tunesmith.errors import RecipeError, ResourceError
from tunesmith.evaluation.neighbours.evidence import Evidence, Shown
from tunesmith.evaluation.neighbours.writing import Options, Use
from tunesmith.training.trackers import flat

_LONGEST = 500
"""Characters of a parameter that every version of MLflow takes."""
_FILES = ("recipe.yaml", "manifest.json", "comparison.json", "verdict.json", "report.html")


def write_mlflow(evidence: Evidence, folder: Path, _: Options) -> Use:
    """Record the evidence. Raises `RecipeError` where MLflow is not installed, `ResourceError` where it fails."""
    if importlib.util.find_spec("mlflow") is None:
        raise RecipeError(
            "mlflow is not installed",
            where="--to mlflow",
            expected="the extra mlflow",
            fix="pip install 'tunesmith[mlflow]'",
        )
    folder.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    mlflow: Any = importlib.import_module("mlflow")
    server = os.environ.get("MLFLOW_TRACKING_URI")
    uri = server or f"sqlite:///{(folder / 'mlflow.db').resolve()}"
    try:
        client = mlflow.MlflowClient(tracking_uri=uri)
        _record(client, mlflow, evidence, None if server else (folder / "artifacts").resolve().as_uri())
    except ImportError as error:  # the small package without its database
        raise RecipeError(
            f"mlflow lacks a part: {error}", where="--to mlflow", fix="pip install 'tunesmith[mlflow]'"
        ) from error
    except mlflow.exceptions.MlflowException as error:
        where = "the server of MLFLOW_TRACKING_URI" if server else uri
        told = str(error).replace(uri, where).splitlines()[0]
        raise ResourceError(f"MLflow: {told}", where=where) from error
    if server:  # it may hold a password
        return Use("mlflow experiments search", ("records went to the server that MLFLOW_TRACKING_URI names",))
    return Use("mlflow ui --backend-store-uri sqlite:///{folder}/mlflow.db")


def _record(client: Any, mlflow: Any, evidence: Evidence, artifacts: str | None) -> None:
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "tunesmith")
    known = client.get_experiment_by_name(name)
    experiment = (
        known.experiment_id if known is not None else client.create_experiment(name, artifact_location=artifacts)
    )
    manifest = evidence.folder.manifest()
    tags = {
        "tunesmith.run": evidence.name,
        "tunesmith.base_sha256": str(manifest.get("base", {}).get("weights_sha256", "")),
        "tunesmith.test_sha256": str(manifest.get("data", {}).get("splits_sha256", {}).get("test", "")),
        **{f"tunesmith.{key}": str((evidence.verdict or {}).get(key)) for key in ("decision", "candidate", "reason")
           if evidence.verdict},
    }  # fmt: skip
    whole = client.create_run(experiment, run_name=evidence.name, tags=tags).info.run_id
    for key, value in flat(evidence.recipe.model_dump(mode="json")).items():
        client.log_param(whole, _name(key), str(value)[:_LONGEST])
    for file in _FILES:
        if (evidence.folder.path / file).is_file():
            client.log_artifact(whole, str(evidence.folder.path / file))
    for shown in evidence.candidates:
        _record_candidate(client, mlflow, evidence, shown, experiment, whole)
    client.set_terminated(whole)


def _record_candidate(client: Any, mlflow: Any, evidence: Evidence, shown: Shown, experiment: str, whole: str) -> None:
    tags = {"mlflow.parentRunId": whole, "tunesmith.run": evidence.name, "tunesmith.candidate": shown.name}
    run = client.create_run(experiment, run_name=shown.name, tags=tags).info.run_id
    now = int(time.time() * 1000)
    metrics = [mlflow.entities.Metric(_name(name), value, now, 0) for name, value in numbers(shown).items()]
    client.log_batch(run, metrics=metrics, params=[mlflow.entities.Param("candidate", shown.name)])
    client.log_artifact(run, str(evidence.folder.evaluation / f"{shown.name}.jsonl"))
    client.set_terminated(run)


def numbers(shown: Shown) -> dict[str, float]:
    """Metrics with both ends of their intervals, mean tokens, and the facts that are numbers (seconds)."""
    found: dict[str, float] = {}
    for value in shown.values:
        found |= {value.metric: value.value, f"{value.metric}.low": value.low, f"{value.metric}.high": value.high}
    found["test_rows"] = float(len(shown.answers))
    found["prompt_tokens"] = sum(a.prompt_tokens for a in shown.answers) / len(shown.answers)
    found["answer_tokens"] = sum(a.answer_tokens for a in shown.answers) / len(shown.answers)
    facts = ((name, value) for name, value in shown.facts.items() if not isinstance(value, bool))
    return found | {name: float(value) for name, value in facts if isinstance(value, int | float)}


def _name(text: str) -> str:
    """In the letters that MLflow takes for names."""
    return re.sub(r"[^\w\-./ ]", "_", text)
