"""From what a person says (a kind, bits or a precision, a device, a runtime) to the target that is meant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast, get_args

from tunesmith.errors import RecipeError
from tunesmith.models.artifact import KINDS, PRECISIONS, Device, Kind, Target

DEVICES: tuple[Device, ...] = get_args(Device)

_BY_BITS: Mapping[Kind, Mapping[int, str]] = {
    "merged": {16: "bf16", 32: "fp32"},
    "torchao": {4: "int4", 8: "int8"},
    "gptq": {4: "int4", 8: "int8"},
    "awq": {4: "int4"},
    "fp8": {8: "fp8"},
    "onnx": {4: "int4", 8: "int8", 16: "fp16", 32: "fp32"},
    "onnx-multi": {4: "int4", 8: "int8", 16: "fp16", 32: "fp32"},
    "onnx-plain": {8: "int8", 32: "fp32"},
    "openvino": {8: "int8", 16: "fp16", 32: "fp32"},
    "gguf": {4: "q4_0", 8: "q8_0", 16: "f16", 32: "f32"},
}
_ON: Mapping[Device, tuple[Kind, ...]] = {
    "cpu": tuple(kind for kind in KINDS if kind != "fp8"),
    "cuda": ("adapter", "merged", "torchao", "gptq", "awq", "fp8", "onnx", "onnx-multi", "gguf"),
    "directml": ("onnx", "onnx-multi", "onnx-plain"),
    "npu": ("onnx", "openvino"),
}
"""What is made for which device."""


@dataclass(frozen=True, slots=True)
class Runtime:
    """A program that is to run the export: the kinds it takes, the first being chosen, and its precision of that."""

    kinds: tuple[Kind, ...]
    precision: str | None = None


RUNTIMES: Mapping[str, Runtime] = {
    "ollama": Runtime(("gguf",), "q8_0"),
    "vllm": Runtime(("adapter", "merged", "awq", "gptq", "fp8")),
    "ort-genai": Runtime(("onnx", "onnx-multi"), "int4"),
    "openvino": Runtime(("openvino",), "int8"),
}


def choose_targets(
    kinds: Sequence[str],
    *,
    bits: int | None = None,
    precision: str | None = None,
    device: str | None = None,
    runtime: str | None = None,
) -> tuple[Target, ...]:
    """The targets that are meant. Raises one `RecipeError` that names everything that does not go, and what does."""
    wrong: list[str] = []
    goes: list[str] = []
    if runtime is not None and runtime not in RUNTIMES:
        wrong.append(f"{runtime!r} is no runtime that exports are made for")
        goes.append(f"--target {', '.join(RUNTIMES)}")
    if device is not None and device not in DEVICES:
        wrong.append(f"{device!r} is no device that exports are made for")
        goes.append(f"--device {', '.join(DEVICES)}")
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        wrong.append(f"{', '.join(map(repr, unknown))} {'is no format' if len(unknown) == 1 else 'are no formats'}")
        goes.append(f"--to {', '.join(KINDS)}")
    if bits is not None and precision is not None:
        wrong.append("bits and precision are two ways to say the same")
        goes.append("--bits or --precision")
    known = RUNTIMES.get(runtime or "")
    if not kinds and known is None and not wrong:
        wrong.append("nothing says what to export to")
        goes.append(f"--to {', '.join(KINDS)}, or --target {', '.join(RUNTIMES)}")
    if wrong:
        raise _refused(wrong, goes)
    chosen = [cast(Kind, kind) for kind in kinds] or ([_first(known, bits, precision)] if known is not None else [])
    on = cast(Device, device or "cpu")
    targets = []
    for kind in chosen:
        if known is not None and kind not in known.kinds:
            wrong.append(f"{runtime} does not run {kind}")
            goes.append(f"--to {', '.join(known.kinds)} for {runtime}")
        if device is not None and kind not in _ON[on]:
            wrong.append(f"{kind} is not made for {device}")
            goes.append(f"--to {', '.join(_ON[on])} for {device}")
        wanted = precision
        if bits is not None:
            wanted = _BY_BITS.get(kind, {}).get(bits)
            if wanted is None:
                wrong.append(f"{kind} has no {bits} bits")
                possible = ", ".join(map(str, _BY_BITS.get(kind, {})))
                goes.append(f"--bits {possible} for {kind}" if possible else f"no --bits for {kind}")
        elif wanted is None and known is not None and kind == known.kinds[0] and known.precision is not None:
            wanted = known.precision
        elif wanted is None and on == "cuda" and kind in ("onnx", "onnx-multi"):
            wanted = "fp16"
        if wanted is not None and wanted not in PRECISIONS[kind]:
            wrong.append(f"{kind} has no precision {wanted!r}")
            goes.append(f"--precision {', '.join(PRECISIONS[kind])} for {kind}")
        targets.append(Target(kind, wanted or PRECISIONS[kind][0], on if kind in _ON[on] else "cuda", runtime))
    if wrong:
        raise _refused(wrong, goes)
    return tuple(targets)


def _first(runtime: Runtime, bits: int | None, precision: str | None) -> Kind:
    """The first kind that a runtime takes and that can be held so; its first where there is none."""
    for kind in runtime.kinds:
        if (bits is None or bits in _BY_BITS.get(kind, {})) and (precision is None or precision in PRECISIONS[kind]):
            return kind
    return runtime.kinds[0]


def refuse_impossible(target: Target) -> None:
    """Raise `RecipeError` for a target that no command line can mean."""
    if target.kind not in KINDS:
        raise RecipeError(f"cannot export to {target.kind!r}", where="export", expected=", ".join(KINDS))
    if target.precision not in PRECISIONS[target.kind]:
        raise RecipeError(
            f"{target.kind} has no precision {target.precision!r}",
            where="export",
            expected=", ".join(PRECISIONS[target.kind]),
        )


def _refused(wrong: Sequence[str], goes: Sequence[str]) -> RecipeError:
    return RecipeError("; ".join(dict.fromkeys(wrong)), where="export", expected="; ".join(dict.fromkeys(goes)))
