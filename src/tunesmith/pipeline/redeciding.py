"""Deciding again from what a run has kept, when people or a judge have said something since: no model is asked."""

from __future__ import annotations

from tunesmith.evaluation.rating import read_preferences
from tunesmith.pipeline.concluding import conclude
from tunesmith.pipeline.deciding import decide_on
from tunesmith.pipeline.evidence import heard_otherwise, read_evidence
from tunesmith.pipeline.loading import load_run, read_verdict
from tunesmith.pipeline.result import Result
from tunesmith.runs import RunFolder
from tunesmith.verdict.headline import headline


def redecide(folder: RunFolder) -> Result:
    """The run with its verdict as it is now that preferences are known; written anew only where they changed.

    A run that stopped before training keeps its verdict, since nothing was tuned that people could prefer; only its
    report is written with what they said. Raises `VerificationError` for damaged files, `ResourceError` where another
    process is writing the run.
    """
    preferences = read_preferences(folder.evaluation)
    if read_verdict(folder) is None or not heard_otherwise(folder, preferences):
        return load_run(folder)
    with folder.lock():
        evidence, verdict = read_evidence(folder), read_verdict(folder)
        if evidence is not None and verdict is not None:
            if evidence.training is not None:
                verdict = decide_on(evidence, preferences)
            folder.set_status("finished", verdict=headline(verdict))
            conclude(folder, evidence, preferences, verdict)
    return load_run(folder)
