"""`generate-adapter`: one base and several adapters as one ONNX model that switches between them per request."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.errors import TunesmithError, VerificationError
from tunesmith.models.artifact import PRECISIONS, Target
from tunesmith.pipeline.olive.draft import Draft
from tunesmith.pipeline.olive.layout import MODEL
from tunesmith.pipeline.olive.project import Project
from tunesmith.pipeline.olive.subject import Subject, find_subject

if TYPE_CHECKING:
    from tunesmith.pipeline.exporting.types import Exported

OUTPUT = "optimized-model"
_NO_EFFECT = {
    "model_script": "the base is a folder",
    "task": "a causal language model is exported as one",
}
_NAMED = re.compile(r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)=(?P<path>.+)")


@dataclass(frozen=True)
class PackPlan:
    """What is packed: a base, adapters by the name they are switched to, and where it goes."""

    base: str
    adapters: Mapping[str, Subject]
    target: Target
    output: Path
    notes: tuple[str, ...]

    @property
    def folder(self) -> Path:
        return self.output / MODEL

    def config(self) -> dict[str, Any]:
        """The same as a mapping, for `--save_config_file`."""
        where = {n: str(s.run.path if s.run is not None else s.adapter) for n, s in self.adapters.items()}
        return {
            "generate-adapter": {
                "base_model_path": self.base,
                "adapter_paths": ",".join(f"{name}={path}" for name, path in where.items()),
                "precision": self.target.precision,
                "output_path": str(self.output),
            }
        }


def plan_pack(flags: Mapping[str, Any], project: Project) -> PackPlan:
    """What flags of `generate-adapter` mean. Raises `RecipeError` with everything that is wrong."""
    draft = Draft()
    for name, reason in _NO_EFFECT.items():
        if flags.get(name) is not None:
            draft.note(f"--{name}", f"changes nothing: {reason}")
    if flags.get("adapter_type") is not None:
        draft.choice("--adapter_type", str(flags["adapter_type"]).lower(), {"lora": "lora"})
    if flags.get("adapter_format") is not None:
        draft.choice("--adapter_format", str(flags["adapter_format"]).lower(), {"onnx_adapter": "onnx_adapter"})
    given = flags.get("adapter_paths") or flags.get("adapter_path")
    paths = draft.words("--adapter_paths", given) if given is not None else None
    if given is None:
        draft.wrong("--adapter_paths", "missing", expected="folders of adapters with commas between, or NAME=FOLDER",
                    fix="an ONNX model alone does not say which of its weights are an adapter's")  # fmt: skip
    said = "--base_model_path" if flags.get("base_model_path") is not None else "--model_name_or_path"
    model = flags.get("base_model_path") or flags.get("model_name_or_path")
    base = None
    try:
        base = find_subject(str(model) if model is not None else None, None, project, said=said).base
    except TunesmithError as error:
        draft.wrong(said, error.what, expected=error.expected, fix=error.fix)
    adapters = _adapters(paths or [], str(model) if base is not None else None, project, draft)
    precision = str(flags.get("precision") or "fp32")
    draft.choice("--precision", precision, dict.fromkeys(PRECISIONS["onnx-multi"]))
    draft.raise_problems("generate-adapter")
    assert base is not None
    output = Path(flags.get("output_path") or OUTPUT)
    return PackPlan(base, adapters, Target("onnx-multi", precision), output, tuple(draft.notes))


def carry_out_pack(plan: PackPlan, listener: Callable[[dict[str, Any]], None] | None = None) -> Exported:
    """Pack, open, verify each adapter by itself, and write `inference_model.json`. Raises as `export_pack`."""
    from tunesmith.pipeline.exporting.flow import export_pack
    from tunesmith.pipeline.olive.foundry import add_foundry

    sources = {name: subject.source() for name, subject in plan.adapters.items()}
    runs = {name: subject.run for name, subject in plan.adapters.items() if subject.run is not None}
    base = next(iter(sources.values())).recipe.base.model
    exported = export_pack(base, sources, plan.target, plan.folder.resolve(), runs=runs, listener=listener)
    return replace(exported, artifact=add_foundry(exported.artifact, plan.output.resolve().name))


def _adapters(paths: list[str], base: str | None, project: Project, draft: Draft) -> dict[str, Subject]:
    """Adapters by name: the one given, else that of the folder. Two of one name are a problem."""
    found: dict[str, Subject] = {}
    for text in paths:
        named = _NAMED.fullmatch(text)
        path = named["path"] if named else text
        try:
            subject = find_subject(base, path, project, adapter_said="--adapter_paths")
        except VerificationError:  # another base's: as every command says it
            raise
        except TunesmithError as error:
            draft.problems.append(_problem(f"--adapter_paths {path}", error))
            continue
        name = named["name"] if named else subject.name
        if name in found:
            draft.wrong("--adapter_paths", f"two adapters are called {name!r}", fix="name them: a=FOLDER,b=FOLDER")
            continue
        found[name] = subject
    return found


def _problem(said: str, error: TunesmithError) -> Any:
    from tunesmith.recipe.problems import Problem

    return Problem(said, error.what, error.expected, error.fix)
