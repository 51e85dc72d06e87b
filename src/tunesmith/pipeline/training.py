"""The training stage: the recipe's method on the base, trained, saved, and proved to be what was trained."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import torch

from tunesmith.data.types import Example
from tunesmith.errors import DataError
from tunesmith.models.compiled_layers import compiled_layers
from tunesmith.models.forward import LanguageModel
from tunesmith.models.fp8 import fp8_linears
from tunesmith.models.load import LoadedBase
from tunesmith.models.lora import trainable_parameters
from tunesmith.models.methods import Tuning, attach, load_tuned
from tunesmith.models.vocabulary import AddedTokens
from tunesmith.models.writing import system_errors
from tunesmith.pipeline.diagnosing import Diagnosing
from tunesmith.pipeline.numbers import estimate_error
from tunesmith.pipeline.opening import open_base, open_tuned, tuned_folder
from tunesmith.pipeline.planning import fit_memory, fuse_layers, plan_of, recomputed_layers
from tunesmith.pipeline.prepare import Listener, Prepared, trainable_samples, watched_rows
from tunesmith.pipeline.stage import Stage, data_key
from tunesmith.pipeline.validation_scoring import ValidationScore, validation_score
from tunesmith.recipe import dump_recipe
from tunesmith.recipe.schema import Recipe
from tunesmith.runs import RunFolder, staged_folder, write_json, write_text
from tunesmith.tasks.conversation import asking_conversation
from tunesmith.text.templates import choose_template
from tunesmith.text.types import Group, Sample
from tunesmith.training import processes
from tunesmith.training.acceleration import why_no_graphs
from tunesmith.training.calibration import TimeForecast, cache_folder, forecast_time, known_calibration
from tunesmith.training.graphs import not_used
from tunesmith.training.loop import TrainingResult, train
from tunesmith.training.objectives import BuiltObjective, make_objective, refuse_other_rows
from tunesmith.training.plan import TrainingPlan
from tunesmith.training.precision import AUTOCAST
from tunesmith.training.proof import Proof, after_training, before_training
from tunesmith.training.resources import memory_limit
from tunesmith.training.sharding import full_tensors, shard
from tunesmith.training.step import DivergenceError
from tunesmith.training.trackers import Tracker, open_trackers
from tunesmith.training.trunk_cache import trunk_cache
from tunesmith.training.utilisation import Utilisation
from tunesmith.training.watch import ResourceSampler

TUNED = "tuned"
_NOT_LEARNT = {"micro_batch_tokens", "recompute", "memory_limit", "keep_epochs", "log_every"}
"""Settings of `train` that change what is in memory or kept, and not what is learnt."""
_ZERO_AT_FIRST = ("lora", "bottleneck")
"""Kinds of tuning that change nothing at first: switched off, the model is what it was before its first step."""
_READ_EVERY = 16
"""Steps after which loss and gradient norm are read from a GPU at the latest."""
_PROBES = 4
"""Prompts whose answers are compared between base, tuned and reloaded model."""

_NOT_COMPILED = "no layer is compiled: those whose input has a gradient are computed again in the backward pass"

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


def run_training(
    prepared: Prepared, asked: Recipe, folder: RunFolder, listener: Listener
) -> tuple[dict[str, Any], Prepared]:
    """Tune the base and save it; returns the training's facts, and what was prepared with the tuned model.

    asked: the recipe as it was given, to know what it left out. A finished training is loaded instead.
    """
    job = training_job(prepared)

    def watch(tell: Listener) -> Diagnosing:
        score = job.score
        answers = score.answers if isinstance(score, ValidationScore) else dict
        return Diagnosing(prepared, asked, training_plan(job).steps, answers, tell)

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
        validation_rows=len(watched_rows(prepared.recipe, prepared.rows.splits)),
        metric=str(prepared.recipe.goal.metric),
        score=validation_score(prepared),
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
        train=recipe.train.model_dump(exclude=_NOT_LEARNT),
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
    job = _fitted(job, objective, folder)
    before = before_training(base.model, job.probes)
    trackers = open_trackers(recipe.train, folder.path, recipe.model_dump(mode="json"))

    use = Utilisation(base.model, job.rows, job.recipe.train.precision)
    diagnosing = watch(listener) if watch is not None and _judged(recipe) else None
    with ResourceSampler(folder.path) as sampler:

        def tell(event: dict[str, Any]) -> None:
            if diagnosing is not None and event["kind"] == "validation":
                diagnosing.complete(event)
            if event["kind"] == "train_step":
                event = {**event, **use.of(event["tokens_per_second"]), **sampler.take()}
            try:
                listener(event)
            finally:  # whoever asks for a stop has heard the event, and so shall all others
                for tracker in trackers:
                    tracker.write(event)
                if diagnosing is not None:
                    diagnosing.hear(event)
                if event["kind"] == "train_step":
                    use.measure()

        try:
            if diagnosing is not None:
                diagnosing.begin(tuning.enabled if tuning.kind in _ZERO_AT_FIRST else None)
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
    sha = _save(folder, job.recipe, base, tuning, objective)
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
    job = _fitted(job, objective, None)
    _train(job, objective, Path(folder), lambda event: None)


def _judged(recipe: Recipe) -> bool:
    """Whether the training is diagnosed: by what the rows say, on whole weights.

    Not with a teacher: a student that follows it exactly may be far from the rows, and nothing is wrong then.
    """
    train = recipe.train
    return train.objective == "cross_entropy" and train.distillation is None and train.sharding == "none"


def _fitted(job: Job, objective: BuiltObjective, folder: RunFolder | None) -> Job:
    """The job with memory's decisions made on the attached model, where shapes alone could not; kept in `folder`."""
    train = job.recipe.train
    if train.micro_batch_tokens != "auto" and train.recompute != "auto":
        return job
    fuse_layers(job.recipe, job.base)
    model = LanguageModel(job.base.model)
    recipe, choices, _ = fit_memory(
        job.recipe, model, job.rows, job.base, objective=objective, validation=job.validation
    )
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
    if model.device.type == "cuda":
        plan = replace(plan, read_every=_READ_EVERY)
    if model.draws_chance:  # a shared beginning would get one draw for all its documents
        plan = replace(plan, share_prefixes=False)
    spec = job.recipe.train
    if plan.cuda_graphs and (reason := why_no_graphs(job.recipe, job.base.model, job.rows)):
        tell(not_used(reason))
        plan = replace(plan, cuda_graphs=False)
    sharded = spec.sharding == "fsdp"
    if sharded:
        model = shard(model, cpu_offload=spec.cpu_offload)
    fused, cached = fuse_layers(job.recipe, job.base), 0
    if spec.cache_trunk == "on":
        model.verify()  # `train` does so too, but states that are kept must be right before
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
    forecast = _forecast(job, model, plan)
    score = None if sharded else job.score
    with ExitStack() as stack:
        eighths = stack.enter_context(fp8_linears(model.model)).replaced if plan.precision == "fp8" else ()
        compiled = 0
        if spec.compile == "on":
            kept = cache_folder() / "compiled"

            def said(text: str) -> None:
                tell({"kind": "warning", "text": text, "code": "compile", "count": 1})

            context = compiled_layers(model, kept, recomputed=plan.recompute_layers, tell=said)
            compiled = stack.enter_context(context).layers
            if not compiled:
                said(_NOT_COMPILED)
        tell(
            {
                "kind": "engine",
                "fused_layers": fused,
                "trunk_cache_bytes": cached,
                "compiled_layers": compiled,
                "fp8_layers": len(eighths),
            }
        )
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
            memory_limit=memory_limit(spec.memory_limit) if model.device.type == "cpu" else None,
        )
    if forecast is not None and result.seconds:
        error = estimate_error(forecast, steps=result.steps, seconds=result.seconds)
        RunFolder(folder).update_manifest(estimate=error)
    return result, full_tensors(trainable_parameters(job.base.model)) if sharded else None


def _forecast(job: Job, model: LanguageModel, plan: TrainingPlan) -> TimeForecast | None:
    """How long the steps should take by what `check` measured for such a training, if it did; of one process only.

    It measures plain steps: nothing is foretold of captured, compiled and 8-bit ones.
    """
    other = plan.cuda_graphs or plan.precision == "fp8" or job.recipe.train.compile == "on"
    if processes.count() > 1 or other or not _judged(job.recipe):
        return None
    known = known_calibration(model, job.rows, plan)
    return None if known is None else forecast_time(known, job.rows, plan)


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
    rows = len(job.rows) if rows is None else rows
    if not rows:
        raise DataError("no training row fits the context", where="train.max_length", fix="see the findings")
    return plan_of(job.recipe, rows, metric=job.metric, evaluating=bool(job.validation_rows))


def _close(trackers: Sequence[Tracker]) -> None:
    for tracker in trackers:
        tracker.close()


def _save(folder: RunFolder, recipe: Recipe, base: LoadedBase, tuning: Tuning, objective: BuiltObjective) -> str:
    """Write `adapter/` or `model/`, whole or not at all; returns the SHA-256 of the weights."""
    with staged_folder(folder.model if tuning.kind == "full" else folder.adapter) as target:
        sha = write_tuned(target, recipe, base, tuning)
        objective.save(target)
    return sha


def write_tuned(target: Path, recipe: Recipe, base: LoadedBase, tuning: Tuning) -> str:
    """Write what was tuned into a folder, as a run keeps it; returns the SHA-256 of the weights.

    Where the chat template is not the tokenizer's own, the tokenizer goes with it: others ask by what it says.
    """
    template = recipe.base.chat_template
    ours = template not in ("auto", "tokenizer") and recipe.data.columns.second is None
    if ours:
        base.tokenizer.chat_template = choose_template(base.tokenizer, template)[1]
    sha = tuning.save(target, base)
    if ours:
        with system_errors(target):
            base.tokenizer.save_pretrained(target)
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


def _facts(result: TrainingResult, sha: str, proof: Proof) -> dict[str, Any]:
    facts = {k: v for k, v in asdict(result).items() if k != "history"}
    return {
        **facts,
        "tokens_per_second": result.tokens / result.seconds if result.seconds else 0.0,
        "adapter_sha256": sha,
        "proof": proof.record(),
    }
