"""The same programs with the oldest client that is promised and with the newest one, against a real server."""

from __future__ import annotations

import csv
import fcntl
import json
import os
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.service.live import Live, live_server

pytestmark = pytest.mark.slow
FLOWS = Path(__file__).with_name("flows.py")
PROJECT = Path(__file__).resolve().parents[3]
OLDEST = "1.40.0"
long = pytest.mark.skipif("TUNESMITH_LONG" not in os.environ, reason="trains for long; set TUNESMITH_LONG=1")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with live_server(tmp_path_factory.mktemp("home"), "--no-evidence", "--results-encoding", "auto") as live:
        yield live


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Few rows of the project's own examples, as the hosted services take them."""
    folder = tmp_path_factory.mktemp("rows")
    with (PROJECT / "examples" / "recipes" / "recipes.csv").open(newline="") as file:
        recipes = list(csv.DictReader(file))[:34]
    chat = [
        {
            "messages": [
                {"role": "system", "content": "Name the foods."},
                {"role": "user", "content": recipe["title"] + "\n" + recipe["ingredients"]},
                {"role": "assistant", "content": recipe["NER"]},
            ]
        }
        for recipe in recipes
    ]
    _write(folder / "train.jsonl", chat[:20])
    _write(folder / "valid.jsonl", chat[20:])
    tools = (PROJECT / "examples" / "hosted" / "home_tools.jsonl").read_text().splitlines()[:12]
    (folder / "tools.jsonl").write_text("\n".join(tools) + "\n")
    with (PROJECT / "examples" / "phrases" / "phrases.csv").open(newline="") as file:
        phrases = [row for row in csv.DictReader(file) if row["tone"] in ("angry", "grateful")][:24]
    pairs = [{"prompt": f"{row['phrase']}\n\n###\n\n", "completion": f" {row['tone']}"} for row in phrases]
    _write(folder / "pairs.jsonl", pairs)
    return folder


@pytest.fixture(scope="module", params=["newest", OLDEST])
def python(request: pytest.FixtureRequest) -> str:
    """A Python with this version of the client; the old one gets an environment of its own, kept under `build`."""
    if request.param == "newest":
        return sys.executable
    folder = PROJECT / "build" / f"openai-{OLDEST}"
    folder.parent.mkdir(exist_ok=True)
    with (folder.parent / f"{folder.name}.lock").open("w") as lock:  # for tests that run side by side
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / ".complete").exists():
            _install_oldest(folder)
    return str(folder / "bin" / "python")


@pytest.fixture
def seen(server: Live, rows: Path, python: str) -> Any:
    def run(flow: str) -> dict[str, Any]:
        environment = {**os.environ, **server.environment}
        done = subprocess.run(
            [python, str(FLOWS), flow, str(rows)], env=environment, capture_output=True, text=True, timeout=400
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return dict(json.loads(done.stdout.splitlines()[-1]))

    return run


def test_recipes(seen: Any) -> None:
    said = seen("recipes")
    assert said["began"] == "validating_files"
    assert said["status"] == "succeeded"
    assert said["tokens"] > 0
    assert said["model"].startswith("ft:gpt-4o-mini-2024-07-18:tunesmith:recipe-ner:")
    assert len(said["page"]) == 20
    assert said["page"][-1] == "The job has successfully completed"
    assert said["page"][-2] == f"New fine-tuned model created: {said['model']}"
    assert said["events"] == list(dict.fromkeys(said["events"]))
    assert said["events"][-1].startswith("Created fine-tuning job: ftjob-")
    assert said["answer"] == said["streamed"]
    assert said["usage"][0] == said["usage"][1]
    assert len(said["checkpoints"]) >= 1
    assert said["csv"]
    assert said["models"] and said["deleted"]
    assert said["after"][:2] == ["NotFoundError", "model_not_found"]


def test_functions(seen: Any) -> None:
    said = seen("functions")
    assert said["cancelled"] == "cancelled"
    assert said["listed"]
    assert said["status"] == "succeeded"
    assert said["csv"].startswith("step,train_loss,train_accuracy")
    assert said["finish"] in ("tool_calls", "stop", "length")


def test_completions(seen: Any) -> None:
    said = seen("completions")
    assert said["status"] == "succeeded"
    assert said["model"].startswith("ft:babbage-002:")
    assert said["top"] == [2]
    assert said["csv"].startswith("step,train_loss")


@long
def test_azure(seen: Any) -> None:
    said = seen("azure")
    assert said["began"] == "pending"
    assert said["status"] == "succeeded"
    assert said["model"].startswith("gpt-4o-mini-2024-07-18.ft-")
    assert any(message.startswith("Completed results file: file-") for message in said["events"])
    assert said["answer"] == "assistant"


def _install_oldest(folder: Path) -> None:
    """Make an environment with the old client, or skip the test where that cannot be installed."""
    venv.create(folder, with_pip=True, clear=True)
    # Clients of that time hand the transport an argument that later ones of it no longer know.
    command = [
        folder / "bin" / "python",
        "-m",
        "pip",
        "install",
        "-q",
        "--retries",
        "1",
        f"openai=={OLDEST}",
        "httpx<0.28",
    ]
    made = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if made.returncode:
        pytest.skip(f"openai {OLDEST} cannot be installed: {made.stderr.strip().splitlines()[-1]}")
    (folder / ".complete").touch()


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
