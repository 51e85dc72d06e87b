"""Modules of a `transformers` model by the names that the builder gives to their matrices.

The builder names a node by its layer and its role, and joins query, key and value of a layer to one matrix where its
attention takes them together.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.(self_attn|mlp)\.([\w]+)$")
_ROOM = {"self_attn": "attn", "mlp": "mlp"}
_SAME = {"dense": "o_proj"}
"""Phi's name for what follows attention."""
JOINED = ("q_proj", "k_proj", "v_proj")


def node_of(path: str, nodes: Collection[str] | None = None) -> str | None:
    """The node that stands for the module at `path`; None where there is none.

    nodes: those that a graph has. Without them, joined projections are assumed to be joined.
    """
    if path.rpartition(".")[2] == "lm_head":
        return "/lm_head/MatMul"
    found = _LAYER.search(path)
    if found is None:
        return None
    layer, room, name = found.groups()
    begin = f"/model/layers.{layer}/{_ROOM[room]}"
    name = _SAME.get(name, name)
    own, joined = f"{begin}/{name}/MatMul", f"{begin}/qkv_proj/MatMul"
    if name not in JOINED:
        return own if nodes is None or own in nodes else None
    if nodes is None:
        return joined
    return own if own in nodes else joined if joined in nodes else None


@dataclass(frozen=True, slots=True)
class Sizes:
    """Values that attention's projections give out: queries, and keys or values."""

    query: int
    value: int

    @classmethod
    def of(cls, config: Any) -> Sizes:
        """From a `transformers` configuration."""
        heads = config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // heads
        return cls(heads * width, (getattr(config, "num_key_value_heads", None) or heads) * width)

    def columns(self, name: str) -> slice:
        """Where a projection's output lies in that of the joined matrix."""
        begin = {"q_proj": 0, "k_proj": self.query, "v_proj": self.query + self.value}[name]
        return slice(begin, begin + (self.query if name == "q_proj" else self.value))


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a module's output in a graph: rows `taken` of the module's weight, or the first or second of its
    `halves`, are columns `put` of a node's output; None is all of them."""

    node: str
    taken: slice | None = None
    put: slice | None = None
    halves: int | None = None


def pieces_of(path: str, nodes: Collection[str], sizes: Sizes) -> tuple[Piece, ...]:
    """Where the output of the module at `path` is in a graph that has these nodes; empty where it is nowhere.

    A model may join what the graph holds apart, and the other way round.
    """
    name = path.rpartition(".")[2]
    node = node_of(path, nodes)
    if node is not None:
        joined = name in JOINED and node.rpartition("/")[0].endswith("/qkv_proj")
        return (Piece(node, None, sizes.columns(name)),) if joined else (Piece(node),)
    begin = path.removesuffix(name)
    if name == "qkv_proj":
        parts = {part: node_of(begin + part, nodes) for part in JOINED}
        return tuple(Piece(found, sizes.columns(part)) for part, found in parts.items() if found is not None)
    if name == "gate_up_proj":
        gate, up = node_of(f"{begin}gate_proj", nodes), node_of(f"{begin}up_proj", nodes)
        if gate is not None and up is not None:
            return (Piece(gate, halves=0), Piece(up, halves=1))
    return ()
