"""`--auto`: formats and precisions tried one after the other, the best of those allowed kept.

```
<run>/export/auto/<target>/              exports among which is chosen; in the end the chosen one
<run>/evaluation/exports/auto.json       what came of each, and the choice
<run>/evaluation/exports/validation/     their answers to validation rows
```

Quality is measured on validation rows, for choosing among many by test rows would make the best of them look better
than it is. Only the chosen one is then held against the tuned model on the frozen test rows, which can confirm it or
not, and never choose another.
"""

from __future__ import annotations

import gc
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from tunesmith.errors import EngineError, RecipeError, ResourceError, VerificationError
from tunesmith.export.source import open_source
from tunesmith.models.artifact import Target, read_artifact
from tunesmith.pipeline.evidence import read_evidence
from tunesmith.pipeline.exporting.asked import refuse_taken
from tunesmith.pipeline.exporting.bench import FOLDER, Bench, Wishes, verification_from
from tunesmith.pipeline.exporting.candidates import SPEED_UNKNOWN
from tunesmith.pipeline.exporting.choosing import (
    Judged,
    Limits,
    Outcome,
    choose,
    judge,
    nearest,
    note_of,
    outcome_to_dict,
)
from tunesmith.pipeline.exporting.flow import confirm_export, export_against
from tunesmith.pipeline.exporting.records import export_lines, record_of
from tunesmith.pipeline.exporting.reference import Tell
from tunesmith.pipeline.exporting.report import write_report_again
from tunesmith.pipeline.exporting.rows import frozen_rows
from tunesmith.pipeline.exporting.types import VERIFICATION, Verification
from tunesmith.pipeline.exporting.working import scratch_folder, teller
from tunesmith.pipeline.prepare import Listener
from tunesmith.recipe import load_recipe
from tunesmith.runs import RunFolder, write_json
from tunesmith.verdict import wording
from tunesmith.verdict.report_exports import megabytes

_VALIDATION = "validation"


@dataclass(frozen=True)
class Auto:
    """What was tried, and what was chosen.

    rows: validation rows by which it was chosen. path: folder of the chosen export; confirmed: what the test rows say
    of it. problem: why there is none, or why it was not confirmed.
    """

    run: Path
    wishes: Wishes
    limits: Limits
    rows: int
    judged: tuple[Judged, ...]
    chosen: Judged | None
    path: Path | None = None
    confirmed: Verification | None = None
    problem: VerificationError | None = None
    notes: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The object that `tunesmith export --auto --json` prints, and that `auto.json` keeps."""
        near = nearest(self.judged, self.wishes.best) if self.chosen is None else None
        return {
            "run": str(self.run),
            "best": self.wishes.best,
            "limits": asdict(self.limits),
            "rows": self.rows,
            "chosen": self.chosen.outcome.name if self.chosen is not None else None,
            "path": str(self.path) if self.path is not None else None,
            "nearest": near.outcome.name if near is not None else None,
            "confirmed": self.confirmed.to_dict() if self.confirmed is not None else None,
            "outcomes": [
                {
                    **outcome_to_dict(one.outcome),
                    "name": one.outcome.name,
                    "note": self.notes.get(one.outcome.name, ""),
                    "front": one.front,
                    "allowed": one.allowed,
                    "missed": list(one.missed),
                }
                for one in self.judged
            ],
        }


def export_auto(
    folder: RunFolder,
    targets: Sequence[Target],
    wishes: Wishes,
    *,
    out: Path | None = None,
    keep_all: bool = False,
    listener: Listener | None = None,
) -> Auto:
    """Export a run in every one of `targets` (`candidates`), and keep the best of those allowed.

    What was tried before with the same model, rows, libraries and machine is not tried again. One that cannot be made,
    or is not the tuned model, is an outcome like the others. The best is kept in `out` (default
    `<run>/export/auto/<target>`); the others are removed as soon as they cannot be chosen, unless `keep_all`.

    Where none is allowed, or the test rows do not confirm the chosen one, the result's `problem` says so. Raises
    `RecipeError` for a path that exists or a run without validation rows, `ResourceError` where another process writes
    the run, and whatever stops the tuned model itself from being asked.
    """
    if not targets:
        raise RecipeError("there is no format to try", where="--kinds", expected="at least one")
    if out is not None:
        refuse_taken(out)
    with folder.lock(), folder.events([listener] if listener is not None else []) as events:
        recipe = load_recipe(folder.recipe_file)
        read_evidence(folder)  # where the report cannot be written again, that is better known before than after
        rows = frozen_rows(folder, recipe, "validation")
        if isinstance(rows, str):
            raise RecipeError(
                f"nothing can choose between exports: {rows}",
                where=str(folder.path),
                expected="validation rows, as test rows may only confirm a choice",
                fix="name the format yourself with --to",
            )

        with scratch_folder(folder.path / "export" / FOLDER / "work") as scratch:
            bench = Bench(folder, recipe, open_source(folder, recipe), rows, wishes, scratch, teller(events.relay))
            outcomes = _try_all(bench, targets, keep_all)
            judged, chosen = _choose(bench, outcomes)
            names = {"chosen": chosen.outcome.name if chosen is not None else None}
            events.write("export_chosen", rows=_VALIDATION, **names)
            found = _result(bench, judged, chosen)
            if chosen is None:
                found = replace(found, problem=_none_allowed(found))
            elif (before := bench.confirmed_before(chosen)) is not None and out is None:
                found = replace(found, confirmed=before)
            else:
                _keep(bench, found)
                found = _confirmed(bench, found, chosen, out)
            _keep(bench, found)
        if not keep_all:
            _tidy(bench, keep=chosen)
        write_report_again(folder)
        events.write("export_auto_finished", path=str(found.path) if found.path else None, **names)
    return found


def _try_all(bench: Bench, targets: Sequence[Target], keep_all: bool) -> list[Outcome]:
    """An outcome for every target, those known first; kept after each, with the time that is left."""
    known = bench.known()
    keys = {target: bench.key(target) for target in targets}
    outcomes = [known[key] for key in keys.values() if key in known]
    if outcomes:
        bench.tell(f"{len(outcomes)} of {len(keys)} formats were tried before")
    left = [target for target, key in keys.items() if key not in known]
    began = time.monotonic()
    for done, target in enumerate(left, 1):
        outcomes.append(_attempt(bench, target, keys[target]))
        rest = (time.monotonic() - began) / done * (len(left) - done)
        until = f"; about {wording.duration(rest)} left" if done < len(left) else ""
        bench.tell(f"{done} of {len(left)} tried: {_said(outcomes[-1])}{until}")
        judged = judge(outcomes, bench.limits)
        best = choose(judged, bench.wishes.best)
        _keep(bench, _result(bench, judged, None))
        if not keep_all:
            _tidy(bench, keep=best)
    return sorted(outcomes, key=lambda one: list(keys.values()).index(one.key))


def _attempt(bench: Bench, target: Target, key: str) -> Outcome:
    """Export and measure one target; what goes wrong with it is its outcome."""
    reference, calibration = bench.reference, bench.calibration
    began, place = time.monotonic(), bench.place(target)
    aside = place.with_name(f"{place.name}.failed")
    _make_room(bench, place)
    shutil.rmtree(aside, ignore_errors=True)
    record: dict[str, Any] | None = None
    trouble = instead = None
    try:
        made = export_against(
            reference, target, place, scratch=bench.scratch, calibration=calibration,
            max_loss=bench.wishes.max_loss, answers=bench.answers, tell=_quiet(bench.tell, target),
        )  # fmt: skip
        record = record_of(made.artifact, made.verification)
    except VerificationError as error:
        if not aside.is_dir():
            trouble, instead = error.what, error.fix
        else:
            said = json.loads((aside / VERIFICATION).read_bytes())["verification"][0]
            failed = replace(read_artifact(aside, check=False), folder=place)
            record = record_of(failed, verification_from(said))
    except (EngineError, ResourceError) as error:
        trouble, instead = error.what, error.fix
    gc.collect()
    if record is not None and target.kind in SPEED_UNKNOWN:
        record["facts"].pop("speed", None)
    return Outcome(target, key, time.monotonic() - began, record, trouble, instead)


def _make_room(bench: Bench, place: Path) -> None:
    """Nothing at `place`: leftovers are removed, an export that was chosen earlier keeps its files beside it."""
    if place.resolve() in _chosen_earlier(bench) and place.is_dir():
        older = place.with_name(f"{place.name}.before")
        shutil.rmtree(older, ignore_errors=True)
        place.rename(older)
        bench.tell(f"{place.name} is tried again; the one chosen earlier is kept as {older.name}")
    shutil.rmtree(place, ignore_errors=True)


def _chosen_earlier(bench: Bench) -> set[Path]:
    """Folders of exports that the run knows as verified on its test rows."""
    return {Path(line.folder).resolve() for line in export_lines(bench.folder)}


def _quiet(tell: Tell, target: Target) -> Tell:
    """Lines of progress that say of which target they are."""
    return lambda line: tell(f"{target}: {line}")


def _said(outcome: Outcome) -> str:
    """An outcome in one line."""
    line = outcome.line
    if line is None:
        return f"{outcome.name} cannot be made: {str(outcome.trouble).splitlines()[0]}"
    parts = [megabytes(line.total)]
    if line.value is not None:
        parts.insert(0, wording.percent(line.value))
    if line.decode is not None:
        parts.append(f"{line.decode:,.0f} tokens/s")
    if outcome.broken:
        parts.append(f"failed: {', '.join(outcome.broken)}")
    return f"{outcome.name} {', '.join(parts)}"


def _choose(bench: Bench, outcomes: list[Outcome]) -> tuple[tuple[Judged, ...], Judged | None]:
    """The outcomes judged and the best of those allowed, whose files are there: they are made again where removed."""
    again: set[Target] = set()
    while True:
        judged = judge(outcomes, bench.limits)
        chosen = choose(judged, bench.wishes.best)
        if chosen is None or bench.whole(chosen.outcome.target) is not None:
            return judged, chosen
        target = chosen.outcome.target
        if target in again:
            raise EngineError(f"the export to {target} does not stay as it was written", where=str(bench.place(target)))
        again.add(target)
        bench.tell(f"{target} is the best, and its files are not there any more: it is made again")
        outcomes[outcomes.index(chosen.outcome)] = _attempt(bench, target, chosen.outcome.key)


def _result(bench: Bench, judged: tuple[Judged, ...], chosen: Judged | None) -> Auto:
    notes = {one.outcome.name: note_of(one, chosen, bench.wishes.best) for one in judged}
    path = bench.place(chosen.outcome.target) if chosen is not None else None
    rows = len(bench.rows.test)
    return Auto(bench.folder.path, bench.wishes, bench.limits, rows, judged, chosen, path, notes=notes)


def _confirmed(bench: Bench, found: Auto, chosen: Judged, out: Path | None) -> Auto:
    """The chosen export on the frozen test rows, and in the folder that was asked for."""
    target = chosen.outcome.target
    artifact = bench.whole(target)
    assert artifact is not None
    bench.tell(f"{target} is chosen by {len(bench.rows.test)} validation rows; now the test rows")
    try:
        done = confirm_export(
            artifact, bench.test_reference(), bench.folder, max_loss=bench.wishes.max_loss, place=out, tell=bench.tell
        )
    except VerificationError as error:
        notes = {**found.notes, chosen.outcome.name: "chosen, and not confirmed by the test rows"}
        return replace(found, path=None, problem=error, notes=notes)
    return replace(found, path=done.path, confirmed=done.verification)


def _none_allowed(found: Auto) -> VerificationError:
    """That none is allowed, what came nearest, and what would allow it."""
    near = nearest(found.judged, found.wishes.best)
    limits = f"losing at most {wording.bare_points(found.limits.max_loss)} points"
    if near is None:
        return VerificationError(
            f"none of {len(found.judged)} formats is the tuned model", where=str(found.run), expected=limits,
            fix="the table says of each why; `tunesmith doctor` says what is installed",
        )  # fmt: skip
    only_unsure = len(near.missed) == 1 and near.excess == 0
    return VerificationError(
        f"none of {len(found.judged)} formats is allowed; the nearest is {near.outcome.name}: {'; '.join(near.missed)}",
        where=str(found.run),
        expected=f"one that is surely within the limits, {limits}",
        fix="take it with --accept-unsure, or raise --max-loss; more validation rows would tell"
        if only_unsure
        else "raise the limit that it misses, or try further formats with --kinds",
    )


def _keep(bench: Bench, found: Auto) -> None:
    """Write `auto.json`."""
    write_json(bench.file, found.to_dict())


def _tidy(bench: Bench, keep: Judged | None) -> None:
    """Remove exports that were tried and are not chosen, neither now nor earlier."""
    root, earlier = bench.folder.path / "export" / FOLDER, _chosen_earlier(bench)
    kept = {str(keep.outcome.target)} if keep is not None else set()
    for path in sorted(root.iterdir()) if root.is_dir() else ():
        chosen = path.name in kept or path.resolve() in earlier or path.name.endswith(".before")
        if path.is_dir() and not chosen and not path.name.startswith("."):
            shutil.rmtree(path)
    if root.is_dir() and not any(root.iterdir()):
        root.rmdir()
