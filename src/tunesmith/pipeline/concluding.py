"""From what was measured to the verdict and the report, with everything they rest on kept in the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from tunesmith.evaluation.rating import Preference
from tunesmith.evaluation.types import Evaluation
from tunesmith.pipeline.clusters import clusters_of, slices_of
from tunesmith.pipeline.deciding import (
    caveats_on_the_way,
    compare_all,
    compare_without_leaks,
    costs_of,
    decide_on,
)
from tunesmith.pipeline.evidence import (
    Background,
    Compared,
    Evidence,
    candidate_facts,
    write_comparison,
    write_evidence,
)
from tunesmith.pipeline.loading import VERDICT
from tunesmith.pipeline.prepare import Prepared
from tunesmith.pipeline.recording import PARTS
from tunesmith.pipeline.reporting import write_run_report
from tunesmith.pipeline.seeds import Seeds, over_seeds, seeds_of, with_values
from tunesmith.runs import RunFolder, write_json
from tunesmith.verdict.benefits import Weights
from tunesmith.verdict.types import Forgetting, Verdict


def seeds_in(prepared: Prepared, evaluations: Sequence[Evaluation], trainings: Sequence[Evaluation]) -> Seeds:
    """What several trainings of a run show, the shipped one first in `trainings`."""
    recipe = prepared.recipe
    return seeds_of(
        trainings,
        evaluations,
        prepared.task,
        str(recipe.goal.metric),
        first_seed=recipe.train.seed,
        confidence=recipe.evaluate.confidence,
        clusters=clusters_of(prepared),
    )


def compare_run(
    prepared: Prepared,
    folder: RunFolder,
    evaluations: Sequence[Evaluation],
    training: Mapping[str, Any] | None,
    forgetting: Forgetting | None = None,
    seeds: Seeds | None = None,
) -> tuple[Compared, list[str]]:
    """All candidates side by side, which is kept, and what must be said beside it."""
    comparison = compare_all(prepared, evaluations)
    clean = compare_without_leaks(prepared, evaluations)
    caveats = caveats_on_the_way(prepared, evaluations, training, clean)
    if seeds is not None:
        comparison = over_seeds(comparison, seeds)
    write_comparison(folder, comparison, evaluations, clean, forgetting, seeds)
    return Compared(comparison, candidate_facts(evaluations), forgetting, seeds), caveats


def evidence_of(
    prepared: Prepared,
    evaluations: Sequence[Evaluation],
    training: Mapping[str, Any] | None,
    compared: Compared,
    caveats: Sequence[str],
    weights: Weights | None,
) -> Evidence:
    """All that the verdict and the report of a run rest on."""
    assert compared.comparison is not None
    rows = prepared.rows
    return Evidence(
        recipe=prepared.recipe,
        evaluations=with_values(evaluations, compared.comparison),
        comparison=compared.comparison,
        costs=costs_of(prepared, evaluations, training),
        training=training,
        caveats=tuple(caveats),
        slices=slices_of(prepared),
        background=Background(
            task=rows.task_type,
            labels=tuple(getattr(prepared.task, "labels", ())),
            findings=prepared.findings,
            splits_explanation=rows.splits.explanation,
            split_sizes={part: len(getattr(rows.splits, part)) for part in PARTS},
            choices=tuple((c.key, str(c.value), c.reason) for c in prepared.choices),
        ),
        forgetting=compared.forgetting,
        seeds=compared.seeds,
        weights=weights,
        clusters=clusters_of(prepared),
    )


def conclude(
    folder: RunFolder, evidence: Evidence, preferences: Sequence[Preference], verdict: Verdict | None = None
) -> Verdict:
    """Write the verdict (decided here unless it is given), the report, and last what they rest on."""
    verdict = verdict or decide_on(evidence, preferences)
    write_json(folder.path / VERDICT, asdict(verdict))
    write_run_report(folder, evidence, verdict, preferences)
    write_evidence(folder, evidence, preferences)
    return verdict


def weights_of(prepared: Prepared, folder: RunFolder) -> Weights:
    """What is stored of the tuned model, and the base in memory as it was loaded."""
    shared = folder.adapter.is_dir()
    files = (path for path in (folder.adapter if shared else folder.model).rglob("*") if path.is_file())
    size = sum(path.stat().st_size for path in files if path.suffix in (".safetensors", ".bin"))
    return Weights(size, prepared.base.parameters * prepared.base.model.dtype.itemsize, shared)
