"""Notebooks written for the hosted services run here from the first cell to the last, unchanged: only variables of the
environment name the server.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.service.live import Live, live_server

pytestmark = pytest.mark.slow
long = pytest.mark.skipif("TUNESMITH_LONG" not in os.environ, reason="trains for long; set TUNESMITH_LONG=1")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    home = tmp_path_factory.mktemp("home")
    with live_server(home, "--wait-jobs", "--no-evidence", "--results-encoding", "auto") as live:
        yield live


@pytest.fixture
def run_notebook(server: Live, examples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs one of the notebooks in a copy of the examples; returns what each cell printed or showed."""
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    for name in ("hosted", "recipes", "phrases"):
        shutil.copytree(examples / name, tmp_path / name, ignore=shutil.ignore_patterns("tmp_*"))
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PATH", os.environ["PATH"])

    def run(name: str) -> list[str]:
        notebook = nbformat.read(tmp_path / "hosted" / name, as_version=4)
        nbclient.NotebookClient(
            notebook, timeout=600, resources={"metadata": {"path": str(tmp_path / "hosted")}}
        ).execute()
        return [_shown(cell) for cell in notebook.cells if cell.cell_type == "code"]

    return run


def _shown(cell: Any) -> str:
    parts = []
    for output in cell.outputs:
        if output.output_type == "stream":
            parts.append(output.text)
        elif "data" in output:
            parts.append(output.data.get("text/plain", ""))
    return "".join(parts)


def test_chat_models(run_notebook: Any) -> None:
    shown = run_notebook("chat_models.ipynb")
    events, model, answer = shown[8], shown[9], shown[11]
    lines = events.strip().splitlines()
    assert len(lines) == 20
    assert lines[-1] == "The job has successfully completed"
    assert lines[-2].startswith("New fine-tuned model created")
    assert any(line.startswith("Step 303/303: training loss=") and "full validation loss=" in line for line in lines)
    assert "ft:gpt-4o-mini-2024-07-18:" in model and ":recipe-ner:" in model
    assert answer.startswith("[") and '"' in answer


@long
def test_function_calling(run_notebook: Any) -> None:
    shown = run_notebook("function_calling.ipynb")
    assert shown[2].strip() == "cancelled"
    assert "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy" in shown[5]
    right = int(shown[6].split()[0])
    assert right >= 6, shown[6]


@long
def test_classification(run_notebook: Any) -> None:
    shown = run_notebook("classification.ipynb")
    assert shown[2].startswith("succeeded ft:babbage-002:")
    assert "train_accuracy" in shown[3]
    assert shown[5].strip().startswith("[{")
    right, _, of = shown[6].split()[:3]
    assert int(right) >= 0.8 * int(of), shown[6]


def test_azure_tutorial(run_notebook: Any) -> None:
    shown = run_notebook("azure.ipynb")
    assert "finished with status: succeeded" in shown[3]
    assert "gpt-4o-mini-2024-07-18.ft-" in shown[4]
    assert shown[5].startswith("20")
    assert shown[6].strip()
    assert shown[7].strip() in ("200", "202", "204")
