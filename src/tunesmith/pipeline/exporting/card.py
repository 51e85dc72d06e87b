"""The evidence in an export's card: what was checked, with every figure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tunesmith.models.artifact import Target
from tunesmith.pipeline.exporting.types import Verification


def add_evidence(path: Path, target: Target, verifications: Sequence[Verification]) -> None:
    """Append a section to the card of an export; a writer that wrote none gets one that holds only this."""
    before = path.read_text(encoding="utf-8") if path.is_file() else f"# {target}\n"
    path.write_text(before.rstrip() + "\n" + evidence(verifications), encoding="utf-8")


def evidence(verifications: Sequence[Verification]) -> str:
    """The section as Markdown."""
    lines = [
        "",
        "## Verification",
        "",
        "This export was opened again by its own runtime and held against the tuned model in memory. The same figures, "
        "for programs, are in [verification.json](verification.json).",
    ]
    for one in verifications:
        lines += ["", *([f"### {one.adapter}", ""] if one.adapter is not None else [])]
        lines += ["| check | outcome | found |", "|---|---|---|"]
        lines += [f"| {check.name} | {check.status} | {_cell(check.text)} |" for check in one.checks]
    return "\n".join([*lines, ""])


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
