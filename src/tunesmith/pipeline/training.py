"""The training stage: the recipe's method on the base, trained, saved, and proved to be what was trained."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import torch

from tunesmith.data.types import Example
from tunesmith.errors import DataError
from tunesmith.models.forward import LanguageModel
from tunesmith.models.fused_layers import use_fused_layers
from tunesmith.models.load import LoadedBase
from tunesmith.models.lora import trainable_parameters
from tunesmith.models.methods import Tuning, attach, load_tuned
from tunesmith.models.vocabulary import AddedTokens
from tunesmith.pipeline.diagnosing import Diagnosing
from tunesmith.pipeline.opening import open_base, open_tuned, tuned_folder
from tunesmith.pipeline.planning import fit_memory, recomputed_layers
from tunesmith.pipeline.prepare import Listener, Prepared, trainable_samples
from tunesmith.pipeline.stage import Stage, data_key, engine_of
from tunesmith.recipe import dump_recipe
from tunesmith.recipe.schema import Recipe
from tunesmith.runs import RunFolder, staged_folder, write_json, write_text
from tunesmith.tasks.conversation import asking_conversation
from tunesmith.tasks.metrics import quick_score
from tunesmith.text.types import Group, Sample
from tunesmith.training import processes
from tunesmith.training.calibration import measured_gemm_rate
from tunesmith.training.diagnosis import answer_measures
from tunesmith.training.flops import needed_flops
from tunesmith.training.loop import TrainingResult, train
from tunesmith.training.objectives import BuiltObjective, make_objective, refuse_other_rows
from tunesmith.training.plan import TrainingPlan, steps_of
from tunesmith.training.proof import Proof, after_training, before_training
from tunesmith.training.sharding import full_tensors, shard
from tunesmith.training.step import AUTOCAST, DivergenceError
from tunesmith.training.trackers import Tracker, open_trackers
from tunesmith.training.trunk_cache import trunk_cache
from tunesmith.training.watch import ResourceSampler

TUNED = "tuned"
_MEMORY_ONLY = {"micro_batch_tokens", "recompute", "memory_limit"}
"""Settings of `train` that change what is in memory, and not what is learnt."""
_PROBES = 4
"""Prompts whose answers are compared between base, tuned and reloaded model."""

_LOOKED_AT = 1_000
"""Rows from which the operations per token are counted."""

Score = Callable[[], Mapping[str, float]]
Row = Sample | Group


@dataclass(frozen=True, slots=True)
class Job:
    """What a training is made of. `metric`: the one that chooses the best checkpoint; `probes`: prompts as ids."""

    recipe: Recipe
    base: LoadedBase
    added: AddedTokens | None
    rows: Sequence[Row]
    validation: Sequence[Row]
    validation_rows: int
    metric: str
    score: Score | None
    probes: Sequence[Sequence[int]]


def run_training(prepared: Prepared, folder: RunFolder, listener: Listener) -> tuple[dict[str, Any], Prepared]:
    """Tune the base and save it; returns the training's facts, and what was prepared with the tuned model.

    A finished training is loaded instead.
    """
    job = training_job(prepared)

    def watch(tell: Listener) -> Diagnosing:
        score = job.score
        answers = score.answers if isinstance(score, ValidationScore) else dict
        return Diagnosing(prepared, training_plan(job).steps, answers, tell)

    facts, base = carry_out(job, folder, data_key(prepared), listener, watch)
    return facts, replace(prepared, base=base)


def training_job(prepared: Prepared) -> Job:
    """The training that a prepared recipe means."""
    return Job(
        recipe=prepared.recipe,
        base=prepared.base,
        added=prepared.added,
        rows=trainable_samples(prepared),
        validation=prepared.validation,
        validation_rows=len(prepared.rows.splits.validation),
        metric=str(prepared.recipe.goal.metric),
        score=_validation_score(prepared),
        probes=_probes(prepared),
    )


def carry_out(
    job: Job,
    folder: RunFolder,
    key: Mapping[str, Any],
    listener: Listener,
    watch: Callable[[Listener], Diagnosing] | None = None,
) -> tuple[dict[str, Any], LoadedBase]:
    """Train, save and prove; returns facts and the tuned model. It is the job's own base, tuned in place, unless that
    was divided among processes.

    `key`: what decides the result beside the recipe's method and training. `watch` makes what diagnoses the training.
    """
    recipe, base = job.recipe, job.base
    objective = make_objective(recipe.train, folder=Path.cwd(), allow_code=True, base=base)
    refuse_other_rows(objective, pairs=recipe.data.columns.second is not None)
    stage = Stage(
        folder,
        "train",
        ["checkpoints", "trunk", "adapter", "model", "training.json", f"evaluation/{TUNED}.*"],
        **key,
        method=recipe.method.model_dump(),
        train=recipe.train.model_dump(exclude=_MEMORY_ONLY),
        objective=hashlib.sha256(objective.file.read_bytes()).hexdigest() if objective.file is not None else None,
        metric=recipe.goal.metric,
        max_new_tokens=recipe.evaluate.max_new_tokens,
    )
    done = stage.result
    processes.first_only(lambda: None if done is not None else str(folder.path))
    if done is not None:
        load_tuned(base, tuned_folder(folder), recipe.method)
        return done, base
    tuning = attach(base, recipe.method, recipe.train.seed, job.added)
    job = _fitted(job, folder)
    before = before_training(base.model, job.probes)
    trackers = open_trackers(recipe.train, folder.path, recipe.model_dump(mode="json"))

    full_rate = _utilisation(job)
    # Its thresholds are those of cross-entropy, and its probes need whole weights.
    judged = recipe.train.objective == "cross_entropy" and recipe.train.sharding == "none"
    diagnosing = watch(listener) if watch is not None and judged else None
    with ResourceSampler(folder.path) as sampler:

        def tell(event: dict[str, Any]) -> None:
            if diagnosing is not None and event["kind"] == "validation":
                diagnosing.complete(event)
            if event["kind"] == "train_step":
                event = {**event, "mfu": event["tokens_per_second"] * full_rate, **sampler.take()}
            listener(event)
            for tracker in trackers:
                tracker.write(event)
            if diagnosing is not None:
                diagnosing.hear(event)

        try:
            if diagnosing is not None:
                diagnosing.begin()
            result, whole = _train(job, objective, folder.path, tell)
        except Exception as error:
            # Not on Ctrl-C: a writer that was interrupted itself could keep us waiting for ever.
            if diagnosing is not None and isinstance(error, DivergenceError):
                diagnosing.failed(error)
            _close(trackers)
            raise
        _close(trackers)
    found = diagnosing.finish(result.history) if diagnosing is not None else ()
    if whole is not None:
        base, tuning = _put_together(job, whole)
    sha = _save(folder, base, tuning, objective)
    proof = after_training(base.model, job.probes, before, _reloaded(job, folder))
    for text in proof.warnings:
        listener({"kind": "warning", "text": text, "code": "training_proof", "count": 1})
    folder.update_manifest(proof=proof.record())
    facts = {**_facts(result, sha, proof), "diagnoses": [diagnosis.record() for diagnosis in found]}
    write_json(folder.path / "training.json", {**facts, "history": list(result.history)})
    stage.finish(facts)
    return facts, base


def follow(job: Job) -> None:
    """What the other processes of a training do: train with the first one, which alone writes and evaluates."""
    objective = make_objective(job.recipe.train, folder=Path.cwd(), allow_code=True, base=job.base)
    folder: str | None = processes.first_only(lambda: None)
    if folder is None:
        return
    attach(job.base, job.recipe.method, job.recipe.train.seed, job.added)
    job = _fitted(job, None)
    _train(job, objective, Path(folder), lambda event: None)


def _fitted(job: Job, folder: RunFolder | None) -> Job:
    """The job with memory's decisions made on the attached model, where shapes alone could not; kept in `folder`."""
    train = job.recipe.train
    if train.micro_batch_tokens != "auto" and train.recompute != "auto":
        return job
    recipe, choices, _ = fit_memory(job.recipe, LanguageModel(job.base.model), job.rows, job.base)
    if folder is not None:
        write_text(folder.recipe_file, dump_recipe(recipe, {c.key: c.reason for c in choices}, omit_auto=True))
    return replace(job, recipe=recipe)


def _train(
    job: Job, objective: BuiltObjective, folder: Path, tell: Listener
) -> tuple[TrainingResult, dict[str, torch.Tensor] | None]:
    """The loop on a base with adapters attached, its layers replaced by fused ones where they are known.

    Returns the trained tensors too where each process has a share of them only.
    """
    model, plan = LanguageModel(job.base.model), training_plan(job)
    plan = replace(plan, recompute_layers=recomputed_layers(job.recipe, job.base, model.frozen_layers))
    if model.draws_chance:  # a shared beginning would get one draw for all its documents
        plan = replace(plan, share_prefixes=False)
    model.verify()  # as transformers computes it; `train` verifies again, with fused layers
    sharded = job.recipe.train.sharding == "fsdp"
    if sharded:
        model = shard(model, cpu_offload=job.recipe.train.cpu_offload)
    fused = () if sharded else use_fused_layers(job.base.model)
    cached = 0
    if job.recipe.train.cache_trunk == "on":
        cache = trunk_cache(
            model,
            [*job.rows, *job.validation],
            folder / "trunk",
            base=job.base.weights_sha256 + job.recipe.method.quantize,
            token_budget=plan.micro_batch_tokens,
            autocast=AUTOCAST.get(plan.precision),
            progress=lambda done, total: tell(_cache_progress(done, total)),
        )
        model.use_trunk_cache(cache)
        cached = cache.bytes
    tell({"kind": "engine", "fused_layers": len(fused), "trunk_cache_bytes": cached})
    score = None if sharded else job.score
    result = train(
        model,
        job.rows,
        plan,
        folder / "checkpoints",
        validation=job.validation,
        score=None if score is None else lambda: processes.first_only(score),
        objective=objective,
        listener=tell,
        identity=job.base.weights_sha256,
    )
    return result, full_tensors(trainable_parameters(job.base.model)) if sharded else None


def _put_together(job: Job, whole: Mapping[str, torch.Tensor]) -> tuple[LoadedBase, Tuning]:
    """A fresh base with the tensors that were trained in shares."""
    base, added = open_base(job.recipe)
    tuning = attach(base, job.recipe.method, job.recipe.train.seed, added)
    with torch.no_grad():
        for name, parameter in tuning.trained().items():
            parameter.copy_(whole[name])
    return base, tuning


def training_plan(job: Job, rows: int | None = None) -> TrainingPlan:
    """The recipe's `train` section in steps; `rows` where not all of them are in the job."""
    spec, recipe = job.recipe.train, job.recipe
    rows = len(job.rows) if rows is None else rows
    if not rows:
        raise DataError("no training row fits the context", where="train.max_length", fix="see the findings")
    batch = int(spec.batch_size)
    steps = spec.max_steps or steps_of(rows, batch, float(spec.epochs))
    evaluating = spec.evaluations and job.validation_rows
    return TrainingPlan(
        steps=steps,
        batch_size=batch,
        learning_rate=float(spec.learning_rate),
        seed=spec.seed,
        schedule=spec.schedule,
        warmup_steps=round(steps * spec.warmup_ratio),
        weight_decay=spec.weight_decay,
        betas=(spec.beta1, spec.beta2),
        epsilon=spec.epsilon,
        max_grad_norm=spec.max_grad_norm,
        micro_batch_tokens=4096 if spec.micro_batch_tokens == "auto" else int(spec.micro_batch_tokens),
        evaluate_every=-(-steps // spec.evaluations) if evaluating else 0,
        patience=spec.patience,
        select_by=spec.select_by,
        metric=job.metric,
        keep_checkpoints=spec.keep_checkpoints,
        precision=spec.precision if spec.precision != "auto" else "fp32",
        share_prefixes=spec.share_prefixes and not spec.neftune_alpha,
        optimizer=spec.optimizer,
        optimizer_in_backward=spec.optimizer_in_backward,
        lora_plus_ratio=recipe.method.lora_plus_ratio,
        neftune_alpha=spec.neftune_alpha,
    )


def _close(trackers: Sequence[Tracker]) -> None:
    for tracker in trackers:
        tracker.close()


def _utilisation(job: Job) -> float:
    """Share of this device's measured rate of matrix products that one token per second needs (see `flops.py`)."""
    rows = [s for row in job.rows[:_LOOKED_AT] for s in (row.samples if isinstance(row, Group) else (row,))]
    lengths = [len(s.ids) for s in rows]
    needed = needed_flops(job.base.model, lengths, sum(s.supervised for s in rows)) / sum(lengths)
    precision = job.recipe.train.precision
    return needed / measured_gemm_rate(precision if precision != "auto" else "fp32", job.base.model.device)


def _save(folder: RunFolder, base: LoadedBase, tuning: Tuning, objective: BuiltObjective) -> str:
    """Write `adapter/` or `model/`, whole or not at all; returns the SHA-256 of the weights."""
    with staged_folder(folder.model if tuning.kind == "full" else folder.adapter) as target:
        sha = tuning.save(target, base)
        objective.save(target)
    return sha


def _cache_progress(done: int, total: int) -> dict[str, Any]:
    return {
        "kind": "progress",
        "stage": "train",
        "label": "states of the frozen layers",
        "done": done,
        "total": total,
        "unit": "rows",
    }


def _probes(prepared: Prepared) -> list[list[int]]:
    """The first prompts of the validation rows (or of the training rows), as ids."""
    rows: tuple[Example, ...] = (prepared.rows.splits.validation or prepared.rows.splits.train)[:_PROBES]
    limit = prepared.base.context
    asked = [prepared.renderer.prompt_ids(asking_conversation(prepared.task, row)) for row in rows]
    return [ids for ids in asked if 0 < len(ids) <= limit]


def _reloaded(job: Job, folder: RunFolder) -> Any | str:
    """The tuned model as loaded from disk, or why it was not loaded."""
    needed = sum(t.nbytes for t in job.base.model.state_dict().values())
    free = psutil.virtual_memory().available
    if needed * 1.2 > free:
        return f"not loaded again: it needs {needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free"
    return open_tuned(job.recipe, folder).model


class ValidationScore:
    """Generates answers to the same validation rows each time and scores them."""

    def __init__(self, prepared: Prepared, rows: Sequence[Example]) -> None:
        self._task, self._rows, self._engine = prepared.task, rows, engine_of(prepared)
        self._limit = int(prepared.recipe.evaluate.max_new_tokens)
        self._asked = [asking_conversation(prepared.task, row) for row in rows]
        room = self._engine.context - self._limit
        self._fitting = [i for i, turns in enumerate(self._asked) if self._engine.count_tokens(turns) <= room]
        self._measures: dict[str, float] = {}

    def __call__(self) -> Mapping[str, float]:
        texts, ended = [""] * len(self._rows), [False] * len(self._rows)
        asked = [self._asked[i] for i in self._fitting]
        for i, generation in zip(self._fitting, self._engine.generate(asked, self._limit), strict=True):
            texts[i], ended[i] = generation.text, generation.stopped
        parsed = [self._task.parse(text) for text in texts]
        self._measures = answer_measures(parsed, [self._task.target(row) for row in self._rows], ended)
        return quick_score(self._task, texts, self._rows)

    def answers(self) -> Mapping[str, float]:
        """What the last answers tell beside their score."""
        return self._measures


def _validation_score(prepared: Prepared) -> ValidationScore | None:
    """What scores validation rows during training; None where that is not wanted."""
    rows = prepared.rows.splits.validation[: prepared.recipe.train.eval_rows]
    return ValidationScore(prepared, rows) if rows else None


def _facts(result: TrainingResult, sha: str, proof: Proof) -> dict[str, Any]:
    facts = {k: v for k, v in asdict(result).items() if k != "history"}
    return {
        **facts,
        "tokens_per_second": result.tokens / result.seconds if result.seconds else 0.0,
        "adapter_sha256": sha,
        "proof": proof.record(),
    }
