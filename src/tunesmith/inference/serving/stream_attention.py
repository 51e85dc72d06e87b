"""Attention of a step's tokens, each row's to what that row remembers, while all else of the model runs over all rows.

The tokens of a step are one flat stream: linear layers, norms and activations see them all at once, and need not know
whose they are. Only attention does. `transformers` reaches it through its attention registry under the name
`ATTENTION`; who has which tokens travels as the keyword `step`. Each row's new keys and values go into its segment, and
its queries attend to all of the segment (`ops.partial_attention`). Windows, soft caps and sinks are taken into
account. Whether a model's own logits come out of it is measured before it is used (`flat.FlatRunner`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tunesmith.errors import EngineError
from tunesmith.inference.serving.memory import Segment
from tunesmith.ops.partial_attention import ScoreRule, Sight, attend

ATTENTION = "tunesmith_serving"
_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


@dataclass(frozen=True, slots=True)
class Step:
    """Whose the tokens of a stream are: rows' segments in order, and where each row's tokens end."""

    segments: Sequence[Segment]
    ends: Sequence[int]


def serving_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    step: Step | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """The function `transformers` calls: `query` [1, H, T, D], `key`, `value` [1, Hkv, T, D] to [1, T, H, Dv].

    Raises `EngineError` for a model whose attention is something else.
    """
    if step is None or attention_mask is not None or others.get("position_bias") is not None:
        raise EngineError("this model's attention cannot be served from one stream", where=type(module).__name__)
    if not getattr(module, "is_causal", True):
        raise EngineError("only causal attention can be served", where=type(module).__name__)
    rule = ScoreRule(scaling if scaling is not None else query.shape[-1] ** -0.5, softcap)
    layer: int = module.layer_idx  # type: ignore[assignment]
    return attend_step(layer, query, key, value, step, rule, sliding_window, s_aux), None


def attend_step(
    layer: int,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    step: Step,
    rule: ScoreRule,
    sliding_window: int | None = None,
    s_aux: Tensor | None = None,
) -> Tensor:
    """What each token's row has to say to it, [1, T, H, Dv], from `query` [1, H, T, D] and the new `key` and `value`
    [1, Hkv, T, D] of a layer, which are remembered. `s_aux` [H]: scores of a key that every query sees."""
    wanted = value.shape[-1]
    query, key, value = _same_size(query, key, value)
    heads, tokens, groups = query.shape[1], query.shape[2], key.shape[1]
    out = query.new_empty(1, tokens, heads, value.shape[-1])
    fused = query.device.type == "cpu" and rule.softcap is None and s_aux is None
    start = 0
    for segment, end in zip(step.segments, step.ends, strict=True):
        keys, values = segment.append(layer, key[0, :, start:end], value[0, :, start:end])
        if end - start == 1:
            if sliding_window is not None and keys.shape[1] > sliding_window:
                keys, values = keys[:, -sliding_window:], values[:, -sliding_window:]
            if fused:  # the query heads of a key head as queries of one head
                asked = query[:, :, start].view(1, groups, heads // groups, -1)
                said, _ = _flash(asked, keys[None], values[None], 0.0, False, scale=rule.scale)
                out[0, start] = said.view(heads, -1)
                start = end
                continue
            sight = Sight(everything=True)
        else:
            window = None if sliding_window is None or keys.shape[1] <= sliding_window else sliding_window
            sight = Sight(offset=keys.shape[1] - (end - start), window=window)
        said, lse = attend(query[:, :, start:end], keys[None], values[None], rule, sight)
        if s_aux is not None:  # a key of every head that has no value
            said = said * torch.sigmoid(lse - s_aux.view(1, -1, 1).to(lse))[..., None].to(said)
        out[:, start:end] = said.transpose(1, 2)
        start = end
    return out if wanted == out.shape[-1] else out[..., :wanted]


def _same_size(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Heads of one size, as torch's kernel wants them: zeros change neither scores nor what is read off values."""
    missing = query.shape[-1] - value.shape[-1]
    if missing > 0:
        value = F.pad(value, (0, missing))
    elif missing < 0:
        query, key = F.pad(query, (0, -missing)), F.pad(key, (0, -missing))
    return query, key, value


def use_serving_attention(model: Any) -> None:
    """From now on the model's attention is `serving_attention`; it then needs a `Step` with every call."""
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION, serving_attention)
    model.set_attn_implementation(ATTENTION)
