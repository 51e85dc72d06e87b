"""What a run remembers of its exports, wherever these lie."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tunesmith.errors import VerificationError
from tunesmith.models.artifact import Artifact
from tunesmith.pipeline.exporting.types import Verification
from tunesmith.runs import RunFolder, write_json
from tunesmith.verdict.report_exports import ExportLine
from tunesmith.verdict.report_tried import TriedData, TriedExport

EXPORTS = "exports"
"""Folder below a run's `evaluation/` with the answers of exports, and `<name>.verification.json` of each."""
AUTO = "auto.json"
"""Beside them, what came of every format that was tried to choose among them."""
_ENDING = ".verification.json"
_KEPT_FACTS = ("speed", "bits_per_weight", "base_bytes")


def record_export(run: RunFolder, artifact: Artifact, verification: Verification) -> None:
    """Keep what was found out about an export of a run; a later one of the same target takes its place."""
    write_json(run.evaluation / EXPORTS / f"{artifact.target}{_ENDING}", record_of(artifact, verification))


def record_of(artifact: Artifact, verification: Verification) -> dict[str, Any]:
    """What is kept of an export, as JSON values."""
    folder = artifact.folder if verification.passed else artifact.folder.with_name(f"{artifact.folder.name}.failed")
    target = artifact.target
    return {
        **verification.to_dict(),
        "folder": str(folder.absolute()),
        "bytes": artifact.bytes,
        "kind": target.kind,
        "precision": target.precision,
        "facts": {key: artifact.facts[key] for key in _KEPT_FACTS if key in artifact.facts},
    }


def export_lines(run: RunFolder) -> tuple[ExportLine, ...]:
    """The run's exports as the report shows them. Raises `VerificationError` for a record that is none."""
    lines = []
    for path in sorted((run.evaluation / EXPORTS).glob(f"*{_ENDING}")):
        try:
            lines.append(line_of(json.loads(path.read_text(encoding="utf-8"))))
        except (ValueError, KeyError, TypeError, AttributeError) as problem:
            raise VerificationError(
                f"this file does not say how an export was verified: {problem}", where=str(path), fix="export again"
            ) from problem
    return tuple(lines)


def tried_exports(run: RunFolder) -> TriedData | None:
    """What was tried to choose among it; None where nothing was. Raises `VerificationError` for a record that is none.

    A loss that is too large for the limits is a figure here and no failure.
    """
    path = run.evaluation / EXPORTS / AUTO
    if not path.is_file():
        return None
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        exports = tuple(_tried(one, kept["chosen"]) for one in kept["outcomes"])
        checks = kept["confirmed"]["checks"] if kept["confirmed"] is not None else ()
        task = next((check["text"] for check in checks if check["name"] == "task"), None)
        return TriedData(exports, kept["best"], kept["limits"]["max_loss"], kept["rows"], task)
    except (ValueError, KeyError, TypeError, AttributeError) as problem:
        raise VerificationError(
            f"this file does not say what exports were tried: {problem}",
            where=str(path),
            fix="export again with --auto",
        ) from problem


def _tried(kept: Mapping[str, Any], chosen: str | None) -> TriedExport:
    line = line_of(kept["record"]) if kept["record"] is not None else None
    if line is not None:
        line = replace(line, failed=tuple(name for name in line.failed if name != "task"))
    return TriedExport(kept["name"], kept["note"], line, kept["front"], kept["allowed"], kept["name"] == chosen)


def line_of(kept: Mapping[str, Any]) -> ExportLine:
    """A record as a line of the report. Raises `KeyError` or `TypeError` for something else."""
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
