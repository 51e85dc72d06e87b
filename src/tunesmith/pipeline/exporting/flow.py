"""An export from beginning to end: room on the disk, the tuned model asked, written, opened again, verified, named.

A folder gets its name only when every check was made and none failed. One that failed is kept beside it as
`<name>.failed`, with what was found. Whatever ends an export, scratch files are removed.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from tunesmith.errors import TunesmithError, VerificationError
from tunesmith.export.source import FolderSource, open_source
from tunesmith.export.types import StepError, Work
from tunesmith.export.writers import writer_of
from tunesmith.inference.artifacts import open_artifact
from tunesmith.models.artifact import Artifact, Target, write_artifact
from tunesmith.pipeline.evidence import read_evidence
from tunesmith.pipeline.exporting.asked import Asked, aside_of, refuse, refuse_strangers, refuse_taken
from tunesmith.pipeline.exporting.manifest import described, failure, with_evidence
from tunesmith.pipeline.exporting.measure import measure_artifact, speed_of
from tunesmith.pipeline.exporting.records import EXPORTS, record_export
from tunesmith.pipeline.exporting.reference import Reference, measure_reference
from tunesmith.pipeline.exporting.report import write_report_again
from tunesmith.pipeline.exporting.rows import FrozenRows, calibration_ids, frozen_rows
from tunesmith.pipeline.exporting.space import refuse_full_disk
from tunesmith.pipeline.exporting.types import Exported, Verification
from tunesmith.pipeline.exporting.verify import read_back, verify
from tunesmith.pipeline.exporting.working import prefixed, scratch_folder, teller
from tunesmith.pipeline.prepare import Listener
from tunesmith.recipe import load_recipe
from tunesmith.recipe.schema import Recipe
from tunesmith.runs import RunFolder, staged_folder


def export_run(
    folder: RunFolder,
    target: Target,
    *,
    out: Path | None = None,
    max_loss: float | None = None,
    bits: Mapping[str, int] | None = None,
    mixed: float | None = None,
    measure: bool = False,
    listener: Listener | None = None,
) -> Exported:
    """Export the tuned model of a run to `out` (default `<run>/export/<target>`), verified.

    max_loss: loss of the deciding metric (0-1) that is allowed; None takes the recipe's margin.
    bits: bits per weight of some modules, by a plan of mixed precision.
    mixed: have such a plan made: the smallest file found with at most this mean KL, in nats per token, on training
        rows; of kind `gptq` only.
    measure: measure speed and peak memory in a process of its own, instead of the speed alone in this one.

    Raises `RecipeError` for a target that is none, a path that exists or a run without tuned model, `ResourceError`
    where the disk is too small or another process writes the run, `StepError` where this model cannot have the format,
    `VerificationError` where a check failed: the export is then kept as `<out>.failed`.
    """
    return export_run_to(
        folder, [(target, out)], max_loss=max_loss, bits=bits, mixed=mixed, measure=measure, listener=listener
    )[0]


def export_run_to(
    folder: RunFolder,
    targets: Sequence[tuple[Target, Path | None]],
    *,
    max_loss: float | None = None,
    bits: Mapping[str, int] | None = None,
    mixed: float | None = None,
    measure: bool = False,
    listener: Listener | None = None,
) -> list[Exported]:
    """Several exports of one run, one after the other; the tuned model is asked once. Raises as `export_run`."""
    asked = [Asked(t, out or folder.path / "export" / str(t), bits or {}, mixed) for t, out in targets]
    refuse(asked)
    with folder.lock(), folder.events([listener] if listener is not None else []) as events:
        recipe = load_recipe(folder.recipe_file)
        read_evidence(folder)  # where the report cannot be written again, that is better known before than after
        source = open_source(folder, recipe)
        refuse_full_disk(source, [one.target for one in asked], asked[0].folder)

        tell = teller(events.relay)
        done = []
        with scratch_folder(*(one.folder for one in asked)) as scratch:
            rows = frozen_rows(folder, recipe)
            reference = measure_reference(source, rows, folder.evaluation, scratch, tell)
            calibration = calibration_ids(rows, source.renderer, recipe) if isinstance(rows, FrozenRows) else ()
            for one in asked:
                events.write("export_started", to=one.target.kind, precision=one.target.precision)
                try:
                    references = {_name_in(one.target, recipe): reference}
                    answers = folder.evaluation / EXPORTS
                    exported = _exported(
                        one, references, scratch, calibration, max_loss, answers, tell,
                        runs=dict.fromkeys(references, folder), measure=measure,
                    )  # fmt: skip
                except TunesmithError as error:
                    said = {"step": error.step} if isinstance(error, StepError) else {}
                    events.write("export_failed", to=one.target.kind, reason=error.what, **said)
                    write_report_again(folder)
                    raise
                events.write("export_finished", **exported.to_dict())
                done.append(exported)
        write_report_again(folder)
    return done


def export_source(
    source: FolderSource,
    target: Target,
    out: Path,
    *,
    max_loss: float | None = None,
    calibration: Sequence[Sequence[int]] = (),
    bits: Mapping[str, int] | None = None,
    listener: Listener | None = None,
) -> Exported:
    """Export a model without a run (`export.source.open_folders`). There are no test rows, and the verification says
    so; everything else is checked. `calibration`: token ids of rows, for quantisers. Raises as `export_run`."""
    asked = Asked(target, out, bits or {})
    refuse([asked])
    refuse_full_disk(source, [target], out)
    tell = teller(listener)
    with scratch_folder(out) as scratch:
        reference = measure_reference(source, _NO_RUN, None, scratch, tell)
        name = _name_in(target, source.recipe)
        return _exported(asked, {name: reference}, scratch, calibration, max_loss, None, tell)


def export_pack(
    base: str,
    sources: Mapping[str, FolderSource],
    target: Target,
    out: Path,
    *,
    max_loss: float | None = None,
    runs: Mapping[str, RunFolder] | None = None,
    listener: Listener | None = None,
) -> Exported:
    """Several adapters over one base as one export, each verified by itself under its name.

    runs: of those sources that belong to one, whose test rows they are then scored on. Raises as `export_run`, and
    `RecipeError` where a source is no adapter or is one of another base.
    """
    asked = Asked(target, out, {})
    refuse([asked])
    refuse_strangers(base, sources)
    refuse_full_disk(next(iter(sources.values())), [target], out, len(sources))
    tell = teller(listener)
    with _locked(runs or {}), scratch_folder(out) as scratch:
        references = {}
        for place, (name, source) in enumerate(sources.items()):
            run = (runs or {}).get(name)
            rows = frozen_rows(run, source.recipe) if run is not None else _NO_RUN
            answers = run.evaluation if run is not None else None
            inner = scratch / f"of-{place}"
            references[name] = measure_reference(source, rows, answers, inner, prefixed(name, tell))
        try:
            exported = _exported(asked, references, scratch, (), max_loss, scratch / "answers", tell, runs=runs)
        except VerificationError:
            _report_again(runs or {})
            raise
        _report_again(runs or {})
    return exported


def export_against(
    reference: Reference,
    target: Target,
    out: Path,
    *,
    scratch: Path,
    calibration: Sequence[Sequence[int]] = (),
    max_loss: float | None = None,
    answers: Path,
    tell: Callable[[str], None],
) -> Exported:
    """An export held against what was measured of the tuned model before, and measured in a process of its own.

    Nothing is recorded in a run: these are the exports among which is chosen (`auto`). answers: folder for the answers
    to the reference's rows. Raises as `export_run`.
    """
    asked = Asked(target, out, {})
    refuse([asked])
    refuse_full_disk(reference.source, [target], out)
    name = _name_in(target, reference.recipe)
    return _exported(asked, {name: reference}, scratch, calibration, max_loss, answers, tell, measure=True)


def confirm_export(
    artifact: Artifact,
    reference: Reference,
    run: RunFolder,
    *,
    max_loss: float | None,
    place: Path | None = None,
    tell: Callable[[str], None],
) -> Exported:
    """A finished export, chosen by other rows, held against the tuned model on the test rows, and recorded in its run.

    Its manifest, card and `verification.json` say afterwards what these rows say, and it is moved to `place`. Raises
    `VerificationError` where a check fails: the export is then kept as `<folder>.failed`.
    """
    name = _name_in(artifact.target, reference.recipe)
    found, _ = _verified(artifact, {name: reference}, max_loss, run.evaluation / EXPORTS, tell, speed=False)
    done = with_evidence(artifact, found, {})
    named = replace(done, folder=place or done.folder)
    named.folder.parent.mkdir(parents=True, exist_ok=True)
    if place is not None:
        refuse_taken(place)  # it may have come to be there since this began
    record_export(run, named, found[0])
    if not found[0].passed:
        raise failure(artifact.target, found, _kept_aside(done.folder, named.folder))
    if place is not None:
        shutil.move(done.folder, place)
    return Exported(named, tuple(found))


def _kept_aside(written: Path, folder: Path) -> Path:
    """Name what failed `<folder>.failed`, in place of an earlier one."""
    kept = aside_of(folder)
    if kept.exists():
        shutil.rmtree(kept)
    shutil.move(written, kept)
    return kept


def _report_again(runs: Mapping[str, RunFolder]) -> None:
    for run in runs.values():
        write_report_again(run)


@contextmanager
def _locked(runs: Mapping[str, RunFolder]) -> Iterator[None]:
    """Keep others from writing these runs, of which two names may mean the same."""
    with ExitStack() as held:
        for run in {run.path.resolve(): run for run in runs.values()}.values():
            held.enter_context(run.lock())
        yield


_NO_RUN = "this model comes without a run, so there are no test rows"


def _name_in(target: Target, recipe: Recipe) -> str:
    """The name of a single tuned model in an export: none, but in one that is made to hold several adapters."""
    return (recipe.name or "tuned") if target.kind == "onnx-multi" else ""


def _exported(
    asked: Asked,
    references: Mapping[str, Reference],
    scratch: Path,
    calibration: Sequence[Sequence[int]],
    max_loss: float | None,
    answers: Path | None,
    tell: Callable[[str], None],
    *,
    runs: Mapping[str, RunFolder] | None = None,
    measure: bool = False,
) -> Exported:
    """Written, opened, verified and named, or kept as failed."""
    began = time.monotonic()
    first = next(iter(references.values())).source
    with staged_folder(asked.folder, replace=False) as staged:
        tell(f"writing {asked.target}")
        facts = dict(_write(asked, references, staged, scratch, calibration, tell))
        artifact = described(asked.target, staged, first, references, facts)
        write_artifact(artifact)
        tell("opening the export")
        verifications, speed = _verified(artifact, references, max_loss, answers, tell, speed=not measure)
        if measure and all(_worth_measuring(one) for one in verifications):
            tell("measuring speed and memory in a process of its own")
            speed = {"speed": measure_artifact(staged, next(iter(references)) or None).to_dict()}
        artifact = with_evidence(artifact, verifications, {**facts, **speed, "seconds": time.monotonic() - began})
        failed = [one for one in verifications if not one.passed]
        named = replace(artifact, folder=asked.folder)
        if failed:
            kept = _kept_aside(staged, asked.folder)
            _record(runs or {}, named, references, verifications)
            raise failure(asked.target, failed, kept)
    _record(runs or {}, named, references, verifications)
    return Exported(named, tuple(verifications))


def _record(
    runs: Mapping[str, RunFolder],
    artifact: Artifact,
    references: Mapping[str, Reference],
    verifications: Sequence[Verification],
) -> None:
    """Keep in each run what was found, once the export has its name."""
    for name, one in zip(references, verifications, strict=True):
        if name in runs:
            record_export(runs[name], artifact, one)


def _write(
    asked: Asked,
    references: Mapping[str, Reference],
    staged: Path,
    scratch: Path,
    calibration: Sequence[Sequence[int]],
    tell: Callable[[str], None],
) -> Mapping[str, Any]:
    sources = {name: reference.source for name, reference in references.items()}
    first = next(iter(sources.values()))
    named = {} if "" in sources else sources
    work = Work(first, asked.target, staged, scratch, tell, calibration, asked.bits, named, asked.mixed)
    return writer_of(asked.target.kind)(work)


def _verified(
    artifact: Artifact,
    references: Mapping[str, Reference],
    max_loss: float | None,
    answers: Path | None,
    tell: Callable[[str], None],
    *,
    speed: bool,
) -> tuple[list[Verification], dict[str, Any]]:
    """What was found of each model in the export, and with `speed` how fast the first one is in this process."""
    found, measured = [], dict[str, Any]()
    for name, reference in references.items():
        engine = open_artifact(artifact, name or None)
        found.append(
            verify(artifact, engine, reference, adapter=name or None, max_loss=max_loss, answers=answers, tell=tell)
        )
        if speed and not measured and reference.source.asked and not read_back(engine):
            tell("measuring its speed")
            measured = {"speed": speed_of(engine).to_dict()}
        del engine
    return found, measured


def _worth_measuring(found: Verification) -> bool:
    """Whether its speed says something: it is the tuned model, whatever it lost, in the runtime that it is made for."""
    back = any(check.name == "runtime" and check.status == "not possible" for check in found.checks)
    return not back and all(check.name == "task" for check in found.failed)
