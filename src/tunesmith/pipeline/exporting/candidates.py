"""The formats that `--auto` tries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tunesmith.errors import RecipeError, ResourceError
from tunesmith.models.artifact import KINDS, PRECISIONS, Device, Kind, Target
from tunesmith.pipeline.exporting.targets import DEVICES, choose_targets

_USUAL: Mapping[Device, Mapping[Kind, tuple[str, ...]]] = {
    "cpu": {
        "merged": ("own",),
        "adapter": ("own",),
        "onnx": ("int4", "int8", "fp16", "fp32"),
        "onnx-plain": ("int8", "fp32"),
        "openvino": ("int8", "fp16"),
        "gguf": ("q4_0", "q4_k_m", "q8_0", "f16"),
        "torchao": ("int8",),
    },
    "cuda": {
        "merged": ("own",),
        "adapter": ("own",),
        "onnx": ("int4", "int8", "fp16", "fp32"),
        "gguf": ("q4_0", "q4_k_m", "q8_0", "f16"),
        "torchao": ("int4", "int8"),
    },
}
"""Tried where none are named: what can be run on the device by itself. Formats that only servers compute with are
opened here in another way, which says nothing of their speed; packs are for several adapters."""
SPEED_UNKNOWN: tuple[Kind, ...] = ("gptq", "awq", "fp8")
"""Kinds whose speed cannot be measured here: their codes become plain numbers when they are opened."""


def candidates(kinds: Sequence[str] = (), device: str = "cpu") -> tuple[Target, ...]:
    """The targets to try on a device: the usual ones, or those of `kinds`: a format, such as `onnx`, in its usual
    precisions, or with one, such as `gguf-q8_0`.

    Raises one `RecipeError` that names everything that is no format, or is not made for the device.
    """
    on = _measurable(device)
    if not kinds:
        return tuple(Target(kind, p, on) for kind, precisions in _USUAL[on].items() for p in precisions)
    known = {f"{kind}-{p}": (kind, p) for kind in KINDS for p in PRECISIONS[kind]}
    unknown = [name for name in kinds if name not in KINDS and name not in known]
    if unknown:
        raise RecipeError(
            f"{', '.join(map(repr, unknown))} {'is no format' if len(unknown) == 1 else 'are no formats'}",
            where="--kinds",
            expected=f"of {', '.join(KINDS)}; or one with its precision, such as onnx-int4 or gguf-q8_0",
        )
    wanted: list[tuple[Kind, str]] = []
    for name in kinds:
        if name in KINDS:
            wanted += [(name, p) for p in _USUAL[on].get(name, PRECISIONS[name])]
        else:
            wanted.append(known[name])
    choose_targets([kind for kind, _ in wanted], device=on)
    return tuple(Target(kind, precision, on) for kind, precision in dict.fromkeys(wanted))


def _measurable(device: str) -> Device:
    """The device, if exports can be measured on it here."""
    if device not in DEVICES:
        raise RecipeError(
            f"{device!r} is no device that exports are made for", where="--device", expected=", ".join(_USUAL)
        )
    if device not in _USUAL:
        raise RecipeError(
            f"speed and quality on {device} cannot be measured here, so nothing can be chosen for it",
            where="--device",
            expected=", ".join(_USUAL),
            fix=f"export one format for it: --to onnx --device {device}",
        )
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise ResourceError(
                "there is no CUDA device here, so nothing can be measured on it",
                where="--device",
                fix="run this where it is to be used, or take --device cpu",
            )
    return device
