"""What a prepared training will take here: memory from shapes, time from a calibration of this machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tunesmith.models.forward import LanguageModel
from tunesmith.models.fused_layers import use_fused_layers
from tunesmith.models.methods import attach
from tunesmith.pipeline.planning import fit_memory
from tunesmith.pipeline.prepare import Prepared
from tunesmith.pipeline.training import training_job, training_plan
from tunesmith.recipe.schema import Recipe
from tunesmith.text.types import Sample
from tunesmith.training.calibration import TimeForecast, calibrate, forecast_time
from tunesmith.training.plan import TrainingPlan
from tunesmith.training.planner import MemoryPlan
from tunesmith.training.resources import keep_freed_memory


@dataclass(frozen=True, slots=True)
class TrainingEstimate:
    """recipe: with every engine setting decided. tokens: of the rows, over all steps. trained: parameters."""

    recipe: Recipe
    plan: TrainingPlan
    memory: MemoryPlan
    time: TimeForecast
    tokens: int
    trained: int

    @property
    def tokens_per_second(self) -> float:
        """Tokens of rows (shared beginnings counted in each) per second of the optimiser steps."""
        return self.tokens / self.time.training_seconds


def estimate_training(prepared: Prepared, samples: Sequence[Sample]) -> TrainingEstimate:
    """Plan and time the training of `samples` (at least one), which may be some of the rows.

    The calibration measures a few micro-batches of this very training and is kept for the next time. The model is
    left as it was in value, but with adapters attached and layers fused: whoever needs the base loads it again.
    Raises `ResourceError` where the training cannot fit.
    """
    rows = len(prepared.rows.splits.train)
    job = training_job(prepared)
    tuning = attach(prepared.base, prepared.recipe.method, prepared.recipe.train.seed, prepared.added)
    model, memory = LanguageModel(prepared.base.model), prepared.memory
    if memory is None:
        recipe, _, memory = fit_memory(job.recipe, model, samples, job.base)
        job = replace(job, recipe=recipe)
    plan = memory.apply(training_plan(job, rows))
    plan = replace(plan, share_prefixes=plan.share_prefixes and not model.draws_chance)
    keep_freed_memory()
    use_fused_layers(prepared.base.model)
    learnt = [s for s in samples if s.supervised]
    measured = calibrate(model, learnt, plan)
    time = forecast_time(
        measured, learnt, plan, validation_tokens=sum(len(s.ids) for s in prepared.validation if s.supervised)
    )
    return TrainingEstimate(
        recipe=job.recipe,
        plan=plan,
        memory=memory,
        time=time,
        tokens=round(plan.steps * plan.batch_size * sum(len(s.ids) for s in samples) / len(samples)),
        trained=sum(p.numel() for p in tuning.trained().values()),
    )
