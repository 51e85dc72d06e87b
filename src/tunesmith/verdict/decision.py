"""The decision: is the tuned model worth it, or is something simpler enough, or can the test rows not tell?

Only numbers decide: every candidate's value of the deciding metric, and tuned minus each alternative on the same rows
with its interval. `RULES` lists the rules; the first that fires decides.

"Surely" means: the whole confidence interval says so. Which alternative is truly the best is not known either, so

- "better" must hold against *every* alternative, not only the one that scored highest; that keeps the chance of
  shipping something that is not better at half of 1 − confidence, without a correction (intersection-union test,
  Berger 1982, "Multiparameter hypothesis testing and acceptance sampling");
- "gains less" allows for the best one having been picked by its score on these rows (see `Case.highest_gain`).

For right-or-wrong scores McNemar's exact test must agree, since intervals from resampling are too narrow on few rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tunesmith.errors import RecipeError, VerificationError
from tunesmith.evaluation.types import Evaluation, PairedDifference
from tunesmith.verdict import wording
from tunesmith.verdict.case import Case, reversed_pair
from tunesmith.verdict.costs import break_even
from tunesmith.verdict.types import CandidateCost, Decision, Verdict

RULES = {
    "none_reaches_target": "Every candidate is surely below the target: none is good enough.",
    "nothing_to_compare_with": "No alternative was measured and no target is set: cannot tell.",
    "only_target": "No alternative was measured, and tuned is surely at the target: ship it.",
    "better_by_min_gain": "Tuned is at the target, surely better than every alternative, and at the best estimate "
    "better than the best of them by the smallest gain worth having: ship it.",
    "only_tuned_reaches_target": "Tuned is at the target and surely better than every alternative, and those are all "
    "surely below the target, so none of them is a choice however small the gain: ship tuned.",
    "gain_below_min_gain": "Tuned surely gains less over the best alternative than is worth having, and that "
    "alternative is at the target: use the alternative.",
    "target_in_doubt": "What would be chosen may or may not reach the target: cannot tell.",
    "too_few_rows": "The difference between tuned and the alternatives is not decided: cannot tell.",
}
FEW_ROWS = 30
_MANY_CUT = 0.05


def decide(
    evaluations: Mapping[str, Evaluation],
    differences: Sequence[PairedDifference],
    *,
    metric: str,
    min_gain: float,
    target: float | None,
    confidence: float,
    power: float,
    costs: Mapping[str, CandidateCost],
    caveats: Sequence[str] = (),
    assumptions: Mapping[str, Any] | None = None,
    tuned: str = "tuned",
) -> Verdict:
    """Decide what to use; the rules are those of this module.

    Parameters
    ----------
    evaluations: by candidate name, each on the same test rows. Copies of tuned (`tuned_<format>`) do not count.
    differences: must hold tuned and every alternative on `metric`, in either direction; others are ignored.
    min_gain, target: fractions 0-1; `target` None asks for no absolute value.
    confidence: of the intervals in `evaluations` and `differences`.
    power: the chance of a decision for which `rows_needed` is computed; `rows_needed` counts all test rows, the present
        ones included. It is None where more rows would not help.
    costs: decide between alternatives that score the same, and give the break-even; may be empty.
    caveats, assumptions: shown with the verdict, they decide nothing; caveats found here are added to them.

    Raises
    ------
    RecipeError: the tuned model was not evaluated.
    VerificationError: the metric or a difference is missing, or the candidates answered different test rows.
    """
    if tuned not in evaluations:
        raise RecipeError(
            "no tuned model was evaluated, so there is nothing to decide",
            expected=f"an evaluation of {tuned!r} beside {', '.join(evaluations) or 'no other candidate'}",
            fix="train and evaluate first: tunesmith run does both",
        )
    case = Case(evaluations, metric, min_gain, target, confidence, power, tuned)
    case.check_rows()
    best = case.best_alternative(costs)
    pairs = {name: case.pair(differences, name) for name in case.alternatives}
    outcome = _outcome(case, pairs, best)
    pair = pairs.get(best) if best else None
    pays_off = break_even(costs[tuned], costs[best]) if best and tuned in costs and best in costs else None
    return Verdict(
        decision=outcome.decision,
        candidate=outcome.candidate,
        reason=outcome.reason,
        rule=outcome.rule,
        rows_needed=outcome.rows_needed,
        metric=metric,
        best_alternative=best,
        difference=asdict(pair) if pair else None,
        break_even_requests=pays_off,
        caveats=(*caveats, *_caveats(case, pairs, differences)),
        assumptions={
            **(assumptions or {}),
            "min_gain": min_gain,
            "target": target,
            "confidence": confidence,
            "power": power,
        },
    )


def decision_for(candidate: str) -> Decision:
    """The decision that means "use this alternative". Raises `VerificationError` for a name of no known kind."""
    if candidate in {"zero_shot", "few_shot"}:
        return "keep_prompting"
    kinds: dict[str, Decision] = {"retrieval": "use_retrieval", "trivial": "use_trivial", "remote": "use_remote"}
    try:
        return kinds[candidate.partition("_")[0]]
    except KeyError:
        raise VerificationError(
            f"candidate {candidate!r} is of no kind a verdict can name",
            expected="zero_shot, few_shot, retrieval, trivial_<name> or remote_<name>",
        ) from None


@dataclass(frozen=True, slots=True)
class _Outcome:
    decision: Decision
    candidate: str | None
    rule: str
    reason: str
    rows_needed: int | None = None


def _outcome(case: Case, pairs: Mapping[str, PairedDifference], best: str | None) -> _Outcome:
    """The first rule that fires."""
    if all(case.surely_below_target(name) for name in case.candidates):
        return _none_reaches_target(case)
    if best is None:
        return _without_alternatives(case)
    pair = pairs[best]
    doubted = [other for other in pairs.values() if not case.surely_better(other)]
    if not doubted and case.at_target(case.tuned):
        if case.gains_enough(pair):
            return _better_by_min_gain(case, pair)
        if all(case.surely_below_target(name) for name in case.alternatives):
            return _only_tuned_reaches_target(case, pair)
    gains_too_little = case.highest_gain(pair, pairs) < case.min_gain
    if gains_too_little and case.at_target(best):
        return _gain_below_min_gain(case, pair)
    if gains_too_little or (not doubted and case.gains_enough(pair)):
        return _target_in_doubt(case, pair)
    return _too_few_rows(case, pair, pairs, doubted)


def _none_reaches_target(case: Case) -> _Outcome:
    top = max(case.candidates, key=lambda name: case.value(name).value)
    reason = (
        f"No candidate can be expected to reach {case.target_text()}: the best, {wording.candidate_name(top)}, has "
        f"{case.value_text(top, with_interval=True)}."
    )
    return _Outcome("none_good_enough", None, "none_reaches_target", reason)


def _without_alternatives(case: Case) -> _Outcome:
    tuned = case.value(case.tuned)
    measured = f"Tuned has {case.value_text(case.tuned, with_interval=True)}"
    if case.target is None:
        reason = f"{measured}, but there is nothing to compare with: no alternative was measured and no target is set."
        return _Outcome("cannot_tell", None, "nothing_to_compare_with", reason)
    if tuned.low >= case.target:
        reason = f"{measured}, surely at least {case.target_text()}. No alternative was measured."
        return _Outcome("ship_tuned", case.tuned, "only_target", reason)
    needed = case.rows_for_target(case.tuned, surely=True)
    reason = (
        f"{measured}, so it may be on either side of {case.target_text()}, and no alternative was measured. "
        f"{_more_rows(needed, tuned.n, case.power)}"
    )
    return _Outcome("cannot_tell", None, "target_in_doubt", reason, needed)


def _better_by_min_gain(case: Case, pair: PairedDifference) -> _Outcome:
    enough = f"at least the {wording.bare_points(case.min_gain)} points asked for"
    reason = f"Tuned brings {case.gain_text(pair)}, the best alternative: surely better, and {enough}."
    return _Outcome("ship_tuned", case.tuned, "better_by_min_gain", reason + _target_remark(case))


def _only_tuned_reaches_target(case: Case, pair: PairedDifference) -> _Outcome:
    reason = (
        f"Only tuned reaches {case.target_text()}: it brings {case.gain_text(pair)}, which is under the "
        f"{wording.bare_points(case.min_gain)} points asked for, but every alternative surely misses the target."
    )
    return _Outcome("ship_tuned", case.tuned, "only_tuned_reaches_target", reason + _target_remark(case))


def _gain_below_min_gain(case: Case, pair: PairedDifference) -> _Outcome:
    reason = (
        f"{_sentence_start(pair.b)} has {case.value_text(pair.b)}; tuned brings {case.gain_text(pair)}, surely less "
        f"than the {wording.bare_points(case.min_gain)} points worth tuning for."
    )
    return _Outcome(decision_for(pair.b), pair.b, "gain_below_min_gain", reason)


def _target_in_doubt(case: Case, pair: PairedDifference) -> _Outcome:
    """What would be chosen is below the target at the best estimate, yet not everything is surely below it."""
    open_ones = [n for n in case.candidates if not case.at_target(n) and not case.surely_below_target(n)] or [
        case.tuned
    ]
    top = max(open_ones, key=lambda name: case.value(name).value)
    needed = case.rows_for_target(top, surely=case.at_target(top))
    reason = (
        f"{_sentence_start(top)} has {case.value_text(top, with_interval=True)}, which leaves open whether it reaches "
        f"{case.target_text()}; tuned brings {case.gain_text(pair)}. "
        f"{_more_rows(needed, case.value(top).n, case.power)}"
    )
    return _Outcome("cannot_tell", None, "target_in_doubt", reason, needed)


def _too_few_rows(
    case: Case, pair: PairedDifference, pairs: Mapping[str, PairedDifference], doubted: Sequence[PairedDifference]
) -> _Outcome:
    """Against the best alternative; or, where that is decided, against another that scored less but varies more."""
    asked = f"the {wording.bare_points(case.min_gain)} points asked for"
    open_pairs = [pair]
    if case.surely_better(pair) and case.gains_enough(pair):
        open_pairs = list(doubted)
        what = (
            f"it gains {asked}, but it is not surely better than {wording.candidate_name(doubted[0].b)}, which scored "
            f"lower: {case.gain_text(doubted[0])}"
        )
    elif pair.high < case.min_gain:
        highest = wording.points(case.highest_gain(pair, pairs))
        what = f"allowing for the choice of the best among {len(pairs)}, the gain may still be {highest}"
    else:
        what = f"too uncertain to say whether it gains {asked}"
    needed = max(case.rows_for_difference(other, pairs) for other in open_pairs)
    reason = (
        f"Tuned brings {case.gain_text(pair)}, the best alternative: {what}. {_more_rows(needed, pair.n, case.power)}"
    )
    if (if_true := case.rows_if_gain_is_true(open_pairs[0])) and pair.n < if_true < needed:
        reason += f" If the gain truly is as measured, about {wording.count(if_true)} will show it."
    return _Outcome("cannot_tell", None, "too_few_rows", reason, needed)


def _target_remark(case: Case) -> str:
    if case.target is None:
        return ""
    value = case.value(case.tuned)
    if value.low >= case.target:
        return f" With {case.value_text(case.tuned)} it surely reaches {case.target_text()}."
    interval = wording.interval(value.low, value.high, case.confidence)
    return f" With {case.value_text(case.tuned)} it reaches {case.target_text()}, though its {interval} includes less."


def _sentence_start(candidate: str) -> str:
    return wording.capitalised(wording.candidate_name(candidate))


def _more_rows(needed: int, present: int, power: float) -> str:
    return (
        f"About {wording.count(needed)} test rows in all ({wording.count(needed - present)} more) would decide it "
        f"with a probability of {wording.level(power)}."
    )


def _caveats(case: Case, pairs: Mapping[str, PairedDifference], measured: Sequence[PairedDifference]) -> list[str]:
    """What weakens the verdict and is seen in the numbers themselves."""
    found = []
    n = case.value(case.tuned).n
    if n < FEW_ROWS:
        found.append(f"Only {n} test rows: intervals are rough below {FEW_ROWS}.")
    widened = [wording.candidate_name(name) for name, pair in pairs.items() if _was_widened(pair, measured)]
    if widened:
        found.append(
            f"Tuned and {', '.join(widened)} score alike on almost every test row; the interval was widened to what "
            f"{n} rows can show."
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
        f"{_sentence_start(name)} had room for {used['mean']:.1f} of its {evaluation.notes['k']} examples on average; "
        "a base with a longer context could do better."
    )


def _was_widened(pair: PairedDifference, measured: Sequence[PairedDifference]) -> bool:
    return pair not in measured and reversed_pair(pair) not in measured
