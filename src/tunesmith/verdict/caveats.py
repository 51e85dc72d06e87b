"""What weakens a verdict and is seen in the numbers themselves."""

from __future__ import annotations

from collections.abc import Mapping

from tunesmith.evaluation.types import Evaluation, PairedDifference
from tunesmith.verdict import wording
from tunesmith.verdict.case import Case, reversed_pair

FEW_ROWS = 30
FEW_CLUSTERS = 20
_MANY_CUT = 0.05


def caveats_of(case: Case, pairs: Mapping[str, PairedDifference]) -> list[str]:
    """Sentences, the weightiest first."""
    found = []
    n = case.value(case.tuned).n
    if n < FEW_ROWS:
        found.append(f"Only {n} test rows: intervals are rough below {FEW_ROWS}.")
    clusters = min((pair.clusters for pair in pairs.values() if pair.clusters is not None), default=FEW_CLUSTERS)
    if clusters < FEW_CLUSTERS:
        found.append(
            f"The test rows belong to only {clusters} groups of rows that hang together: intervals are rough below "
            f"{FEW_CLUSTERS}."
        )
    alike = {name: pair for name, pair in pairs.items() if _was_widened(pair, case)}
    widened = [wording.candidate_name(name) for name in alike]
    if widened:
        groups = min((pair.clusters for pair in alike.values() if pair.clusters is not None), default=None)
        shown = f"{n} rows" if groups is None else f"{groups} groups of rows"
        found.append(
            f"Tuned and {', '.join(widened)} score alike on almost every test row; the interval was widened to what "
            f"{shown} can show."
        )
    for name in case.candidates:
        if dropped := _dropped_examples(name, case.evaluations[name]):
            found.append(dropped)
        cut = sum(1 for row in case.evaluations[name].rows if not row.stopped)
        if cut > _MANY_CUT * n:
            found.append(
                f"{cut} of {n} answers of {wording.candidate_name(name)} were cut at the token limit; "
                "evaluate.max_new_tokens may be too low for it."
            )
    return found


def _dropped_examples(name: str, evaluation: Evaluation) -> str | None:
    used = evaluation.notes.get("k_used")
    if not isinstance(used, Mapping) or used["mean"] > evaluation.notes["k"] - 0.005:
        return None
    return (
        f"{wording.capitalised(wording.candidate_name(name))} had room for {used['mean']:.1f} of its "
        f"{evaluation.notes['k']} examples on average; a base with a longer context could do better."
    )


def _was_widened(pair: PairedDifference, case: Case) -> bool:
    return pair not in case.differences and reversed_pair(pair) not in case.differences
