"""Our side of `train_speed.py`: the calls that `tunesmith train` makes, from a recipe on, on rows that are tokens."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# What `tunesmith` sets for its own process; before torch is imported.
from tunesmith.cli.environment import set_defaults

set_defaults()

import numpy as np  # noqa: E402

from _train_speed_job import Job, Record, watch  # noqa: E402
from _training_work import TokenRow, initial_adapter  # noqa: E402
from tunesmith.models.lora import trainable_parameters  # noqa: E402
from tunesmith.models.methods import LoraTuning, attach  # noqa: E402
from tunesmith.pipeline import training as pipeline  # noqa: E402
from tunesmith.pipeline.opening import open_base  # noqa: E402
from tunesmith.pipeline.planning import plan_engine  # noqa: E402
from tunesmith.recipe.resolve import Facts, resolve  # noqa: E402
from tunesmith.recipe.schema import Base, Data, Method, Recipe, Train  # noqa: E402
from tunesmith.text.types import Sample  # noqa: E402
from tunesmith.training import loop  # noqa: E402
from tunesmith.training.objectives import make_objective  # noqa: E402


@dataclass(frozen=True)
class Loaded:
    """A recipe and its base in memory."""

    recipe: Recipe
    base: Any


def load(job: Job) -> Loaded:
    """The recipe that the job means, and its base."""
    recipe = Recipe(
        data=Data(train="rows"),
        base=Base(model=job.model),
        method=Method(
            type="full" if job.method == "full" else "lora",
            rank=job.rank,
            alpha=float(job.alpha),
            last_layers=job.last_layers,
        ),
        train=Train(
            max_steps=job.steps,
            batch_size=job.rows_per_step,
            learning_rate=job.learning_rate,
            schedule="constant",
            warmup_ratio=0.0,
            evaluations=0,
            seed=job.seed,
            micro_batch_tokens=job.setting.micro_batch or "auto",
        ),
    )
    return Loaded(recipe, open_base(recipe)[0])


def vocabulary(loaded: Loaded) -> int:
    """Tokens the model knows."""
    return int(loaded.base.model.config.vocab_size)


def parameters(loaded: Loaded) -> list[Any]:
    """The model's weights."""
    return list(loaded.base.model.parameters())


def training_job(loaded: Loaded, rows: Sequence[TokenRow]) -> pipeline.Job:
    """The job that the stages before training make of a recipe, every `auto` decided as they decide it."""
    lengths = [len(row.ids) for row in rows]
    base = loaded.base
    facts = Facts(
        task_type="generation",
        answer_form=None,
        labels=(),
        train_rows=len(rows),
        validation_rows=0,
        parameters=base.parameters,
        context=base.context,
        longest_row_tokens=max(lengths),
        mean_row_tokens=sum(lengths) / len(lengths),
        longest_answer_tokens=max(row.learnt for row in rows),
        device="cpu",
        bf16_supported=False,
        has_chat_template=False,
        metric_default="exact_match",
    )
    samples = [Sample(r.ids, (np.arange(len(r.ids)) >= r.answer_at).astype(np.float32)) for r in rows]
    resolved, _ = resolve(loaded.recipe, facts)
    return pipeline.Job(
        recipe=plan_engine(resolved, base, None, samples).recipe,
        base=base,
        added=None,
        rows=samples,
        validation=(),
        validation_rows=0,
        metric="exact_match",
        score=None,
        probes=(),
    )


def tune(loaded: Loaded, job: Job) -> None:
    """Make the base trainable as the recipe says, with the first adapter that both sides have."""
    tuning = attach(loaded.base, loaded.recipe.method, job.seed)
    if isinstance(tuning, LoraTuning):
        layers = tuning.attached.layers
        for name, a in initial_adapter({n: layer.lora_A for n, layer in layers.items()}, job.seed):
            layers[name].lora_A.data.copy_(a)


def train(job: Job, loaded: Loaded, rows: Sequence[TokenRow], order: Sequence[Sequence[int]], record: Record) -> None:
    """Train as the pipeline does, told to report every step: the peer logs every step, too.

    `prepared_seconds` is what comes before the first step: the layers fused, the model checked, and the states of
    frozen layers computed, where they are kept.
    """
    loop._LOG_SECONDS = 0.0
    training = training_job(loaded, rows)
    tune(loaded, job)
    objective = make_objective(training.recipe.train, folder=Path.cwd(), allow_code=False, base=loaded.base)
    compare = watch(trainable_parameters(loaded.base.model))
    began = time.perf_counter()

    def tell(event: Mapping[str, Any]) -> None:
        if event["kind"] == "engine":
            record.note_memory()
            record.facts = {
                "prepared_seconds": time.perf_counter() - began,
                "fused_layers": event["fused_layers"],
                "trunk_cache_bytes": event["trunk_cache_bytes"],
                "micro_batch_tokens": training.recipe.train.micro_batch_tokens,
                "recompute": training.recipe.train.recompute,
            }
        elif event["kind"] == "train_step":
            record.step(event["loss"], event["grad_norm"])
            record.end()

    with tempfile.TemporaryDirectory() as folder:
        pipeline._train(training, objective, Path(folder), tell)
    record.tensors_changed = compare()
