"""What is searched, in Olive's words and in those of teaching texts, as the recipe's section `search`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunesmith.pipeline.olive.draft import Draft
from tunesmith.recipe.describe import settings
from tunesmith.recipe.problems import nearest

NAMES: Mapping[str, str] = {
    **dict.fromkeys(("learning_rate", "lr"), "train.learning_rate"),
    **dict.fromkeys(("lora_r", "r", "rank"), "method.rank"),
    **dict.fromkeys(("lora_alpha", "alpha"), "method.alpha"),
    **dict.fromkeys(("lora_dropout", "dropout"), "method.dropout"),
    **dict.fromkeys(("batch_size", "per_device_train_batch_size"), "train.batch_size"),
    **dict.fromkeys(("num_train_epochs", "epochs"), "train.epochs"),
    "max_steps": "train.max_steps",
    "weight_decay": "train.weight_decay",
    "warmup_ratio": "train.warmup_ratio",
    "lr_scheduler_type": "train.schedule",
    "optim": "train.optimizer",
    "label_smoothing_factor": "train.label_smoothing",
    "neftune_noise_alpha": "train.neftune_alpha",
    "max_grad_norm": "train.max_grad_norm",
    "target_modules": "method.target_modules",
    "seed": "train.seed",
}
"""Settings by the names that search spaces use; a recipe's own dotted key is taken as well."""

_SAMPLERS = {"random": "random", "sequential": "sequential", "exhaustive": "sequential", "grid": "sequential",
             "tpe": "tpe", "optuna": "tpe", "bayesian": "tpe"}  # fmt: skip
_COUNTS = ("num_trials", "max_samples", "n_trials", "num_samples", "max_iter")
_ORDERS = {"joint": "joint", "pass-by-pass": "step-by-step", "step-by-step": "step-by-step"}
_KNOWN = ("type", "sampler", "execution_order", "seed", "max_time", "stop_when_goals_met", "output_model_num",
          "include_pass_params", "sampler_config", "search_algorithm", "search_algorithm_config", *_COUNTS)  # fmt: skip


def read_strategy(given: Any, draft: Draft, said: str = "search_strategy") -> dict[str, Any] | None:
    """`sampler`, `trials`, `seed`, `max_seconds`, `order`, `stop_when_met`, where they are said; None: no search."""
    if given is None or given is False:
        return None
    if given is True:
        return {}
    if not isinstance(given, dict):
        draft.wrong(said, f"{given!r} is not allowed", expected="{type: random, num_trials: 20}")
        return None
    inner = given.get("sampler_config") or given.get("search_algorithm_config") or {}
    given = {**(inner if isinstance(inner, dict) else {}), **given}
    found: dict[str, Any] = {}
    for name in given:
        if name not in _KNOWN:
            near = nearest(name, _KNOWN)
            draft.wrong(f"{said}.{name}", "unknown option", fix=f"did you mean {near}?" if near else None)
    words = [given[name] for name in ("type", "sampler", "search_algorithm") if given.get(name) is not None]
    for word in words:
        sampler = draft.choice(f"{said}.type", word, _SAMPLERS)
        if sampler is not None:
            found["sampler"] = sampler
    counts = {name: draft.whole(f"{said}.{name}", given[name], least=1) for name in _COUNTS if name in given}
    if len(set(counts.values())) > 1:
        draft.wrong(said, f"{' and '.join(counts)} say different numbers", expected="one number of trials")
    elif counts and next(iter(counts.values())) is not None:
        found["trials"] = next(iter(counts.values()))
    if "seed" in given and (seed := draft.whole(f"{said}.seed", given["seed"])) is not None:
        found["seed"] = seed
    if "max_time" in given and (seconds := draft.number(f"{said}.max_time", given["max_time"])) is not None:
        found["max_seconds"] = seconds
    if "execution_order" in given and (
        order := draft.choice(f"{said}.execution_order", given["execution_order"], _ORDERS)
    ):
        found["order"] = order
    if "stop_when_goals_met" in given:
        found["stop_when_met"] = draft.truth(f"{said}.stop_when_goals_met", given["stop_when_goals_met"])
    for name in ("output_model_num", "include_pass_params"):
        if name in given:
            draft.note(f"{said}.{name}", "changes nothing: every trial is kept as a run, and the best one goes on")
    return found


def read_space(given: Any, draft: Draft, said: str = "search_space") -> dict[str, Any]:
    """The space by recipe keys. What is wrong inside a space (low above high, …) the recipe itself says."""
    if not isinstance(given, dict) or not given:
        draft.wrong(said, f"{given!r} is not allowed", expected="names with {type: float | int | choice, …}")
        return {}
    keys = {setting.key for setting in settings()}
    found: dict[str, Any] = {}
    for name, space in given.items():
        key = NAMES.get(name, name if name in keys else None)
        if key is None:
            near = nearest(str(name), [*NAMES, *keys])
            draft.wrong(f"{said}.{name}", "cannot be searched", fix=f"did you mean {near}?" if near else None)
            continue
        if isinstance(space, list):
            space = {"type": "choice", "values": space}
        if not isinstance(space, dict):
            draft.wrong(f"{said}.{name}", f"{space!r} is not allowed", expected="{type: float, low: …, high: …}")
            continue
        if key in found:
            draft.wrong(f"{said}.{name}", f"is another word for {key}, which is there already", expected="one of them")
            continue
        kind = space.get("type", "choice" if "values" in space else None)
        renamed = {"categorical": "choice", "uniform": "float", "loguniform": "float", "integer": "int"}
        made = {**space, "type": renamed.get(str(kind), kind)}
        if kind == "loguniform":
            made["log"] = True
        if "choices" in made:
            made["values"] = made.pop("choices")
        for end, short in (("low", "min"), ("high", "max")):
            if short in made:
                made[end] = made.pop(short)
        if key == "method.alpha" and made.get("type") == "choice":
            made["values"] = [float(v) if isinstance(v, int) else v for v in made.get("values") or []]
        found[key] = made
    return found
