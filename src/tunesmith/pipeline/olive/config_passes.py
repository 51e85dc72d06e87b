"""Olive's passes after tuning, as steps of a workflow, and its evaluators as goals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

from tunesmith.pipeline.olive.draft import Draft
from tunesmith.pipeline.olive.rounding import rounded_kind
from tunesmith.pipeline.workflow.types import Goal, GoalKind, Step, StepKind
from tunesmith.recipe.problems import nearest

TUNING = ("lora", "qlora", "dora", "loha", "lokr", "loftq", "sdlora")
"""Pass types that tune, in lower case; `methods.py` reads their options."""

_QUANTISED = {"onnxblockwisertnquantization": 4, "onnxkquantquantization": 4, "onnxhqqquantization": 4,
              "onnxbnb4quantization": 4, "onnxmatmul4quantizer": 4, "onnxdynamicquantization": 8,
              "onnxstaticquantization": 8, "onnxquantization": 8}  # fmt: skip
"""Passes that quantise a graph, and to how many bits: here the graph is built so at once."""
_HALF = ("onnxfloattofloat16", "ortmixedprecision")
_WEIGHTS = {"gptq": "gptq", "gptqquantizer": "gptq", "gptqmodel": "gptq", "autoawqquantizer": "awq", "autoawq": "awq"}
_NOT_NEEDED = {
    **dict.fromkeys(
        ("onnxpeepholeoptimizer", "ortpeepholeoptimizer", "orttransformersoptimization", "onnxscriptfusion",
         "onnxmodeloptimizer", "onnxiodatatypeconverter"),
        "the graph is built with its operations fused already",
    ),
    "onnxdiscrepancycheck": "every export is compared with the tuned model, always",
    "capturesplitinfo": "one file is written, and not divided",
}  # fmt: skip
_INSTEAD = {
    "quarot": "gptq or awq", "spinquant": "gptq or awq", "slicegpt": "a smaller base", "sparsegpt": "a smaller base",
    "splitmodel": "one file", "graphsurgeries": "the graph as the builder makes it", "optimummerging": "ModelBuilder",
    "dynamictofixedshape": "ModelBuilder, whose graph takes every length", "appendprepostprocessingops": "ModelBuilder",
    "kquant": "ConvertHfToGGUF with precision q4_k_m, or ModelBuilder with int4", "mobiusbuilder": "ModelBuilder",
    "composeonnxmodels": "ModelBuilder", "loha": "lora",
}  # fmt: skip
_VENDORS = ("qnn", "qairt", "vitisai", "aimet", "quark", "nvmodelopt", "snpe", "inc", "epcontext", "tensorrt")
_KNOWN = (
    "LoRA", "QLoRA", "DoRA", "LoHa", "LoKr", "MergeAdapterWeights", "ModelBuilder", "OnnxConversion",
    "OptimumConversion", "ExtractAdapters", "Gptq", "AutoAWQQuantizer", "Rtn", "OnnxBlockWiseRtnQuantization",
    "OnnxKQuantQuantization", "OnnxDynamicQuantization", "OnnxStaticQuantization", "OnnxFloatToFloat16",
    "OpenVINOConversion", "ConvertHfToGGUF", "OrtSessionParamsTuning", "OnnxPeepholeOptimizer",
)  # fmt: skip
_PRECISIONS = {"fp32": "fp32", "fp16": "fp16", "int8": "int8", "int4": "int4", "uint4": "int4", "uint8": "int8"}
_BUILDER_OPTIONS = ("metadata_only", "search", "int4_block_size", "int4_accuracy_level", "exclude_embeds",
                    "exclude_lm_head", "enable_cuda_graph", "int4_op_types_to_quantize", "extra_options",
                    "int4_algo_config", "int4_is_symmetric", "use_qdq", "target_opset", "torch_dtype", "device",
                    "use_dynamo_exporter", "save_as_external_data", "all_tensors_to_one_file", "external_data_name",
                    "group_size", "sym", "desc_act", "damp_percent", "data_config", "lm_head", "embeds",
                    "overrides", "block_size", "axis", "adapter_type", "save_format", "make_inputs",
                    "dynamic_lora_r", "nodes_to_exclude", "quant_preprocess", "weight_type", "activation_type",
                    "per_channel", "reduce_range", "evaluator", "w_bit", "q_group_size", "zero_point", "bits",
                    "precision", "float_type", "op_types_to_quantize", "accuracy_level", "is_symmetric",
                    "outtype", "quantization_type")  # fmt: skip

Order = Literal["higher", "lower"]
_MEASURES: Mapping[str, tuple[str, Order]] = {
    "accuracy_score": ("accuracy", "higher"),
    "accuracy": ("accuracy", "higher"),
    "f1_score": ("macro_f1", "higher"),
    "exact_match": ("exact_match", "higher"),
    "rouge": ("rouge_l", "higher"),
    "latency": ("seconds_per_token", "lower"),
    "throughput": ("tokens_per_second", "higher"),
    "size_on_disk": ("size_bytes", "lower"),
    "bytes": ("size_bytes", "lower"),
    "loss": ("loss", "lower"),
}
"""Measures by Olive's words for metrics, and which way is better."""


@dataclass(frozen=True)
class Passes:
    """Steps after tuning, in their order."""

    steps: tuple[Step, ...] = ()

    @property
    def last_graph(self) -> Step | None:
        """The ONNX step that passes on graphs mean."""
        return next((step for step in reversed(self.steps) if step.kind in ("onnx", "multi-onnx", "export")), None)


@dataclass(frozen=True)
class Targets:
    """What evaluators ask for: goals, whether test rows are answered, whether speed and size are measured."""

    goals: tuple[Goal, ...] = ()
    evaluate: bool = False
    measure: bool = False


def add_pass(passes: Passes, name: str, kind: str, options: Mapping[str, Any], draft: Draft) -> Passes:
    """The steps with one more pass; problems and what has no counterpart are noted in the draft."""
    said, word = f"passes.{name}", kind.lower().replace("_", "").replace("-", "")
    graph_pass = word in _QUANTISED or word in _HALF
    step = _step(name, word, options, draft)
    if step is None and not graph_pass and word not in (*_NOT_NEEDED, *_ON_GRAPHS):
        _refuse(said, kind, word, draft)
        return passes
    _note_options(said, options, draft)
    if step is not None:
        return Passes((*passes.steps, step))
    if word in _NOT_NEEDED:
        draft.note(said, f"{kind} changes nothing: {_NOT_NEEDED[word]}")
        return passes
    if graph_pass:
        precision = "fp16" if word in _HALF else f"int{_QUANTISED[word]}"
        return _with_precision(passes, said, kind, precision, draft)
    if word == "extractadapters":
        return _with_adapters(passes, said, draft)
    draft.note(said, f"{kind}: speed is measured; threads come from OMP_NUM_THREADS")
    return Passes((*passes.steps, Step(name, "measure")))


_ON_GRAPHS = ("extractadapters", "ortsessionparamstuning", "ortperftuning")


def _refuse(said: str, kind: str, word: str, draft: Draft) -> None:
    """Note a pass that is not carried out: of a vendor's tools, with another name here, or unknown."""
    if word.startswith(_VENDORS):
        draft.wrong(
            said, f"{kind} needs a vendor's tools, and what they write cannot be proved here",
            fix="export ONNX (ModelBuilder) and compile it with those tools",
        )  # fmt: skip
    elif word in _INSTEAD:
        draft.wrong(said, f"there is no {kind} here", fix=f"use {_INSTEAD[word]}")
    else:
        near = nearest(kind, _KNOWN)
        draft.wrong(
            f"{said}.type", f"there is no pass {kind!r}", expected=", ".join(_KNOWN),
            fix=f"did you mean {near}?" if near else None,
        )  # fmt: skip


def _step(name: str, word: str, options: Mapping[str, Any], draft: Draft) -> Step | None:
    said = f"passes.{name}"
    if word == "mergeadapterweights":
        return Step(name, "merge")
    if word == "modelbuilder":
        given = str(options.get("precision", "fp32"))
        precision = draft.choice(f"{said}.precision", given, _PRECISIONS) or "fp32"
        return Step(name, "onnx", {"precision": precision})
    if word in ("onnxconversion", "optimumconversion"):
        return Step(name, "export", {"kind": "onnx-plain", "precision": "fp32"})
    if word in ("openvinoconversion", "openvinooptimumconversion"):
        given = str(options.get("precision", "fp16"))
        precision = draft.choice(f"{said}.precision", given, {"fp16": "fp16", "fp32": "fp32"}) or "fp16"
        return Step(name, "export", {"kind": "openvino", "precision": precision})
    if word == "openvinoweightcompression":
        return Step(name, "export", {"kind": "openvino", "precision": "int8"})
    if word == "converthftogguf":
        given = str(options.get("precision") or options.get("outtype") or options.get("quantization_type") or "q8_0")
        return Step(name, "gguf", {"precision": given.lower()})
    if word in _WEIGHTS or word == "rtn":
        bits = options.get("bits", options.get("w_bit", 4))
        precision = draft.choice(f"{said}.bits", str(bits), {"4": "int4", "8": "int8"}) or "int4"
        kind = rounded_kind(said, precision, "cpu", draft) if word == "rtn" else _WEIGHTS[word]
        return Step(name, "quantise", {"kind": kind, "precision": precision})
    return None


def _with_precision(passes: Passes, said: str, kind: str, precision: str, draft: Draft) -> Passes:
    graph = passes.last_graph
    if graph is None:
        draft.wrong(
            said, f"{kind} quantises a graph, and no pass before it makes one", fix="put ModelBuilder before it"
        )
        return passes
    if graph.settings.get("kind") == "onnx-plain" and precision != "int8":
        graph_kind: StepKind = "onnx"
        changed = Step(graph.name, graph_kind, {"precision": precision})
    else:
        changed = replace(graph, settings={**graph.settings, "precision": precision})
    draft.note(said, f"{kind}: the graph of {graph.name} is built in {precision} at once")
    return Passes(tuple(changed if step is graph else step for step in passes.steps))


def _with_adapters(passes: Passes, said: str, draft: Draft) -> Passes:
    graph = passes.last_graph
    if graph is None or graph.kind != "onnx":
        draft.wrong(said, "ExtractAdapters makes inputs of a graph's adapters, and no pass before it makes the graph",
                    fix="put ModelBuilder before it")  # fmt: skip
        return passes
    return Passes(tuple(replace(step, kind="multi-onnx") if step is graph else step for step in passes.steps))


def _note_options(said: str, options: Mapping[str, Any], draft: Draft) -> None:
    """Options that decide nothing here are named; unknown ones are wrong."""
    used = ("precision", "bits", "w_bit", "outtype", "quantization_type", "evaluator")
    for option in options:
        if option not in _BUILDER_OPTIONS:
            near = nearest(option, _BUILDER_OPTIONS)
            draft.wrong(f"{said}.{option}", "unknown option", fix=f"did you mean {near}?" if near else "leave it out")
        elif option not in used:
            draft.note(f"{said}.{option}", "changes nothing: the writer of this format has its own setting for it")


def targets_of(evaluator: Mapping[str, Any], said: str, draft: Draft) -> Targets:
    """An evaluator's metrics as goals, and as what has to be measured."""
    metrics = evaluator.get("metrics")
    if not isinstance(metrics, list) or not all(isinstance(metric, dict) for metric in metrics):
        draft.wrong(f"{said}.metrics", "missing, or not a list of metrics", expected="a list of mappings")
        return Targets()
    goals: list[Goal] = []
    evaluate = measure = False
    for number, metric in enumerate(metrics):
        place, kind = f"{said}.metrics[{number}]", str(metric.get("type", metric.get("name", "")))
        if kind == "custom":
            draft.wrong(
                place, "code of an evaluator is not run", fix="write it as a metric of the recipe: task.metrics"
            )
            continue
        subs = metric.get("sub_types") or [{"name": metric.get("name", kind), "goal": metric.get("goal")}]
        if not isinstance(subs, list) or not all(isinstance(sub, dict) for sub in subs):
            draft.wrong(f"{place}.sub_types", f"{subs!r} is not allowed", expected="a list of mappings")
            continue
        for sub in subs:
            found = _measure(kind, str(sub.get("name", "")))
            if found is None:
                draft.note(place, f"{sub.get('name') or kind} is not measured of exports: {_WHY_NOT}")
                continue
            name, better = found
            evaluate |= name not in ("seconds_per_token", "tokens_per_second", "size_bytes")
            measure |= name in ("seconds_per_token", "tokens_per_second", "size_bytes")
            goal = sub.get("goal") or metric.get("goal")
            if goal is not None and (made := _goal(name, better, kind, goal, place, draft)) is not None:
                goals.append(made)
    return Targets(tuple(goals), evaluate, measure)


_WHY_NOT = "the metrics of the task, size, latency and throughput are (docs/tasks.md, docs/export.md)"


def _measure(kind: str, sub: str) -> tuple[str, Order] | None:
    if kind in ("latency", "throughput", "size_on_disk"):
        return _MEASURES[kind]
    return _MEASURES.get(sub)


def _goal(name: str, better: Order, kind: str, goal: Any, place: str, draft: Draft) -> Goal | None:
    if not isinstance(goal, dict):
        draft.wrong(f"{place}.goal", f"{goal!r} is not allowed", expected="{type: …, value: …}")
        return None
    value = draft.number(f"{place}.goal.value", goal.get("value"))
    if value is None:
        return None
    if kind == "latency" and str(goal.get("type")) == "threshold":
        value /= 1000  # Olive's latencies are milliseconds
    at = "at-least" if better == "higher" else "at-most"
    kinds = {"threshold": (at, 1.0, False), "max-degradation": ("max-degradation", 1.0, False),
             "percent-max-degradation": ("max-degradation", 0.01, True), "min-improvement": None,
             "percent-min-improvement": None}  # fmt: skip
    word = str(goal.get("type", ""))
    meant = draft.choice(f"{place}.goal.type", word, kinds)
    if meant is None:
        if word in kinds:
            draft.wrong(f"{place}.goal.type", f"{word} is none of ours", expected="threshold, max-degradation")
        return None
    what, factor, share = meant
    return Goal(name, cast(GoalKind, what), value * factor, share)


def unique_names(steps: Sequence[Step]) -> tuple[Step, ...]:
    """Steps whose names are all different."""
    seen: dict[str, int] = {}
    made = []
    for step in steps:
        seen[step.name] = seen.get(step.name, 0) + 1
        made.append(step if seen[step.name] == 1 else replace(step, name=f"{step.name}-{seen[step.name]}"))
    return tuple(made)
