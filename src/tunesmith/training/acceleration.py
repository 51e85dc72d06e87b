"""Whether micro-batches are replayed as CUDA graphs, layers compiled and products computed in fp8: rules, not timings.

A rule looks at the recipe, the base, the kind of device and the rows, so that a repetition decides alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch

from tunesmith.errors import RecipeError
from tunesmith.ops import fp8
from tunesmith.recipe.schema import Recipe
from tunesmith.text.types import Group, Sample
from tunesmith.training.batching import RowOrder, streams

Row = Sample | Group
Decision = tuple[Literal["on", "off"], str]
_FEWEST_STEPS = 50
"""Steps below which graphs are not worth their capture: each shape is first computed twice in the ordinary way."""
_SHARED = 0.15
"""Share of tokens that common beginnings save, from which on computing them once gains more than graphs do."""
_STEPS_LOOKED_AT = 8
_WORTH_COMPILING = 1e17
"""Operations of a training from which on compiling pays. A kind of layer takes up to a minute the first time, and a
tenth of five minutes at 3e14 operations per second is what a compiled step can be expected to give back."""


def choose_graphs(recipe: Recipe, model: Any, rows: Sequence[Row]) -> Decision:
    """Whether the micro-batches of this training are replayed as CUDA graphs, and why."""
    train = recipe.train
    if model.device.type != "cuda":
        return "off", "this device has no graphs to replay"
    if reason := why_no_graphs(recipe, model, rows):
        return "off", reason
    batch = int(train.batch_size)
    steps = train.max_steps or float(train.epochs) * len(rows) / batch
    if steps < _FEWEST_STEPS:
        return "off", f"{steps:.0f} steps are over before graphs are captured"
    saved = _shared_tokens(rows, batch, train.seed) if train.share_prefixes else 0.0
    if saved >= _SHARED:
        return "off", f"common beginnings save {saved:.0%} of the tokens, for streams whose shape changes"
    return "on", "no launch overhead"


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


def choose_compile(recipe: Recipe, model: Any, rows: Sequence[Row]) -> Decision:
    """Whether decoder layers are compiled, and why."""
    train = recipe.train
    if model.device.type != "cuda":
        return "off", "on a CPU it gains next to nothing, and our fused layers are faster"
    if train.sharding != "none":
        return "off", "weights are divided"
    if recipe.method.quantize != "none":
        return "off", "weights are made anew for each product, and the compiler stays out of that"
    tokens = sum(_tokens(row) for row in rows)
    epochs = train.max_steps * int(train.batch_size) / max(1, len(rows)) if train.max_steps else float(train.epochs)
    work = 6.0 * model.num_parameters() * tokens * epochs
    if work < _WORTH_COMPILING:
        return "off", f"about {work:.0e} operations are too few to earn back the compiler's time"
    return "on", f"about {work:.0e} operations earn back the compiler's time"


def refuse_absent(recipe: Recipe, device: torch.device) -> None:
    """Raise `RecipeError` for what was asked for and this device or method does not have; all of it at once."""
    train = recipe.train
    missing = []
    if train.cuda_graphs == "on" and device.type != "cuda":
        missing.append(("train.cuda_graphs", f"graphs are captured on CUDA, and this training is on {device.type}"))
    if train.precision == "fp8" and (reason := fp8.why_not(device)):
        missing.append(("train.precision", f"fp8 is not possible here: {reason}"))
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


def _shared_tokens(rows: Sequence[Row], batch_size: int, seed: int) -> float:
    """Share of the tokens of a few steps that need not be computed where common beginnings are computed once."""
    order = RowOrder(len(rows), batch_size, seed)
    whole = shared = 0
    for step in range(min(_STEPS_LOOKED_AT, order.steps_per_epoch)):
        chosen = [rows[i] for i in order.of_step(step)]
        whole += sum(_tokens(row) for row in chosen)
        shared += sum(size for _, size in streams(chosen, 1 << 62))
    return 1 - shared / whole if whole else 0.0


def _tokens(row: Row) -> int:
    return sum(len(s.ids) for s in (row.samples if isinstance(row, Group) else (row,)))
