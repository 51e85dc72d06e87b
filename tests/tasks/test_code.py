"""Code that is run: what the fence refuses, what code in it can still use, and which rows are refused before a run."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.tasks.rows import example
from tunesmith.errors import DataError, ResourceError
from tunesmith.recipe.schema import Task as TaskSpec
from tunesmith.tasks import Code, fit_task, pass_at_k, quick_score, restore_task, sandbox, task_record, with_samples
from tunesmith.tasks.code import PassAtK, ks
from tunesmith.tasks.metrics import value_of
from tunesmith.tasks.sandbox import run_python

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"), reason="needs Linux's seccomp"
)
LIMIT = 30.0
LIBC = "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"


def fitted(row: dict[str, object], *more: dict[str, object]) -> tuple[Code, list]:  # type: ignore[type-arg]
    rows = [example(f"q{i}", json.dumps(one)) for i, one in enumerate((row, *more))]
    task = fit_task(TaskSpec.model_validate({"run_code": True, "time_limit": LIMIT}), "code", rows)
    assert isinstance(task, Code)
    return task, rows


@pytest.mark.parametrize(
    "code",
    [
        "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (8, 8))",
        "import os; os.setpriority(os.PRIO_PROCESS, 0, 19)",
        "import os; os.sched_setaffinity(0, os.sched_getaffinity(0))",
        "import os; os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))",
        "import fcntl, os; fcntl.fcntl(0, fcntl.F_SETOWN, os.getpid())",
        "import fcntl; fcntl.fcntl(0, fcntl.F_SETSIG, 10)",
    ],
)
def test_how_processes_run_cannot_be_changed(code: str) -> None:
    attempt = f"try:\n    {code}\nexcept (PermissionError, ValueError):\n    pass\nelse:\n    assert 0, 'it was let'"
    assert run_python(attempt, LIMIT).outcome == "passed"


@pytest.mark.parametrize(
    "call",
    [
        "libc.shmget(0, 4096, 0o1600)",
        "libc.msgget(0, 0o1600)",
        "libc.semget(0, 1, 0o1600)",
        "libc.mq_open(b'/left', 64 | 2, 0o600, None)",
    ],
)
def test_nothing_that_outlives_the_process_can_be_made(call: str) -> None:
    assert run_python(f"{LIBC}assert {call} == -1\nassert ctypes.get_errno() == 1", LIMIT).outcome == "passed"


def test_files_and_processes_of_the_user_cannot_be_read() -> None:
    if landlock_version() < 1:
        pytest.skip("this kernel has no Landlock")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        secret = Path(folder, "secret")
        secret.write_text("s")
        secret.chmod(0o644)
        for path in (str(secret), f"/proc/{os.getpid()}/environ", f"/proc/{os.getpid()}/cmdline"):
            ran = run_python(f"open({path!r}).read()", LIMIT)
            assert ran.outcome == "failed" and "PermissionError" in ran.error, path


def landlock_version() -> int:
    """The version of Landlock, -1 without."""
    return int(ctypes.CDLL(None).syscall(444, None, ctypes.c_size_t(0), ctypes.c_uint(1)))


def test_the_standard_library_can_be_imported_by_whoever_runs() -> None:
    code = (
        "import dataclasses, hashlib, json.tool, statistics, zlib, xml.etree.ElementTree\n"
        "'x'.encode('iso8859-2'); assert statistics.median([1, 2, 4]) == 2"
    )
    ran = run_python(code, LIMIT)
    assert ran.outcome == "passed", ran.error


def test_a_library_that_cannot_be_read_is_told_and_not_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    without = "import sys; sys.path.clear(); sys.path_importer_cache.clear()\ntry:\n    import colorsys"
    assert sandbox._RUNNER.count("try:\n    import colorsys") == 1
    monkeypatch.setattr(sandbox, "_RUNNER", sandbox._RUNNER.replace("try:\n    import colorsys", without))
    with pytest.raises(ResourceError, match="the standard library cannot be read"):
        run_python("x = 1", LIMIT)


def test_parts_share_names_and_future_imports_but_are_each_whole() -> None:
    future: Sequence[str] = ("import math", "from __future__ import annotations\nx = 1", "def f(a: Missing): return x")
    assert run_python(future, LIMIT).outcome == "passed"
    assert run_python(("x = (", "1)"), LIMIT).outcome == "failed"
    assert run_python(("x = '''", "assert False", "'''"), LIMIT).outcome == "failed"


def test_an_answer_may_begin_with_a_future_import() -> None:
    solution = "def half(n):\n    return n / 2"
    task, rows = fitted({"code": solution, "setup": "import math", "test_list": ["assert half(math.floor(2.5)) == 1"]})
    answer = f"from __future__ import annotations\n{solution}"
    assert quick_score(task, [answer], rows)["pass_at_1"] == 1.0
    assert quick_score(task, [answer.replace("/ 2", "/ 3")], rows)["pass_at_1"] == 0.0


def test_a_row_whose_own_solution_fails_is_refused() -> None:
    right = {"code": "x = 1", "test": "assert x == 1"}
    with pytest.raises(DataError, match="ModuleNotFoundError"):
        fitted(right, {"code": "import numpy_that_is_not_there", "test": "pass"})
    with pytest.raises(DataError, match="fails its own tests"):
        fitted({"code": "x = 1", "test": "assert x == 2"}, right)
    fitted(right, right)


def test_pass_at_k_of_drawn_answers_is_the_unbiased_estimate() -> None:
    task, rows = fitted({"code": "def f(x):\n    return 2 * x", "tests": "assert f(2) == 4"})
    drawn = with_samples(task, 4)
    right, wrong = "def f(x):\n    return x + x", "def f(x):\n    return x"
    assert [*drawn.metrics] == ["pass_at_1", "valid_python", "exact_match", "pass_at_4"]
    target = drawn.target(rows[0])
    read = drawn.read_samples([wrong, right, wrong, "no code (", wrong], rows[0])
    scores = {name: value_of(metric, [read], [target]) for name, metric in drawn.metrics.items()}
    assert scores == {"pass_at_1": 0.0, "valid_python": 1.0, "exact_match": 0.0, "pass_at_4": 1.0}
    half = PassAtK(2, LIMIT)  # 1 - C(3, 2) / C(4, 2)
    assert value_of(half, [read], [target]) == pytest.approx(0.5) == pytest.approx(pass_at_k(4, 1, 2))
    # One answer for all tries, as a trivial candidate gives it.
    assert value_of(half, [right, wrong, None], [target] * 3) == pytest.approx(1 / 3)


def test_numbers_of_tries_and_what_is_kept_of_the_task() -> None:
    assert ks(2) == (2,) and ks(10) == (5, 10) and ks(100) == (5, 10, 25, 50, 100) and ks(20) == (5, 10, 20)
    task, _ = fitted({"code": "def f():\n    return 1", "tests": "assert f() == 1"})
    drawn = with_samples(task, 10)
    assert restore_task(json.loads(json.dumps(task_record(drawn)))) == drawn
    assert with_samples(task, 1) == task and not drawn.metrics["pass_at_5"].binary and drawn.metrics["pass_at_1"].binary
    off = Code(samples=3)  # code is not run: nothing can pass
    assert [*off.metrics] == ["exact_match", "valid_python"]


def test_own_metrics_see_the_greedy_answer_of_several() -> None:
    rows = [example("q", json.dumps({"code": "x = 1", "tests": "assert x == 1"}))]
    spec = {"metrics": {"short": {"formula": "len(answer) < 9"}}}
    task = with_samples(fit_task(TaskSpec.model_validate(spec), "code", rows), 2)
    read = task.read_samples(["x = 1", "x = 1  # and much more", "y"], rows[0])
    assert value_of(task.metrics["short"], [read], [task.target(rows[0])]) == 1.0
