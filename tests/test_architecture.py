"""The order of the rooms: each imports only from those before it, so that nothing flows backwards.

Imports are read from the syntax tree: at the top of a file, inside functions, under `if TYPE_CHECKING`, and as
`importlib.import_module("tunesmith...")` alike. What must look ahead is passed in by `pipeline`.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "src" / "tunesmith"

ORDER = (
    "errors",
    "recipe",
    "runs",
    "data",
    "ops",
    "models",
    "text",
    "tasks",
    "training",
    "inference",
    "evaluation",
    "verdict",
    "export",
    "search",
    "pipeline",
    "service",
    "cli",
)
ROOT = "the package itself"
"""`tunesmith/__init__.py`: the front door, which may name any room, and which no room may import."""


@dataclass(frozen=True)
class Import:
    """One import of something in the package: by which room, of which, and where it stands."""

    room: str
    imported: str
    line: int
    path: Path
    names: tuple[str, ...] = ()
    leaves_by_dots: bool = False

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.room} imports {self.imported}"


def room_of(path: Path, package: Path) -> str:
    """The room a file belongs to: its folder, or itself where it lies beside the rooms."""
    first = path.relative_to(package).parts[0].removesuffix(".py")
    return ROOT if first == "__init__" else first


def imports_of(path: Path, package: Path) -> Iterator[Import]:
    """Every import of the package's own modules in one file, wherever it stands."""
    room = room_of(path, package)
    inside = (package.name, *path.relative_to(package).with_suffix("").parts)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            found = [(alias.name.split("."), ()) for alias in node.names]
            dots = 0
        elif isinstance(node, ast.ImportFrom):
            dots = node.level
            # One dot is the folder of the file, each further dot the folder above.
            start = list(inside[: len(inside) - dots]) if dots else []
            target = start + (node.module.split(".") if node.module else [])
            names = tuple(alias.name for alias in node.names)
            # `from tunesmith import runs` imports a room by its name.
            found = [([*target, name], ()) for name in names] if target == [package.name] else [(target, names)]
        elif _is_dynamic(node):
            assert isinstance(node, ast.Call)
            argument = node.args[0] if node.args else None
            if not (isinstance(argument, ast.Constant) and isinstance(argument.value, str)):
                continue
            found, dots = [(argument.value.split("."), ())], 0
        else:
            continue
        for module, names in found:
            if module[0] == package.name:
                imported = module[1] if len(module) > 1 and _is_room(module[1], package) else ROOT
                away = dots > 0 and imported != room
                yield Import(room, imported, node.lineno, path, names, away)


def _is_dynamic(node: ast.AST) -> bool:
    """`importlib.import_module(...)`, `import_module(...)` or `__import__(...)`."""
    if not isinstance(node, ast.Call):
        return False
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    return name in {"import_module", "__import__"}


def _is_room(name: str, package: Path) -> bool:
    return (package / name).is_dir() or (package / f"{name}.py").is_file()


def violations(package: Path) -> list[str]:
    """What is wrong with the imports below `package`, each as `file:line: ...`."""
    wrong = []
    for path in sorted(package.rglob("*.py")):
        room = room_of(path, package)
        if room == ROOT:
            continue
        if room not in ORDER:
            wrong.append(f"{path}:1: the room {room!r} has no place in the order; give it one in {Path(__file__).name}")
            continue
        for found in imports_of(path, package):
            if found.leaves_by_dots:
                wrong.append(f"{found} by a relative import; write tunesmith.{found.imported}")
            if found.imported == room:
                continue
            if found.imported == ROOT:
                wrong.append(f"{found}, which imports every room; import from the room that has it")
            elif found.imported not in ORDER:
                wrong.append(f"{found}, which has no place in the order")
            elif ORDER.index(found.imported) > ORDER.index(room):
                wrong.append(f"{found}, which comes after it")
            private = [name for name in found.names if name.startswith("_")]
            if private:
                wrong.append(f"{found}: {', '.join(private)} is private to that room")
    return wrong


def test_each_room_imports_only_from_rooms_before_it() -> None:
    wrong = violations(PACKAGE)
    assert not wrong, "\n" + "\n".join(wrong)


def test_the_rooms_that_are_there_are_looked_at() -> None:
    """So that the test above cannot pass by looking at nothing."""
    seen = {room_of(path, PACKAGE) for path in PACKAGE.rglob("*.py")}
    assert {"errors", "recipe", "data", "text", "training", "evaluation", "verdict", "pipeline", "cli"} <= seen
    crossings = {(i.room, i.imported) for p in PACKAGE.rglob("*.py") for i in imports_of(p, PACKAGE)}
    assert {("pipeline", "training"), ("evaluation", "tasks"), ("cli", "pipeline")} <= crossings


@pytest.mark.parametrize(
    ("file", "code", "line", "what"),
    [
        ("data/rows.py", "from tunesmith.training.loop import train", 1, "data imports training"),
        ("data/rows.py", "import tunesmith.training.loop", 1, "data imports training"),
        ("data/rows.py", "def f():\n    from tunesmith import training", 2, "data imports training"),
        ("data/rows.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import tunesmith.cli", 3, "cli"),
        ("data/rows.py", "import importlib\nimportlib.import_module('tunesmith.cli')", 2, "data imports cli"),
        ("data/rows.py", "from ..training import loop", 1, "data imports training"),
        ("data/rows.py", "from ..errors import DataError", 1, "by a relative import"),
        ("data/rows.py", "from tunesmith import run", 1, "imports every room"),
        ("data/rows.py", "from tunesmith.runs.atomic import _secret", 1, "_secret is private"),
        ("errors.py", "from tunesmith.recipe import Recipe", 1, "errors imports recipe"),
        ("attic/box.py", "x = 1", 1, "'attic' has no place in the order"),
    ],
)
def test_a_planted_violation_is_found_with_file_and_line(
    tmp_path: Path, file: str, code: str, line: int, what: str
) -> None:
    package = _package(tmp_path, {file: code})
    wrong = violations(package)
    assert wrong, f"not seen: {code}"
    assert all(text.startswith(f"{package / file}:{line}: ") for text in wrong), wrong
    assert any(what in text for text in wrong), wrong


def test_what_is_allowed_is_not_reported(tmp_path: Path) -> None:
    allowed = "from tunesmith.errors import DataError\nfrom .types import Row\nfrom tunesmith.data import types\n"
    everything = "from tunesmith import pipeline\nfrom tunesmith.data.rows import x\nimport torch, tunesmith.cli.main\n"
    assert violations(_package(tmp_path, {"data/rows.py": allowed, "cli/main.py": everything})) == []


def _package(folder: Path, files: dict[str, str]) -> Path:
    """A package with some rooms and the given files."""
    package = folder / "tunesmith"
    for room in ("data", "training", "cli", "recipe", "runs", "pipeline"):
        (package / room).mkdir(parents=True)
    for name, code in {"__init__.py": "", "errors.py": "", **files}.items():
        (package / name).parent.mkdir(exist_ok=True)
        (package / name).write_text(code)
    return package


HEAVY = ("torch", "transformers", "peft", "pydantic", "numpy", "scipy", "sklearn", "pandas", "jinja2")


@pytest.mark.parametrize(
    "code",
    ["import tunesmith", "from tunesmith.cli.main import invoke\nassert invoke(['--help']) == 0"],
    ids=["import", "help"],
)
def test_help_waits_for_no_heavy_import(code: str) -> None:
    """`tunesmith --help` answers at once because nothing large is imported for it."""
    report = f"{code}\nimport json, sys\nprint()\nprint(json.dumps(sorted(sys.modules)))"
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    done = subprocess.run(
        [sys.executable, "-c", report], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    modules = set(json.loads(done.stdout.splitlines()[-1]))
    assert "tunesmith" in modules
    assert not modules & set(HEAVY)
