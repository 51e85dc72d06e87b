"""The stages of a run. Each is keyed by a hash of its inputs: done again with the same inputs it is read, not repeated;
begun with others, what it left behind is removed first."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from tunesmith.data.types import Example
from tunesmith.errors import DataError
from tunesmith.evaluation.comparison import Comparison, compare, evaluate_candidate
from tunesmith.evaluation.prompts import PromptCandidate, choose_k
from tunesmith.evaluation.retrieval import Retriever
from tunesmith.evaluation.shots import draw_shots
from tunesmith.evaluation.trivial import trivial_baselines
from tunesmith.evaluation.types import Candidate, Evaluation
from tunesmith.inference.torch_engine import TorchEngine
from tunesmith.models.adapter import load_adapter, save_adapter
from tunesmith.models.forward import LanguageModel
from tunesmith.models.load import load_full
from tunesmith.models.lora import Attached, LoraSettings, attach_lora
from tunesmith.models.writing import system_errors
from tunesmith.pipeline.prepare import Listener, Prepared, trainable_samples
from tunesmith.runs import RunFolder, stage_key, staged_folder, write_json, write_text
from tunesmith.tasks.conversation import asking_conversation
from tunesmith.tasks.metrics import quick_score
from tunesmith.training.loop import TrainingResult, train
from tunesmith.training.plan import TrainingPlan, steps_of
from tunesmith.verdict.costs import candidate_costs
from tunesmith.verdict.decision import decide
from tunesmith.verdict.types import CandidateCost, Verdict

TUNED = "tuned"
_PROGRESS_SECONDS = 0.5


class Stage:
    """One stage in a run folder: `result` is what an earlier process left for the same inputs, or None.

    Leftovers of a begun stage with other inputs (`paths`, relative to the run) are removed.
    """

    def __init__(self, folder: RunFolder, name: str, paths: Sequence[str], **inputs: Any) -> None:
        self.folder, self.name, self.key = folder, name, stage_key(**inputs)
        self.result = folder.stage_done(name, self.key)
        begun = folder.path / "stages" / f"{name}.begun"
        if self.result is None and not (begun.is_file() and begun.read_text() == self.key):
            for pattern in paths:
                for path in folder.path.glob(pattern):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            write_text(begun, self.key)

    def finish(self, result: dict[str, Any]) -> None:
        """Record the result under the key."""
        self.folder.finish_stage(self.name, self.key, result)


def data_key(prepared: Prepared) -> dict[str, Any]:
    """What every stage depends on: rows, base, rendering, task."""
    return {
        "splits": dict(prepared.rows.splits.hashes),
        "base": prepared.base.weights_sha256,
        "template": prepared.renderer.template,
        "task": prepared.recipe.task.model_dump(),
        "dtype": prepared.recipe.base.dtype,
    }


def engine_of(prepared: Prepared) -> TorchEngine:
    """The base (or, once tuned in place, the tuned model) as an engine."""
    limit = prepared.base.context
    return TorchEngine(prepared.base.model, prepared.renderer, limit, prepared.recipe.evaluate.batch_size)


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


def run_training(prepared: Prepared, folder: RunFolder, listener: Listener) -> tuple[dict[str, Any], Attached | None]:
    """Tune the base in place and save it; returns the training's facts. A finished one is loaded instead."""
    recipe = prepared.recipe
    stage = Stage(
        folder,
        "train",
        ["checkpoints", "adapter", "model", "training.json", f"evaluation/{TUNED}.*"],
        **data_key(prepared),
        method=recipe.method.model_dump(),
        train=recipe.train.model_dump(),
        metric=recipe.goal.metric,
        max_new_tokens=recipe.evaluate.max_new_tokens,
    )
    if stage.result is not None:
        return stage.result, load_tuned(prepared.base.model, folder)
    attached = None
    if recipe.method.type == "lora":
        attached = attach_lora(prepared.base.model, lora_settings(prepared), recipe.train.seed)
    else:
        # Updates smaller than half precision can hold would be lost: all weights are trained in at least fp32.
        prepared.base.model.requires_grad_(True)
        if prepared.base.model.dtype in (torch.bfloat16, torch.float16):
            prepared.base.model.float()
    samples = trainable_samples(prepared)
    plan = training_plan(prepared, len(samples))
    logs = _TensorBoard(folder.path / "tensorboard") if recipe.train.tensorboard else None

    def tell(event: dict[str, Any]) -> None:
        listener(event)
        if logs is not None:
            logs.write(event)

    result = train(
        LanguageModel(prepared.base.model),
        samples,
        plan,
        folder.path / "checkpoints",
        validation=prepared.validation,
        score=_validation_score(prepared),
        listener=tell,
    )
    if logs is not None:
        logs.close()
    sha = _save_tuned(prepared, folder, attached)
    facts = _training_facts(result, sha)
    write_json(folder.path / "training.json", {**facts, "history": list(result.history)})
    stage.finish(facts)
    return facts, attached


def load_tuned(model: Any, folder: RunFolder) -> Attached | None:
    """Turn a freshly loaded base into the run's tuned model, in place."""
    if folder.adapter.is_dir():
        attached = load_adapter(model, folder.adapter)
        model.eval()
        return attached
    load_full(model, folder.model)
    return None


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
    )


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
) -> Verdict:
    """The verdict, with what a reader must know beside it."""
    recipe = prepared.recipe
    caveats = []
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
    )


def lora_settings(prepared: Prepared) -> LoraSettings:
    """The recipe's method as the engine takes it."""
    method = prepared.recipe.method
    targets = method.target_modules if isinstance(method.target_modules, str) else tuple(method.target_modules)
    return LoraSettings(
        rank=method.rank,
        alpha=float(method.alpha),
        dropout=method.dropout,
        use_rslora=method.use_rslora,
        target_modules=targets,
        modules_to_save=tuple(method.modules_to_save),
    )


def training_plan(prepared: Prepared, rows: int) -> TrainingPlan:
    """The recipe's `train` section in steps."""
    spec, recipe = prepared.recipe.train, prepared.recipe
    if not rows:
        raise DataError("no training row fits the context", where="train.max_length", fix="see the findings")
    batch = int(spec.batch_size)
    steps = spec.max_steps or steps_of(rows, batch, float(spec.epochs))
    evaluating = spec.evaluations and prepared.rows.splits.validation
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
        micro_batch_tokens=int(spec.micro_batch_tokens),
        evaluate_every=-(-steps // spec.evaluations) if evaluating else 0,
        patience=spec.patience,
        select_by=spec.select_by,
        metric=str(recipe.goal.metric),
        keep_checkpoints=spec.keep_checkpoints,
    )


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
            on_progress=_progress(listener, "baselines", f"{name}: choosing k"),
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
        on_progress=_progress(listener, "evaluate" if candidate.name == TUNED else "baselines", candidate.name),
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


def _progress(listener: Listener, stage: str, label: str) -> Callable[[int, int], None]:
    began = time.monotonic()
    told = 0.0

    def tell(done: int, total: int) -> None:
        nonlocal told
        if done < total and time.monotonic() - told < _PROGRESS_SECONDS:
            return
        told = time.monotonic()
        listener(
            {
                "kind": "progress",
                "stage": stage,
                "label": label,
                "done": done,
                "total": total,
                "unit": "rows",
                "seconds": time.monotonic() - began,
            }
        )

    return tell


def _validation_score(prepared: Prepared) -> Callable[[], Mapping[str, float]] | None:
    """Generates answers to the same validation rows each time and scores them; None where that is not wanted."""
    count = prepared.recipe.train.eval_rows
    rows: tuple[Example, ...] = prepared.rows.splits.validation[:count]
    if not rows:
        return None
    engine = engine_of(prepared)
    limit = int(prepared.recipe.evaluate.max_new_tokens)
    asked = [asking_conversation(prepared.task, row) for row in rows]
    fitting = [i for i, turns in enumerate(asked) if engine.count_tokens(turns) <= engine.context - limit]

    def score() -> Mapping[str, float]:
        texts = [""] * len(rows)
        for i, generation in zip(fitting, engine.generate([asked[i] for i in fitting], limit), strict=True):
            texts[i] = generation.text
        return quick_score(prepared.task, texts, rows)

    return score


def _save_tuned(prepared: Prepared, folder: RunFolder, attached: Attached | None) -> str:
    """Write `adapter/` (PEFT) or `model/`; returns the SHA-256 of the weights."""
    base = prepared.base
    if attached is not None:
        with staged_folder(folder.adapter) as target:
            return save_adapter(
                target,
                attached,
                base=base.name if base.folder is None else str(base.folder),
                revision=base.revision,
                conv1d=any(layer.conv1d for layer in attached.layers.values()),
            )
    with staged_folder(folder.model) as target, system_errors(target):
        base.model.save_pretrained(target)
        base.tokenizer.save_pretrained(target)
    digest = hashlib.sha256()
    for path in sorted(folder.model.glob("*.safetensors")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _training_facts(result: TrainingResult, sha: str) -> dict[str, Any]:
    facts = {k: v for k, v in asdict(result).items() if k != "history"}
    return {
        **facts,
        "tokens_per_second": result.tokens / result.seconds if result.seconds else 0.0,
        "adapter_sha256": sha,
    }


class _TensorBoard:
    """Training and validation events as TensorBoard scalars."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer: Any = SummaryWriter(str(folder))

    def write(self, event: Mapping[str, Any]) -> None:
        if event["kind"] == "train_step":
            for key in ("loss", "learning_rate", "grad_norm", "tokens_per_second", "memory_bytes"):
                self.writer.add_scalar(f"train/{key}", event[key], event["step"])
        elif event["kind"] == "validation":
            if event["loss"] is not None:
                self.writer.add_scalar("validation/loss", event["loss"], event["step"])
            for key, value in event["metrics"].items():
                self.writer.add_scalar(f"validation/{key}", value, event["step"])

    def close(self) -> None:
        self.writer.close()
