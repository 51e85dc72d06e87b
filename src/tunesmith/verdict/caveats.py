"""What weakens a verdict and is seen in the numbers themselves."""

from __future__ import annotations

from collections.abc import Mapping

from tunesmith.evaluation.types import Evaluation, PairedDifference
from tunesmith.verdict import wording
from tunesmith.verdict.case import Case, reversed_pair
from tunesmith.verdict.sample_size import z_value
from tunesmith.verdict.types import Forgetting

FEW_ROWS = 30
FEW_CLUSTERS = 20
_MANY_CUT = 0.05


def caveats_of(case: Case, pairs: Mapping[str, PairedDifference]) -> list[str]:
    """Sentences, the weightiest first."""
    n = case.value(case.tuned).n
    found = _few_rows(n)
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
    found += _of_answers({name: case.evaluations[name] for name in case.candidates}, n)
    if better := better_way(case):
        found.append(better)
    return found


def measured_caveats(evaluations: Mapping[str, Evaluation], rows: int) -> list[str]:
    """What weakens any statement about these candidates, whether or not something was tuned."""
    return [*_few_rows(rows), *_of_answers(evaluations, rows)]


def better_way(case: Case) -> str | None:
    """That the tuned model asked in another way (`tuned_scored`) is surely better than in the way that decides.

    The best of the ways is looked at, so its interval and its test allow for their number (Bonferroni).
    """
    names = [name for way in wording.WAYS if (name := f"{case.tuned}_{way}") in case.evaluations]
    pairs = [pair for name in names if (pair := case.measured(name, case.tuned)) is not None]
    if not pairs:
        return None
    best = max(pairs, key=lambda pair: pair.difference)
    stretch = z_value(1 - (1 - case.confidence) / len(pairs)) / z_value(case.confidence)
    low = best.difference - stretch * (best.difference - best.low)
    doubtful = best.p_value is not None and best.p_value * len(pairs) > 1 - case.confidence
    if low <= 0 or doubtful:
        return None
    way = best.a.removeprefix(f"{case.tuned}_")
    return (
        f"The tuned model itself is surely better when asked another way, {way}: {wording.points(best.difference)} "
        f"{wording.metric_name(case.metric)} ({wording.interval(best.low, best.high, case.confidence)}); put {way} "
        "first in evaluate.decoding to let that way decide."
    )


def forgetting_sentence(forgetting: Forgetting, confidence: float) -> str:
    """What happened to general text and general instructions, in a line or two."""
    rise = forgetting.perplexity_after / forgetting.perplexity_before - 1
    sign = "+" if rise > 0 else ""
    text = (
        f"Beside its task: perplexity of general text went from {forgetting.perplexity_before:.3g} to "
        f"{forgetting.perplexity_after:.3g} ({sign}{wording.percent(rise)})."
    )
    asked, skill = forgetting.instructions, forgetting.skill
    if skill is not None and forgetting.skill_before is not None and forgetting.skill_after is not None:
        before, after = round(forgetting.skill_before * asked), round(forgetting.skill_after * asked)
        return (
            f"{text} Of {asked} general instructions the base follows {before} and tuned {after} "
            f"({wording.points(skill.difference)}, {wording.interval(skill.low, skill.high, confidence)})."
        )
    if asked:
        return f"{text} The base follows none of {asked} general instructions, so tuning had none to lose."
    return text


def _few_rows(n: int) -> list[str]:
    return [f"Only {n} test rows: intervals are rough below {FEW_ROWS}."] if n < FEW_ROWS else []


def _of_answers(evaluations: Mapping[str, Evaluation], n: int) -> list[str]:
    """What went wrong with single answers: examples that had no room, answers that were cut."""
    found = []
    for name, evaluation in evaluations.items():
        if dropped := _dropped_examples(name, evaluation):
            found.append(dropped)
        if unanswered := int(evaluation.notes.get("unanswered_rows", 0)):
            found.append(
                f"{unanswered} of {n} rows got no answer from {wording.candidate_name(name)}; they count as wrong."
            )
        if changed := evaluation.notes.get("model_changed"):
            found.append(f"{wording.capitalised(wording.candidate_name(name))} is not one model: {changed}.")
        cut = sum(1 for row in evaluation.rows if not row.stopped)
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
    shown = "passages" if name.startswith("documents") else "examples"
    return (
        f"{wording.capitalised(wording.candidate_name(name))} had room for {used['mean']:.1f} of its "
        f"{evaluation.notes['k']} {shown} on average; a base with a longer context could do better."
    )


def _was_widened(pair: PairedDifference, case: Case) -> bool:
    return pair not in case.differences and reversed_pair(pair) not in case.differences
