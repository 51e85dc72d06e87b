"""What an export says of itself: its manifest, its card, and the error where it is not the tuned model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tunesmith.errors import VerificationError
from tunesmith.export.source import FolderSource
from tunesmith.inference.torch_artifacts import LOADING
from tunesmith.models.artifact import Artifact, Target, hash_files, write_artifact
from tunesmith.models.base_files import look_at_files
from tunesmith.models.methods import CARD
from tunesmith.pipeline.exporting.card import add_evidence
from tunesmith.pipeline.exporting.reference import Reference
from tunesmith.pipeline.exporting.types import VERIFICATION, Verification
from tunesmith.pipeline.exporting.working import versions
from tunesmith.runs import write_json


def described(
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
        versions=versions(),
        facts=facts,
    )


def _loading(source: FolderSource) -> dict[str, Any]:
    """How a run loads its base below an adapter."""
    spec = source.recipe.base
    base = {"revision": spec.revision, "dtype": spec.dtype}
    method = source.method.model_dump(mode="json") if source.method is not None else None
    return {"base": base, "method": method}


def with_evidence(artifact: Artifact, verifications: Sequence[Verification], facts: Mapping[str, Any]) -> Artifact:
    """The manifest and card with what was found, and the files hashed as they are now."""
    said = [one.to_dict() for one in verifications]
    write_json(artifact.folder / VERIFICATION, {"verification": said})
    add_evidence(artifact.folder / CARD, artifact.target, verifications)
    files, size = hash_files(artifact.folder)
    passed = all(one.passed for one in verifications)
    kept = {**artifact.facts, **facts, "verification": {"passed": passed, "file": VERIFICATION}}
    done = replace(artifact, files=files, bytes=size, facts=json.loads(json.dumps(kept)))
    write_artifact(done)
    return done


def failure(target: Target, failed: Sequence[Verification], kept: Path) -> VerificationError:
    """The error for an export that is kept aside in `kept`, with every check that failed."""
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
