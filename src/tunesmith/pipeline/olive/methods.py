"""Olive's tuning passes (and `--method`) as the recipe's section `method`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunesmith.pipeline.olive.draft import Draft

METHODS: Mapping[str, Mapping[str, Any]] = {
    "lora": {"method.type": "lora"},
    "qlora": {"method.type": "lora", "method.quantize": "nf4"},
    "dora": {"method.type": "lora", "method.use_dora": True},
    "rslora": {"method.type": "lora", "method.use_rslora": True},
    "pissa": {"method.type": "lora", "method.init": "pissa"},
    "loha": {"method.type": "peft", "method.peft_type": "LOHA"},
    "lokr": {"method.type": "peft", "method.peft_type": "LOKR"},
    "full": {"method.type": "full"},
    "bottleneck": {"method.type": "bottleneck"},
}
"""Methods by the word for them, in any case."""

NOT_HERE: Mapping[str, tuple[str, str]] = {
    "loftq": (
        "LoftQ changes the base's weights, so that its adapter fits no base that others have",
        "use qlora, or pissa, which begins with the main directions of the weights as they are",
    ),
    "sdlora": ("diffusion models are not tuned here", "leave it out"),
}

_DTYPES = {
    **{"float32": "float32", "fp32": "float32", "bfloat16": "bfloat16", "bf16": "bfloat16"},
    **{"float16": "float16", "fp16": "float16", "auto": "auto"},
}
_COMPUTE = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16", "fp32": "fp32", "bf16": "bf16", "fp16": "fp16"}

_RANK, _ALPHA = ("lora_r", "r", "rank"), ("lora_alpha", "alpha")
_FLAGS = ("use_rslora", "use_dora")
_PEFT_OPTIONS = (
    "rank_dropout", "module_dropout", "use_effective_conv2d", "decompose_both", "decompose_factor",
    "rank_dropout_scale", "init_weights", "layers_to_transform", "layers_pattern", "exclude_modules",
)  # fmt: skip
_NO_EFFECT = {
    "device_map": "devices are chosen by what is there; `train.sharding` divides a base among GPUs",
    "allow_tf32": "torch's own setting is kept",
    "ephemeral_gpu_offload": "memory is planned before training",
    "save_quant_config": "the adapter is saved; the base stays what it is",
    "use_ort_trainer": "training runs in torch",
}

NAMES: tuple[str, ...] = (
    *_RANK, *_ALPHA, "lora_dropout", "dropout", "target_modules", "modules_to_save", "torch_dtype", "compute_dtype",
    "quant_type", "double_quant", "rank_pattern", "alpha_pattern", *_FLAGS, *_PEFT_OPTIONS, *_NO_EFFECT,
)  # fmt: skip
"""Every option of a tuning pass that is known, beside the trainer's arguments."""


def method_settings(kind: str, given: Mapping[str, Any], draft: Draft, prefix: str = "--", said: str = "") -> None:
    """Put a tuning method and its options into a draft; unknown options are left to the caller.

    said: how the method itself was named, for messages.
    """
    name = kind.lower()
    if name in NOT_HERE:
        what, fix = NOT_HERE[name]
        draft.wrong(said or f"{prefix}method", what, fix=fix)
        return
    settings = draft.choice(said or f"{prefix}method", name, METHODS)
    if settings is None:
        return
    for key, value in settings.items():
        draft.set(key, value, said or f"{prefix}method")
    peft = settings["method.type"] == "peft"
    _size(given, draft, prefix, peft)
    _modules(given, draft, prefix)
    _numbers_in(given, draft, prefix)
    options = {option: given[option] for option in _PEFT_OPTIONS if given.get(option) is not None}
    if options and peft:
        draft.settings.setdefault("method.peft_options", {}).update(options)
    elif options:
        for option in options:
            draft.wrong(f"{prefix}{option}", f"is an option of LoHa and LoKr, and the method is {name}")
    for flag in _FLAGS:
        if given.get(flag) is not None and (on := draft.truth(f"{prefix}{flag}", given[flag])) is not None:
            draft.set(f"method.{flag}", on, f"{prefix}{flag}")
    for option, reason in _NO_EFFECT.items():
        if given.get(option) is not None:
            draft.note(f"{prefix}{option}", f"changes nothing: {reason}")


def _size(given: Mapping[str, Any], draft: Draft, prefix: str, peft: bool) -> None:
    """Rank, alpha and dropout, each under all its names; two names that disagree are a problem."""
    for name in _RANK:
        if given.get(name) is not None and (rank := draft.whole(f"{prefix}{name}", given[name], least=1)) is not None:
            _put(draft, "rank", "r", rank, f"{prefix}{name}", peft)
    for name in _ALPHA:
        if given.get(name) is not None and (alpha := draft.number(f"{prefix}{name}", given[name])) is not None:
            _put(draft, "alpha", "alpha", alpha, f"{prefix}{name}", peft)
    for name in ("lora_dropout", "dropout"):
        value = given.get(name)
        if value is None or (dropout := draft.number(f"{prefix}{name}", value)) is None:
            continue
        if peft and dropout:
            draft.wrong(
                f"{prefix}{name}", "LoHa and LoKr drop ranks or modules", fix="use rank_dropout, module_dropout"
            )
        elif not peft:
            draft.set("method.dropout", dropout, f"{prefix}{name}")


def _put(draft: Draft, ours: str, theirs: str, value: float, said: str, peft: bool) -> None:
    """A size: a setting of ours, or an option of the peft library for its own methods."""
    if not peft:
        draft.set(f"method.{ours}", value, said)
        return
    options = draft.settings.setdefault("method.peft_options", {})
    if options.get(theirs, value) != value:
        draft.wrong(said, f"says {value!r} where another one says {options[theirs]!r}", expected="one of them")
    options[theirs] = value


def _modules(given: Mapping[str, Any], draft: Draft, prefix: str) -> None:
    for name in ("target_modules", "modules_to_save"):
        value = given.get(name)
        if value is None:
            continue
        if name == "target_modules" and value == "all-linear":
            draft.set("method.target_modules", "all-linear", f"{prefix}{name}")
        elif (words := draft.words(f"{prefix}{name}", value)) is not None:
            draft.set(f"method.{name}", words, f"{prefix}{name}")
    for name in ("rank_pattern", "alpha_pattern"):
        if given.get(name):
            draft.set(f"method.{name}", given[name], f"{prefix}{name}")


def _numbers_in(given: Mapping[str, Any], draft: Draft, prefix: str) -> None:
    """In what the base lies in memory, and in what is computed."""
    if given.get("torch_dtype") is not None:
        dtype = draft.choice(f"{prefix}torch_dtype", given["torch_dtype"], _DTYPES)
        if dtype is not None:
            draft.set("base.dtype", dtype, f"{prefix}torch_dtype")
    if given.get("compute_dtype") is not None:
        compute = draft.choice(f"{prefix}compute_dtype", given["compute_dtype"], _COMPUTE)
        if compute is not None:
            draft.set("train.precision", compute, f"{prefix}compute_dtype")
    quant = given.get("quant_type")
    if quant == "fp4":
        draft.wrong(f"{prefix}quant_type", "fp4 loses more than nf4 at the same size", expected="nf4")
    elif quant is not None and (kind := draft.choice(f"{prefix}quant_type", quant, {"nf4": "nf4", "int8": "int8"})):
        draft.set("method.quantize", kind, f"{prefix}quant_type")
    double = given.get("double_quant")
    if double is not None and (on := draft.truth(f"{prefix}double_quant", double)) is not None:
        draft.set("method.double_quantize", on, f"{prefix}double_quant")
