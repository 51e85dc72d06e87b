"""Olive's optimising commands as exports: `auto-opt`, `optimize`, `quantize`, `capture-onnx-graph`.

Each becomes one target of ours (a kind, a precision, a device), written and proved as `tunesmith export` does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from tunesmith.errors import RecipeError
from tunesmith.models.artifact import PRECISIONS, Device, Kind, Target
from tunesmith.pipeline.exporting.targets import choose_targets
from tunesmith.pipeline.olive.draft import Draft
from tunesmith.pipeline.olive.layout import MODEL
from tunesmith.pipeline.olive.project import Project
from tunesmith.pipeline.olive.rounding import rounded_kind
from tunesmith.pipeline.olive.subject import Subject, find_subject
from tunesmith.recipe.problems import nearest

if TYPE_CHECKING:
    from tunesmith.pipeline.exporting.types import Exported

Command = Literal["auto-opt", "optimize", "quantize", "capture-onnx-graph"]

OUTPUTS: Mapping[Command, str] = {
    "auto-opt": "auto-opt-output",
    "optimize": "optimized-model",
    "quantize": "quantized-model",
    "capture-onnx-graph": "onnx-model",
}
"""Folders that a command writes where it is not told one."""

PROVIDERS: Mapping[str, Device] = {
    "CPUExecutionProvider": "cpu",
    "CUDAExecutionProvider": "cuda",
    "DmlExecutionProvider": "directml",
    "QNNExecutionProvider": "npu",
    "OpenVINOExecutionProvider": "cpu",
}
_ELSEWHERE = ("VitisAIExecutionProvider", "WebGpuExecutionProvider", "NvTensorRTRTXExecutionProvider",
              "TensorrtExecutionProvider", "ROCMExecutionProvider", "MIGraphXExecutionProvider", "JsExecutionProvider",
              "NvTensorRtRtxExecutionProvider", "WebGPUExecutionProvider")  # fmt: skip
DEVICES: Mapping[str, Device] = {"cpu": "cpu", "gpu": "cuda", "cuda": "cuda", "npu": "npu", "directml": "directml"}
ALGORITHMS: Mapping[str, Kind] = {"rtn": "torchao", "gptq": "gptq", "awq": "awq", "kquant": "onnx"}
_NOT_HERE = ("hqq", "spinquant", "quarot", "lpbq", "seqmse", "adaround", "smoothquant")
_SAME = {"fp32": "fp32", "float32": "fp32", "fp16": "fp16", "float16": "fp16", "int8": "int8", "uint8": "int8",
         "int4": "int4", "uint4": "int4", "nf4": "int4"}  # fmt: skip

NO_EFFECT: Mapping[str, str] = {
    "task": "a causal language model is exported as one",
    "act_precision": "activations stay floating point: only weights are quantised",
    "block_size": "the writer of a format has its own block size, said in the artefact's facts",
    "use_qdq_format": "weights are kept in ONNX Runtime's own operators",
    "use_qdq_encoding": "weights are kept in ONNX Runtime's own operators",
    "modality": "text is all there is",
    "memory": "the disk and the memory are looked at before anything is written",
    "batch_size": "calibration takes rows one at a time",
    "implementation": "there is one of each algorithm",
    "target_opset": "the builder chooses it",
    "past_key_value_name": "the builder knows it",
    "conversion_device": "the graph is made on the CPU",
    "torch_dtype": "--precision says in what weights are kept",
    "int4_block_size": "the writer has its own block size, said in the artefact's facts",
    "int4_accuracy_level": "the builder's own is taken",
    "use_dynamo_exporter": "the exporter is chosen by what works",
    "qnn_env_path": "what a vendor's tools compile is made with those tools, from the ONNX folder",
    "split": "calibration rows come from the run, or from --data_name as it is",
    "subset": "calibration rows come from the run, or from --data_name as it is",
    "input_cols": "the template of the run names the columns",
    "mixed_precision_overrides_config": "which layers stay wide is measured: tunesmith export RUN --to gptq --mixed KL",
    "test_metrics": "every check of docs/export.md is made",
}
"""Flags that change nothing, and why."""
REFUSED: Mapping[str, tuple[str, str]] = {
    "num_split": ("one model is written, and not divided", "leave it out"),
    "num_splits": ("one model is written, and not divided", "leave it out"),
    "cost_model": ("one model is written, and not divided", "leave it out"),
    "surgeries": ("graphs are not changed by name", "leave it out"),
    "dim_param": ("the graph takes every length and batch", "leave it out"),
    "dim_value": ("the graph takes every length and batch", "leave it out"),
    "dynamic_to_fixed_shape_dim_param": ("the graph takes every length and batch", "leave it out"),
    "dynamic_to_fixed_shape_dim_value": ("the graph takes every length and batch", "leave it out"),
    "fixed_param_dict": ("the graph takes every length and batch", "leave it out"),
    "enable_aot": ("compiling for a vendor's device is done with the vendor's tools", "leave it out"),
    "exclude_embeds": ("a model without its embeddings cannot be proved", "leave it out"),
    "exclude_lm_head": ("a model without its head cannot be proved", "leave it out"),
    "enable_cuda_graph": ("the runtime's own setting decides", "leave it out, and set it in genai_config.json"),
    "use_mobius_builder": ("there is no such builder here", "--use_model_builder"),
    "extra_mb_options": ("the builder's options are chosen and checked here", "leave it out"),
    "model_script": ("code of one's own is not run to load a model", "save the model as a folder"),
    "script_dir": ("code of one's own is not run to load a model", "save the model as a folder"),
    "test_llama_path": ("llama.cpp is found, not named", "tunesmith export RUN --to gguf compares with it"),
}
"""Flags that ask for what is not done, and what to do instead."""


@dataclass(frozen=True)
class ExportPlan:
    """What an optimising command is going to do. `output/model` gets the export."""

    command: Command
    subject: Subject
    target: Target
    output: Path
    notes: tuple[str, ...]
    data: tuple[str, ...] = ()
    template: str | None = None
    max_samples: int = 128

    @property
    def folder(self) -> Path:
        return self.output / MODEL

    def config(self) -> dict[str, Any]:
        """The same as a file for `tunesmith olive run`."""
        subject = self.subject
        base = subject.base or (str(subject.run.path) if subject.run is not None else "")
        model = {"type": "HfModel", "model_path": base}
        if subject.adapter is not None:
            model["adapter_path"] = str(subject.adapter)
        device = {} if self.target.device == "cpu" else {"systems": {"meant": _system(self.target.device)},
                                                         "target": "meant"}  # fmt: skip
        return {"input_model": model, **device, "passes": _passes(self.target), "output_dir": str(self.output)}


def plan_export(command: Command, flags: Mapping[str, Any], project: Project) -> ExportPlan:
    """What flags of an optimising command mean. Raises `RecipeError` with everything that is wrong."""
    draft = Draft()
    for name, reason in NO_EFFECT.items():
        if _is_said(flags.get(name)):
            draft.note(f"--{name}", f"changes nothing: {reason}")
    for name, (what, fix) in REFUSED.items():
        if _is_said(flags.get(name)):
            draft.wrong(f"--{name}", what, fix=fix)
    if command != "quantize" and flags.get("data_name") is not None:
        draft.note("--data_name", "changes nothing: an export is scored on the test rows of its run")
    device, provider = device_of_flags(flags, draft)
    subject: Subject | None = None
    try:
        trust = bool(flags.get("trust_remote_code")) and bool(
            draft.truth("--trust_remote_code", flags["trust_remote_code"])
        )
        subject = find_subject(
            flags.get("model_name_or_path"), flags.get("adapter_path"), project, trust_remote_code=trust
        )
    except RecipeError as error:
        draft.wrong(error.where or "--model_name_or_path", error.what, expected=error.expected, fix=error.fix)
    kind = _kind(command, flags, device, provider, draft)
    precision = _precision(command, flags, kind, device, draft)
    if kind == "torchao":
        kind = rounded_kind(f"--algorithm {flags.get('algorithm') or 'rtn'}", precision, device, draft)
    try:
        choose_targets([kind], precision=precision, device=device)
    except RecipeError as error:
        draft.wrong("--device", error.what, fix="leave it out")
    samples = draft.whole("--max_samples", flags["max_samples"], least=1) if flags.get("max_samples") else None
    data: tuple[str, ...] = ()
    if command == "quantize" and subject is not None:
        data = _calibration(flags, kind, subject, project, draft)
    draft.raise_problems(command)
    assert subject is not None
    target = Target(kind, precision, device)
    output = Path(flags.get("output_path") or OUTPUTS[command])
    template = flags.get("text_template")
    return ExportPlan(command, subject, target, output, tuple(draft.notes), data, template, samples or 128)


def _is_said(value: Any) -> bool:
    """Whether a flag asks for something: a switch may be given with `false`."""
    return value is not None and str(value).lower() not in ("false", "no", "off", "0")


def carry_out_export(plan: ExportPlan, listener: Callable[[dict[str, Any]], None] | None = None) -> Exported:
    """Write, open, verify and name the export; ONNX Runtime GenAI's also get `inference_model.json`.

    Raises as `export_run`.
    """
    from dataclasses import replace

    from tunesmith.pipeline.exporting.flow import export_run, export_source
    from tunesmith.pipeline.olive.foundry import KINDS, add_foundry
    from tunesmith.recipe import load_recipe

    if plan.subject.run is not None:
        recipe = load_recipe(plan.subject.run.recipe_file)
        exported = export_run(plan.subject.run, plan.target, out=plan.folder.resolve(), listener=listener)
    else:
        recipe, source = None, plan.subject.source()
        rows = _calibration_ids(plan, source)
        exported = export_source(source, plan.target, plan.folder.resolve(), calibration=rows, listener=listener)
    if plan.target.kind in KINDS:
        exported = replace(exported, artifact=add_foundry(exported.artifact, plan.output.resolve().name, recipe))
    return exported


def device_of_flags(flags: Mapping[str, Any], draft: Draft) -> tuple[Device, str | None]:
    """The device that `device` and `provider` mean together, and the provider where one was named."""
    provider, word = flags.get("provider"), flags.get("device")
    device = draft.choice("--device", word, DEVICES) if word is not None else None
    if provider in _ELSEWHERE:
        draft.wrong("--provider", f"nothing is made for {provider}, as nothing here could prove it",
                    expected=", ".join(PROVIDERS))  # fmt: skip
        return "cpu", None
    if provider is None:
        return device or "cpu", None
    meant = draft.choice("--provider", provider, PROVIDERS)
    if meant is None:
        return device or "cpu", None
    if provider == "OpenVINOExecutionProvider":
        if word == "gpu":
            draft.note("--device", "one OpenVINO folder runs on every device of Intel's; it is proved on the CPU")
        return "npu" if device == "npu" else "cpu", str(provider)
    on = ("cuda", "directml") if word == "gpu" else (device or meant,)
    if meant not in on:
        fits = ", ".join(name for name, known in PROVIDERS.items() if known in on)
        draft.wrong("--provider", f"{provider} runs on {meant}, and --device is {word}", expected=fits)
    return meant, str(provider)


def _kind(command: Command, flags: Mapping[str, Any], device: Device, provider: str | None, draft: Draft) -> Kind:
    if command == "quantize":
        word = str(flags.get("algorithm") or "rtn").lower()
        if word in _NOT_HERE:
            draft.wrong("--algorithm", f"there is no {word} here", expected=", ".join(ALGORITHMS))
            return "gptq"
        return cast(Kind, draft.choice("--algorithm", word, ALGORITHMS) or "gptq")
    if provider == "OpenVINOExecutionProvider":
        return "openvino"
    exporter = flags.get("exporter")
    if exporter is not None:
        names = {"model_builder": 1, "dynamo_exporter": 2, "torchscript_exporter": 2, "optimum_exporter": 2}
        plain = draft.choice("--exporter", exporter, names) == 2
    else:
        genai = _is_said(flags.get("use_ort_genai")) or _is_said(flags.get("use_model_builder"))
        # `optimize` chooses the builder for language models; the other two make a plain graph unless they are told.
        plain = not genai and command != "optimize"
    if plain and device not in ("cuda", "npu"):
        return "onnx-plain"
    if plain:
        draft.note("--device", f"a graph for {device} is made by ONNX Runtime GenAI's builder, and not as a plain one")
    if command == "auto-opt" and flags.get("adapter_path") is not None:
        return "onnx-multi"
    return "onnx"


def _precision(command: Command, flags: Mapping[str, Any], kind: Kind, device: Device, draft: Draft) -> str:
    """The precision, by Olive's words; without one, Olive's default where the format has it."""
    word = flags.get("precision")
    known = PRECISIONS[kind]
    if word is None:
        if command == "quantize":
            return "int8" if kind == "torchao" else "int4"
        return "fp16" if device == "cuda" and "fp16" in known else "fp32"
    precision = _SAME.get(str(word).lower())
    if precision is None:
        near = nearest(str(word), _SAME)
        draft.wrong("--precision", f"{word!r} is not allowed", expected=", ".join(known),
                    fix=f"did you mean {near}?" if near else None)  # fmt: skip
        return known[0]
    if precision not in known:
        draft.wrong("--precision", f"{kind} has no {precision}", expected=", ".join(known))
        return known[0]
    return precision


def _calibration(
    flags: Mapping[str, Any], kind: Kind, subject: Subject, project: Project, draft: Draft
) -> tuple[str, ...]:
    """Where calibration rows are; a run brings its own training rows."""
    given = [n for n in ("data_files", "data_name", "text_template", "max_samples") if flags.get(n) is not None]
    if kind not in ("gptq", "awq"):
        reason = "weights are rounded to the nearest, which takes no rows"
    elif subject.run is not None:
        reason = "the run's own training rows calibrate"
    elif not set(given) & {"data_files", "data_name"}:
        reason = "--data_name says no rows to calibrate with"
    else:
        said = given[0]
        names = draft.words(f"--{said}", flags[said]) if said == "data_files" else [str(flags[said])]
        try:
            return tuple(project.rows(name, None, f"--{said}") for name in names or ())
        except RecipeError as error:
            draft.wrong(f"--{said}", error.what, expected=error.expected, fix=error.fix)
            return ()
    for name in given:
        draft.note(f"--{name}", f"changes nothing: {reason}")
    return ()


def _calibration_ids(plan: ExportPlan, source: Any) -> Sequence[Sequence[int]]:
    """Token ids of calibration rows: the template filled, or every text of a row, a line each."""
    from tunesmith.data.reading import read_rows
    from tunesmith.data.template import cell_text, parse_template, render_prompt
    from tunesmith.pipeline.olive.finetune import unescape

    rows = [row for place in plan.data for row in read_rows(place).rows][: plan.max_samples]
    if plan.template is not None:
        shape = parse_template(unescape(plan.template))
        texts = [render_prompt(shape.prompt, row.values) + cell_text(row.values.get(shape.answer)) for row in rows]
    else:
        texts = ["\n".join(cell_text(value) for value in row.values.values()) for row in rows]
    ids = [tuple(source.tokenizer(text)["input_ids"])[: source.context] for text in texts]
    return [one for one in ids if one]


def _passes(target: Target) -> dict[str, Any]:
    """The passes of a configuration file that make a target."""
    builder = {"type": "ModelBuilder", "precision": target.precision}
    if target.kind == "onnx-multi":
        return {"graph": builder, "adapters": {"type": "ExtractAdapters"}}
    if target.kind == "onnx":
        return {"graph": builder}
    if target.kind == "onnx-plain":
        plain = {"graph": {"type": "OnnxConversion"}}
        return {**plain, "quantise": {"type": "OnnxDynamicQuantization"}} if target.precision == "int8" else plain
    if target.kind == "openvino":
        if target.precision == "int8":
            return {"graph": {"type": "OpenVINOWeightCompression"}}
        return {"graph": {"type": "OpenVINOConversion", "precision": target.precision}}
    names = {"gptq": "Gptq", "awq": "AutoAWQQuantizer", "torchao": "Rtn"}
    return {"quantise": {"type": names[target.kind], "bits": 8 if target.precision == "int8" else 4}}


def _system(device: Device) -> dict[str, Any]:
    """A device as a configuration's system says it."""
    word = {"cuda": "gpu", "directml": "gpu"}.get(device, device)
    providers = [name for name, known in PROVIDERS.items() if known == device]
    return {"type": "LocalSystem", "accelerators": [{"device": word, "execution_providers": providers}]}
