"""A plan of mixed precision (bits per weight by module) in the builder's own terms: its nodes by name."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunesmith.export.onnx.builder import can_set_bits
from tunesmith.export.onnx.naming import node_of
from tunesmith.export.types import StepError

_EMBEDDINGS = re.compile(r"(?:^|\.)(?:embed_tokens|wte)$")
_WHOLE = 16
"""From this many bits on a matrix is left as it is."""


def plan(bits: Mapping[str, int], precision: str, model: Path) -> dict[str, Any]:
    """What the builder is told so that modules get at least the bits that a plan gives to them.

    Modules that the builder joins (query, key and value) get the most of theirs. Raises `StepError` where the installed
    builder or the precision knows no such plan, and for modules that no node stands for.
    """
    if precision not in ("int4", "int8"):
        raise StepError(
            "planning mixed precision", f"weights in {precision} are not quantised", "--precision int4 with the plan"
        )
    if not can_set_bits():
        raise StepError(
            "planning mixed precision",
            "the installed ONNX Runtime GenAI cannot give single layers bits of their own",
            "pip install --upgrade 'tunesmith[onnx]', or export without a plan: its int4 is mixed by itself",
        )
    tied = bool(json.loads((model / "config.json").read_text(encoding="utf-8")).get("tie_word_embeddings"))
    own = 4 if precision == "int4" else 8
    wanted: dict[str, int] = {}
    unknown = []
    for path, count in bits.items():
        node = "/lm_head/MatMul" if _EMBEDDINGS.search(path) and tied else node_of(path)
        if _EMBEDDINGS.search(path) and not tied:
            continue  # looked up, not multiplied: the builder holds it in 32 bits
        if node is None:
            unknown.append(path)
        else:
            wanted[node] = max(wanted.get(node, own), count)
    if unknown:
        raise StepError(
            "planning mixed precision",
            f"the ONNX graph has no matrix for {', '.join(sorted(unknown))}",
            "leave these modules out of the plan",
        )
    overrides = [_override(node, count) for node, count in sorted(wanted.items()) if count > own]
    operators = ["MatMul", "Gather"] if tied else ["MatMul"]
    return {
        "io_dtype": "fp32",
        "weights": {
            "type": precision,
            "method": "k_quant",
            "accuracy_level": 4,
            "block_size": 32,
            "op_types": operators,
            "overrides": overrides,
        },
    }


def _override(node: str, bits: int) -> dict[str, Any]:
    match = {"match": {"name": node}}
    return {**match, "exclude": True} if bits >= _WHOLE else {**match, "type": "int8"}
