"""One ONNX base with several adapters, of which each answer may be asked with another.

The base is built once, as for `onnx`, at any precision. Beside every matrix that some adapter changes the graph then
gets two further factors as inputs. Their default has rank zero and changes nothing, so the graph without an adapter is
the base; ranks are free, so adapters may differ in them, and in the modules they change.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from tunesmith.errors import RecipeError
from tunesmith.export.onnx.adapters import placed, read_factors, write_adapter_file
from tunesmith.export.onnx.builder import builder_version, provider_of
from tunesmith.export.onnx.graph import load_graph, nodes_by_name, save_graph, width_of
from tunesmith.export.onnx.naming import Sizes
from tunesmith.export.onnx.trying import try_running
from tunesmith.export.onnx.write import write_graph
from tunesmith.export.types import Source, StepError, Work
from tunesmith.inference.genai_config import ADAPTERS

_SUFFIX = ".onnx_adapter"
_ODD = re.compile(r"[^A-Za-z0-9-]+")


def write_multi(work: Work) -> Mapping[str, Any]:
    """Write the base with the adapters of `work.sources`, or with the one of `work.source`; see `export.types.Writer`.

    Its facts name the `adapters`, and what `write_onnx` says of the base. Raises `StepError` as that does, and for
    adapters that cannot be switched while a model runs (DoRA, modules trained in full, embeddings, head).
    """
    sources = work.sources or {work.source.name: work.source}
    _refuse_names(sources)
    provider_of(work.target.device)
    builder_version()
    _refuse_templates(work.source, sources)
    factors = {name: read_factors(source) for name, source in sources.items()}
    base = work.source.base_folder
    facts = write_graph(work.source, base, work)
    graph = load_graph(work.staged)
    nodes = nodes_by_name(graph)
    widths = {name: width_of(graph, node) for name, node in nodes.items()}
    sizes = Sizes.of(work.source.config.get_text_config())
    found = {name: placed(one, widths, sizes) for name, one in factors.items()}
    changed = sorted({node for one in found.values() for node in one})
    dtype = _computed_in(graph)
    names = add_inputs(graph, {node: nodes[node] for node in changed}, widths, dtype)
    save_graph(work.staged, graph)
    files = {}
    for place, (name, tensors) in enumerate(found.items()):
        work.tell(f"writing the adapter {name}")
        files[name] = _file_of(name, place)
        by_input = {key: value for node, pair in tensors.items() for key, value in zip(names[node], pair, strict=True)}
        write_adapter_file(work.staged / files[name], by_input, dtype)
    (work.staged / ADAPTERS).write_text(json.dumps(files, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    work.tell("running it with every adapter")
    try_running(work.staged, work.scratch, "--to onnx for each of them")
    ranks = {name: sorted({int(a.shape[0]) for a, _ in _pairs(one)}) for name, one in factors.items()}
    more = {"adapters": list(sources), "adapter_files": files, "ranks": ranks, "matrices_with_adapters": len(changed)}
    return {**facts, **more}


def add_inputs(
    graph: Any, nodes: Mapping[str, Any], widths: Mapping[str, tuple[int, int]], dtype: Any
) -> dict[str, tuple[str, str]]:
    """Let a graph add `x A B` to the output of each of these nodes; returns the inputs' names (A, B) by node.

    A [in, rank] and B [rank, out] are optional inputs whose default has rank zero.
    """
    from onnx import helper, numpy_helper

    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    names: dict[str, tuple[str, str]] = {}
    after: dict[str, list[Any]] = {}
    for name, node in nodes.items():
        stem = name.strip("/").removesuffix("/MatMul").replace("/", ".")
        into, out = widths[name]
        pair = (f"{stem}.lora_A.weight", f"{stem}.lora_B.weight")
        rank = f"{stem}.rank"
        for key, shape, empty in ((pair[0], (into, rank), (into, 0)), (pair[1], (rank, out), (0, out))):
            graph.graph.input.append(helper.make_tensor_value_info(key, kind, shape))
            graph.graph.initializer.append(numpy_helper.from_array(np.zeros(empty, dtype=dtype), key))
        whole, base = node.output[0], f"{node.output[0]}/base"
        node.output[0] = base
        after[node.name] = [
            helper.make_node("MatMul", [node.input[0], pair[0]], [f"{base}/low"], f"{name}/lora_A"),
            helper.make_node("MatMul", [f"{base}/low", pair[1]], [f"{base}/added"], f"{name}/lora_B"),
            helper.make_node("Add", [base, f"{base}/added"], [whole], f"{name}/lora_Add"),
        ]
        names[name] = pair
    ordered = [one for node in graph.graph.node for one in (node, *after.get(node.name, ()))]
    copies = [type(one).FromString(one.SerializeToString()) for one in ordered]
    del graph.graph.node[:]
    graph.graph.node.extend(copies)
    return names


def _computed_in(graph: Any) -> Any:
    """The type of what flows through a graph: that of its keys and values."""
    from onnx import helper

    for one in graph.graph.input:
        if one.name.startswith("past_key_values."):
            return helper.tensor_dtype_to_np_dtype(one.type.tensor_type.elem_type)
    raise StepError("packing the adapter", "the graph keeps no keys and values", "--to onnx")


def _refuse_names(sources: Mapping[str, Source]) -> None:
    odd = [name for name in sources if not name.strip() or not name.isprintable()]
    if odd:
        raise RecipeError(
            f"an adapter cannot be named {', '.join(map(repr, odd))}",
            where="the names of the adapters",
            expected="a name that can be written on one line",
        )


def _refuse_templates(source: Source, sources: Mapping[str, Source]) -> None:
    others = [name for name, one in sources.items() if one.template != source.template]
    if others:
        raise StepError(
            "packing the adapter",
            f"{', '.join(others)}: asked by another chat template than the rest, and an export has one",
            "pack only adapters that were trained with the same base.chat_template",
        )


def _file_of(name: str, place: int) -> str:
    """A file name for an adapter, whatever it is called; `place` keeps it apart from the others."""
    plain = _ODD.sub("-", name).strip("-")[:40]
    return f"{place:03d}-{plain}{_SUFFIX}" if plain else f"{place:03d}{_SUFFIX}"


def _pairs(factors: Mapping[str, Any]) -> list[tuple[Any, Any]]:
    return [(one.a, one.b) for one in factors.values()]
