"""A folder with a tiny base, rows and a recipe, and the command line on it."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import save_base
from tunesmith.cli.main import invoke

PROJECT = Path(__file__).resolve().parents[2]
WORDS = {
    "warm": ("love", "dear", "thank", "gladly", "friend"),
    "cold": ("leave", "never", "stop", "enough", "refuse"),
    "neutral": ("note", "list", "table", "number", "report"),
}
RECIPE = """\
name: tones
data: {{train: rows.csv, split: {{test: 40}}}}
base: {base}
method: {{rank: 4}}
train: {{max_steps: 60, batch_size: 4, learning_rate: 5e-3, evaluations: 10, eval_rows: 8, patience: 0}}
evaluate:
  {{max_new_tokens: 16, batch_size: 2, few_shot_k: [1, 2], retrieval_k: [1, 2], selection_rows: 8, latency_rows: 3,
    bootstrap: 200}}
"""
QUICK = ("--set", "train.max_steps=2", "--set", "train.evaluations=1", "--set", "evaluate.max_new_tokens=4")


def tone_rows(count: int = 100, seed: int = 0) -> list[tuple[str, str]]:
    """Distinct phrases, each with the tone of its words."""
    draw = random.Random(seed)
    tones = sorted(WORDS)
    return [(f"{' '.join(draw.choices(WORDS[tones[i % 3]], k=2))} {i}", tones[i % 3]) for i in range(count)]


def write_csv(path: Path, rows: list[tuple[str, str]], header: str = "phrase,tone") -> Path:
    path.write_text("\n".join([header, *(f"{a},{b}" for a, b in rows)]) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> Path:
    """A base folder, saved once."""
    return save_base(tmp_path_factory.mktemp("bases") / "tiny")


def make_project(folder: Path, base: Path) -> Path:
    """`rows.csv` and `recipe.yaml` in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    write_csv(folder / "rows.csv", tone_rows())
    (folder / "recipe.yaml").write_text(RECIPE.format(base=base))
    return folder


def edit(project: Path, old: str, new: str) -> None:
    """Change the project's recipe."""
    recipe = project / "recipe.yaml"
    assert old in recipe.read_text()
    recipe.write_text(recipe.read_text().replace(old, new))


@pytest.fixture
def project(tmp_path, base, monkeypatch) -> Path:
    """A project folder, which is the working directory."""
    monkeypatch.chdir(make_project(tmp_path / "project", base))
    return tmp_path / "project"


def listen_to_interrupts() -> None:
    """A shell that starts this test run in the background lets it ignore Ctrl-C, and children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start(*arguments: str, cwd: Path) -> subprocess.Popen[str]:
    """The command line in a process of its own."""
    paths = os.pathsep.join([str(PROJECT / "src"), str(PROJECT)])
    return subprocess.Popen(
        [sys.executable, "-m", "tunesmith.cli", *arguments], cwd=cwd, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        preexec_fn=listen_to_interrupts,
    )  # fmt: skip


@dataclass(frozen=True)
class Said:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def error(self) -> dict[str, Any]:
        found: dict[str, Any] = self.json["error"]
        return found


@pytest.fixture
def tunesmith(capsys) -> Callable[..., Said]:
    """The command line in this process."""

    def command(*arguments: str | Path) -> Said:
        code = invoke([str(a) for a in arguments])
        printed = capsys.readouterr()
        return Said(code, printed.out, printed.err)

    return command


def events(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]


def answers(run: Path, candidate: str = "tuned") -> list[dict[str, Any]]:
    """The scored answers of a candidate."""
    return [json.loads(line) for line in (run / "evaluation" / f"{candidate}.jsonl").read_text().splitlines()]
