"""A run with a tuned model and test rows, made once; every test gets a copy of its own."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.pipeline.conftest import make_project
from tests.tiny import save_base
from tunesmith.export import writers
from tunesmith.export.types import Work
from tunesmith.pipeline import run
from tunesmith.pipeline.exporting import flow
from tunesmith.recipe import Recipe
from tunesmith.runs import RunFolder

SETTINGS: dict[str, Any] = {
    "name": "tones",
    "data": {"train": "rows.csv", "split": {"test": 40}},
    "method": {"rank": 8},
    "train": {"max_steps": 120, "batch_size": 8, "learning_rate": 2e-2, "evaluations": 2, "select_by": "loss"},
    "baselines": ["zero_shot"],
    "evaluate": {"bootstrap": 200, "latency_rows": 1, "max_new_tokens": 12, "forgetting": False},
}


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> Path:
    return save_base(tmp_path_factory.mktemp("export-bases") / "tiny")


@pytest.fixture(scope="session")
def tuned_once(tmp_path_factory, base) -> RunFolder:
    folder = make_project(tmp_path_factory.mktemp("exports") / "project", base)
    before = Path.cwd()
    os.chdir(folder)
    try:
        result = run(Recipe(**SETTINGS, base=str(base)), out="run")
    finally:
        os.chdir(before)
    right = result.comparison.value("tuned").value if result.comparison is not None else 0.0
    assert right > result.comparison.value("zero_shot").value  # type: ignore[union-attr]
    return result.folder


@pytest.fixture
def tuned(tuned_once, tmp_path) -> RunFolder:
    shutil.copytree(tuned_once.path, tmp_path / "run")
    return RunFolder.open(tmp_path / "run")


Damage = Callable[[Path], None]


@pytest.fixture
def damaging(monkeypatch) -> Iterator[Callable[[Damage], None]]:
    """Lets writers damage what they have written, as a bug in one would."""

    def install(damage: Damage) -> None:
        def writer_of(kind: Any) -> Any:
            real = writers.writer_of(kind)

            def write(work: Work) -> Mapping[str, Any]:
                facts = real(work)
                damage(work.staged)
                return facts

            return write

        monkeypatch.setattr(flow, "writer_of", writer_of)

    yield install
