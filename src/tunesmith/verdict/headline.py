"""The verdict in a line, for terminals, lists of runs and the top of the report."""

from __future__ import annotations

from tunesmith.verdict import wording
from tunesmith.verdict.types import Verdict


def headline(verdict: Verdict) -> str:
    """`Ship tuned: +11.2 points (95 % CI 8.9 to 13.6) over few-shot, break-even 3,100 requests`, and so on."""
    title = title_of(verdict)
    gain = gain_of(verdict)
    metric = wording.metric_name(verdict.metric)
    if verdict.decision == "none_good_enough" and verdict.vetoes:
        return f"{title}: tuned may not be shipped"
    if verdict.decision == "none_good_enough":
        return f"{title}: no candidate reaches the target of {_target(verdict)} {metric}"
    if verdict.decision == "cannot_tell":
        needed = verdict.rows_needed
        none = "more trainings needed" if verdict.rule != "nothing_to_compare_with" else "nothing to compare with"
        rest = f"about {wording.count(needed)} test rows needed" if needed else none
        return f"{title}: {gain}, {rest}" if gain else f"{title}: {rest}"
    if verdict.rule == "alternative_reaches_target":
        return f"{title}: it surely reaches the target of {_target(verdict)} {metric}, nothing was trained"
    if gain is None:
        return f"{title}: it reaches the target of {_target(verdict)} {metric}, nothing to compare with"
    if verdict.decision == "ship_tuned":
        return f"{title}: {gain}, {break_even_text(verdict.break_even_requests)}"
    return f"{title}: tuned brings {gain}"


def title_of(verdict: Verdict) -> str:
    """The decision in two to five words: `Ship tuned`, `Keep prompting (few-shot)`, `Cannot tell`."""
    name = wording.candidate_name(verdict.candidate or "")
    inside = name.replace(" (", ", ").removesuffix(")")
    return {
        "ship_tuned": "Ship tuned",
        "keep_prompting": f"Keep prompting ({inside})",
        "use_retrieval": "Use retrieval" if verdict.candidate == "retrieval" else f"Use retrieval ({inside})",
        "use_trivial": f"Use the {name} baseline",
        "use_remote": f"Use the {name} model",
        "none_good_enough": "None is good enough",
        "cannot_tell": "Cannot tell",
    }[verdict.decision]


def gain_of(verdict: Verdict) -> str | None:
    """`+11.2 points (95 % CI 8.9 to 13.6) over few-shot`; None where nothing was compared."""
    if verdict.difference is None:
        return None
    pair = verdict.difference
    interval = wording.interval(pair["low"], pair["high"], verdict.assumptions["confidence"])
    return f"{wording.points(pair['difference'])} ({interval}) over {wording.candidate_name(pair['b'])}"


def break_even_text(requests: int | None) -> str:
    """`break-even 3,100 requests`; None means that tuned is not cheaper per request."""
    if requests is None:
        return "no break-even by cheaper requests"
    return f"break-even {wording.count(requests)} requests" if requests else "cheaper from the first request"


def _target(verdict: Verdict) -> str:
    return wording.percent(verdict.assumptions["target"])
