"""The stages around training: alternatives measured, the tuned model scored, all compared, and the decision."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from tunesmith.data.template import cell_text
from tunesmith.evaluation.comparison import Comparison, compare, evaluate_candidate, metric_values
from tunesmith.evaluation.prompts import PromptCandidate, choose_k
from tunesmith.evaluation.retrieval import Retriever
from tunesmith.evaluation.shots import draw_shots
from tunesmith.evaluation.trivial import trivial_baselines
from tunesmith.evaluation.types import Candidate, Evaluation
from tunesmith.inference.torch_engine import TorchEngine
from tunesmith.pipeline.prepare import Listener, Prepared
from tunesmith.pipeline.stage import Stage, data_key, engine_of, progress
from tunesmith.pipeline.training import TUNED
from tunesmith.runs import RunFolder
from tunesmith.verdict.costs import candidate_costs
from tunesmith.verdict.decision import decide
from tunesmith.verdict.types import CandidateCost, Limits, Verdict, Volume


def run_baselines(prepared: Prepared, folder: RunFolder, listener: Listener) -> list[Evaluation]:
    """Measure every alternative the recipe names on the test set. The base must not be tuned yet."""
    recipe, splits = prepared.recipe, prepared.rows.splits
    wanted = recipe.baselines
    engine = engine_of(prepared)
    made: list[Callable[[], Candidate]] = []
    if "trivial" in wanted:
        for baseline in trivial_baselines(prepared.task):
            made.append(lambda b=baseline: b.fit(splits.train, splits.validation))  # type: ignore[misc]
    if "zero_shot" in wanted:
        made.append(lambda: _prompted("zero_shot", prepared, engine))
    if "few_shot" in wanted:
        made.append(lambda: _few_shot(prepared, engine, folder, listener))
    if "retrieval" in wanted:
        made.append(lambda: _retrieval(prepared, engine, folder, listener))
    return [_evaluate(make(), prepared, folder, listener) for make in made]


def run_tuned(prepared: Prepared, folder: RunFolder, listener: Listener) -> Evaluation:
    """Score the tuned model, asked exactly as it was trained."""
    candidate = _prompted(TUNED, prepared, engine_of(prepared), full=False)
    return _evaluate(candidate, prepared, folder, listener)


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
        clusters=_clusters(prepared),
    )


def _clusters(prepared: Prepared) -> dict[str, str] | None:
    """By test row, what it hangs together with: the value of `data.split.group_by`; a row without one is alone."""
    column = prepared.recipe.data.split.group_by
    if column is None:
        return None
    values = {example.id: example.values.get(column) for example in prepared.rows.splits.test}
    if all(value is None for value in values.values()):
        return None
    return {row: f"row {row}" if value is None else f"group {cell_text(value)}" for row, value in values.items()}


def _slices(prepared: Prepared) -> dict[str, list[str]]:
    """Test rows by the task's divisions, such as `label refund`."""
    slices: dict[str, list[str]] = {}
    for example in prepared.rows.splits.test:
        for division, value in prepared.task.slices(example).items():
            slices.setdefault(f"{division} {value}", []).append(example.id)
    return slices


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
            clusters=_clusters(prepared),
        )
        clean.append(replace(evaluation, rows=rows, metrics=metrics))
    return compare_all(prepared, clean)


def costs_of(
    prepared: Prepared, evaluations: Sequence[Evaluation], training: Mapping[str, Any] | None
) -> dict[str, CandidateCost]:
    """Measured costs by candidate."""
    seconds = float(training["seconds"]) if training else 0.0
    by_name = {e.candidate: e for e in evaluations}
    return candidate_costs(by_name, prices=prepared.recipe.verdict.prices, training_seconds=seconds)


def decide_run(
    prepared: Prepared,
    evaluations: Sequence[Evaluation],
    comparison: Comparison,
    costs: Mapping[str, CandidateCost],
    training: Mapping[str, Any],
    without_leaks: Comparison | None = None,
    remarks: Sequence[str] = (),
) -> Verdict:
    """The verdict, with what a reader must know beside it: `remarks`, and what is found here.

    `without_leaks`: as `compare_without_leaks` gives it.
    """
    recipe = prepared.recipe
    caveats = list(remarks)
    if prepared.rows.leaks:
        caveats.append(_leaked(prepared, comparison, without_leaks))
    if prepared.seen_test_rows:
        caveats.append(
            f"{len(prepared.seen_test_rows)} of {len(prepared.rows.splits.test)} test rows occur in the text the base "
            "was trained on: all candidates that use the base may look better than they are."
        )
    if prepared.base.folder is None or not (prepared.base.folder / "training_text.hashes").is_file():
        caveats.append("It is not known whether the base has seen the test rows: it comes without such a record.")
    if training.get("stopped_early"):
        caveats.append(f"Training stopped early, at step {training['steps']}; step {training['best_step']} was kept.")
    return decide(
        {e.candidate: e for e in evaluations},
        comparison.differences,
        metric=str(recipe.goal.metric),
        min_gain=recipe.verdict.min_gain,
        target=recipe.goal.target,
        confidence=recipe.evaluate.confidence,
        power=recipe.verdict.power,
        costs=costs,
        caveats=caveats,
        assumptions={**recipe.verdict.prices.model_dump(), "requests_per_month": recipe.goal.requests_per_month},
        margin=recipe.verdict.margin,
        volume=Volume(recipe.goal.requests_per_month, recipe.verdict.months),
        limits=Limits(gates=recipe.verdict.gates, slice_loss=recipe.verdict.slice_loss),
        slices=_slices(prepared),
    )


def _leaked(prepared: Prepared, comparison: Comparison, clean: Comparison | None) -> str:
    """How many test rows were seen before, and what every candidate scores without them."""
    count, total = len({leak.id for leak in prepared.rows.leaks}), len(prepared.rows.splits.test)
    text = f"{count} of {total} test rows, or rows nearly like them, stand in the training or validation rows too."
    if clean is None:
        return f"{text} Nothing is left to compare without them."
    before = {v.candidate: v.value for v in comparison.values if v.metric == comparison.metric}
    after = [v for v in clean.values if v.metric == clean.metric]
    scores = ", ".join(f"{v.candidate} {v.value:.3f} (with them {before[v.candidate]:.3f})" for v in after)
    return f"{text} {comparison.metric} without them: {scores}."


def _prompted(name: str, prepared: Prepared, engine: TorchEngine, full: bool = True, **more: Any) -> PromptCandidate:
    limit = int(prepared.recipe.evaluate.max_new_tokens)
    return PromptCandidate(name, engine, prepared.task, limit, full=full, **more)


def _few_shot(prepared: Prepared, engine: TorchEngine, folder: RunFolder, listener: Listener) -> Candidate:
    spec, seed = prepared.recipe.evaluate, prepared.recipe.train.seed
    shots = draw_shots(prepared.rows.splits.train, prepared.task, max(spec.few_shot_k), seed)

    def make(k: int, **more: Any) -> PromptCandidate:
        return _prompted("few_shot", prepared, engine, shots=shots, k=k, **more)

    return _with_chosen_k("few_shot", make, spec.few_shot_k, prepared, folder, listener)


def _retrieval(prepared: Prepared, engine: TorchEngine, folder: RunFolder, listener: Listener) -> Candidate:
    retriever = Retriever(prepared.rows.splits.train)

    def make(k: int, **more: Any) -> PromptCandidate:
        return _prompted("retrieval", prepared, engine, retriever=retriever, k=k, **more)

    return _with_chosen_k("retrieval", make, prepared.recipe.evaluate.retrieval_k, prepared, folder, listener)


def _with_chosen_k(
    name: str,
    make: Callable[..., PromptCandidate],
    ks: Sequence[int],
    prepared: Prepared,
    folder: RunFolder,
    listener: Listener,
) -> PromptCandidate:
    """The candidate with its k chosen on validation rows; the choice is kept in the run."""
    spec, metric = prepared.recipe.evaluate, str(prepared.recipe.goal.metric)
    stage = Stage(folder, f"{name}_k", [], **data_key(prepared), **_asking(prepared), ks=list(ks), metric=metric)
    if stage.result is None:
        choice = choose_k(
            make,
            ks,
            prepared.rows.splits.validation,
            metric=metric,
            rows=spec.selection_rows,
            seed=prepared.recipe.train.seed,
            on_progress=progress(listener, "baselines", f"{name}: choosing k"),
        )
        stage.finish({"k": choice.k, "facts": dict(choice.facts)})
        return make(choice.k, facts=choice.facts)
    return make(stage.result["k"], facts=stage.result["facts"])


def _evaluate(candidate: Candidate, prepared: Prepared, folder: RunFolder, listener: Listener) -> Evaluation:
    spec = prepared.recipe.evaluate
    training = folder.path / "training.json"
    adapter = json.loads(training.read_text())["adapter_sha256"] if candidate.name == TUNED else None
    stage = Stage(
        folder,
        f"evaluate_{candidate.name}",
        [f"evaluation/{candidate.name}.*"],
        **data_key(prepared),
        **_asking(prepared),
        adapter=adapter,
        k=candidate.notes.get("k"),
    )
    evaluation = evaluate_candidate(
        candidate,
        prepared.task,
        prepared.rows.splits.test,
        folder.path / "evaluation",
        latency_rows=spec.latency_rows,
        resamples=spec.bootstrap,
        confidence=spec.confidence,
        seed=prepared.recipe.train.seed,
        clusters=_clusters(prepared),
        on_progress=progress(listener, "evaluate" if candidate.name == TUNED else "baselines", candidate.name),
    )
    if stage.result is None:
        stage.finish({m.metric: m.value for m in evaluation.metrics})
    return evaluation


def _asking(prepared: Prepared) -> dict[str, Any]:
    """Settings that change answers; those that only change intervals do not ask a model again."""
    spec = prepared.recipe.evaluate
    return {
        "max_new_tokens": spec.max_new_tokens,
        "batch_size": spec.batch_size,
        "selection_rows": spec.selection_rows,
        "seed": prepared.recipe.train.seed,
    }
