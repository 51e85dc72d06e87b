"""The folder of one run, and how runs are found.

```
runs/<name>-<YYYYmmdd-HHMMSS>/
  recipe.yaml      resolved: no `auto` left        manifest.json   what it was made of and on what
  events.jsonl     append-only                     stages/         results of finished stages, by hash of inputs
  checkpoints/     to continue from                adapter/ or model/
  evaluation/      <candidate>.jsonl               report.html
```
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from tunesmith.errors import RecipeError, TunesmithError
from tunesmith.runs.atomic import is_temporary, remove_temporary, resource_error
from tunesmith.runs.events import EventLog, Listener
from tunesmith.runs.lock import is_locked, locked
from tunesmith.runs.manifest import merge_manifest, read_manifest
from tunesmith.runs.stages import read_stage, write_stage

State = Literal["unfinished", "finished", "failed"]

_MANIFEST = "manifest.json"
_LOCK = ".lock"
CHECK_REPORT = "check.json"
"""Written by `tunesmith check --out DIR`; a run may still be made in that folder."""

_TIME = re.compile(r"-\d{8}-\d{6}(-\d+)?$")


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Where everything of one run lies. Make one with `create`, `create_at` or `open`."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def recipe_file(self) -> Path:
        return self.path / "recipe.yaml"

    @property
    def manifest_file(self) -> Path:
        return self.path / _MANIFEST

    @property
    def events_file(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def stages(self) -> Path:
        return self.path / "stages"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def adapter(self) -> Path:
        return self.path / "adapter"

    @property
    def model(self) -> Path:
        return self.path / "model"

    @property
    def evaluation(self) -> Path:
        return self.path / "evaluation"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @classmethod
    def create(cls, root: Path, name: str) -> RunFolder:
        """A new folder `<name>-<YYYYmmdd-HHMMSS>` under `root` (local time); a number follows where that is taken.

        Raises `ResourceError` where it cannot be made.
        """
        base = f"{name}-{datetime.now():%Y%m%d-%H%M%S}"
        try:
            root.mkdir(parents=True, exist_ok=True)
            path, number = root / base, 1
            while True:
                try:
                    path.mkdir()
                    break
                except FileExistsError:
                    number += 1
                    path = root / f"{base}-{number}"
        except OSError as error:
            raise resource_error(root, error) from error
        return cls._begin(path)

    @classmethod
    def create_at(cls, path: Path) -> RunFolder:
        """A run in exactly this folder: opened where one is there already, begun where the folder is new or empty.

        Raises `RecipeError` where it holds other things, `ResourceError` where it cannot be made.
        """
        path = path.resolve()
        if is_run(path):
            return cls(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
            strange = sorted(
                p.name for p in path.iterdir() if not is_temporary(p) and p.name not in (CHECK_REPORT, _LOCK)
            )
        except OSError as error:
            raise resource_error(path, error) from error
        if strange:
            raise RecipeError(
                f"this folder holds other things: {', '.join(strange[:5])}{' …' if len(strange) > 5 else ''}",
                where=str(path), expected="a new or empty folder, or one of a run",
            )  # fmt: skip
        return cls._begin(path)

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """The run in a folder. Raises `RecipeError` where there is none."""
        path = path.resolve()
        if not is_run(path):
            raise RecipeError("no run is here", where=str(path), expected=f"a folder with {_MANIFEST}")
        return cls(path)

    @classmethod
    def _begin(cls, path: Path) -> RunFolder:
        folder = cls(path.resolve())
        folder.update_manifest(run=folder.name, created=_now(), status={"state": "unfinished"})
        return folder

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes from writing this run. Raises `ResourceError` naming the pid of one that does.

        What a killed process was writing is removed first: half a checkpoint is large, and nobody else owns it now.
        """
        with locked(self.path / _LOCK):
            remove_temporary(self.path)
            yield

    @property
    def running(self) -> bool:
        """Whether a process is writing this run now."""
        return is_locked(self.path / _LOCK)

    def events(self, listeners: Sequence[Listener] = ()) -> EventLog:
        """The event log, open for appending."""
        return EventLog(self.events_file, listeners)

    def stage_done(self, name: str, key: str) -> dict[str, Any] | None:
        """The result of stage `name` done with inputs of this key, or None."""
        return read_stage(self.stages, name, key)

    def finish_stage(self, name: str, key: str, result: Mapping[str, Any]) -> None:
        """Record a stage as done."""
        write_stage(self.stages, name, key, result)

    def manifest(self) -> dict[str, Any]:
        """What is recorded of the run."""
        return read_manifest(self.manifest_file)

    def update_manifest(self, **sections: Any) -> dict[str, Any]:
        """Merge sections into `manifest.json`: mappings key by key, other values replace the old one."""
        return merge_manifest(self.manifest_file, **sections)

    def set_status(self, state: State, *, verdict: str | None = None, error: str | None = None) -> None:
        """Record how far the run is, with its verdict in one line or its error."""
        self.update_manifest(status={"state": state, "changed": _now(), "verdict": verdict, "error": error})

    def summary(self) -> RunSummary:
        """The run in one line of a table."""
        manifest = self.manifest()
        status = manifest.get("status", {})
        return RunSummary(
            name=self.name,
            path=self.path,
            created=str(manifest.get("created", "")),
            state=status.get("state", "unfinished"),
            running=self.running,
            verdict=status.get("verdict"),
            error=status.get("error"),
        )


@dataclass(frozen=True, slots=True)
class RunSummary:
    """One run as it is listed. `created` is ISO 8601, UTC."""

    name: str
    path: Path
    created: str
    state: State
    running: bool
    verdict: str | None
    error: str | None


def is_run(path: Path) -> bool:
    """Whether a folder is one of a run."""
    return (path / _MANIFEST).is_file()


def list_runs(root: Path) -> list[RunFolder]:
    """The runs under `root`, newest first; none where there is no such folder."""
    if not root.is_dir():
        return []
    runs = [RunFolder(path.resolve()) for path in root.iterdir() if is_run(path)]
    return sorted(runs, key=_age, reverse=True)


def resolve_run(text: str, root: Path) -> RunFolder:
    """The run that a person means: `last`, a run's name, the name of a recipe (its newest run), or a path.

    Raises `RecipeError` with the nearest names where there is none.
    """
    runs = list_runs(root)
    if text == "last":
        if not runs:
            raise RecipeError(
                "there is no run yet", where=str(root), fix="tunesmith run RECIPE, or give the run's path"
            )
        return runs[0]
    for run in runs:
        if run.name == text:
            return run
    for run in runs:
        if _TIME.sub("", run.name) == text:
            return run
    if is_run(Path(text)):
        return RunFolder.open(Path(text))
    near = difflib.get_close_matches(text, [run.name for run in runs], n=3, cutoff=0.5)
    raise RecipeError(
        f"there is no run {text!r}",
        where=str(root),
        expected="a run's name, its path, or last",
        fix=f"did you mean {' or '.join(near)}?" if near else "`tunesmith runs` lists them",
    )


def _age(run: RunFolder) -> tuple[str, str]:
    """Sorts runs by when they were begun; a damaged manifest sorts first instead of hiding all other runs."""
    try:
        return str(run.manifest().get("created", "")), run.name
    except TunesmithError:
        return "", run.name


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")
