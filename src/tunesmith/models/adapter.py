"""LoRA adapters on disk, in the file contract of PEFT, so that plain `peft` and every tool built on it can load them.

An adapter that began with parts of the weights (PiSSA, OLoRA) adds `s (B A - B₀ A₀)` to them. It is saved as plain LoRA
of twice the rank: A above A₀, B beside -B₀.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from tunesmith.errors import EngineError, RecipeError, VerificationError
from tunesmith.models.lora import Attached, LoraSettings, attach_lora
from tunesmith.models.lora_init import FROM_WEIGHTS
from tunesmith.models.lora_targets import ALL_LINEAR, matching_targets, means
from tunesmith.models.writing import system_errors

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_PLAIN_INITS = (True, False, "gaussian", "orthogonal", "eva", "mica")
"""Values of `init_lora_weights` after which a file says all: what was trained is added to the base as it is."""
_WITHOUT = ("target_parameters", "layer_replication", "trainable_token_indices", "alora_invocation_tokens")
_WITHOUT_FLAGS = ("lora_bias", "use_qalora", "use_bdlora", "velora_config", "kasa_config", "monteclora_config")


def adapter_tensors(attached: Attached) -> dict[str, Tensor]:
    """The adapter's tensors under PEFT's names, for the original base; contiguous, on CPU, each with its own memory."""
    tensors: dict[str, Tensor] = {}
    for path, layer in attached.layers.items():
        tensors |= _layer_tensors(path, *layer.factors, layer.magnitude)
    tensors |= {_PREFIX + name: value for name, value in attached.own.tensors().items()}
    return {key: value.detach().to("cpu", copy=True).contiguous() for key, value in sorted(tensors.items())}


def adapter_config(attached: Attached, base: str, revision: str | None, conv1d: bool) -> dict[str, Any]:
    """The adapter's `adapter_config.json`. Options left at their default are omitted where older versions of PEFT,
    which refuse keys they do not know, may read it."""
    settings = attached.settings
    if settings.init in FROM_WEIGHTS:
        settings = _doubled(settings)
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "peft_version": version("peft"),
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "revision": revision,
        "inference_mode": True,
        "r": settings.rank,
        "lora_alpha": settings.alpha,
        "lora_dropout": settings.dropout,
        "bias": "none",
        "fan_in_fan_out": conv1d,
        "target_modules": list(settings.target_modules),
        "modules_to_save": list(settings.modules_to_save) or None,
        "use_rslora": settings.use_rslora,
        "init_lora_weights": True if settings.init == "default" else settings.init,
    }
    if settings.use_dora:
        config["use_dora"] = True
    if settings.rank_pattern:
        config["rank_pattern"] = dict(settings.rank_pattern)
    if settings.alpha_pattern:
        config["alpha_pattern"] = dict(settings.alpha_pattern)
    if attached.own.tied:
        config["ensure_weight_tying"] = True
    return config


def save_adapter(folder: Path, attached: Attached, *, base: str, revision: str | None, conv1d: bool) -> str:
    """Write the adapter into `folder` and return the SHA-256 of its weights file."""
    folder.mkdir(parents=True, exist_ok=True)
    with system_errors(folder / WEIGHTS):
        save_file(adapter_tensors(attached), folder / WEIGHTS, metadata={"format": "pt"})
    config = adapter_config(attached, base, revision, conv1d)
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    return hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()


def adapter_names(folder: Path) -> list[str]:
    """Names of the tensors in an adapter's folder, without reading these."""
    try:
        with safe_open(folder / WEIGHTS, framework="pt") as tensors:
            return list(tensors.keys())
    except (OSError, SafetensorError) as error:
        raise EngineError(f"the adapter cannot be read: {error}", where=str(folder)) from error


def load_adapter(model: Any, folder: Path) -> Attached:
    """Attach the LoRA adapter in `folder`, ours or PEFT's, to a freshly loaded base.

    Raises `EngineError` if it is damaged or uses what we do not have, `VerificationError` if it is of another base.
    """
    config, tensors = read_adapter(folder)
    try:
        attached = attach_lora(model, settings_of(config, tensors, model, str(folder)), seed=0, any_rank=True)
    except RecipeError as error:  # there is no recipe here: the file's names are those of another base
        raise _other_base(error.what, str(folder)) from error
    frozen = {
        _PREFIX + name: value for name, value in _frozen_ends(model, attached).items() if _PREFIX + name in tensors
    }
    _put_back(frozen, {key: tensors[key] for key in frozen}, str(folder))
    restore_adapter(attached, {key: t for key, t in tensors.items() if key not in frozen}, where=str(folder))
    return attached


def read_adapter(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Configuration and tensors of an adapter's folder. Raises `EngineError` if they cannot be read."""
    try:
        config = json.loads((folder / CONFIG).read_text())
        tensors = load_file(folder / WEIGHTS)
    except (OSError, ValueError, SafetensorError) as error:
        raise EngineError(f"the adapter cannot be read: {error}", where=str(folder)) from error
    if not isinstance(config, dict) or "peft_type" not in config:
        raise EngineError("the adapter cannot be read: it has no peft_type", where=str(folder / CONFIG))
    return config, tensors


def settings_of(config: dict[str, Any], names: Iterable[str], model: Any, where: str) -> LoraSettings:
    """What PEFT's configuration of an adapter means on this model. Raises `EngineError` for what we do not have."""
    if problems := unsupported(config, names):
        raise EngineError(
            "the adapter uses options that are not supported: " + ", ".join(problems),
            where=where,
            expected="plain LoRA, rsLoRA or DoRA",
            fix="merge it into its base with peft, and use that",
        )
    init = config.get("init_lora_weights", True)
    try:
        return LoraSettings(
            rank=config["r"],
            alpha=config["lora_alpha"],
            dropout=config.get("lora_dropout", 0.0),
            use_rslora=config.get("use_rslora", False),
            target_modules=_targets(config, model),
            modules_to_save=_saved(config, model),
            use_dora=config.get("use_dora", False),
            init=init if init in ("gaussian", *FROM_WEIGHTS) else "default",
            rank_pattern=config.get("rank_pattern") or {},
            alpha_pattern=config.get("alpha_pattern") or {},
            tie_saved=bool(config.get("ensure_weight_tying")),
        )
    except KeyError as error:
        raise EngineError(f"the adapter's configuration lacks {error}", where=where) from error


def unsupported(config: dict[str, Any], names: Iterable[str]) -> list[str]:
    """What our own LoRA layers do not have of an adapter with this configuration and tensors of these names."""
    problems = [f"{key}: {config[key]}" for key in _WITHOUT if config.get(key) is not None]
    problems += [f"{key}: {config[key]}" for key in _WITHOUT_FLAGS if config.get(key)]
    problems += ["an adapter on embeddings"] * any(".lora_embedding_" in name for name in names)
    if config["peft_type"] != "LORA":
        problems.append(f"peft_type: {config['peft_type']}")
    if config.get("bias", "none") != "none":
        problems.append(f"bias: {config['bias']}")
    init = config.get("init_lora_weights", True)
    if init not in (*_PLAIN_INITS, *FROM_WEIGHTS):
        problems.append(f"init_lora_weights: {init} (saved without conversion, it needs its own changed base)")
    return problems


def restore_adapter(attached: Attached, tensors: dict[str, Tensor], where: str) -> None:
    """Put saved tensors back; every one must be there, and none more."""
    live: dict[str, Tensor] = {}
    for path, layer in attached.layers.items():
        live |= _layer_tensors(path, layer.lora_A, layer.lora_B, layer.magnitude)
    live |= {_PREFIX + name: value for name, value in attached.own.tensors().items()}
    given = {key.replace("lora_magnitude_vector.weight", "lora_magnitude_vector"): t for key, t in tensors.items()}
    if attached.own.tied:  # PEFT may keep the shared weight once
        for key in live.keys() - given.keys():
            twin = next((k for k in given if k in live and live[k] is live[key]), None)
            given |= {} if twin is None else {key: given[twin]}
    _put_back(live, given, where)


@torch.no_grad()
def _put_back(live: dict[str, Tensor], given: dict[str, Tensor], where: str) -> None:
    wrong = sorted((live.keys() ^ given.keys()) | {k for k in live.keys() & given if live[k].shape != given[k].shape})
    if wrong:
        raise _other_base(_difference(wrong[0], live, given), where)
    for key, tensor in given.items():
        live[key].copy_(tensor)


def _frozen_ends(model: Any, attached: Attached) -> dict[str, Tensor]:
    """Frozen weights of embeddings and head by the names under which PEFT saves them too: where the head is adapted,
    or where the base had been given another number of rows."""
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    found = {}
    for path, module in model.named_modules():
        if module in ends and path not in attached.saved:
            adapted = path in attached.layers
            found[f"{path}.base_layer.weight" if adapted else f"{path}.weight"] = module.weight
    return found


def _layer_tensors(path: str, a: Tensor, b: Tensor, magnitude: Tensor | None) -> dict[str, Tensor]:
    stem = _PREFIX + path
    tensors = {f"{stem}.lora_A.weight": a, f"{stem}.lora_B.weight": b}
    return tensors if magnitude is None else {**tensors, f"{stem}.lora_magnitude_vector": magnitude}


def _doubled(settings: LoraSettings) -> LoraSettings:
    """Settings of the converted adapter: twice the rank, with alpha raised so that `s` stays what it was."""
    factor = math.sqrt(2) if settings.use_rslora else 2
    return replace(
        settings,
        rank=2 * settings.rank,
        alpha=factor * settings.alpha,
        rank_pattern={key: 2 * rank for key, rank in settings.rank_pattern.items()},
        alpha_pattern={key: factor * alpha for key, alpha in settings.alpha_pattern.items()},
        init="default",
    )


def _targets(config: dict[str, Any], model: Any) -> str | tuple[str, ...]:
    """The targets as names, where only a path can say what PEFT's further options leave of them."""
    given = config["target_modules"]
    wanted = given if isinstance(given, str) else tuple(given)
    if isinstance(wanted, str) and wanted.lower() == ALL_LINEAR:
        wanted = ALL_LINEAR
    narrowing = {k: config.get(k) for k in ("layers_to_transform", "layers_pattern", "exclude_modules")}
    return matching_targets(model, wanted, **narrowing) if any(v is not None for v in narrowing.values()) else wanted


def _saved(config: dict[str, Any], model: Any) -> tuple[str, ...]:
    """Names of the modules saved in full, as we match them; PEFT matches by the bare end of a path.

    With `ensure_weight_tying` the head goes with the embeddings, whether it is named or not.
    """
    names = tuple(config.get("modules_to_save") or ())
    if not names:
        return ()
    modules = dict(model.named_modules(remove_duplicate=False))
    theirs = {path for path in modules if path.endswith(names)}
    if config.get("ensure_weight_tying"):
        ends = (model.get_input_embeddings(), model.get_output_embeddings())
        if any(modules[path] in ends for path in theirs):
            theirs |= {path for path, module in modules.items() if module in ends}
    ours = {path for path in modules if any(means(name, path) for name in names)}
    return names if ours == theirs else tuple(path for path in modules if path in theirs)


def _other_base(why: str, where: str) -> VerificationError:
    return VerificationError(
        f"the adapter does not fit this base: {why}", where=where, expected="the base it was trained on, unchanged"
    )


def _difference(key: str, live: dict[str, Tensor], given: dict[str, Tensor]) -> str:
    if key not in given:
        return f"{key} is missing"
    if key not in live:
        return f"{key} has no place in it"
    return f"{key} has the shape {list(given[key].shape)}, the base needs {list(live[key].shape)}"
