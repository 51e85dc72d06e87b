"""All candidates compared, their costs, and the decision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tunesmith.data.types import Example
from tunesmith.evaluation.comparison import Comparison, compare, metric_values
from tunesmith.evaluation.rating import Preference
from tunesmith.evaluation.types import Evaluation
from tunesmith.pipeline.clusters import clusters_of
from tunesmith.pipeline.evidence import Evidence
from tunesmith.pipeline.prepare import Prepared
from tunesmith.pipeline.remotes import token_prices
from tunesmith.pipeline.seeds import Seeds
from tunesmith.pipeline.training import TUNED
from tunesmith.recipe.evidence import Verdict as VerdictSettings
from tunesmith.recipe.schema import Recipe
from tunesmith.tasks.types import Task
from tunesmith.verdict import wording
from tunesmith.verdict.costs import candidate_costs
from tunesmith.verdict.decision import decide
from tunesmith.verdict.good_enough import good_enough
from tunesmith.verdict.types import CandidateCost, Forgetting, Limits, Verdict, Volume


def compare_all(prepared: Prepared, evaluations: Sequence[Evaluation]) -> Comparison:
    """All candidates with intervals and paired differences."""
    spec = prepared.recipe.evaluate
    return compare(
        evaluations,
        prepared.task,
        str(prepared.recipe.goal.metric),
        resamples=spec.bootstrap,
        confidence=spec.confidence,
        seed=prepared.recipe.train.seed,
        clusters=clusters_of(prepared),
    )


def compare_without_leaks(prepared: Prepared, evaluations: Sequence[Evaluation]) -> Comparison | None:
    """The same on the test rows that training and validation do not hold too; None where all or none of them do."""
    leaked = {leak.id for leak in prepared.rows.leaks}
    if not leaked or not evaluations:
        return None
    spec, seed = prepared.recipe.evaluate, prepared.recipe.train.seed
    clean = []
    for evaluation in evaluations:
        rows = tuple(row for row in evaluation.rows if row.id not in leaked)
        if not rows:
            return None
        metrics = metric_values(
            evaluation.candidate,
            rows,
            prepared.task,
            resamples=spec.bootstrap,
            confidence=spec.confidence,
            seed=seed,
            clusters=clusters_of(prepared),
        )
        clean.append(replace(evaluation, rows=rows, metrics=metrics))
    return compare_all(prepared, clean)


def costs_of(
    prepared: Prepared, evaluations: Sequence[Evaluation], training: Mapping[str, Any] | None
) -> dict[str, CandidateCost]:
    """Measured costs by candidate; those behind an endpoint by its prices, in whatever way they answer."""
    seconds = float(training["seconds"]) if training else 0.0
    by_name = {e.candidate: e for e in evaluations}
    known = token_prices(prepared.recipe)
    prices = {name: price for name in by_name if (price := known.get(wording.split_way(name)[0])) is not None}
    return candidate_costs(
        by_name, prices=prepared.recipe.verdict.prices, training_seconds=seconds, token_prices=prices
    )


def caveats_on_the_way(
    prepared: Prepared,
    evaluations: Sequence[Evaluation],
    training: Mapping[str, Any] | None,
    without_leaks: Comparison | None,
) -> list[str]:
    """What a reader must know beside the verdict and is not in the numbers.

    `without_leaks`: as `compare_without_leaks` gives it.
    """
    found = []
    if prepared.rows.leaks:
        found.append(_leaked(prepared, evaluations, without_leaks))
    if prepared.seen_test_rows:
        found.append(
            f"{len(prepared.seen_test_rows)} of {len(prepared.rows.splits.test)} test rows occur in the text the base "
            "was trained on: all candidates that use the base may look better than they are."
        )
    if prepared.base.folder is None or not (prepared.base.folder / "training_text.hashes").is_file():
        found.append("It is not known whether the base has seen the test rows: it comes without such a record.")
    if training is not None and training.get("stopped_early"):
        found.append(f"Training stopped early, at step {training['steps']}; step {training['best_step']} was kept.")
    if one_answer := _one_answer(prepared.task, prepared.rows.splits.test):
        found.append(one_answer)
    return found


def stop_before_training(
    recipe: Recipe,
    evaluations: Sequence[Evaluation],
    costs: Mapping[str, CandidateCost],
    caveats: Sequence[str],
) -> Verdict | None:
    """The verdict where an alternative surely reaches the target, so that nothing needs to be trained; else None."""
    return good_enough(
        {e.candidate: e for e in evaluations},
        metric=str(recipe.goal.metric),
        target=recipe.goal.target,
        confidence=recipe.evaluate.confidence,
        costs=costs,
        caveats=caveats,
        assumptions={
            **_assumed(recipe),
            "min_gain": recipe.verdict.min_gain,
            "power": recipe.verdict.power,
        },
    )


def decide_on(evidence: Evidence, preferences: Sequence[Preference] = ()) -> Verdict:
    """The verdict that evidence gives, with what people and judges preferred."""
    recipe = evidence.recipe
    verdict, spec, seeds = recipe.verdict, recipe.evaluate, evidence.seeds
    return decide(
        evidence.by_name,
        evidence.comparison.differences,
        metric=str(recipe.goal.metric),
        min_gain=verdict.min_gain,
        target=recipe.goal.target,
        confidence=spec.confidence,
        power=verdict.power,
        costs=evidence.costs,
        caveats=[*evidence.caveats, *_trained_again(seeds), *_unmeasured(evidence.forgetting, verdict)],
        assumptions={**_assumed(recipe), **({"trainings": len(seeds.seeds)} if seeds is not None else {})},
        margin=verdict.margin,
        volume=Volume(recipe.goal.requests_per_month, verdict.months),
        limits=Limits(
            gates=verdict.gates,
            slice_loss=verdict.slice_loss,
            perplexity_rise=verdict.perplexity_rise,
            skill_loss=verdict.skill_loss,
        ),
        slices=evidence.slices,
        clusters=evidence.clusters,
        forgetting=evidence.forgetting,
        preferences=preferences,
        people=verdict.people,
        weights=evidence.weights,
        trainings={TUNED: seeds.value, **seeds.differences} if seeds is not None else None,
    )


def _assumed(recipe: Recipe) -> dict[str, Any]:
    return {**recipe.verdict.prices.model_dump(), "requests_per_month": recipe.goal.requests_per_month}


def _trained_again(seeds: Seeds | None) -> list[str]:
    """What each of several trainings scored."""
    if seeds is None:
        return []
    scored = ", ".join(
        f"{wording.percent(value)} (seed {seed})" for seed, value in zip(seeds.seeds, seeds.values, strict=True)
    )
    return [
        f"Trained {len(seeds.seeds)} times: {scored} {wording.metric_name(seeds.metric)}. Intervals of tuned are over "
        "rows and trainings; the model to ship is the first."
    ]


def _unmeasured(forgetting: Forgetting | None, verdict: VerdictSettings) -> list[str]:
    """Limits on forgetting that forbid nothing, because there is no measurement to hold against them."""
    limits = {"verdict.perplexity_rise": verdict.perplexity_rise, "verdict.skill_loss": verdict.skill_loss}
    named = [key for key, limit in limits.items() if limit is not None]
    if forgetting is None and named:
        return [f"{' and '.join(named)} forbade nothing: forgetting was not measured (evaluate.forgetting)."]
    if forgetting is not None and forgetting.skill is None and verdict.skill_loss is not None:
        return ["verdict.skill_loss forbade nothing: the base follows none of the general instructions."]
    return []


def _one_answer(task: Task, test: Sequence[Example]) -> str | None:
    """That all test rows expect the same, so that nothing is told about telling apart."""
    expected = {example.expected for example in test}
    if len(test) < 2 or len(expected) > 1:
        return None
    shown = next(iter(expected))
    return (
        f"All {len(test)} test rows expect the same answer ({shown[:60]}{'…' if len(shown) > 60 else ''}): whatever "
        "always says it is right here. Test rows with the other answers would tell more."
    )


def _leaked(prepared: Prepared, evaluations: Sequence[Evaluation], clean: Comparison | None) -> str:
    """How many test rows were seen before, and what every candidate scores without them."""
    count, total = len({leak.id for leak in prepared.rows.leaks}), len(prepared.rows.splits.test)
    text = f"{count} of {total} test rows, or rows nearly like them, stand in the training or validation rows too."
    if clean is None:
        return f"{text} Nothing is left to compare without them."
    before = {v.candidate: v.value for e in evaluations for v in e.metrics if v.metric == clean.metric}
    after = [v for v in clean.values if v.metric == clean.metric]
    scores = ", ".join(f"{v.candidate} {v.value:.3f} (with them {before[v.candidate]:.3f})" for v in after)
    return f"{text} {clean.metric} without them: {scores}."
