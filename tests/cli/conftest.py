"""A fake pipeline in this process, and a folder with a recipe to run."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import tunesmith

from .fake_pipeline import FakePipeline


@pytest.fixture
def fake(monkeypatch) -> FakePipeline:
    pipeline = FakePipeline()
    monkeypatch.setitem(sys.modules, "tunesmith.pipeline", pipeline)
    monkeypatch.setattr(tunesmith, "pipeline", pipeline, raising=False)
    return pipeline


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text("name: phrases\ndata: rows.csv\nmethod: lora\n")
    (tmp_path / "rows.csv").write_text("phrase,tone\nhello,warm\n")
    return tmp_path
