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
from tunesmith.tasks import Code, fit_task, quick_score, sandbox
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
