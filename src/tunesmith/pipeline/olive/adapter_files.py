"""`convert-adapters` and `extract-adapters`: what an adapter adds, as one file of another format.

A file holds for every adapted module `<module>.lora_A.weight` [in, rank] and `<module>.lora_B.weight` [rank, out], B
with the adapter's scaling in it, so that `x A B` is what is added. That holds for plain LoRA, rank-stabilised LoRA,
rank and alpha patterns and starts from the weights, all exactly; for other methods `tunesmith adapters convert --rank`
finds the nearest LoRA first. `.onnx_adapter` files have the names of our ONNX graphs instead.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.errors import EngineError, RecipeError, TunesmithError
from tunesmith.pipeline.olive.draft import Draft
from tunesmith.pipeline.olive.project import Project
from tunesmith.pipeline.olive.subject import Subject, adapter_config, adapter_folder, find_subject, run_of
from tunesmith.runs import staged_file

if TYPE_CHECKING:
    from torch import Tensor

FORMATS = ("onnx_adapter", "safetensors", "npz")
_REFUSED_FORMATS = {"pt": "pickled files can run code when they are read"}
_DTYPES = {"float32": "float32", "float16": "float16"}
_BLOCKS = "adapters stay in 16 or 32 bits: they are a few megabytes, and what was learnt lies in them"
_INSIDE = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])(?:\.(?P<name>[^.]+))?\.weight")


@dataclass(frozen=True)
class FilesPlan:
    """Which adapters are written to which files."""

    adapters: Mapping[Path, Subject]
    kind: str
    dtype: str
    notes: tuple[str, ...]
    graph: Path | None = None
    """The packed ONNX model whose names an `.onnx_adapter` gets; None: those that the base's graph would have."""
    inside: tuple[Path, Path] | None = None
    """A model folder that holds LoRA tensors of its own, and the folder that gets a file for each of its adapters."""


def plan_convert(flags: Mapping[str, Any], project: Project) -> FilesPlan:
    """What flags of `convert-adapters` mean. Raises `RecipeError` with everything that is wrong."""
    draft = Draft()
    kind, dtype = _format(flags, "adapter_format", draft), _dtype(flags, draft)
    for name in ("quantize_int4", "int4_block_size", "int4_quantization_mode"):
        if flags.get(name) not in (None, "false", False):
            draft.wrong(f"--{name}", _BLOCKS, fix="leave it out; --dtype float16 halves the file")
    subject = None
    if flags.get("adapter_path") is None:
        draft.wrong("--adapter_path", "missing", expected="a PEFT folder, or OUTPUT of finetune")
    else:
        base = flags.get("model_name_or_path")
        subject = _adapter(str(flags["adapter_path"]), base, "--adapter_path", project, draft)
    if flags.get("output_path") is None:
        draft.wrong("--output_path", "missing", expected="the file to write")
    graph = _graph(flags, kind, draft)
    draft.raise_problems("convert-adapters")
    assert subject is not None
    return FilesPlan({_ending(Path(str(flags["output_path"])), kind): subject}, kind, dtype, tuple(draft.notes), graph)


def plan_extract(flags: Mapping[str, Any], project: Project) -> FilesPlan:
    """What flags of `extract-adapters` mean. Raises `RecipeError` with everything that is wrong."""
    draft = Draft()
    kind, dtype = _format(flags, "format", draft), _dtype(flags, draft)
    if flags.get("format") is None:
        draft.wrong("--format", "missing", expected=", ".join(FORMATS))
    for name in ("cache_dir", "task", "trust_remote_code"):
        if flags.get(name) not in (None, "false"):
            draft.note(f"--{name}", "changes nothing: only the weights' files are read")
    for name in ("model_script", "script_dir"):
        if flags.get(name) is not None:
            draft.wrong(f"--{name}", "code of one's own is not run to load a model", fix="save the model as a folder")
    output = Path(str(flags.get("output_path") or "adapters"))
    model = flags.get("model_name_or_path")
    adapters: dict[Path, Subject] = {}
    inside = None
    if model is None:
        draft.wrong(
            "--model_name_or_path", "missing", expected="OUTPUT of finetune, a PEFT folder, or a model with LoRA"
        )
    else:
        try:
            adapter_folder(str(model), project, "--model_name_or_path")
        except RecipeError:
            inside = _with_lora(str(model), project, draft)
        else:
            subject = _adapter(str(model), None, "--model_name_or_path", project, draft)
            if subject is not None:
                adapters[output / f"{subject.name}.{kind}"] = subject
    if inside is not None and kind == "onnx_adapter":
        draft.wrong("--format", "the names of a graph are known of adapters in PEFT folders only",
                    expected="safetensors, npz")  # fmt: skip
    graph = _graph(flags, kind, draft)
    draft.raise_problems("extract-adapters")
    if inside is not None:
        return FilesPlan({}, kind, dtype, tuple(draft.notes), inside=(inside, output))
    return FilesPlan(adapters, kind, dtype, tuple(draft.notes), graph)


def carry_out_files(plan: FilesPlan, tell: Callable[[str], None]) -> list[Path]:
    """Write the files; each is read again and compared before it gets its name. Returns their paths."""
    if plan.inside is not None:
        model, output = plan.inside
        return [
            _write(output / f"{name}.{plan.kind}", plan.kind, tensors, plan.dtype, tell)
            for name, tensors in _lora_inside(model).items()
        ]
    written = []
    for path, subject in plan.adapters.items():
        if plan.kind == "onnx_adapter":
            from tunesmith.pipeline.olive.graph_names import write_onnx_adapter

            written.append(write_onnx_adapter(path, subject, plan.dtype, plan.graph))
            tell(f"{path}: named as the inputs of {plan.graph or 'the graph that the builder makes of the base'}")
        else:
            written.append(_write(path, plan.kind, plain_tensors(subject), plan.dtype, tell))
    return written


def plain_tensors(subject: Subject) -> dict[str, Tensor]:
    """What an adapter adds, by module, as the file has it. Raises `StepError` where that is no exact LoRA."""
    from tunesmith.export.adapter.convert import to_plain_lora

    converted = to_plain_lora(subject.source())
    found: dict[str, Tensor] = {}
    for path, layer in converted.layers.items():
        found[f"{path}.lora_A.weight"] = layer.a.t()
        found[f"{path}.lora_B.weight"] = layer.b.t() * converted.scale
    return found


def _write(path: Path, kind: str, tensors: Mapping[str, Tensor], dtype: str, tell: Callable[[str], None]) -> Path:
    import numpy as np
    import torch
    from safetensors.torch import load_file, save_file

    cast = {name: value.detach().to(getattr(torch, dtype)).contiguous().clone() for name, value in tensors.items()}
    with staged_file(path) as temporary:
        if kind == "safetensors":
            save_file(cast, temporary, metadata={"format": "pt"})
            read = load_file(temporary)
        else:
            with temporary.open("wb") as stream:
                np.savez(stream, allow_pickle=False, **{name: value.numpy() for name, value in cast.items()})
            with np.load(temporary, allow_pickle=False) as kept:
                read = {name: torch.from_numpy(kept[name]) for name in kept.files}
        _refuse_other(path, cast, read)
    tell(f"{path}: {len(cast) // 2} modules")
    return path


def _refuse_other(path: Path, wanted: Mapping[str, Tensor], read: Mapping[str, Tensor]) -> None:
    import torch

    from tunesmith.errors import VerificationError

    if wanted.keys() != read.keys() or not all(torch.equal(wanted[name], read[name]) for name in wanted):
        raise VerificationError("the file does not hold what was written", where=str(path), fix="check the disk")


def _with_lora(model: str, project: Project, draft: Draft) -> Path | None:
    """A model folder with LoRA tensors among its weights."""
    try:
        folder = Path(project.model(model, "--model_name_or_path"))
        names = _lora_names(folder)
    except TunesmithError as error:
        draft.wrong("--model_name_or_path", error.what, expected=error.expected, fix=error.fix)
        return None
    if not names:
        draft.wrong("--model_name_or_path", f"there is no adapter in {model!r}",
                    expected="OUTPUT of finetune, a PEFT folder, or a model with lora_A and lora_B")  # fmt: skip
        return None
    return folder


def _lora_names(folder: Path) -> dict[str, tuple[Path, re.Match[str]]]:
    """Files of a model's LoRA tensors, by their names. Raises `EngineError` for a damaged file."""
    from safetensors import SafetensorError, safe_open

    found: dict[str, tuple[Path, re.Match[str]]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, "pt") as opened:
                names = list(opened.keys())
        except (OSError, SafetensorError) as error:
            raise EngineError(f"the file cannot be read: {error}", where=str(file), fix="get it again") from error
        found |= {name: (file, match) for name in names if (match := _INSIDE.fullmatch(name))}
    return found


def _lora_inside(folder: Path) -> dict[str, dict[str, Tensor]]:
    """LoRA tensors of a model by the adapter's name, transposed, B scaled as the model's configuration says."""
    from safetensors import safe_open

    found: dict[str, dict[str, Tensor]] = {}
    for name, (file, match) in _lora_names(folder).items():
        with safe_open(file, "pt") as opened:
            value = opened.get_tensor(name).t().float()
        found.setdefault(match["name"] or "adapter", {})[f"{match['module']}.lora_{match['side']}.weight"] = value
    for adapter, tensors in found.items():
        scale = _scale(folder, adapter, tensors)
        for name in tensors:
            if name.endswith("lora_B.weight"):
                tensors[name] = tensors[name] * scale
    return found


def _scale(folder: Path, adapter: str, tensors: Mapping[str, Tensor]) -> float:
    """Alpha over rank, as the model's configuration has it under `<name>_lora` or `lora`. Raises `RecipeError`."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        said = config.get(f"{adapter}_lora") or config.get("lora")
    except (OSError, ValueError, AttributeError) as error:
        raise EngineError("this is no model's configuration", where=str(folder / "config.json")) from error
    alpha = said.get("lora_alpha", said.get("alpha")) if isinstance(said, dict) else None
    if alpha is None:
        raise RecipeError(
            f"the scaling of the adapter {adapter!r} is not known", where=str(folder / "config.json"),
            expected=f"{adapter}_lora: {{r: …, lora_alpha: …}}",
        )  # fmt: skip
    rank = next((value.shape[1] for name, value in tensors.items() if name.endswith("lora_A.weight")), 0)
    if not rank or 2 * sum(name.endswith("lora_A.weight") for name in tensors) != len(tensors):
        raise EngineError(f"the adapter {adapter!r} has not every pair of lora_A and lora_B", where=str(folder))
    return float(alpha) / rank


def _adapter(name: str, base: str | None, said: str, project: Project, draft: Draft) -> Subject | None:
    """An adapter on the base that is named, else on that of its run, else on the one that it names itself."""
    try:
        folder = adapter_folder(name, project, said)
        of_base = "--model_name_or_path"
        if base is None and run_of(folder) is None:
            base = adapter_config(folder).get("base_model_name_or_path")
            of_base = "base_model_name_or_path of the adapter"
        return find_subject(base, str(folder), project, said=of_base)
    except TunesmithError as error:
        draft.wrong(error.where or said, error.what, expected=error.expected, fix=error.fix)
        return None


def _graph(flags: Mapping[str, Any], kind: str, draft: Draft) -> Path | None:
    from tunesmith.pipeline.olive.graph_names import graph_folder

    given = flags.get("onnx_model_path")
    if given is None:
        return None
    if kind != "onnx_adapter":
        draft.note("--onnx_model_path", f"changes nothing: {kind} files have the model's own names")
        return None
    try:
        return graph_folder(str(given))
    except RecipeError as error:
        draft.wrong("--onnx_model_path", error.what, expected=error.expected)
        return None


def _format(flags: Mapping[str, Any], name: str, draft: Draft) -> str:
    kind = str(flags.get(name) or "onnx_adapter")
    if kind in _REFUSED_FORMATS:
        draft.wrong(f"--{name}", _REFUSED_FORMATS[kind], expected=", ".join(FORMATS))
        return "safetensors"
    return str(draft.choice(f"--{name}", kind, dict(zip(FORMATS, FORMATS, strict=True))) or "safetensors")


def _dtype(flags: Mapping[str, Any], draft: Draft) -> str:
    return str(draft.choice("--dtype", flags.get("dtype") or "float32", _DTYPES) or "float32")


def _ending(path: Path, kind: str) -> Path:
    return path if path.suffix == f".{kind}" else path.with_name(f"{path.name}.{kind}")
