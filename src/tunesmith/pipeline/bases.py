"""`bases`: several base models compared on the user's own rows, before any of them is tuned.

Each base is looked at (licence, files), loaded, measured on the same rows, and let go. What was measured is kept in the
folder under a hash of what decides it, so that an interrupted comparison goes on, and one base more costs one base. The
test rows are never touched.
"""

from __future__ import annotations

import gc
import hashlib
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from tunesmith.errors import RecipeError, ResourceError, TunesmithError
from tunesmith.models.base_files import BaseFiles, cached_folder, look_at_files
from tunesmith.models.licence import check_licence
from tunesmith.models.load import base_folder
from tunesmith.pipeline.base_measuring import measure_base
from tunesmith.pipeline.base_ranking import Ranking, rank
from tunesmith.pipeline.base_types import BaseEntry, Measured
from tunesmith.pipeline.bases_page import write_bases
from tunesmith.pipeline.pairs import is_pairs
from tunesmith.pipeline.prepare import (
    DataFindingsError,
    Listener,
    Rows,
    read_data,
)
from tunesmith.pipeline.stage import Stage
from tunesmith.recipe import parse_recipe
from tunesmith.recipe.overrides import resolve_paths
from tunesmith.recipe.schema import Recipe
from tunesmith.runs import RunFolder, is_run, write_json

REPORT, PAGE = "bases.json", "bases.html"
ROWS = 100
"""Rows measured where nothing else is asked for."""
_KEPT = "bases"
_VERSION = 5
"""Of what is measured; a change makes what was kept before worthless."""


@dataclass(frozen=True, slots=True)
class BasesReport:
    """All bases of a comparison with their order. rows: measured on; shots: examples shown to them."""

    entries: tuple[BaseEntry, ...]
    ranking: Ranking
    task: str
    metric: str
    rows: int
    shots: int
    use: str | None
    confidence: float
    folder: Path

    def to_dict(self) -> dict[str, Any]:
        """As JSON values; rows' own bits are in the folder only."""
        entries = [entry.to_dict() for entry in self.entries]
        for entry in entries:
            if entry["measured"] is not None:
                del entry["measured"]["row_bits"]
        return {
            "bases": entries,
            "ranking": self.ranking.to_dict(),
            "task": self.task,
            "metric": self.metric,
            "rows": self.rows,
            "shots": self.shots,
            "use": self.use,
            "folder": str(self.folder),
            "page": str(self.folder / PAGE),
        }


def compare_bases(
    recipe: Recipe,
    bases: Sequence[str],
    *,
    rows: int = ROWS,
    out: Path | None = None,
    listener: Listener = lambda event: None,
) -> BasesReport:
    """Measure each base on at most `rows` rows of the recipe's data, and put them in order.

    bases: as `base.model`. out: the folder; without it `<name>-bases` in the recipe's `output.dir`.

    A base that cannot be used is an entry with its reason. Raises `DataFindingsError` where the data has errors,
    `RecipeError` for no base or a folder that holds other things, `ResourceError` where it cannot be written.
    """
    recipe = parse_recipe(resolve_paths(recipe.model_dump(), Path.cwd()))
    names = list(dict.fromkeys(_resolved(name) for name in bases))
    if not names:
        raise RecipeError("no base is named", where="bases", fix="give hub ids, folders or embedded:NAME")
    if is_pairs(recipe):
        raise RecipeError(
            "bases are compared by the answers they foresee, and pairs of texts have none", where="data.columns.second"
        )
    folder = RunFolder(bases_folder(recipe, out))
    read = read_data(recipe, depth="quick", listener=listener)
    if any(finding.severity == "error" for finding in read.findings):
        raise DataFindingsError(read.findings)
    with folder.lock():
        entries = []
        for place, name in enumerate(names, 1):
            listener({"kind": "note", "text": f"base {place} of {len(names)}: {name}"})
            entries.append(_entry(_with_base(recipe, name), read, folder, rows, listener))
        report = _report(recipe, read, entries, rows, folder.path)
        write_json(folder.path / REPORT, report.to_dict())
        write_bases(folder.path / PAGE, report, recipe.name or Path(recipe.data.train).stem)
    return report


def bases_folder(recipe: Recipe, out: Path | None) -> Path:
    """The folder of a comparison, made where there is none. It is no run: `tunesmith runs` does not list it.

    Raises `RecipeError` where it holds other things, `ResourceError` where it cannot be made.
    """
    name = recipe.name or Path(recipe.data.train).stem.replace(" ", "-")
    path = (out or Path(recipe.output.dir) / f"{name}-{_KEPT}").resolve()
    try:
        path.mkdir(parents=True, exist_ok=True)
        strange = sorted(p.name for p in path.iterdir() if not p.name.startswith("."))
    except OSError as error:
        raise ResourceError((error.strerror or str(error)).lower(), where=str(path)) from error
    if strange and not is_run(path) and not {REPORT, _KEPT, "stages"} & set(strange):
        raise RecipeError(
            f"this folder holds other things: {', '.join(strange[:5])}",
            where=str(path),
            expected="a new or empty folder, or one of an earlier comparison",
        )
    return path


def _entry(recipe: Recipe, read: Rows, folder: RunFolder, rows: int, listener: Listener) -> BaseEntry:
    """One base: what its files say, and its figures, measured now or before."""
    name = recipe.base.model
    where, lost = _files_of(recipe)
    files = look_at_files(where, name=name, causal=_causal_types())
    licence = check_licence(where, recipe.goal.use, name=name)
    entry = BaseEntry(name, licence, files)
    if lost is not None:
        return replace(entry, problem=lost.what, problem_fix=lost.fix or lost.expected or "")
    if files.obstacles and not recipe.base.trust_remote_code:
        return replace(entry, problem="; ".join(files.obstacles))
    slug = _slug(name)
    stage = Stage(folder, f"base_{slug}", [f"{_KEPT}/{slug}"], **_key(recipe, read, files, rows))
    if stage.result is not None:
        return replace(entry, measured=Measured.from_dict(stage.result))
    try:
        with _released():
            measured = measure_base(recipe, read, folder.path / _KEPT / slug, rows, listener)
    except (TunesmithError, MemoryError, torch.OutOfMemoryError) as error:
        told = error if isinstance(error, TunesmithError) else ResourceError("not enough memory for this base")
        listener({"kind": "warning", "text": f"{name}: {told.what.splitlines()[0]}"})
        return replace(entry, problem=told.what, problem_fix=told.fix or told.expected or "")
    stage.finish(asdict(measured))
    return replace(entry, measured=measured)


def _report(recipe: Recipe, read: Rows, entries: Sequence[BaseEntry], rows: int, folder: Path) -> BasesReport:
    measured = [entry.measured for entry in entries if entry.measured is not None]
    scores = [one.few_shot for one in measured if one.few_shot is not None]
    return BasesReport(
        entries=tuple(entries),
        ranking=rank(entries, confidence=recipe.evaluate.confidence, seed=recipe.train.seed),
        task=read.task_type,
        metric=measured[0].metric if measured else str(recipe.goal.metric),
        rows=max((one.rows for one in measured), default=0),
        shots=scores[0].k if scores else 0,
        use=recipe.goal.use,
        confidence=recipe.evaluate.confidence,
        folder=folder,
    )


def _with_base(recipe: Recipe, name: str) -> Recipe:
    """The recipe with another base; a revision belongs to the base it was written for."""
    revision = recipe.base.revision if name == recipe.base.model else None
    base = recipe.base.model_copy(update={"model": name, "revision": revision})
    return recipe.model_copy(update={"base": base})


def _files_of(recipe: Recipe) -> tuple[Path | None, TunesmithError | None]:
    """The folder with a base's files, if it is on this machine; or why the name means nothing."""
    try:
        folder = base_folder(recipe.base.model)
    except RecipeError as error:
        path = Path(recipe.base.model)
        return (path, None) if path.is_dir() else (None, error)
    return folder or cached_folder(recipe.base.model, recipe.base.revision), None


def _causal_types() -> Sequence[str]:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def _key(recipe: Recipe, read: Rows, files: BaseFiles, rows: int) -> dict[str, Any]:
    """What decides a base's figures: rows, base, settings, machine."""
    folder = Path(files.where) if files.known else None
    stamps = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in sorted(folder.iterdir())] if folder else []
    return {
        "version": _VERSION,
        "splits": {part: read.splits.hashes[part] for part in ("train", "validation")},
        "task_type": read.task_type,
        "files": [list(stamp) for stamp in stamps],
        "rows": rows,
        "metric": recipe.goal.metric,
        "machine": [platform.node(), torch.get_num_threads(), torch.cuda.is_available()],
        **{part: getattr(recipe, part).model_dump() for part in ("task", "base", "method", "train", "evaluate")},
    }


def _resolved(name: str) -> str:
    """A folder by its whole path; other names as they are."""
    path = Path(name).expanduser()
    return str(path.resolve()) if not name.startswith("embedded:") and path.exists() else name


def _slug(name: str) -> str:
    """A name for files: what can be read of it, and a hash, as two folders may end alike."""
    end = "".join(c if c.isalnum() or c in "._-" else "-" for c in name.replace("embedded:", "").split("/")[-1].lower())
    return f"{end.lstrip('._-')[:40] or 'base'}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


@contextmanager
def _released() -> Iterator[None]:
    """After the block the base's memory is free for the next one."""
    try:
        yield
    finally:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
