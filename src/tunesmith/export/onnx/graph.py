"""The builder's graph, read and changed without its weights: they stay in the file beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tunesmith.export.types import StepError

GRAPH = "model.onnx"
WEIGHTS = "model.onnx.data"
_TABLES = ("cos_cache", "sin_cache")
"""Positions' angles: the builder writes them as constants, but they are no weights."""
_NARROW = ".fp16"
"""Ends the name of a constant that is held in fewer bits than it is used in."""
_BLOCK = 1 << 22
_LEAST = 1024
"""Values below which a constant is left in 32 bits: norms and scales, which are small and matter most."""


@dataclass(frozen=True, slots=True)
class Held:
    """How many bits weights are held in: `per_weight` over all of a model's parameters, scales and zero points
    included, and of how many matrices by the bits of their values."""

    per_weight: float
    matrices: Mapping[int, int]


def load_graph(folder: Path) -> Any:
    """The graph without the values of its weights."""
    import onnx

    return onnx.load(str(folder / GRAPH), load_external_data=False)


def save_graph(folder: Path, graph: Any) -> None:
    """Write it back; constants that were added keep their values inside."""
    (folder / GRAPH).write_bytes(graph.SerializeToString())


def bits_held(graph: Any, parameters: int) -> Held:
    """The real bits per weight of a graph that holds `parameters` values."""
    size = sum(_bytes(one) for one in graph.graph.initializer if not one.name.startswith(_TABLES))
    known = {one.name: one for one in graph.graph.initializer}
    matrices: dict[int, int] = {}
    for node in graph.graph.node:
        if node.op_type == "MatMulNBits":
            bits = next((a.i for a in node.attribute if a.name == "bits"), 4)
        elif node.op_type == "MatMul" and any(name in known for name in node.input):
            bits = 8 * _width(next(known[name] for name in node.input if name in known))
        else:
            continue
        matrices[bits] = matrices.get(bits, 0) + 1
    return Held(round(8 * size / parameters, 3), dict(sorted(matrices.items())))


def halve(folder: Path) -> None:
    """Hold the weights of a float32 graph in float16; they are widened again when it is loaded, so that it computes in
    float32, which a CPU does faster.

    Raises `StepError` for a value that float16 cannot hold.
    """
    from onnx import TensorProto, helper

    graph = load_graph(folder)
    wide = [one.name for one in graph.graph.initializer if _is_wide(one)]
    _narrow(folder, graph, frozenset(wide))
    casts = [helper.make_node("Cast", [f"{n}{_NARROW}"], [n], f"{n}/widen", to=TensorProto.FLOAT) for n in wide]
    nodes = [*casts, *graph.graph.node]
    del graph.graph.node[:]
    graph.graph.node.extend(nodes)
    save_graph(folder, graph)


def halve_embeddings(folder: Path) -> bool:
    """Hold embeddings in float16 that quantising left in 32 bits, and widen the rows that are looked up; whether there
    were any. Of a base whose head is apart they are much of the file."""
    from onnx import TensorProto, helper

    graph = load_graph(folder)
    wide = {one.name for one in graph.graph.initializer if _is_wide(one)}
    users: dict[str, int] = {}
    for node in graph.graph.node:
        for name in node.input:
            users[name] = users.get(name, 0) + 1
    found = [n for n in graph.graph.node if n.op_type == "Gather" and n.input[0] in wide and users[n.input[0]] == 1]
    if not found:
        return False
    try:
        _narrow(folder, graph, frozenset(node.input[0] for node in found))
    except StepError:  # values beyond float16: they stay as they are
        return False
    nodes = []
    for node in graph.graph.node:
        nodes.append(node)
        if node.op_type == "Gather" and f"{node.input[0]}{_NARROW}" in {one.name for one in graph.graph.initializer}:
            whole = node.output[0]
            node.input[0], node.output[0] = f"{node.input[0]}{_NARROW}", f"{whole}/narrow"
            nodes.append(helper.make_node("Cast", [f"{whole}/narrow"], [whole], f"{whole}/widen", to=TensorProto.FLOAT))
    copies = [type(node).FromString(node.SerializeToString()) for node in nodes]
    del graph.graph.node[:]
    graph.graph.node.extend(copies)
    save_graph(folder, graph)
    return True


def _is_wide(tensor: Any) -> bool:
    from onnx import TensorProto

    count = int(np.prod(tensor.dims, dtype=np.int64))
    outside = tensor.data_location == TensorProto.EXTERNAL and tensor.data_type == TensorProto.FLOAT
    return bool(outside and count >= _LEAST and not tensor.name.startswith(_TABLES))


def _narrow(folder: Path, graph: Any, names: frozenset[str]) -> None:
    """Write the file of weights anew with these tensors in float16, and rename them in the graph (in memory).

    Raises `StepError`, with everything as it was, for a value that float16 cannot hold.
    """
    from onnx import TensorProto

    source, target = folder / WEIGHTS, folder / f"{WEIGHTS}.half"
    places: dict[str, tuple[int, int]] = {}
    try:
        with source.open("rb") as read, target.open("wb") as write:
            for one in graph.graph.initializer:
                if one.data_location != TensorProto.EXTERNAL:
                    continue
                start = write.tell()
                (_copy_narrow if one.name in names else _copy)(read, write, _place(one), one.name)
                places[one.name] = (start, write.tell() - start)
    except StepError:
        target.unlink()
        raise
    for one in graph.graph.initializer:
        if one.name in places:
            _set_place(one, *places[one.name])
        if one.name in names:
            one.name = f"{one.name}{_NARROW}"
            one.data_type = TensorProto.FLOAT16
    target.replace(source)


def _copy(read: Any, write: Any, place: tuple[int, int], name: str) -> None:
    offset, length = place
    read.seek(offset)
    while length > 0:
        block = read.read(min(length, _BLOCK))
        if not block:
            raise StepError("reading the weights", f"{WEIGHTS} ends within {name}", "export again")
        write.write(block)
        length -= len(block)


def _copy_narrow(read: Any, write: Any, place: tuple[int, int], name: str) -> None:
    offset, length = place
    read.seek(offset)
    while length > 0:
        block = np.frombuffer(read.read(min(length, _BLOCK)), dtype=np.float32)
        with np.errstate(over="ignore"):
            half = block.astype(np.float16)
        if block.size == 0 or not np.isfinite(half).all():
            raise StepError("narrowing to float16", f"values of {name} are not finite in float16", "--precision fp32")
        write.write(half.tobytes())
        length -= block.nbytes


def _place(tensor: Any) -> tuple[int, int]:
    """Where a tensor's values lie in the file of weights: offset and length in bytes."""
    said = {entry.key: entry.value for entry in tensor.external_data}
    return int(said.get("offset", 0)), int(said.get("length") or _bytes(tensor))


def _set_place(tensor: Any, offset: int, length: int) -> None:
    del tensor.external_data[:]
    for key, value in (("location", WEIGHTS), ("offset", str(offset)), ("length", str(length))):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value


def _bytes(tensor: Any) -> int:
    return int(np.prod(tensor.dims, dtype=np.int64)) * _width(tensor)


def _width(tensor: Any) -> int:
    """Bytes per value; packed values of 4 bits are held as bytes."""
    from onnx import helper

    return int(helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)


def nodes_by_name(graph: Any) -> dict[str, Any]:
    """The nodes that multiply by a constant matrix, by the name the builder gave them before it quantised them."""
    known = {one.name for one in graph.graph.initializer}
    found = {}
    for node in graph.graph.node:
        if node.op_type == "MatMul" and known & {node.input[1], f"{node.input[1]}{_NARROW}"}:
            found[node.name] = node
        elif node.op_type == "MatMulNBits":
            found[node.name.rpartition("_Q")[0] or node.name] = node
    return found


def width_of(graph: Any, node: Any) -> tuple[int, int]:
    """Values in and out, of a node of `nodes_by_name`."""
    if node.op_type == "MatMulNBits":
        said = {a.name: a.i for a in node.attribute}
        return int(said["K"]), int(said["N"])
    names = (node.input[1], f"{node.input[1]}{_NARROW}")
    known: Sequence[Any] = [one for one in graph.graph.initializer if one.name in names]
    dims = list(known[0].dims)
    return int(dims[0]), int(dims[1])
