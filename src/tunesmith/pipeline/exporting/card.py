"""The evidence in an export's card: what was checked, with every figure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tunesmith.models.artifact import Target
from tunesmith.pipeline.exporting.types import Verification

_HEADING = "## Verification"


def add_evidence(path: Path, target: Target, verifications: Sequence[Verification]) -> None:
    """End the card of an export with what was found; a writer that wrote none gets one that holds only this.

    What an earlier verification of the same export said is taken out.
    """
    before = path.read_text(encoding="utf-8") if path.is_file() else f"# {target}\n"
    before, _, _ = before.partition(f"\n{_HEADING}\n")
    path.write_text(before.rstrip() + "\n" + evidence(verifications), encoding="utf-8")


def evidence(verifications: Sequence[Verification]) -> str:
    """The section as Markdown."""
    lines = [
        "",
        _HEADING,
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
