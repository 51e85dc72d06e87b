"""What of CUDA graphs, compiled layers and fp8 a training takes: nothing unasked, and only what is possible of that.

Reasons come from the recipe, the base, the kind of device and the rows, never from timings: a repetition decides alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch

from tunesmith.errors import RecipeError
from tunesmith.models import compiled_layers
from tunesmith.ops import fp8
from tunesmith.recipe.schema import Recipe
from tunesmith.text.types import Group, Sample

Row = Sample | Group
Decision = tuple[Literal["on", "off"], str]
UNTRIED = "only on request, as it has not been measured on a GPU yet"


def choose_graphs(device: torch.device) -> Decision:
    """Whether micro-batches are replayed as CUDA graphs where nobody said so, and why: never, until it was measured."""
    if device.type != "cuda":
        return "off", "this device has no graphs to replay"
    return "off", UNTRIED


def choose_compile(device: torch.device) -> Decision:
    """Whether decoder layers are compiled where nobody said so, and why: never, until it was measured."""
    if device.type != "cuda":
        return "off", "on a CPU it gains next to nothing, and our fused layers are faster"
    return "off", UNTRIED


def why_no_graphs(recipe: Recipe, model: Any, rows: Sequence[Row] = ()) -> str | None:
    """What of a training cannot be captured, or None. Asks nothing of the device."""
    train = recipe.train
    config = model.config.get_text_config()
    narrow = train.precision in ("bf16", "fp16", "fp8") or model.dtype in (torch.bfloat16, torch.float16)
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    reasons = {
        "weights are divided": train.sharding != "none",
        "only cross-entropy is captured": train.objective != "cross_entropy" or train.distillation is not None,
        "label smoothing and z-loss are not captured": bool(train.label_smoothing or train.z_loss),
        "noise on the embeddings is drawn on the host": bool(train.neftune_alpha),
        "dropout draws other numbers each time": bool(recipe.method.dropout),
        "each tensor is updated within the backward pass": train.optimizer_in_backward,
        "states of frozen layers are read from disk": train.cache_trunk == "on",
        "rows are pairs": any(isinstance(row, Group) for row in rows),
        "attention in fp32 has no kernel for streams": not narrow,
        "attention with a soft cap has no kernel for streams": bool(getattr(config, "attn_logit_softcapping", None)),
        f"attention has no kernel for heads of {size}": size > 256 or size % 8 != 0,
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def refuse_absent(recipe: Recipe, device: torch.device) -> None:
    """Raise `RecipeError` for what was asked for and this device or method does not have; all of it at once."""
    train = recipe.train
    missing = []
    if train.cuda_graphs == "on" and device.type != "cuda":
        missing.append(("train.cuda_graphs", f"graphs are captured on CUDA, and this training is on {device.type}"))
    if train.precision == "fp8" and (reason := fp8.why_not(device)):
        missing.append(("train.precision", f"fp8 is not possible here: {reason}"))
    if train.compile == "on" and (reason := compiled_layers.why_not(device)):
        missing.append(("train.compile", reason))
    for key in ("cuda_graphs", "compile"):
        if getattr(train, key) == "on" and train.sharding != "none":
            missing.append((f"train.{key}", "layers whose weights are divided are neither captured nor compiled"))
    if train.precision == "fp8" and train.sharding != "none":
        missing.append(("train.precision", "fp8 needs whole weights, and train.sharding divides them"))
    if train.precision == "fp8" and recipe.method.quantize != "none":
        missing.append(
            ("train.precision", f"the weights are held in {recipe.method.quantize}, and cannot be in fp8 too")
        )
    if missing:
        raise RecipeError(
            "; ".join(what for _, what in missing),
            where=", ".join(dict.fromkeys(where for where, _ in missing)),
            fix="leave them at auto, or train where they are possible",
        )
