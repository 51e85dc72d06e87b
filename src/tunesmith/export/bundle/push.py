"""Bundles and exports sent to a registry: the Hugging Face hub, or any that speaks MLflow (Azure ML's does).

Nothing is sent unless somebody names where to; keys come from the environment or the tools' own logins.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.errors import EngineError, RecipeError


@dataclass(frozen=True, slots=True)
class Pushed:
    """Where it can be found now, and the version that the registry gave it."""

    url: str
    version: str


def push_to_hub(folder: Path, name: str, *, private: bool = True, endpoint: str | None = None) -> Pushed:
    """Upload a folder as the model repository `owner/name`, made private where it is new.

    Raises `EngineError` where the hub refuses it or cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    if name.count("/") != 1:
        raise RecipeError(f"{name!r} is no repository", where="hub", expected="owner/name")
    api = HfApi(endpoint=endpoint)
    refusals: tuple[type[Exception], ...] = (HfHubHTTPError, HFValidationError, OSError, *_transport_errors())
    try:
        api.create_repo(name, private=private, exist_ok=True)
        made = api.upload_folder(repo_id=name, folder_path=folder, commit_message=f"Upload {folder.name}")
    except refusals as error:
        raise EngineError(
            f"the hub did not take it: {(str(error).splitlines() or [type(error).__name__])[0]}",
            where=name,
            fix="log in with `hf auth login`, or set HF_TOKEN to one that may write there",
        ) from error
    return Pushed(f"{api.endpoint}/{name}", str(made.oid))


def _transport_errors() -> tuple[type[Exception], ...]:
    """What the hub's client raises where nobody answers: its HTTP library differs between its versions."""
    names = [name for name in ("httpx2", "httpx") if importlib.util.find_spec(name)]
    return tuple(importlib.import_module(name).HTTPError for name in names)


def push_to_mlflow(folder: Path, name: str, *, tags: dict[str, str], tracking_uri: str | None = None) -> Pushed:
    """Log a folder as a run's artifacts and register it as a new version of the model `name`.

    The registry is MLflow's own setting (`MLFLOW_TRACKING_URI`, `azureml://…` with its plugin installed) unless given.
    Raises `RecipeError` where MLflow is not installed or no registry is set, `EngineError` where it refuses.
    """
    if importlib.util.find_spec("mlflow") is None:
        raise RecipeError("MLflow is not installed", where=f"mlflow:{name}", fix="pip install 'tunesmith[mlflow]'")
    if tracking_uri is None and not os.environ.get("MLFLOW_TRACKING_URI"):
        raise RecipeError(
            "no registry is named", where=f"mlflow:{name}", fix="set MLFLOW_TRACKING_URI to the registry's address"
        )
    import mlflow
    from mlflow.exceptions import MlflowException

    client: Any = mlflow.MlflowClient(tracking_uri=tracking_uri, registry_uri=tracking_uri)
    try:
        found = client.get_experiment_by_name("tunesmith")
        experiment = found.experiment_id if found is not None else client.create_experiment("tunesmith")
        run = client.create_run(experiment, tags=tags, run_name=name)
        client.log_artifacts(run.info.run_id, str(folder), "model")
        client.set_terminated(run.info.run_id)
        _known(client, name)
        source = f"{run.info.artifact_uri}/model"
        version = client.create_model_version(name, source, run.info.run_id, tags=tags)
    except MlflowException as error:
        raise EngineError(f"the registry did not take it: {error}", where=f"mlflow:{name}") from error
    return Pushed(f"models:/{name}/{version.version}", str(version.version))


def _known(client: Any, name: str) -> None:
    """Make the registered model where there is none of this name."""
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name)
