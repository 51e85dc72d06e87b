"""From an export to recipes, rows and evaluations: one folder for each job and eval, and a page about all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter

from tunesmith.runs.atomic import staged_folder, write_bytes, write_json
from tunesmith.service.json_lines import json_lines
from tunesmith.service.moving.evaluations import MovedEval, move_eval
from tunesmith.service.moving.exported import Export, read_export
from tunesmith.service.moving.jobs import MovedJob, job_name, move_job
from tunesmith.service.moving.recipe_text import recipe_name

Tell = Callable[[str], None]
M = TypeVar("M", MovedJob, MovedEval)
COMPLETIONS = "completions"
_SUMMARY = "moved.json"


@dataclass(frozen=True, slots=True)
class Moved:
    """What an export became. `kept` are folders that were there already and were not touched."""

    source: Path
    out: Path
    base: str
    jobs: tuple[MovedJob, ...]
    evals: tuple[MovedEval, ...]
    completions: int
    kept: tuple[str, ...]
    problems: tuple[str, ...]

    @property
    def dollars(self) -> float:
        """What the jobs cost there, as far as it is known."""
        return sum(job.cost.dollars or 0.0 for job in self.jobs)

    @property
    def summary(self) -> str:
        """`2 jobs, 1 eval and 300 stored completions`."""
        parts = (len(self.jobs), "job"), (len(self.evals), "eval"), (self.completions, "stored completion")
        first, second, third = (counted(number, name) for number, name in parts)
        return f"{first}, {second} and {third}"


def counted(number: int, name: str) -> str:
    """`1 job`, `2 jobs`."""
    return f"{number:,} {name}{'' if number == 1 else 's'}"


def bring(source: Path, out: Path, base: str = "embedded:base", tell: Tell = lambda _: None) -> Moved:
    """Write what an export holds into `out`; the export stays as it is, and a folder that is there is never touched.

    Raises `DataError` for a folder that is no export, `RecipeError` for a base that does not exist, `ResourceError`
    where nothing can be written.
    """
    from tunesmith.service.jobs.bases import parameters_of

    export = read_export(source)
    parameters = parameters_of(base) if export.jobs else 0
    jobs: list[MovedJob] = []
    evals: list[MovedEval] = []
    kept: list[str] = []
    for job in export.jobs:
        place = f"jobs/{job_name(job.told)}"
        if (out / place).exists():
            kept.append(place)
            jobs += _known(out / place, MovedJob)
            continue
        tell(place)
        with staged_folder(out / place) as folder:
            jobs.append(move_job(job, folder, place, base, parameters))
            write_json(folder / "original" / _SUMMARY, asdict(jobs[-1]))
    for one in export.evals:
        place = f"evals/{recipe_name(str(one.told.get('name') or 'eval'), one.id)}"
        if (out / place).exists():
            kept.append(place)
            evals += _known(out / place, MovedEval)
            continue
        tell(place)
        with staged_folder(out / place) as folder:
            evals.append(move_eval(export, one, folder, place, base))
            write_json(folder / "original" / _SUMMARY, asdict(evals[-1]))
    completions = _completions(export, out, kept)
    return Moved(source, out, base, tuple(jobs), tuple(evals), completions, tuple(kept), export.problems)


def _known(folder: Path, kind: type[M]) -> list[M]:
    """What an earlier move has kept of itself, for the page; nothing where that is not there."""
    path = folder / "original" / _SUMMARY
    return [TypeAdapter(kind).validate_json(path.read_bytes())] if path.is_file() else []


def _completions(export: Export, out: Path, kept: list[str]) -> int:
    """Stored completions as chat rows, the answer that was given as the one to learn: a distillation begins there."""
    rows = []
    for one in export.completions:
        messages, choices = one.get("messages"), one.get("choices") or ()
        if not isinstance(messages, list) or not choices:
            continue
        asked = [{"role": turn.get("role"), "content": turn.get("content")} for turn in messages]
        said = choices[0].get("message") or {}
        answer = {name: said[name] for name in ("content", "tool_calls") if said.get(name)}
        if answer:
            tools = {"tools": one["tools"]} if one.get("tools") else {}
            rows.append({"messages": [*asked, {"role": "assistant", **answer}], **tools})
    path = out / COMPLETIONS / "rows.jsonl"
    if rows and path.exists():
        kept.append(COMPLETIONS)
    elif rows:
        write_bytes(path, json_lines(rows))
    return len(rows)
