"""The systems of an Olive configuration: of the one that is its target, the device that exports are made for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tunesmith.errors import RecipeError
from tunesmith.models.artifact import Device
from tunesmith.pipeline.exporting.targets import choose_targets
from tunesmith.pipeline.olive.config_sections import section_of
from tunesmith.pipeline.olive.draft import Draft
from tunesmith.pipeline.olive.exports import device_of_flags
from tunesmith.pipeline.workflow.types import Step

_EXPORTS = {"merge": "merged", "quantise": "torchao", "onnx": "onnx", "multi-onnx": "onnx-multi", "gguf": "gguf"}


def device_of(config: Mapping[str, Any], names: dict[str, str], draft: Draft) -> Device:
    """The device of the target system's first accelerator; `cpu` where none is said."""
    target = config.get("target", section_of(config, "engine").get("target"))
    systems = section_of(config, "systems")
    if target is None:
        if systems:
            draft.note("systems", "changes nothing: no target names one of them")
        return "cpu"
    place, system = ("target", target) if isinstance(target, dict) else (f"systems.{target}", systems.get(str(target)))
    if not isinstance(system, dict):
        draft.wrong("target", f"there is no system {target!r}", expected=", ".join(systems) or "systems:")
        return "cpu"
    if str(system.get("type", "LocalSystem")).lower() != "localsystem":
        draft.note(f"{place}.type", f"{system['type']}: the work is done on this machine")
    given = {**system, **section_of(system, "config")}.get("accelerators")
    if given is None:
        return "cpu"
    one = given[0] if isinstance(given, list) and given else given
    one = {"device": one} if isinstance(one, str) else one
    if not isinstance(one, dict):
        draft.wrong(f"{place}.accelerators", f"{given!r} is not allowed", expected="[{device: gpu}]")
        return "cpu"
    providers = one.get("execution_providers") or [None]
    provider = providers[0] if isinstance(providers, list) else providers
    names |= {"--device": f"{place}.accelerators[0].device",
              "--provider": f"{place}.accelerators[0].execution_providers"}  # fmt: skip
    provider = provider[0] if isinstance(provider, list) and provider else provider
    return device_of_flags({"device": one.get("device"), "provider": provider}, draft)[0]


def on_device(steps: Sequence[Step], device: Device, draft: Draft) -> tuple[Step, ...]:
    """Steps that export, for a device; what is not made for it is a problem."""
    made = []
    for step in steps:
        kind = step.settings.get("kind") or _EXPORTS.get(step.kind)
        if kind is None or device == "cpu":
            made.append(step)
            continue
        try:
            choose_targets([kind], device=device)
        except RecipeError as error:
            draft.wrong(f"passes.{step.name}", error.what, fix="ModelBuilder is made for every device")
        made.append(replace(step, settings={**step.settings, "device": device}))
    return tuple(made)
