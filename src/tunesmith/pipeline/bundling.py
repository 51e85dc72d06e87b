"""Bundles of a run's exports: what the run knows of the model goes into the card and the bill of materials."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tunesmith.errors import RecipeError, VerificationError
from tunesmith.export.bundle import Bundled, Story, write_bundle
from tunesmith.export.bundle.types import Score
from tunesmith.models.artifact import Artifact, read_artifact
from tunesmith.models.base_files import cached_folder
from tunesmith.models.licence import check_licence, readings
from tunesmith.models.load import base_folder
from tunesmith.pipeline.evaluating import is_tuned
from tunesmith.pipeline.exporting.types import VERIFICATION, Verification
from tunesmith.pipeline.loading import load_run
from tunesmith.pipeline.result import Result
from tunesmith.runs import RunFolder
from tunesmith.runs.folder import is_run
from tunesmith.verdict.headline import headline


def bundle(
    export: Path,
    out: Path | None = None,
    *,
    run: RunFolder | None = None,
    server: str | None = None,
    name: str | None = None,
) -> Bundled:
    """Make a bundle of an export, with what its run measured.

    run: where the export was written elsewhere than into its run's folder; without one, and where it lies in none, the
    card says that nothing was measured. out: default is beside the export, with `-bundle` behind its name.

    Raises as `write_bundle`, and `RecipeError` for a run of another model.
    """
    export = export.resolve()
    artifact = read_artifact(export, check=False)
    folder = run or _run_of(export)
    if folder is not None:
        _refuse_other(artifact, folder)
    story = _told(artifact, folder, name)
    return write_bundle(export, out or export.with_name(f"{export.name}-bundle"), story, server)


def _run_of(export: Path) -> RunFolder | None:
    """The run that an export lies in."""
    return next((RunFolder(above) for above in export.parents if is_run(above)), None)


def _refuse_other(artifact: Artifact, folder: RunFolder) -> None:
    base = folder.manifest().get("base", {}).get("weights_sha256")
    if base is not None and base != artifact.base_sha256:
        raise RecipeError(
            "this run tuned another base than the one in the export",
            where=str(folder.path),
            expected=f"a run on {artifact.base} with weights {artifact.base_sha256[:16]}…",
        )


def _told(artifact: Artifact, folder: RunFolder | None, name: str | None) -> Story:
    licence = _licence(artifact)
    verified = _verified(artifact)
    checks = tuple(_checks(verified))
    if folder is None:
        return Story(name or _plain_name(artifact.folder.name), checks=checks, **licence)
    result = load_run(folder)
    manifest = folder.manifest()
    data = manifest.get("data", {})
    goal, verdict = result.recipe.goal, result.verdict
    return Story(
        name or _plain_name(folder.name),
        purpose=goal.use_case,
        data=dict(data.get("files_sha256", {})),
        rows=dict(data.get("rows", {})),
        method=_method(result),
        verdict=headline(verdict) if verdict is not None else None,
        checks=checks,
        limits=(*(verdict.caveats if verdict is not None else ()), *_forgotten(result)),
        made={"Run": folder.name, "Trained": str(manifest.get("created", "not recorded"))[:10]},
        **_scores(result, str(artifact.target), verified),
        **licence,
    )


def _scores(result: Result, name: str, verified: Sequence[Verification]) -> dict[str, Any]:
    """The comparison by the metric that decided, with the export itself where it was scored on the same rows."""
    if result.comparison is None or result.verdict is None:
        return {}
    metric = result.verdict.metric
    values = [value for value in result.comparison.values if value.metric == metric]
    subject = next((value.candidate for value in values if is_tuned(value.candidate)), "tuned")
    scores = [Score(one.candidate, one.value, one.low, one.high, one.n) for one in values]
    own = verified[0].numbers.get("scores") if len(verified) == 1 else None
    if own is not None and own["metric"] == metric:
        scores.append(Score(name, own["value"], own["low"], own["high"], own["n"]))
        subject = name
    confidence = result.recipe.evaluate.confidence
    return {"metric": metric, "scores": scores, "subject": subject, "confidence": confidence}


def _method(result: Result) -> str:
    method, facts = result.recipe.method, result.training or {}
    words = f"{method.type}, rank {method.rank}, alpha {method.alpha}" if method.type == "lora" else method.type
    steps = f", {facts['steps']:,} steps over {facts['tokens']:,} tokens" if facts else ""
    return words + steps


def _forgotten(result: Result) -> tuple[str, ...]:
    found = result.forgetting
    if found is None:
        return ()
    return (
        f"The perplexity of general text was {found.perplexity_before:.1f} before tuning and is "
        f"{found.perplexity_after:.1f} after it.",
    )


def _verified(artifact: Artifact) -> list[Verification]:
    """What verification found out, as lies beside the model: one, or one of each adapter."""
    path = artifact.folder / VERIFICATION
    if not path.is_file():
        return []
    try:
        return [Verification.from_dict(one) for one in json.loads(path.read_text(encoding="utf-8"))["verification"]]
    except (ValueError, KeyError, TypeError) as problem:
        raise VerificationError(
            f"this file does not say how an export was verified: {problem}", where=str(path), fix="export again"
        ) from problem


def _checks(verified: Sequence[Verification]) -> Iterator[tuple[str, str, str]]:
    for one in verified:
        before = f"{one.adapter}: " if one.adapter else ""
        yield from ((f"{before}{check.name}", check.status, check.text) for check in one.checks)


def _licence(artifact: Artifact) -> dict[str, Any]:
    folder = base_folder(artifact.base) or cached_folder(artifact.base, None)
    found = check_licence(folder, None, name=artifact.base)
    known = {one.licence.name: one.licence.ids for one in readings(folder) if one.licence} if folder else {}
    identifiers = known.get(found.name, ())
    return {
        "licence": found.name,
        "licence_id": identifiers[0] if identifiers else None,
        "licence_terms": found.conditions,
    }


def _plain_name(text: str) -> str:
    """A name that every server takes."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.") or "model"
