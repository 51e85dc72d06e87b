"""An export from beginning to end: room on the disk, the tuned model asked, written, opened again, verified, named.

A folder gets its name only when every check was made and none failed. One that failed is kept beside it as
`<name>.failed`, with what was found. Whatever ends an export, scratch files are removed.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tunesmith.errors import RecipeError, TunesmithError, VerificationError
from tunesmith.export.source import FolderSource, open_source
from tunesmith.export.types import StepError, Work
from tunesmith.export.writers import writer_of
from tunesmith.inference.artifacts import open_artifact
from tunesmith.inference.torch_artifacts import LOADING
from tunesmith.models.artifact import Artifact, Target, hash_files, write_artifact
from tunesmith.models.base_files import look_at_files
from tunesmith.models.methods import CARD
from tunesmith.pipeline.evidence import read_evidence
from tunesmith.pipeline.exporting.card import add_evidence
from tunesmith.pipeline.exporting.measure import measure_artifact, speed_of
from tunesmith.pipeline.exporting.records import EXPORTS, record_export
from tunesmith.pipeline.exporting.reference import Reference, measure_reference
from tunesmith.pipeline.exporting.report import write_report_again
from tunesmith.pipeline.exporting.rows import FrozenRows, calibration_ids, frozen_rows
from tunesmith.pipeline.exporting.space import refuse_full_disk
from tunesmith.pipeline.exporting.targets import refuse_impossible
from tunesmith.pipeline.exporting.types import Exported, Verification
from tunesmith.pipeline.exporting.verify import read_back, verify
from tunesmith.pipeline.prepare import Listener
from tunesmith.recipe import load_recipe
from tunesmith.recipe.schema import Recipe
from tunesmith.runs import RunFolder, staged_folder, write_json

VERIFICATION = "verification.json"
_LIBRARIES = (
    "tunesmith", "torch", "transformers", "peft", "safetensors", "onnx", "onnxruntime", "onnxruntime-genai", "openvino",
    "gguf", "llama-cpp-python", "torchao",
)  # fmt: skip
_NAMELESS = "adapter"


@dataclass(frozen=True, slots=True)
class Asked:
    """What one export is to be: `folder` is the one it gets, `bits` a plan of mixed precision, by module.

    mixed: mean KL in nats per token within which the writer makes such a plan itself.
    """

    target: Target
    folder: Path
    bits: Mapping[str, int]
    mixed: float | None = None


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
    _refuse(asked)
    with folder.lock(), folder.events([listener] if listener is not None else []) as events:
        recipe = load_recipe(folder.recipe_file)
        read_evidence(folder)  # where the report cannot be written again, that is better known before than after
        source = open_source(folder, recipe)
        for one in asked:
            refuse_full_disk(source, one.target, one.folder)

        def write(event: dict[str, Any]) -> None:
            events.write(event["kind"], **{k: v for k, v in event.items() if k != "kind"})

        tell = _teller(write)
        done = []
        with _scratch(asked[0].folder) as scratch:
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
    _refuse([asked])
    refuse_full_disk(source, target, out)
    tell = _teller(listener)
    with _scratch(out) as scratch:
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
    _refuse([asked])
    _refuse_strangers(base, sources)
    for source in sources.values():
        refuse_full_disk(source, target, out)
    tell = _teller(listener)
    with _scratch(out) as scratch:
        references = {}
        for name, source in sources.items():
            run = (runs or {}).get(name)
            rows = frozen_rows(run, source.recipe) if run is not None else _NO_RUN
            answers = run.evaluation if run is not None else None
            inner = scratch / f"of-{name}"
            references[name] = measure_reference(source, rows, answers, inner, _named(name, tell))
        try:
            exported = _exported(asked, references, scratch, (), max_loss, scratch / "answers", tell, runs=runs)
        except VerificationError:
            _report_again(runs or {})
            raise
        _report_again(runs or {})
    return exported


def _report_again(runs: Mapping[str, RunFolder]) -> None:
    for run in runs.values():
        with run.lock():
            write_report_again(run)


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
    with staged_folder(asked.folder) as staged:
        tell(f"writing {asked.target}")
        facts = dict(_write(asked, references, staged, scratch, calibration, tell))
        artifact = _described(asked.target, staged, first, references, facts)
        write_artifact(artifact)
        tell("opening the export")
        verifications, speed = _verified(artifact, references, max_loss, answers, tell, speed=not measure)
        if measure and all(one.passed and _in_its_runtime(one) for one in verifications):
            tell("measuring speed and memory in a process of its own")
            speed = {"speed": measure_artifact(staged, next(iter(references)) or None).to_dict()}
        artifact = _with_evidence(artifact, verifications, {**facts, **speed, "seconds": time.monotonic() - began})
        named = replace(artifact, folder=asked.folder)
        for name, one in zip(references, verifications, strict=True):
            if runs is not None and name in runs:
                record_export(runs[name], named, one)
        failed = [one for one in verifications if not one.passed]
        if failed:
            kept = asked.folder.with_name(f"{asked.folder.name}.failed")
            if kept.exists():
                shutil.rmtree(kept)
            staged.rename(kept)
            raise _failure(asked.target, failed, kept)
    return Exported(named, tuple(verifications))


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


def _described(
    target: Target, staged: Path, source: FolderSource, references: Mapping[str, Reference], facts: Mapping[str, Any]
) -> Artifact:
    """The manifest as far as it is known before anything was verified."""
    template = source.template
    if target.kind == "adapter":
        base = look_at_files(source.base_folder, name=source.recipe.base.model)
        facts = {**facts, LOADING: _loading(source), "base_bytes": base.bytes}
    files, size = hash_files(staged)
    return Artifact(
        folder=staged,
        target=target,
        files=files,
        bytes=size,
        base=source.recipe.base.model,
        base_sha256=source.base_sha256,
        chat_template=source.recipe.base.chat_template,
        template_sha256=hashlib.sha256(template.encode()).hexdigest() if template is not None else None,
        stop_ids=source.stop_ids,
        context=source.context,
        adapters=tuple(name for name in references if name),
        versions=_versions(),
        facts=facts,
    )


def _loading(source: FolderSource) -> dict[str, Any]:
    """How a run loads its base below an adapter."""
    spec = source.recipe.base
    base = {"revision": spec.revision, "dtype": spec.dtype}
    method = source.method.model_dump(mode="json") if source.method is not None else None
    return {"base": base, "method": method}


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


def _in_its_runtime(found: Verification) -> bool:
    """Whether it was opened by what it is made for; the speed of anything else says nothing."""
    return not any(check.name == "runtime" and check.status == "not possible" for check in found.checks)


def _with_evidence(artifact: Artifact, verifications: Sequence[Verification], facts: Mapping[str, Any]) -> Artifact:
    """The manifest and card with what was found, and the files hashed as they are now."""
    said = [one.to_dict() for one in verifications]
    write_json(artifact.folder / VERIFICATION, {"verification": said})
    add_evidence(artifact.folder / CARD, artifact.target, verifications)
    files, size = hash_files(artifact.folder)
    passed = {one.adapter or _NAMELESS: one.passed for one in verifications}
    kept = {**artifact.facts, **facts, "verification": {"passed": all(passed.values()), "file": VERIFICATION}}
    done = replace(artifact, files=files, bytes=size, facts=json.loads(json.dumps(kept)))
    write_artifact(done)
    return done


def _failure(target: Target, failed: Sequence[Verification], kept: Path) -> VerificationError:
    said = [
        f"{check.name}: {check.text}" if one.adapter is None else f"{one.adapter}, {check.name}: {check.text}"
        for one in failed
        for check in one.failed
    ]
    only_task = all(check.name == "task" for one in failed for check in one.failed)
    return VerificationError(
        f"the export to {target} is not the tuned model: " + "; ".join(said),
        where=str(kept),
        expected="every check of docs/export.md passed",
        fix="choose a higher precision, or say with --max-loss what loss you accept"
        if only_task
        else f"look at {VERIFICATION} there; a higher precision, or another format, may pass",
    )


def _refuse(asked: Sequence[Asked]) -> None:
    """Raise `RecipeError` for targets that are none, and for paths that are taken."""
    for one in asked:
        refuse_impossible(one.target)
        if one.mixed is not None and one.target.kind != "gptq":
            raise RecipeError(f"{one.target.kind} is not made with mixed precision", where="--mixed", expected="gptq")
        if one.mixed is not None and not one.mixed > 0:
            raise RecipeError(f"a mean KL of {one.mixed} cannot be kept", where="--mixed", expected="a number above 0")
        if one.folder.exists():
            raise RecipeError("this path exists already", where=str(one.folder), fix="choose another, or remove it")
    if len({one.folder for one in asked}) < len(asked):
        raise RecipeError("two exports would get the same folder", where="--to", fix="name each format once")


def _refuse_strangers(base: str, sources: Mapping[str, FolderSource]) -> None:
    """Raise `RecipeError` where adapters are not all of one base; all are named at once."""
    if not sources:
        raise RecipeError("there is nothing to pack", where="adapters", expected="name=RUN, at least one")
    whole = [name for name, source in sources.items() if not source.is_adapter]
    hashes = {source.base_sha256 for source in sources.values()}
    other = [name for name, source in sources.items() if source.recipe.base.model != base]
    said = []
    if whole:
        said.append(f"{', '.join(whole)} {'is' if len(whole) == 1 else 'are'} tuned in full")
    if len(hashes) > 1 or (other and len({sources[n].base_folder for n in sources}) > 1):
        said.append("they were tuned on different bases")
    if said:
        raise RecipeError(
            "; ".join(said), where="adapters", expected=f"adapters of {base}, all of the same weights",
            fix="pack only adapters of one base",
        )  # fmt: skip


def _teller(listener: Listener | None) -> Callable[[str], None]:
    """Lines of progress as events, with the seconds since the export began."""
    began = time.monotonic()

    def tell(line: str) -> None:
        if listener is not None:
            listener({"kind": "note", "stage": "export", "text": line, "seconds": time.monotonic() - began})

    return tell


def _named(name: str, tell: Callable[[str], None]) -> Callable[[str], None]:
    return lambda line: tell(f"{name}: {line}")


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """A folder on the disk of the export for large files on the way to it, gone afterwards."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    path = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _versions() -> dict[str, str]:
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
