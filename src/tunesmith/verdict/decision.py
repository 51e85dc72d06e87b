"""The decision: is the tuned model worth it, or is something simpler enough, or can the test rows not tell?

Only numbers decide: every candidate's value of the deciding metric, and tuned minus each alternative on the same rows
with its interval. `RULES` lists the rules; the first that fires decides. How often they are wrong is measured on worlds
whose truth is known by `benchmarks/verdict.py`.

"Surely" means: the whole confidence interval says so. Which alternative is truly the best is not known either, so

- "better" must hold against *every* alternative, not only the one that scored highest; that keeps the chance of
  shipping something that is not better at half of 1 − confidence, without a correction (intersection-union test,
  Berger 1982, "Multiparameter hypothesis testing and acceptance sampling");
- "gains less" allows for the best one having been picked by its score on these rows (see `Case.highest_gain`).

The test of the difference (McNemar's exact test for right-or-wrong scores, else a permutation test) must agree with
"better", since intervals alone are too narrow on few rows.

With a margin the cheaper of two may be a little worse: tuned then has to be surely *not worse by more than the margin*
than alternatives that cost more over the time and volume given. That is how "the small one replaces the big one" is
shown; not having found a difference shows nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal

from tunesmith.errors import RecipeError
from tunesmith.evaluation.rating import Preference
from tunesmith.evaluation.statistics import AcrossSeeds
from tunesmith.evaluation.types import Evaluation, PairedDifference
from tunesmith.verdict import preferred, reasons, wording
from tunesmith.verdict.benefits import Weights, benefits_of
from tunesmith.verdict.case import Case
from tunesmith.verdict.caveats import caveats_of, forgetting_sentence
from tunesmith.verdict.costs import break_even
from tunesmith.verdict.reasons import Outcome, Pairs
from tunesmith.verdict.sensitivity import sensitivity
from tunesmith.verdict.types import CandidateCost, Forgetting, Limits, Verdict, Volume
from tunesmith.verdict.vetoes import Slices, vetoes

RULES = {
    "alternative_reaches_target": "Before anything was trained, an alternative is surely at the target, allowing for "
    "the choice of the best of several: use the alternative.",
    "none_reaches_target": "Every candidate is surely below the target: none is good enough.",
    "nothing_to_compare_with": "No alternative was measured and no target is set: cannot tell.",
    "only_target": "No alternative was measured, and tuned is surely at the target: ship it.",
    "better_by_min_gain": "Tuned is at the target, surely better than every alternative, and at the best estimate "
    "better than the best of them by the smallest gain worth having: ship it.",
    "as_good_and_cheaper": "Tuned is at the target, and of every alternative that costs more it is surely not worse by "
    "more than the margin (than those that cost less it is surely better): ship it.",
    "only_tuned_reaches_target": "Tuned is at the target and surely better than every alternative, and those are all "
    "surely below the target, so none of them is a choice however small the gain: ship tuned.",
    "gain_below_min_gain": "Tuned surely gains less over the best alternative than is worth having, and that "
    "alternative is at the target: use the alternative.",
    "worse_than_margin": "Tuned costs less than the best alternative but is surely worse by more than the margin, and "
    "that alternative is at the target: use the alternative.",
    "target_in_doubt": "What would be chosen may or may not reach the target: cannot tell.",
    "too_few_rows": "The difference between tuned and the alternatives is not decided: cannot tell.",
    "vetoed": "By its score tuned would be shipped, but a gate, a slice that got worse, forgetting, or people who "
    "surely prefer the best alternative forbid it: use that alternative, or none where it misses the target.",
}


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
    margin: float | None = None,
    volume: Volume | None = None,
    limits: Limits | None = None,
    slices: Slices | None = None,
    clusters: Mapping[str, str] | None = None,
    forgetting: Forgetting | None = None,
    preferences: Sequence[Preference] = (),
    people: Literal["veto", "show"] = "veto",
    weights: Weights | None = None,
    trainings: Mapping[str, AcrossSeeds] | None = None,
) -> Verdict:
    """Decide what to use; the rules are those of this module.

    Parameters
    ----------
    evaluations: by candidate name, each on the same test rows. Copies of tuned (`tuned_<format>`) do not count.
    differences: must hold tuned and every alternative on `metric`, in either direction. Those between alternatives tell
        which of them cannot be told apart; other metrics are ignored.
    min_gain, target: fractions 0-1; `target` None asks for no absolute value.
    confidence: of the intervals in `evaluations` and `differences`.
    power: the chance of a decision for which `rows_needed` is computed; `rows_needed` counts all test rows, the present
        ones included. It is None where more rows would not help.
    costs: decide between alternatives that score the same, and give the break-even; may be empty.
    caveats, assumptions: shown with the verdict, they decide nothing; caveats found here are added to them.
    margin, volume: by how much (a fraction) the cheaper of two may be worse, and the requests over which costs are
        added up. None: costs do not decide between tuned and an alternative.
    limits, slices, forgetting: what can veto tuned (see `vetoes`).
    clusters: by row id, what a row hangs together with; None where rows are independent. `differences` and intervals
        allow for it already, slices do by this.
    preferences, people: what people and judges preferred; with `show` it vetoes nothing (see `preferred`).
    weights: what is stored of the tuned model, for its benefits.
    trainings: see `Case`; where they leave more open than the rows do, `rows_needed` is None.

    Raises
    ------
    RecipeError: the tuned model was not evaluated, or a gate names no metric.
    VerificationError: the metric or a difference is missing, or the candidates answered different test rows.
    """
    if tuned not in evaluations:
        raise RecipeError(
            "no tuned model was evaluated, so there is nothing to decide",
            expected=f"an evaluation of {tuned!r} beside {', '.join(evaluations) or 'no other candidate'}",
            fix="train and evaluate first: tunesmith run does both",
        )
    case = Case(
        evaluations,
        tuple(differences),
        metric,
        min_gain,
        target,
        confidence,
        power,
        tuned,
        margin,
        volume,
        costs,
        trainings or {},
    )
    case.check_rows()
    best = case.best_alternative()
    pairs = {name: case.pair(name) for name in case.alternatives}
    outcome = _outcome(case, pairs)
    found = _vetoes(case, best, outcome, limits or Limits(), slices or {}, clusters, forgetting)
    if outcome.decision == "ship_tuned" and best is not None and people == "veto":
        found += tuple(preferred.objections(preferences, tuned, best))
    if found:
        outcome = reasons.vetoed(case, best, outcome, found)
    pair = pairs.get(best) if best else None
    pays_off = break_even(costs[tuned], costs[best]) if best and tuned in costs and best in costs else None
    recommended = outcome.candidate if outcome.candidate != tuned else None
    tied = case.tied_with(recommended) if recommended else ()
    holds_still = outcome.decision != "cannot_tell" and not found
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
        caveats=(
            *caveats,
            *caveats_of(case, pairs),
            *_tie(recommended, tied),
            *([forgetting_sentence(forgetting, confidence)] if forgetting is not None else ()),
            *preferred.remarks(preferences, tuned, best, shipped=outcome.decision == "ship_tuned", said=found),
        ),
        assumptions={
            **(assumptions or {}),
            "min_gain": min_gain,
            "target": target,
            "confidence": confidence,
            "power": power,
            **({} if margin is None else {"margin": margin}),
        },
        vetoes=found,
        tied=tied,
        sensitivity=sensitivity(case, lambda asked: _decided(asked, pairs)) if holds_still else (),
        benefits=benefits_of(
            {name: case.value(name).value for name in case.candidates},
            pair,
            costs,
            metric=metric,
            confidence=confidence,
            requests_per_month=volume.requests_per_month if volume is not None else None,
            weights=weights,
            tuned=tuned,
        ),
    )


def _rule(case: Case, pairs: Pairs, best: str | None) -> str:
    """The name of the first rule that fires."""
    if all(case.surely_below_target(name) for name in case.candidates):
        return "none_reaches_target"
    if best is None:
        return _rule_without_alternatives(case)
    if case.at_target(case.tuned):
        if not _doubted(case, pairs, best):
            cheaper = any(case.gain_asked(name) < 0 and not _plainly_better(case, pairs[name]) for name in pairs)
            return "as_good_and_cheaper" if cheaper else "better_by_min_gain"
        others_miss = all(case.surely_below_target(name) for name in case.alternatives)
        if others_miss and all(case.surely_better(pair) for pair in pairs.values()):
            return "only_tuned_reaches_target"
    too_little = case.gains_too_little(pairs[best], pairs)
    if too_little and case.at_target(best):
        return "worse_than_margin" if case.gain_asked(best) < 0 else "gain_below_min_gain"
    if too_little or not _doubted(case, pairs, best):
        return "target_in_doubt"
    return "too_few_rows"


def _rule_without_alternatives(case: Case) -> str:
    if case.target is None:
        return "nothing_to_compare_with"
    return "only_target" if case.value(case.tuned).low >= case.target else "target_in_doubt"


def _doubted(case: Case, pairs: Pairs, best: str) -> list[PairedDifference]:
    """Alternatives against which tuned is not surely worth it, as tuned minus them; the best one asks for its gain.

    The others need only be beaten surely: they scored lower, so a gain over them that is large enough follows.
    """
    found = []
    for name, pair in pairs.items():
        if case.out_of_the_running(name, best):
            continue
        asked_less = case.gain_asked(name) < 0 or name == best
        if not (case.worth_it(pair) if asked_less else case.surely_better(pair)):
            found.append(pair)
    return found


def _plainly_better(case: Case, pair: PairedDifference) -> bool:
    """Better by the smallest gain worth having, so that no margin was needed."""
    return case.surely_better(pair) and case.gains_enough(pair)


def _decided(case: Case, pairs: Pairs) -> tuple[str, str | None]:
    """What would be used, and of what kind the answer is, whatever the rule."""
    best = case.best_alternative()
    rule = _rule(case, pairs, best)
    if rule in {"gain_below_min_gain", "worse_than_margin"}:
        return "alternative", best
    if rule in {"better_by_min_gain", "as_good_and_cheaper", "only_tuned_reaches_target", "only_target"}:
        return "ship", case.tuned
    return ("none", None) if rule == "none_reaches_target" else ("cannot_tell", None)


def _outcome(case: Case, pairs: Pairs) -> Outcome:
    """What the first rule that fires decides, with its reason."""
    best = case.best_alternative()
    rule = _rule(case, pairs, best)
    if rule == "none_reaches_target":
        return reasons.none_reaches_target(case)
    if best is None:
        return reasons.without_alternatives(case)
    if rule == "too_few_rows":
        return reasons.too_few_rows(case, pairs[best], pairs, _doubted(case, pairs, best))
    told = {
        "better_by_min_gain": reasons.better_by_min_gain,
        "as_good_and_cheaper": reasons.as_good_and_cheaper,
        "only_tuned_reaches_target": reasons.only_tuned_reaches_target,
        "gain_below_min_gain": reasons.gain_below_min_gain,
        "worse_than_margin": reasons.worse_than_margin,
        "target_in_doubt": reasons.target_in_doubt,
    }
    return told[rule](case, pairs[best])


def _tie(recommended: str | None, tied: Sequence[str]) -> list[str]:
    """That the choice among alternatives is by the best estimate only."""
    if recommended is None or not tied:
        return []
    names = ", ".join(wording.candidate_name(name) for name in tied)
    chosen = wording.candidate_name(recommended)
    return [f"These rows do not tell {chosen} from all alternatives: {names} may be as good or better."]


def _vetoes(
    case: Case,
    best: str | None,
    outcome: Outcome,
    limits: Limits,
    slices: Slices,
    clusters: Mapping[str, str] | None,
    forgetting: Forgetting | None,
) -> tuple[str, ...]:
    """Only what would be shipped can be vetoed."""
    if outcome.decision != "ship_tuned":
        return ()
    return vetoes(
        case.evaluations[case.tuned],
        case.evaluations[best] if best else None,
        case.metric,
        limits=limits,
        slices=slices,
        forgetting=forgetting,
        confidence=case.confidence,
        clusters=clusters,
    )
