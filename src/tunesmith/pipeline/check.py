"""`check`: everything that can be known before compute is spent, in one report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from tunesmith.data import check_examples, infer_task, load_examples
from tunesmith.data.types import Finding
from tunesmith.errors import DataError, TunesmithError
from tunesmith.models.forward import LanguageModel
from tunesmith.models.fused_layers import use_fused_layers
from tunesmith.models.methods import attach
from tunesmith.models.servable import Servability, servable
from tunesmith.pipeline.planning import fit_memory
from tunesmith.pipeline.prepare import DataFindingsError, Listener, Prepared, prepare, read_data, trainable_samples
from tunesmith.pipeline.training import training_job, training_plan
from tunesmith.recipe.resolve import Choice
from tunesmith.recipe.schema import Data, Recipe
from tunesmith.text.preview import preview
from tunesmith.text.types import Sample
from tunesmith.training.calibration import calibrate, forecast_time
from tunesmith.training.resources import keep_freed_memory

_LOOKED_AT = 5_000
"""Training rows tokenised to know lengths, where there are more."""


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What `check` found. `preview` holds examples as (text, loss weight) pairs, `lengths` tokens per training row."""

    findings: tuple[Finding, ...]
    choices: tuple[Choice, ...] = ()
    preview: tuple[tuple[tuple[str, float], ...], ...] = ()
    lengths: tuple[int, ...] = ()
    estimate: dict[str, Any] = field(default_factory=dict)
    splits: dict[str, Any] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """3 where the data has errors, else 0."""
        return DataError.exit_code if any(f.severity == "error" for f in self.findings) else 0

    def to_dict(self) -> dict[str, Any]:
        """The report as one JSON object; lists of lines are complete."""
        return {
            "findings": [asdict(f) for f in self.findings],
            "choices": [asdict(c) for c in self.choices],
            "splits": self.splits,
            "preview": [[{"text": text, "weight": weight} for text, weight in tokens] for tokens in self.preview],
            "lengths": list(self.lengths),
            "estimate": self.estimate,
        }


def check(recipe: Recipe, listener: Listener = lambda event: None) -> CheckReport:
    """Read and check the data, load the base, show what will be learnt, and measure what a run will take.

    Row-level problems never raise; they are all in the report.
    """
    try:
        rows = read_data(recipe)
    except DataFindingsError as error:
        return CheckReport(error.findings)
    try:
        prepared = prepare(recipe, rows, at_most=_LOOKED_AT)
    except TunesmithError as error:
        if not any(f.severity == "error" for f in rows.findings):
            raise
        # The data has errors of its own: they are listed too, instead of one problem at a time.
        unusable = Finding("cannot_go_on", "error", f"{error.where}: {error.what}", error.fix or "see the message", 1)
        return CheckReport((*rows.findings, unusable))
    samples = trainable_samples(prepared)
    shown = [s for s in prepared.train if s.supervised][:3]
    return CheckReport(
        findings=prepared.findings,
        choices=prepared.choices,
        preview=tuple(p.tokens for p in preview(prepared.renderer, shown)),
        lengths=prepared.lengths.lengths,
        estimate=_estimate(prepared, samples) if samples else {},
        splits={
            "explanation": rows.splits.explanation,
            "sizes": {part: len(getattr(rows.splits, part)) for part in ("train", "validation", "test")},
            "hashes": dict(rows.splits.hashes),
        },
    )


def check_file(path: Path) -> CheckReport:
    """Check a bare file of rows, without recipe and model."""
    result = load_examples(Data(train=str(path)), path)
    found = list(result.findings)
    if result.examples:
        found += check_examples(result.examples, task_type=infer_task(result.examples))
    return CheckReport(tuple(found))


def _estimate(prepared: Prepared, samples: Sequence[Sample]) -> dict[str, Any]:
    """Tokens, memory, time and money of the run: memory from shapes, time from a calibration of this machine.

    The calibration measures a few micro-batches of this very training and is kept for the next time. The model is
    left as it was in value, but with adapters attached: `check` ends with the process that called it.
    """
    rows = len(prepared.rows.splits.train)
    job = training_job(prepared)
    tuning = attach(prepared.base, prepared.recipe.method, prepared.recipe.train.seed, prepared.added)
    model, memory = LanguageModel(prepared.base.model), prepared.memory
    if memory is None:
        recipe, _, memory = fit_memory(job.recipe, model, samples, job.base)
        job = replace(job, recipe=recipe)
    recipe, plan = job.recipe, memory.apply(training_plan(job, rows))
    plan = replace(plan, share_prefixes=plan.share_prefixes and not model.draws_chance)
    keep_freed_memory()
    use_fused_layers(prepared.base.model)
    learnt = [s for s in samples if s.supervised]
    measured = calibrate(model, learnt, plan)
    time = forecast_time(
        measured, learnt, plan, validation_tokens=sum(len(s.ids) for s in prepared.validation if s.supervised)
    )
    prices = recipe.verdict.prices
    tokens = round(plan.steps * plan.batch_size * sum(len(s.ids) for s in samples) / len(samples))
    return {
        "rows": rows,
        "rows_looked_at": len(samples),
        "supervised_share": prepared.lengths.supervised / max(1, prepared.lengths.tokens),
        "padding_a_padded_trainer_would_waste": prepared.lengths.padding_share,
        "optimiser_steps": plan.steps,
        "training_tokens": tokens,
        "tokens_computed": time.tokens,
        "tokens_per_second": tokens / time.training_seconds,
        "training_seconds": time.training_seconds,
        "validation_seconds": time.validation_seconds,
        "peak_memory_bytes": memory.predicted_peak_bytes,
        "memory_parts_bytes": dict(memory.parts),
        "parameters_trained": sum(p.numel() for p in tuning.trained().values()),
        "servable": {s.server: {"ok": s.ok, "reasons": list(s.reasons)} for s in _servers(prepared)},
        f"compute_{prices.currency}": time.seconds / 3600 * prices.hardware_per_hour,
        f"work_{prices.currency}": prices.hours_of_work * prices.work_per_hour,
        "note": "time measured on a few micro-batches here; answers during training and the evaluation come on top",
    }


def _servers(prepared: Prepared) -> tuple[Servability, ...]:
    return servable(prepared.recipe.method, prepared.base.model.config, prepared.added is not None)
