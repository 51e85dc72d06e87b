"""What a run remembers of its exports, wherever these lie."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tunesmith.errors import VerificationError
from tunesmith.models.artifact import Artifact
from tunesmith.pipeline.exporting.types import Verification
from tunesmith.runs import RunFolder, write_json
from tunesmith.verdict.report_exports import ExportLine

EXPORTS = "exports"
"""Folder below a run's `evaluation/` with the answers of exports, and `<name>.verification.json` of each."""
_ENDING = ".verification.json"
_KEPT_FACTS = ("speed", "bits_per_weight", "base_bytes")


def record_export(run: RunFolder, artifact: Artifact, verification: Verification) -> None:
    """Keep what was found out about an export of a run; a later one of the same target takes its place."""
    folder = artifact.folder if verification.passed else artifact.folder.with_name(f"{artifact.folder.name}.failed")
    target = artifact.target
    write_json(
        run.evaluation / EXPORTS / f"{target}{_ENDING}",
        {
            **verification.to_dict(),
            "folder": str(folder),
            "bytes": artifact.bytes,
            "kind": target.kind,
            "precision": target.precision,
            "facts": {key: artifact.facts[key] for key in _KEPT_FACTS if key in artifact.facts},
        },
    )


def export_lines(run: RunFolder) -> tuple[ExportLine, ...]:
    """The run's exports as the report shows them. Raises `VerificationError` for a record that is none."""
    lines = []
    for path in sorted((run.evaluation / EXPORTS).glob(f"*{_ENDING}")):
        try:
            lines.append(_line(json.loads(path.read_text(encoding="utf-8"))))
        except (ValueError, KeyError, TypeError, AttributeError) as problem:
            raise VerificationError(
                f"this file does not say how an export was verified: {problem}", where=str(path), fix="export again"
            ) from problem
    return tuple(lines)


def _line(kept: Mapping[str, Any]) -> ExportLine:
    found, numbers = Verification.from_dict(kept), kept["numbers"]
    scores, speed = numbers.get("scores", {}), kept["facts"].get("speed", {})
    return ExportLine(
        name=found.artifact,
        folder=kept["folder"],
        bytes=kept["bytes"],
        base_bytes=kept["facts"].get("base_bytes", 0),
        read_back=any(check.name == "runtime" and check.status == "not possible" for check in found.checks),
        failed=tuple(check.name for check in found.failed),
        unsure=tuple(check.name for check in found.checks if check.status == "unsure"),
        **{name: scores.get(name) for name in _OF_SCORES},
        kl=numbers["mean_kl"],
        top1=numbers["top1_agreement"],
        agreement=numbers["answer_agreement"],
        **{name: speed.get(name) for name in ("prefill", "decode", "first_token", "peak_memory")},
    )


_OF_SCORES = (
    "metric",
    "value",
    "low",
    "high",
    "difference",
    "difference_low",
    "difference_high",
    "margin",
    "non_inferior",
)
