"""The run's report, written again with its exports."""

from __future__ import annotations

from tunesmith.evaluation.rating import read_preferences
from tunesmith.pipeline.evidence import read_evidence
from tunesmith.pipeline.loading import read_verdict
from tunesmith.pipeline.reporting import write_run_report
from tunesmith.runs import RunFolder


def write_report_again(folder: RunFolder) -> None:
    """Write `report.html` anew; a run that was not decided has none."""
    evidence, verdict = read_evidence(folder), read_verdict(folder)
    if evidence is not None and verdict is not None:
        write_run_report(folder, evidence, verdict, read_preferences(folder.evaluation))
