"""The arguments of the `transformers` trainer as settings of a recipe.

Every argument of `TrainingArguments` (also those that older versions had) is in one of four tables: it is a setting, it
makes one together with others, it changes nothing here (said, with the reason), or it asks for something that is not
done (refused, with what to do). An argument in none of them is unknown.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tunesmith.pipeline.olive.draft import Draft

SETTINGS: Mapping[str, tuple[str, str]] = {
    "num_train_epochs": ("train.epochs", "number"),
    "max_steps": ("train.max_steps", "steps"),
    "learning_rate": ("train.learning_rate", "number"),
    "weight_decay": ("train.weight_decay", "number"),
    "adam_beta1": ("train.beta1", "number"),
    "adam_beta2": ("train.beta2", "number"),
    "adam_epsilon": ("train.epsilon", "number"),
    "max_grad_norm": ("train.max_grad_norm", "number"),
    "label_smoothing_factor": ("train.label_smoothing", "number"),
    "neftune_noise_alpha": ("train.neftune_alpha", "number"),
    "warmup_ratio": ("train.warmup_ratio", "number"),
    "seed": ("train.seed", "whole"),
    "logging_steps": ("train.log_every", "whole"),
    "save_total_limit": ("train.keep_checkpoints", "count"),
    "per_device_eval_batch_size": ("evaluate.batch_size", "count"),
    "per_gpu_eval_batch_size": ("evaluate.batch_size", "count"),
    "early_stopping_patience": ("train.patience", "whole"),
    "run_name": ("name", "name"),
}
"""One argument, one setting, and how its value is read."""

_BATCH = ("per_device_train_batch_size", "per_gpu_train_batch_size", "gradient_accumulation_steps")
_TOGETHER = (
    *_BATCH, "bf16", "fp16", "gradient_checkpointing", "activation_checkpointing", "torch_compile", "optim",
    "lr_scheduler_type", "report_to", "eval_steps", "eval_strategy", "evaluation_strategy", "do_eval", "warmup_steps",
    "load_best_model_at_end", "metric_for_best_model", "fsdp", "logging_dir", "use_cpu", "no_cuda", "save_strategy",
)  # fmt: skip

_IN_RUN = "everything of a run lies in its folder, OUTPUT/run"
_ROWS = "rows are tokenised before training, so no worker processes load them"
_MANY = "several processes are started with `tunesmith train RECIPE --nproc N`"
_ALWAYS = "that is always so here"
_OWN_LOOP = "a matter of the trainer in transformers, which does not run here"
_METRICS = "loss and the task's metric are both measured at every validation"

NO_EFFECT: Mapping[str, str] = {
    "output_dir": _IN_RUN,
    "overwrite_output_dir": "a run that was stopped goes on, and nothing is overwritten: choose another --output_path",
    "save_steps": "a checkpoint is written by time (at most a minute is lost), and the best one at every validation",
    "save_safetensors": _ALWAYS,
    "save_only_model": "checkpoints hold the optimiser too, so that a stopped run goes on exactly",
    "save_on_each_node": _MANY,
    "enable_jit_checkpoint": "a checkpoint is written by time: a run that is interrupted loses at most a minute",
    "do_train": _ALWAYS,
    "do_predict": "test rows are answered where a test set is there",
    "prediction_loss_only": _METRICS,
    "include_for_metrics": _METRICS,
    "include_inputs_for_metrics": _METRICS,
    "batch_eval_metrics": _METRICS,
    "eval_accumulation_steps": "answers are kept as text, not as logits",
    "eval_do_concat_batches": _METRICS,
    "eval_use_gather_object": _MANY,
    "eval_delay": "validation begins with the first part of the training",
    "eval_on_start": "the base is measured before training whenever test rows are there",
    "logging_strategy": "every step is an event of the run; logging_steps says how often one is told",
    "logging_first_step": _ALWAYS,
    "logging_nan_inf_filter": "a loss that is no number stops the run and is never averaged away",
    "log_level_replica": _MANY,
    "log_on_each_node": _MANY,
    "disable_tqdm": "progress is drawn on terminals only",
    "include_num_input_tokens_seen": "tokens are counted always",
    "include_tokens_per_second": "tokens per second are measured always",
    "skip_memory_metrics": "peak memory is measured always",
    "dataloader_num_workers": _ROWS,
    "dataloader_pin_memory": _ROWS,
    "dataloader_persistent_workers": _ROWS,
    "dataloader_prefetch_factor": _ROWS,
    "dataloader_multiprocessing_context": _ROWS,
    "dataloader_in_order": _ROWS,
    "dataloader_drop_last": "every row counts, also those of the last step",
    "remove_unused_columns": "columns that the template does not name are not read",
    "label_names": "which tokens are learnt is known from rendering",
    "group_by_length": "rows are packed without padding, so that lengths do not matter",
    "length_column_name": "rows are packed without padding, so that lengths do not matter",
    "train_sampling_strategy": "rows are shuffled by the seed, and packed without padding",
    "average_tokens_across_devices": "losses are divided by the supervised tokens of the whole step",
    "auto_find_batch_size": "memory is planned before training, and a step that does not fit is divided",
    "gradient_checkpointing_kwargs": _OWN_LOOP,
    "activation_checkpointing_kwargs": _OWN_LOOP,
    "torch_empty_cache_steps": _OWN_LOOP,
    "use_cache": "training keeps no cache of keys and values",
    "use_liger_kernel": "logits exist only where something is learnt, with our own operations",
    "liger_kernel_config": "logits exist only where something is learnt, with our own operations",
    "torch_compile_backend": "train.compile has one backend",
    "torch_compile_mode": "train.compile has one mode",
    "tf32": "torch's own setting is kept",
    "bf16_full_eval": "evaluation computes in the base's own type",
    "fp16_full_eval": "evaluation computes in the base's own type",
    "half_precision_backend": _OWN_LOOP,
    "data_seed": "--seed draws the order of the rows too",
    "full_determinism": "a seed gives the same run on the same machine",
    "ignore_data_skip": "a continued run goes on with the row after its last checkpoint",
    "resume_from_checkpoint": "the same command continues a run that was stopped",
    "restore_callback_states_from_checkpoint": "a continued run goes on as it was",
    "greater_is_better": "each metric knows its direction",
    "accelerator_config": _MANY,
    "parallelism_config": _MANY,
    "ddp_backend": _MANY,
    "ddp_timeout": _MANY,
    "ddp_find_unused_parameters": _MANY,
    "ddp_bucket_cap_mb": _MANY,
    "ddp_broadcast_buffers": _MANY,
    "ddp_static_graph": _MANY,
    "local_rank": _MANY,
    "fsdp_config": _MANY,
    "debug": _OWN_LOOP,
    "trackio_space_id": "--report_to trackio writes to this machine",
    "trackio_bucket_id": "--report_to trackio writes to this machine",
    "trackio_static_space_id": "--report_to trackio writes to this machine",
    "project": "the tracker's own variable (WANDB_PROJECT, MLFLOW_EXPERIMENT_NAME) names it",
}
"""Arguments that change nothing, and why."""

REFUSED: Mapping[str, tuple[str, str]] = {
    "deepspeed": ("DeepSpeed is not used", "leave it out; `train.sharding: fsdp` divides weights among GPUs"),
    "push_to_hub": ("nothing is sent anywhere by a training", "leave it out, and upload OUTPUT/adapter yourself"),
    "hub_model_id": ("nothing is sent anywhere by a training", "leave it out, and upload OUTPUT/adapter yourself"),
    "hub_token": ("no token is taken on a command line", "leave it out"),
    "hub_strategy": ("nothing is sent anywhere by a training", "leave it out"),
    "hub_private_repo": ("nothing is sent anywhere by a training", "leave it out"),
    "hub_always_push": ("nothing is sent anywhere by a training", "leave it out"),
    "hub_revision": ("nothing is sent anywhere by a training", "leave it out"),
    "optim_args": ("optimisers have no further options", "use adam_beta1, adam_beta2, adam_epsilon"),
    "optim_target_modules": ("no optimiser here works on some modules alone", "leave it out; `--optim muon` is near"),
    "lr_scheduler_kwargs": (
        "schedules have no further options",
        "--set train.decay_ratio=SHARE for warmup_stable_decay",
    ),
    "galore": ("no optimiser of that kind is here", "leave it out"),
}
"""Arguments that ask for something that is not done: what to say, and what to do instead."""

_OPTIMISERS = {
    **dict.fromkeys(("adamw_torch", "adamw_torch_fused", "adamw_hf", "adamw", "adamw_apex_fused"), "adamw"),
    **dict.fromkeys(("paged_adamw_32bit", "paged_adamw", "adamw_torch_xla"), "adamw"),
    **dict.fromkeys(("adamw_8bit", "adamw_bnb_8bit", "paged_adamw_8bit", "adamw_torch_8bit"), "adamw_8bit"),
    "muon": "muon",
}
_SCHEDULES = {
    "cosine": "cosine",
    "linear": "linear",
    "constant": "constant",
    "constant_with_warmup": "constant",
    "warmup_stable_decay": "warmup_stable_decay",
}
_TRACKERS = ("mlflow", "wandb", "trackio")

NAMES: tuple[str, ...] = tuple(dict.fromkeys([*SETTINGS, *_TOGETHER, *NO_EFFECT, *REFUSED]))
"""Every argument that is known."""


def training_settings(given: Mapping[str, Any], draft: Draft, prefix: str = "--") -> None:
    """Put the trainer's arguments into a draft. `prefix` stands before their names in messages; unknown ones are left
    to the caller."""
    _whole_settings(given, draft, prefix)
    for name, reason in NO_EFFECT.items():
        if given.get(name) is not None:
            draft.note(f"{prefix}{name}", f"changes nothing: {reason}")
    for name, (what, fix) in REFUSED.items():
        if given.get(name) not in (None, False, "false", "False"):
            draft.wrong(f"{prefix}{name}", what, fix=fix)
    for decide in (
        _batch,
        _precision,
        _recompute,
        _compile,
        _optimizer,
        _schedule,
        _reports,
        _validation,
        _best,
        _places,
    ):
        decide(given, draft, prefix)


def _whole_settings(given: Mapping[str, Any], draft: Draft, prefix: str) -> None:
    for name, (key, kind) in SETTINGS.items():
        value = given.get(name)
        if value is None:
            continue
        said = f"{prefix}{name}"
        read: Any
        if kind == "name":
            read = str(value)
        elif kind == "number":
            read = draft.number(said, value)
        elif kind == "steps" and str(value) == "-1":  # the trainer's word for "not said"
            continue
        else:
            read = draft.whole(said, value, least=0 if kind == "whole" else 1)
        if read is not None:
            draft.set(key, read, said)


def _batch(given: Mapping[str, Any], draft: Draft, prefix: str) -> None:
    """Rows of a step: those of a device times those of an accumulation; memory decides what is computed at once."""
    rows = next((name for name in _BATCH[:2] if given.get(name) is not None), None)
    steps = _BATCH[2] if given.get(_BATCH[2]) is not None else None
    if rows is None and steps is None:
        return
    # Without a batch size the trainer takes 8 rows.
    at_once = draft.whole(f"{prefix}{rows}", given[rows], least=1) if rows is not None else 8
    times = draft.whole(f"{prefix}{steps}", given[steps], least=1) if steps is not None else 1
    if at_once is not None and times is not None:
        draft.set("train.batch_size", at_once * times, f"{prefix}{rows or steps}")


def _precision(given: Mapping[str, Any], draft: Draft, prefix: str) -> None:
    for name in ("bf16", "fp16"):
        if given.get(name) is not None and draft.truth(f"{prefix}{name}", given[name]):
            draft.set("train.precision", name, f"{prefix}{name}")
    for name in ("use_cpu", "no_cuda"):
        if given.get(name) is not None and draft.truth(f"{prefix}{name}", given[name]):
            draft.note(f"{prefix}{name}", "changes nothing: set CUDA_VISIBLE_DEVICES= to keep a GPU out of it")


def _recompute(given: Mapping[str, Any], draft: Draft, prefix: str) -> None:
    for name in ("gradient_checkpointing", "activation_checkpointing"):
        if given.get(name) is not None and (on := draft.truth(f"{prefix}{name}", given[name])) is not None:
            draft.set("train.recompute", "on" if on else "off", f"{prefix}{name}")


def _compile(given: Mapping[str, Any], draft: Draft, prefix: str) -> None:
    value = given.get("torch_compile")
    if value is not None and (on := draft.truth(f"{prefix}torch_compile", value)) is not None:
        draft.set("train.compile", "on" if on else "off", f"{prefix}torch_compile")


def _optimizer(given: Mapping[str, Any], draft: Draft, prefix: str) -> None:
    name = given.get("optim")
    if name is None:
        return
    kind = draft.choice(f"{prefix}optim", name, _OPTIMISERS)
    if kind is not None:
        draft.set("train.optimizer", kind, f"{prefix}optim")
        if str(name).startswith("paged"):
            draft.note(f"{prefix}optim", f"{kind}, whose states are not moved between GPU and CPU")


def _schedule(given: Mapping[str, Any], draft: Draft, prefix: str) -> None:
    if given.get("lr_scheduler_type") is not None:
        said = f"{prefix}lr_scheduler_type"
        schedule = draft.choice(said, given["lr_scheduler_type"], _SCHEDULES)
        if schedule is not None:
            draft.set("train.schedule", schedule, said)
            if given["lr_scheduler_type"] == "constant" and given.get("warmup_ratio") is None:
                draft.defaults["train.warmup_ratio"] = 0.0
    if given.get("warmup_steps") is None:
        return
    said, value = f"{prefix}warmup_steps", draft.number(f"{prefix}warmup_steps", given["warmup_steps"])
    if value is None:
        return
    if 0 <= value < 1:  # a share, as transformers 5 reads it
        draft.set("train.warmup_ratio", value, said)
        return
    total = draft.settings.get("train.max_steps")
    if total is None:
        draft.wrong(
            said, "of how many steps is not known", expected="--max_steps beside it", fix="or use --warmup_ratio"
        )
    elif value >= total:
        draft.wrong(said, f"{value:g} are all of the {total} steps", expected=f"fewer than {total}")
    else:
        draft.set("train.warmup_ratio", value / total, said)


def _reports(given: Mapping[str, Any], draft: Draft, prefix: str) -> None:
    if given.get("report_to") is None:
        return
    said = f"{prefix}report_to"
    names = draft.words(said, given["report_to"])
    if names is None:
        return
    if names == ["none"]:
        draft.set("train.tensorboard", False, said)
        return
    known = {**dict.fromkeys((*_TRACKERS, "tensorboard", "all")), "azure_ml": None}
    for name in names:
        if name == "azure_ml":
            draft.note(said, "azure_ml reads MLflow: `mlflow` with MLFLOW_TRACKING_URI of the workspace is used")
        elif name == "all":
            draft.wrong(said, "all is not said more closely", expected=", ".join(["tensorboard", *_TRACKERS]))
        elif name not in known:
            draft.choice(said, name, known)
    trackers = [n for n in dict.fromkeys("mlflow" if n == "azure_ml" else n for n in names) if n in _TRACKERS]
    draft.set("train.tensorboard", "tensorboard" in names, said)
    if trackers:
        draft.set("train.trackers", trackers, said)


def _validation(given: Mapping[str, Any], draft: Draft, prefix: str) -> None:
    """How often validation is measured: every so many steps its loss, and as often the metric where steps are known."""
    for name in ("eval_strategy", "evaluation_strategy"):
        if given.get(name) is None:
            continue
        if draft.choice(f"{prefix}{name}", given[name], {"no": 0, "steps": 1, "epoch": 2}) == 0:
            draft.set("train.evaluations", 0, f"{prefix}{name}")
        elif given[name] == "epoch" and (epochs := draft.settings.get("train.epochs")) is not None:
            draft.set("train.evaluations", max(1, math.ceil(epochs)), f"{prefix}{name}")
    if given.get("do_eval") is not None and draft.truth(f"{prefix}do_eval", given["do_eval"]) is False:
        draft.set("train.evaluations", 0, f"{prefix}do_eval")
    if given.get("eval_steps") is None:
        return
    said = f"{prefix}eval_steps"
    steps = draft.whole(said, given["eval_steps"], least=1)
    if steps is None:
        return
    draft.set("train.watch_every", steps, said)
    total = draft.settings.get("train.max_steps")
    if total is not None:
        draft.set("train.evaluations", max(1, math.ceil(total / steps)), said)


def _best(given: Mapping[str, Any], draft: Draft, prefix: str) -> None:
    """What chooses the checkpoint that is kept: here always the best one, unless it is said otherwise."""
    value = given.get("load_best_model_at_end")
    if value is not None and draft.truth(f"{prefix}load_best_model_at_end", value) is False:
        draft.set("train.select_by", "last", f"{prefix}load_best_model_at_end")
    metric = given.get("metric_for_best_model")
    if metric is None:
        return
    name = str(metric).removeprefix("eval_")
    if name == "loss":
        draft.set("train.select_by", "loss", f"{prefix}metric_for_best_model")
    else:
        draft.set("goal.metric", name, f"{prefix}metric_for_best_model")
        draft.set("train.select_by", "metric", f"{prefix}metric_for_best_model")


def _places(given: Mapping[str, Any], draft: Draft, prefix: str) -> None:
    if given.get("fsdp"):
        draft.set("train.sharding", "fsdp", f"{prefix}fsdp")
        draft.note(f"{prefix}fsdp", _MANY)
    if given.get("save_strategy") == "no":
        draft.note(f"{prefix}save_strategy", "changes nothing: a run can always be continued")
    elif given.get("save_strategy") is not None:
        draft.note(f"{prefix}save_strategy", f"changes nothing: {NO_EFFECT['save_steps']}")
