"""What each rule says: the decision with its reason in plain words, and the rows needed where it cannot be told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tunesmith.errors import VerificationError
from tunesmith.evaluation.statistics import AcrossSeeds
from tunesmith.evaluation.types import PairedDifference
from tunesmith.verdict import wording
from tunesmith.verdict.case import Case
from tunesmith.verdict.types import Decision

Pairs = Mapping[str, PairedDifference]
"""By alternative, tuned minus it."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one rule decides. `rows_needed` is set where it cannot be told, unless no number of rows would help."""

    decision: Decision
    candidate: str | None
    rule: str
    reason: str
    rows_needed: int | None = None


_KINDS: Mapping[str, Decision] = {
    "zero_shot": "keep_prompting",
    "few_shot": "keep_prompting",
    "retrieval": "use_retrieval",
    "documents": "use_retrieval",
    "trivial": "use_trivial",
    "remote": "use_remote",
}


def decision_for(candidate: str) -> Decision:
    """The decision that means "use this alternative", whatever way of answering follows (`few_shot_grammar`).

    Raises `VerificationError` for a name of no known kind.
    """
    for kind, decision in _KINDS.items():
        if candidate == kind or candidate.startswith(f"{kind}_"):
            return decision
    raise VerificationError(
        f"candidate {candidate!r} is of no kind a verdict can name",
        expected="zero_shot, few_shot, retrieval, documents, trivial_<name> or remote_<name>, each with _<way> or not",
    )


def none_reaches_target(case: Case) -> Outcome:
    top = max(case.candidates, key=lambda name: case.value(name).value)
    reason = (
        f"No candidate can be expected to reach {case.target_text()}: the best, {wording.candidate_name(top)}, has "
        f"{case.value_text(top, with_interval=True)}."
    )
    return Outcome("none_good_enough", None, "none_reaches_target", reason)


def without_alternatives(case: Case) -> Outcome:
    tuned = case.value(case.tuned)
    measured = f"Tuned has {case.value_text(case.tuned, with_interval=True)}"
    if case.target is None:
        reason = f"{measured}, but there is nothing to compare with: no alternative was measured and no target is set."
        return Outcome("cannot_tell", None, "nothing_to_compare_with", reason)
    if tuned.low >= case.target:
        reason = f"{measured}, surely at least {case.target_text()}. No alternative was measured."
        return Outcome("ship_tuned", case.tuned, "only_target", reason)
    reason = f"{measured}, so it may be on either side of {case.target_text()}, and no alternative was measured. "
    if across := case.in_doubt_between_trainings(case.tuned):
        return Outcome("cannot_tell", None, "target_in_doubt", reason + _more_trainings(across))
    needed = case.rows_for_target(case.tuned, surely=True)
    reason += _more_rows(needed, tuned.n, case.power)
    return Outcome("cannot_tell", None, "target_in_doubt", reason, needed)


def better_by_min_gain(case: Case, pair: PairedDifference) -> Outcome:
    enough = f"at least the {wording.bare_points(case.min_gain)} points asked for"
    reason = f"Tuned brings {case.gain_text(pair)}, the best alternative: surely better, and {enough}."
    return Outcome("ship_tuned", case.tuned, "better_by_min_gain", reason + _target_remark(case))


def as_good_and_cheaper(case: Case, pair: PairedDifference) -> Outcome:
    reason = (
        f"Tuned brings {case.gain_text(pair)}, the best alternative: surely not worse by more than the "
        f"{wording.bare_points(case.margin or 0.0)} points that do not matter, and cheaper{_over_the_time(case)}."
    )
    return Outcome("ship_tuned", case.tuned, "as_good_and_cheaper", reason + _target_remark(case))


def only_tuned_reaches_target(case: Case, pair: PairedDifference) -> Outcome:
    reason = (
        f"Only tuned reaches {case.target_text()}: it brings {case.gain_text(pair)}, which is under the "
        f"{wording.bare_points(case.min_gain)} points asked for, but every alternative surely misses the target."
    )
    return Outcome("ship_tuned", case.tuned, "only_tuned_reaches_target", reason + _target_remark(case))


def gain_below_min_gain(case: Case, pair: PairedDifference) -> Outcome:
    reason = (
        f"{_sentence_start(pair.b)} has {case.value_text(pair.b)}; tuned brings {case.gain_text(pair)}, surely less "
        f"than the {wording.bare_points(case.min_gain)} points worth tuning for."
    )
    return Outcome(decision_for(pair.b), pair.b, "gain_below_min_gain", reason)


def worse_than_margin(case: Case, pair: PairedDifference) -> Outcome:
    reason = (
        f"{_sentence_start(pair.b)} has {case.value_text(pair.b)}; tuned is cheaper{_over_the_time(case)}, but brings "
        f"{case.gain_text(pair)}: surely worse by more than the {wording.bare_points(case.margin or 0.0)} points that "
        "do not matter."
    )
    return Outcome(decision_for(pair.b), pair.b, "worse_than_margin", reason)


def vetoed(case: Case, best: str | None, shipped: Outcome, vetoes: Sequence[str]) -> Outcome:
    """What is left where tuned would be shipped but for a veto: the best alternative, if that is at the target."""
    reason = f"Tuned may not be shipped although it would be by its score. {' '.join(vetoes)} {shipped.reason}"
    if best is not None and case.at_target(best):
        return Outcome(decision_for(best), best, "vetoed", f"{reason} The best alternative is left.")
    return Outcome("none_good_enough", None, "vetoed", f"{reason} No alternative is left that is good enough.")


def target_in_doubt(case: Case, pair: PairedDifference) -> Outcome:
    """What would be chosen is below the target at the best estimate, yet not everything is surely below it."""
    open_ones = [n for n in case.candidates if not case.at_target(n) and not case.surely_below_target(n)] or [
        case.tuned
    ]
    top = max(open_ones, key=lambda name: case.value(name).value)
    reason = (
        f"{_sentence_start(top)} has {case.value_text(top, with_interval=True)}, which leaves open whether it reaches "
        f"{case.target_text()}; tuned brings {case.gain_text(pair)}. "
    )
    if across := case.in_doubt_between_trainings(top):
        return Outcome("cannot_tell", None, "target_in_doubt", reason + _more_trainings(across))
    needed = case.rows_for_target(top, surely=case.at_target(top))
    reason += _more_rows(needed, case.value(top).n, case.power)
    return Outcome("cannot_tell", None, "target_in_doubt", reason, needed)


def too_few_rows(
    case: Case, pair: PairedDifference, pairs: Mapping[str, PairedDifference], doubted: Sequence[PairedDifference]
) -> Outcome:
    """Against the best alternative; or, where that is decided, against another that scored less but varies more."""
    open_pairs = [pair]
    gain_asked = case.gain_asked(pair.b)
    if case.worth_it(pair) and doubted:
        open_pairs = list(doubted)
        name = wording.candidate_name(doubted[0].b)
        shown = "surely as good as" if case.gain_asked(doubted[0].b) < 0 else "surely better than"
        what = f"that is enough, but it is not {shown} {name}: {case.gain_text(doubted[0])}"
    elif gain_asked < 0:
        what = (
            f"it is cheaper{_over_the_time(case)}, but too uncertain to say whether it is worse by more than the "
            f"{wording.bare_points(-gain_asked)} points that do not matter"
        )
    elif pair.high < gain_asked:
        highest = wording.points(case.highest_gain(pair, pairs))
        what = f"allowing for the choice of the best among {len(pairs)}, the gain may still be {highest}"
    else:
        what = f"too uncertain to say whether it gains the {wording.bare_points(gain_asked)} points asked for"
    if across := case.in_doubt_between_trainings(open_pairs[0].b):
        reason = f"Tuned brings {case.gain_text(pair)}, the best alternative: {what}. {_more_trainings(across)}"
        return Outcome("cannot_tell", None, "too_few_rows", reason)
    needed = max(case.rows_for_difference(other, pairs) for other in open_pairs)
    reason = (
        f"Tuned brings {case.gain_text(pair)}, the best alternative: {what}. On these rows a true gain "
        f"of {wording.bare_points(case.detectable_gain(open_pairs[0]))} points shows with a probability of "
        f"{wording.level(case.power)}. {_more_rows(needed, pair.n, case.power)}"
    )
    if (if_true := case.rows_if_gain_is_true(open_pairs[0])) and pair.n < if_true < needed:
        reason += f" If the gain truly is as measured, about {wording.count(if_true)} will show it."
    return Outcome("cannot_tell", None, "too_few_rows", reason, needed)


def _target_remark(case: Case) -> str:
    if case.target is None:
        return ""
    value = case.value(case.tuned)
    if value.low >= case.target:
        return f" With {case.value_text(case.tuned)} it surely reaches {case.target_text()}."
    interval = wording.interval(value.low, value.high, case.confidence)
    return f" With {case.value_text(case.tuned)} it reaches {case.target_text()}, though its {interval} includes less."


def _over_the_time(case: Case) -> str:
    """` over 12 months at 10,000 requests a month`; nothing where no volume is known."""
    if case.volume is None:
        return ""
    requests = wording.count(round(case.volume.requests_per_month))
    return f" over {case.volume.months:g} months at {requests} requests a month"


def _sentence_start(candidate: str) -> str:
    return wording.capitalised(wording.candidate_name(candidate))


def _more_trainings(across: AcrossSeeds) -> str:
    return (
        f"The {across.seeds} trainings differ by more than the rows leave open (standard errors of "
        f"{wording.bare_points(across.seed_error)} and {wording.bare_points(across.row_error)} points): more of them "
        "(evaluate.seeds) would tell more than more rows."
    )


def _more_rows(needed: int, present: int, power: float) -> str:
    return (
        f"About {wording.count(needed)} test rows in all ({wording.count(needed - present)} more) would decide it "
        f"with a probability of {wording.level(power)}."
    )
