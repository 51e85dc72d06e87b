"""Exit codes and what is said with them, in processes of their own."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tunesmith.cli.main import invoke

PROJECT = Path(__file__).resolve().parents[2]
FAKE = "from tests.cli.fake_pipeline import install; install(); from tunesmith.cli import main; main()"
PATHS = os.pathsep.join([str(PROJECT / "src"), str(PROJECT)])


def tunesmith(*arguments: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", FAKE, *arguments],
        cwd=cwd, env={**os.environ, "PYTHONPATH": PATHS, **variables}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "r.yaml").write_text("data: rows.csv\n")
    return tmp_path


@pytest.mark.parametrize(
    ("raised", "code", "words"),
    [
        ("data", 3, r"error: rows\.csv, line 3: no rows\n  expected: rows\n  to do: add rows"),
        ("resource", 4, "no space"),
        ("disk", 4, "/somewhere/file: no space left on device"),
        ("memory", 4, r"not enough memory[\s\S]*micro_batch_tokens"),
        ("verification", 5, "hash differs"),
        ("engine", 6, "endpoint down"),
        ("bug", 1, r"a bug in Tunesmith: ZeroDivisionError: oops"),
        ("interrupt", 130, "interrupted; the same command continues it: .*/d"),
    ],
)
def test_errors_in_words_and_as_json(fake, here, capsys, monkeypatch, raised, code, words):
    monkeypatch.setattr("tempfile.tempdir", str(here))
    fake.raises = raised
    assert invoke(["run", "r.yaml", "--out", "d"]) == code
    printed = capsys.readouterr()
    assert re.search(words, printed.err)
    assert "Traceback" not in printed.err
    assert printed.out == "a library prints\n"
    assert invoke(["run", "r.yaml", "--out", "d", "--json"]) == code
    error = json.loads(capsys.readouterr().out)["error"]
    assert set(error) == {"what", "where", "expected", "fix", "exit_code"}
    assert error["exit_code"] == code


def test_the_process_ends_with_the_code(folder):
    done = tunesmith("run", "r.yaml", "--json", cwd=folder, FAKE_RAISES="verification")
    assert done.returncode == 5
    assert json.loads(done.stdout)["error"]["what"] == "hash differs"


def test_a_bug_keeps_its_traceback_in_a_file_or_shows_it(folder):
    done = tunesmith("run", "r.yaml", cwd=folder, FAKE_RAISES="bug", TMPDIR=str(folder))
    kept = list(folder.glob("tunesmith-error-*.txt"))
    assert len(kept) == 1 and str(kept[0]) in done.stderr
    assert "ZeroDivisionError: oops" in kept[0].read_text()
    done = tunesmith("run", "r.yaml", cwd=folder, FAKE_RAISES="bug", TUNESMITH_DEBUG="1")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trian"], "Did you mean 'train'?"),
        (["nonsense"], "There are init, data, check, bases, run"),
        (["run"], "Missing argument 'RECIPE'"),
        (["run", "r.yaml", "--nw"], "No such option"),
        (["run", "missing.yaml"], "no such recipe file"),
        (["run", "r.yaml", "--set", "train.max_step=1"], "did you mean train.max_steps?"),
        (["verdict", "last"], "there is no run yet"),
    ],
)
def test_usage_and_recipe_errors_end_with_two(here, capsys, arguments, words):
    assert invoke(arguments) == 2
    printed = capsys.readouterr()
    assert words in printed.err and printed.out == ""
    assert invoke([*arguments, "--json"]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert words in f"{error['what']} {error['fix']}"


def test_ctrl_c_names_the_run_and_leaves_it_unfinished(folder):
    process = subprocess.Popen(
        [sys.executable, "-c", FAKE, "run", "r.yaml"],
        cwd=folder, env={**os.environ, "PYTHONPATH": PATHS, "FAKE_SLEEPS": "60"}, stderr=subprocess.PIPE, text=True,
        # A shell that starts this test run in the background lets it ignore Ctrl-C, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    assert process.stderr is not None
    before = [process.stderr.readline()]
    while not before[-1].startswith("training: done"):
        before.append(process.stderr.readline())
        assert before[-1], "".join(before)
    process.send_signal(signal.SIGINT)
    rest = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=30) == 130
    (run,) = (folder / "runs").iterdir()
    assert f"interrupted; the same command continues it: {run}" in rest
    assert json.loads((run / "manifest.json").read_text())["status"]["state"] == "unfinished"


def test_a_closed_pipe_is_no_error_of_ours(folder):
    code = f"import os, sys; os.close(1); r, w = os.pipe(); os.close(r); assert w == 1 or os.dup2(w, 1); {FAKE}"
    done = subprocess.run(
        [sys.executable, "-c", code, "recipe", "docs"],
        cwd=folder, env={**os.environ, "PYTHONPATH": PATHS}, stderr=subprocess.PIPE, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 141
    assert done.stderr == ""


def test_help_is_immediate_and_imports_nothing_heavy(folder, capsys):
    code = "import sys; from tunesmith.cli.main import invoke; c = invoke(['--help']); print(*sys.modules); sys.exit(c)"
    times = []
    for _ in range(3):
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": PATHS}, capture_output=True, text=True
        )
        times.append(time.perf_counter() - began)
    with capsys.disabled():
        print(f"\n`tunesmith --help`: {min(times):.2f} s (goal 0.3 s)")
    loaded = set(done.stdout.split())
    assert done.returncode == 0 and "tunesmith.cli.group" in loaded
    assert not {"torch", "transformers", "pydantic", "rich", "yaml", "numpy", "sklearn"} & loaded
    assert min(times) < 1.0


def test_defaults_are_set_before_torch_and_keep_what_the_user_set(folder):
    code = (
        "import os, sys; os.environ['OMP_WAIT_POLICY'] = 'ACTIVE'; from tunesmith.cli.environment import set_defaults; "
        "set_defaults(); assert 'torch' not in sys.modules; "
        "print(*(os.environ[n] for n in ('OMP_WAIT_POLICY', 'TOKENIZERS_PARALLELISM', 'HF_HUB_DISABLE_TELEMETRY')))"
    )
    done = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": PATHS}, capture_output=True, text=True)
    assert done.stdout.split() == ["ACTIVE", "false", "1"], done.stderr
