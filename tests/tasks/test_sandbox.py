"""The sandbox for those who are not root: the filter and the rules of the system must hold without privileges too."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import tunesmith.tasks.sandbox

NOBODY = 65534
AS_NOBODY: dict[str, Any] = {"user": NOBODY, "group": NOBODY, "extra_groups": []}
PYTHONS = (sys.executable, "/usr/bin/python3", "/usr/local/bin/python3")
SOURCE = Path(tunesmith.tasks.sandbox.__file__)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="code is fenced in by Linux's seccomp")

# The rooms' own `__init__` would import libraries that a system's Python does not have.
PROGRAM = """
import json, os, sys, types
for name, folder in (("tunesmith", {package!r}), ("tunesmith.tasks", {tasks!r})):
    module = types.ModuleType(name)
    module.__path__ = [folder]
    sys.modules[name] = module
from tunesmith.tasks.sandbox import run_python
cases = json.loads(sys.stdin.read())
print(json.dumps([os.getuid(), {{name: run_python(code, 5.0).outcome for name, code in cases.items()}}]))
"""
FENCED = {
    "network": "import socket\nsocket.socket()",
    "processes": "import os\nos.fork()",
    "signals": "import os\nos.kill(os.getppid(), 0)",
    "new files": "open('here', 'w')",
    "files of its user": "open({victim!r}, 'a')",
    "memory": "x = bytearray(2**31)",
    "wrong": "assert 1 + 1 == 3",
}
FREE = {
    "arithmetic": "assert sum(range(10)) == 45",
    "standard library": "import collections, decimal, json, math, re\nassert re.match('a+', 'aaa')",
    "future": "from __future__ import annotations\ndef f(x: Undefined) -> None: pass",
}


def _of_nobody() -> str | None:
    """A Python that a user without privileges can run, with our source readable for it too."""
    look = f"import sys; assert sys.version_info >= (3, 11); open({str(SOURCE)!r}).close()"
    for python in PYTHONS:
        try:
            done = subprocess.run([python, "-c", look], capture_output=True, check=False, cwd="/", **AS_NOBODY)
        except OSError:
            continue
        if done.returncode == 0:
            return python
    return None


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that every user can look into; those of `tmp_path` lie in one of its user alone."""
    with tempfile.TemporaryDirectory() as made:
        yield Path(made)


def test_code_is_fenced_in_without_being_root(folder: Path) -> None:
    root = os.getuid() == 0
    python = _of_nobody() if root else sys.executable
    if python is None:
        pytest.skip("no Python of 3.11 or newer here can be run by another user than root")
    folder.chmod(0o755)
    victim = folder / "victim"
    victim.write_text("whole")
    victim.chmod(0o666)
    cases = {name: code.format(victim=str(victim)) for name, code in {**FENCED, **FREE}.items()}
    program = PROGRAM.format(package=str(SOURCE.parents[1]), tasks=str(SOURCE.parent))
    done = subprocess.run(
        [python, "-c", program],
        input=json.dumps(cases),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        cwd="/",
        env={"PATH": "/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1"},
        **(AS_NOBODY if root else {}),
    )
    assert done.returncode == 0, done.stderr
    user, outcomes = json.loads(done.stdout)
    assert user != 0
    assert outcomes == {**dict.fromkeys(FENCED, "failed"), **dict.fromkeys(FREE, "passed")}
    assert victim.read_text() == "whole"
