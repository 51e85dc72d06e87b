"""Trackers: which curves are drawn, what is refused, and that nothing is sent anywhere unasked."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from tunesmith.errors import RecipeError
from tunesmith.recipe.schema import Train
from tunesmith.training import trackers
from tunesmith.training.trackers import flat, open_trackers, scalars

STEP = {
    "kind": "train_step", "step": 3, "steps": 9, "epoch": 0.5, "loss": 1.5, "learning_rate": 1e-3, "grad_norm": 0.7,
    "tokens_per_second": 100.0, "seconds": 2.0, "memory_bytes": 4096, "mfu": None, "machine": {"cpu_percent": 88.0},
}  # fmt: skip
VALIDATION = {
    "kind": "validation", "step": 3, "loss": 1.2, "metrics": {"accuracy": 0.5}, "best": True,
    "probe": {"train_loss": 0.9},
}  # fmt: skip


def test_an_event_becomes_curves():
    assert scalars(STEP) == {
        "train/epoch": 0.5, "train/loss": 1.5, "train/learning_rate": 1e-3, "train/grad_norm": 0.7,
        "train/tokens_per_second": 100.0, "train/seconds": 2.0, "train/memory_bytes": 4096.0,
        "train/machine/cpu_percent": 88.0,
    }  # fmt: skip
    assert scalars(VALIDATION) == {
        "validation/loss": 1.2, "validation/accuracy": 0.5, "validation/probe/train_loss": 0.9,
    }  # fmt: skip
    assert scalars({"kind": "train_started", "steps": 9}) == {}
    nothing = {"kind": "validation", "step": 1, "loss": float("nan"), "metrics": {"a": float("inf")}, "best": False}
    assert scalars(nothing) == {}


def test_tensorboard_holds_what_was_told(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (tracker,) = open_trackers(Train(), tmp_path)
    tracker.write(STEP)
    tracker.write(VALIDATION)
    tracker.close()
    read = EventAccumulator(str(tmp_path / "tensorboard"))
    read.Reload()
    assert set(read.Tags()["scalars"]) == set(scalars(STEP)) | set(scalars(VALIDATION))
    (point,) = read.Scalars("validation/accuracy")
    assert (point.step, point.value) == (3, 0.5)


def test_nothing_is_opened_where_nothing_is_wanted(tmp_path):
    assert open_trackers(Train(tensorboard=False), tmp_path) == []
    assert not any(tmp_path.iterdir())


def test_what_is_not_installed_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RecipeError, match="mlflow and wandb are not installed") as told:
        open_trackers(Train(trackers=["mlflow", "wandb"]), tmp_path)
    assert "pip install mlflow wandb" in str(told.value) and told.value.where == "train.trackers"
    assert not any(tmp_path.iterdir())


def test_settings_are_flattened():
    assert flat({"a": {"b": 1, "c": {"d": "x"}}, "e": None, "f": [], "g": [1, 2]}) == {
        "a.b": 1,
        "a.c.d": "x",
        "g": "[1, 2]",
    }


@pytest.fixture
def installed(monkeypatch) -> Any:
    """A way to pretend that a tracker is installed."""

    def install(name: str, **attributes: Any) -> None:
        module = ModuleType(name)
        module.__spec__ = SimpleNamespace(name=name)  # type: ignore[assignment]
        vars(module).update(attributes)
        monkeypatch.setitem(sys.modules, name, module)

    for variable in ("WANDB_MODE", "WANDB_PROJECT", "TRACKIO_SPACE_ID", "TRACKIO_PROJECT", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(variable, raising=False)
    return install


class Run:
    """What W&B's and trackio's `init` return."""

    def __init__(self) -> None:
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.finished = False

    def log(self, numbers: dict[str, float], step: int) -> None:
        self.logged.append((step, numbers))

    def finish(self) -> None:
        self.finished = True


def test_wandb_gets_each_step_once_and_stays_offline(tmp_path, installed, monkeypatch):
    run, asked = Run(), {}
    installed("wandb", init=lambda **given: asked.update(given) or run)
    train = Train(tensorboard=False, trackers=["wandb"])
    (tracker,) = open_trackers(train, tmp_path / "tones-1", {"train": {"seed": 3}})
    tracker.write({"kind": "train_started", "steps": 9})
    tracker.write(STEP)
    tracker.write(VALIDATION)
    tracker.write(STEP | {"step": 4})
    assert [step for step, _ in run.logged] == [3]  # step 4 may still get its validation
    tracker.close()
    assert run.logged == [(3, scalars(STEP) | scalars(VALIDATION)), (4, scalars(STEP))] and run.finished
    assert (asked["mode"], asked["name"], asked["config"]) == ("offline", "tones-1", {"train.seed": 3})
    monkeypatch.setenv("WANDB_MODE", "online")
    open_trackers(train, tmp_path)
    assert asked["mode"] == "online"


def test_trackio_stays_local_and_off_standard_output(tmp_path, installed, capsys):
    run, asked = Run(), {}

    def init(**given: Any) -> Run:
        asked.update(given)
        print("welcome")
        return run

    installed("trackio", init=init, finish=run.finish)
    (tracker,) = open_trackers(Train(tensorboard=False, trackers=["trackio"]), tmp_path)
    tracker.write(STEP)
    tracker.close()
    assert run.logged == [(3, scalars(STEP))] and run.finished
    assert asked["space_id"] is None
    assert capsys.readouterr().out == ""


def test_mlflow_writes_into_the_run(tmp_path, installed):
    calls: dict[str, Any] = {"metrics": [], "params": {}}

    class Client:
        def __init__(self, tracking_uri: str) -> None:
            calls["uri"] = tracking_uri

        def get_experiment_by_name(self, name: str) -> None:
            return None

        def create_experiment(self, name: str) -> str:
            return "7"

        def create_run(self, experiment: str, run_name: str) -> Any:
            calls["run"] = (experiment, run_name)
            return SimpleNamespace(info=SimpleNamespace(run_id="r"))

        def log_param(self, run: str, key: str, value: str) -> None:
            calls["params"][key] = value

        def log_batch(self, run: str, metrics: list[Any]) -> None:
            calls["metrics"] += metrics

        def set_terminated(self, run: str) -> None:
            calls["ended"] = run

    entities = SimpleNamespace(Metric=lambda key, value, timestamp, step: (key, value, step))
    installed("mlflow", MlflowClient=Client, entities=entities)
    (tracker,) = open_trackers(Train(tensorboard=False, trackers=["mlflow"]), tmp_path, {"base": {"model": "x" * 900}})
    tracker.write(VALIDATION)
    tracker.write({"kind": "train_started", "steps": 9})
    tracker.close()
    assert calls["uri"] == f"sqlite:///{tmp_path / 'mlflow.db'}" and calls["run"] == ("7", tmp_path.name)
    assert calls["metrics"] == [(name, value, 3) for name, value in scalars(VALIDATION).items()]
    assert len(calls["params"]["base.model"]) == 500 and calls["ended"] == "r"
