"""Where curves are sent: TensorBoard files, and the trackers a recipe names.

A tracker takes the events of a training and writes their numbers under names such as `train/loss`. One that a recipe
names but that is not installed is refused before anything is computed. Nothing leaves the machine unless the tracker's
own environment variables say where to: MLflow and W&B write into the run's folder, trackio into its local store.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from tunesmith.errors import RecipeError
from tunesmith.recipe.schema import Train

_NOT_DRAWN = frozenset({"kind", "step", "steps", "best", "seq", "time"})
_LISTS = {"train_step": "train", "validation": "validation"}
"""Kinds of event that are drawn, and what their curves begin with."""


class Tracker(Protocol):
    """Takes events as they happen."""

    def write(self, event: Mapping[str, Any]) -> None:
        """Draw the event's numbers; kinds without numbers are passed over."""
        ...

    def close(self) -> None:
        """Write what is still held back."""
        ...


def open_trackers(train: Train, folder: Path, settings: Mapping[str, Any] | None = None) -> list[Tracker]:
    """The trackers a recipe's `train` section asks for, writing for the run in `folder`.

    `settings` are kept beside the curves, where a tracker shows such. Raises `RecipeError` for one not installed.
    """
    require_trackers(train)
    opened: list[Tracker] = [TensorBoard(folder / "tensorboard")] if train.tensorboard else []
    return opened + [_TRACKERS[name](folder, settings or {}) for name in train.trackers]


def require_trackers(train: Train) -> None:
    """Raise `RecipeError` where a tracker of the recipe is not installed. Cheap: imports nothing but looks."""
    missing = [name for name in train.trackers if importlib.util.find_spec(name) is None]
    if missing:
        one = len(missing) == 1
        raise RecipeError(
            f"{' and '.join(missing)} {'is' if one else 'are'} not installed",
            where="train.trackers",
            expected="trackers that are installed; TensorBoard files are written without any",
            fix=f"pip install {' '.join(missing)}, or take {'it' if one else 'them'} out of train.trackers",
        )


def scalars(event: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of an event by the name of their curve: `train/loss`, `validation/accuracy`, `train/machine/gpu_use`.

    Sections of an event (`metrics`, `probe`, `machine`, …) add their name, except the task's metrics. What is no finite
    number is left out, and so are kinds of event that have no curves.
    """
    prefix = _LISTS.get(event["kind"])
    found: dict[str, float] = {}
    if prefix is None:
        return found
    for key, value in event.items():
        if key in _NOT_DRAWN:
            continue
        if isinstance(value, Mapping):
            inner = prefix if key == "metrics" else f"{prefix}/{key}"
            found |= {f"{inner}/{name}": float(part) for name, part in value.items() if _is_number(part)}
        elif _is_number(value):
            found[f"{prefix}/{key}"] = float(value)
    return found


class TensorBoard:
    """TensorBoard files in a folder, opened with the first numbers: its library takes a while to import."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: Any = None

    def write(self, event: Mapping[str, Any]) -> None:
        numbers = scalars(event)
        if numbers and self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._folder))
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, event["step"])

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class Mlflow:
    """One MLflow run; into a SQLite file in the run's folder unless `MLFLOW_TRACKING_URI` is set."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        mlflow: Any = importlib.import_module("mlflow")
        uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(folder / 'mlflow.db').resolve()}"
        self._client: Any = mlflow.MlflowClient(tracking_uri=uri)
        self._metric: Any = mlflow.entities.Metric
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "tunesmith")
        known = self._client.get_experiment_by_name(name)
        experiment = known.experiment_id if known is not None else self._client.create_experiment(name)
        self._run: str = self._client.create_run(experiment, run_name=folder.name).info.run_id
        for key, value in flat(settings).items():
            self._client.log_param(self._run, key, str(value)[:_LONGEST_PARAMETER])

    def write(self, event: Mapping[str, Any]) -> None:
        now = int(time.time() * 1000)
        metrics = [self._metric(name, value, now, event["step"]) for name, value in scalars(event).items()]
        if metrics:
            self._client.log_batch(self._run, metrics=metrics)

    def close(self) -> None:
        self._client.set_terminated(self._run)


_LONGEST_PARAMETER = 500
"""Characters that every version of MLflow takes."""


class _Logging:
    """What W&B and trackio have in common: `init(project, name, config)`, then `log(numbers, step)`, then `finish()`.

    Both want rising steps, one call each: what is told of a step is held until the next one begins.
    """

    def __init__(self, log: Callable[[dict[str, float], int], None], finish: Callable[[], None]) -> None:
        self._log, self._finish = log, finish
        self._held: dict[str, float] = {}
        self._step = -1

    def write(self, event: Mapping[str, Any]) -> None:
        numbers = scalars(event)
        if not numbers:
            return
        if event["step"] != self._step:
            self._flush()
            self._step = int(event["step"])
        self._held |= numbers

    def close(self) -> None:
        self._flush()
        self._finish()

    def _flush(self) -> None:
        if self._held:
            self._log(self._held, self._step)
        self._held = {}


def wandb_run(folder: Path, settings: Mapping[str, Any]) -> Tracker:
    """A Weights & Biases run: files in the run's folder, sent nowhere unless `WANDB_MODE` is `online`."""
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    os.environ.setdefault("WANDB_SILENT", "true")
    wandb: Any = importlib.import_module("wandb")
    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", "tunesmith"),
        name=folder.name,
        dir=str(folder),
        mode=os.environ.get("WANDB_MODE", "offline"),
        config=flat(settings),
    )
    return _Logging(lambda numbers, step: run.log(numbers, step=step), run.finish)


def trackio_run(folder: Path, settings: Mapping[str, Any]) -> Tracker:
    """A trackio run in its local store (`TRACKIO_DIR`); a Space only where `TRACKIO_SPACE_ID` is set."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    trackio: Any = importlib.import_module("trackio")
    with contextlib.redirect_stdout(sys.stderr):  # it greets there, where programs may read our results
        run = trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", "tunesmith"),
            name=folder.name,
            space_id=os.environ.get("TRACKIO_SPACE_ID"),
            config=flat(settings),
        )

    def finish() -> None:
        with contextlib.redirect_stdout(sys.stderr):
            trackio.finish()

    return _Logging(lambda numbers, step: run.log(numbers, step), finish)


_TRACKERS: Mapping[str, Callable[[Path, Mapping[str, Any]], Tracker]] = {
    "mlflow": Mlflow,
    "wandb": wandb_run,
    "trackio": trackio_run,
}


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted key, empty ones left out; what is no number is written as text."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        elif value is not None and value != []:
            found[f"{prefix}{key}"] = value if isinstance(value, bool | int | float | str) else str(value)
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value - value == 0
