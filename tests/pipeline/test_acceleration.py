"""Graphs, compiled layers and 8-bit floats through a whole training, where what only a GPU has is stood in for."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.pipeline.conftest import tone_rows, write_csv
from tests.tiny import save_base
from tunesmith.models import compiled_layers as compiling
from tunesmith.pipeline import planning, training
from tunesmith.pipeline.result import Result
from tunesmith.pipeline.run import run
from tunesmith.recipe import parse_recipe
from tunesmith.training import graphs


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder: Path = tmp_path_factory.mktemp("acceleration")
    save_base(folder / "base")
    write_csv(folder / "rows.csv", tone_rows(40))
    return folder


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is refused because this machine lacks it."""
    monkeypatch.setattr(planning, "refuse_absent", lambda recipe, device: None)


def trained(folder: Path, out: Path, **train: Any) -> tuple[Result, list[dict[str, Any]]]:
    heard: list[dict[str, Any]] = []
    recipe = parse_recipe(
        {
            "data": {"train": str(folder / "rows.csv"), "split": {"test": 6, "validation": 6}},
            "base": {"model": str(folder / "base")},
            "method": {"type": "lora", "rank": 4},
            "train": {"max_steps": 6, "batch_size": 4, "precision": "fp32", "evaluations": 2, "eval_rows": 0, **train},
        }
    )
    return run(recipe, out=out, through="train", listener=heard.append), heard


def losses(heard: list[dict[str, Any]]) -> list[float]:
    return [event["loss"] for event in heard if event["kind"] == "validation"]


def engine(heard: list[dict[str, Any]]) -> dict[str, Any]:
    (event,) = [event for event in heard if event["kind"] == "engine"]
    return event


def proved(result: Result) -> bool:
    proof = json.loads((result.folder.path / "manifest.json").read_text())["proof"]
    return bool(proof["reloaded"] == "compared")


def test_graphs_learn_what_streams_of_any_shape_do(folder: Path, tmp_path: Path, monkeypatch) -> None:
    made: list[graphs.MicroBatchGraphs] = []
    real = graphs.MicroBatchGraphs
    monkeypatch.setattr(graphs, "graph_device", lambda device: graphs.Uncaptured())
    monkeypatch.setattr(graphs, "MicroBatchGraphs", lambda *a, **k: made.append(real(*a, **k)) or made[-1])
    monkeypatch.setattr(training, "why_no_graphs", lambda *given: None)
    plain, heard = trained(folder, tmp_path / "plain")
    result, also = trained(folder, tmp_path / "graphs", cuda_graphs="on", micro_batch_tokens=512)
    assert len(made) == 1 and made[0].replays and made[0].refused is None
    assert losses(also) == pytest.approx(losses(heard), rel=1e-4) and len(losses(heard)) == 2
    assert proved(plain) and proved(result)
    assert not [event for event in also if event.get("code") == "cuda_graphs"]


def test_what_cannot_be_captured_is_trained_and_said(folder: Path, tmp_path: Path) -> None:
    result, heard = trained(folder, tmp_path / "run", cuda_graphs="on")
    (warning,) = [event for event in heard if event.get("code") == "cuda_graphs"]
    assert warning["text"] == "CUDA graphs are not used: attention in fp32 has no kernel for streams"
    assert proved(result)


def test_eight_bits_train_and_leave_the_base_as_it_was(folder: Path, tmp_path: Path) -> None:
    result, heard = trained(folder, tmp_path / "run", precision="fp8")
    assert engine(heard)["fp8_layers"] == 14 and proved(result)
    first, last = losses(heard)
    assert last < first
    assert result.recipe.train.precision == "fp8"


@pytest.mark.skipif("TUNESMITH_COMPILE" not in os.environ, reason="compiles for long; set TUNESMITH_COMPILE=1")
def test_compiled_layers_train(folder: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(training, "compiled_layers", partial(compiling.compiled_layers, backend="eager"))
    monkeypatch.setattr(training, "cache_folder", lambda: tmp_path / "cache")
    result, heard = trained(folder, tmp_path / "run", compile="on")
    torch.compiler.reset()
    assert engine(heard)["compiled_layers"] == 1 and engine(heard)["fused_layers"] == 0
    assert proved(result)
    plain, also = trained(folder, tmp_path / "plain", compile="off")
    assert losses(heard) == pytest.approx(losses(also), rel=1e-4) and proved(plain)
