"""The attention that `transformers` models call on a flat stream of documents that never see each other.

They reach it through their attention registry under the name `ATTENTION`; the layout of the stream travels as the
keyword `packing`. How it is computed depends on the device: rectangles of documents and shared prefixes
(`prefix_attention`), or torch's attention for streams in half precision on CUDA (`varlen_attention`). Streams of a
fixed shape (`fixed_packing`) take the latter, or a plain form.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from tunesmith.errors import EngineError
from tunesmith.ops import varlen_attention
from tunesmith.ops.fixed_packing import AnyPacking, FixedPacking, fixed_attention
from tunesmith.ops.packing import Packing
from tunesmith.ops.partial_attention import ScoreRule
from tunesmith.ops.prefix_attention import attention_reference, stream_attention

__all__ = ["ATTENTION", "Packing", "packed_attention", "register"]

ATTENTION = "tunesmith_packed"


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    packing: AnyPacking | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """The function `transformers` calls: `query` [1, H, T, D], `key`, `value` [1, Hkv, T, D] to [1, T, H, D].

    Attention dropout takes the plain form, one document at a time. Raises `EngineError` for what cannot be packed.
    """
    if packing is None or attention_mask is not None:
        raise EngineError(
            "this model's attention did not receive the packing of the token stream",
            where=type(module).__name__,
            fix="the architecture rebuilds its own masks; it cannot be trained on packed streams yet",
        )
    for name in ("s_aux", "position_bias"):
        if others.get(name) is not None:
            raise EngineError(f"attention with {name} cannot be packed yet", where=type(module).__name__)
    if not getattr(module, "is_causal", True):
        raise EngineError("only causal attention can be packed", where=type(module).__name__)
    if dropout and (isinstance(packing, FixedPacking) or packing.prefixes):
        raise EngineError(
            "attention with dropout can neither share prefixes nor be captured: each document draws its own",
            where=type(module).__name__,
            fix="set train.share_prefixes: false and train.cuda_graphs: off",
        )
    rule = ScoreRule(scaling if scaling is not None else query.shape[-1] ** -0.5, softcap)
    window = None if sliding_window is None or sliding_window >= _longest(packing) else sliding_window
    q, k, v = (_in_autocast(t)[0].transpose(0, 1) for t in (query, key, value))  # [T, H, D]
    if dropout and isinstance(packing, Packing):
        out = attention_reference(q, k, v, packing, rule, window, dropout)
    elif varlen_attention.usable(q, rule):
        out = varlen_attention.varlen_attention(q, k, v, packing, rule, window)
    elif isinstance(packing, FixedPacking):
        out = fixed_attention(q, k, v, packing, rule, window)
    else:
        out = stream_attention(q, k, v, packing, rule, window)
    return out.unsqueeze(0), None


def register() -> None:
    """Make the attention known to `transformers` under `ATTENTION` (its official registry; nothing is overwritten)."""
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION, _registered[-1])


_registered: list[Callable[..., tuple[Tensor, None]]] = [packed_attention]


@contextmanager
def hidden_from_compiler() -> Iterator[None]:
    """Within this, what is registered is called by compiled code as it is: the compiler does not look into it.

    It would compile again for every layout of documents.
    """
    _registered.append(torch.compiler.disable(packed_attention))  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        _registered.pop()
        register()


def _longest(packing: AnyPacking) -> int:
    """Length of the longest document, or of the longest that there may be."""
    if isinstance(packing, FixedPacking):
        return packing.runs.longest
    behind = (prefix.length + max(prefix.suffixes) for prefix in packing.prefixes)
    return max(*packing.lengths, *behind, 0)


def _in_autocast(stream: Tensor) -> Tensor:
    """Under autocast, the dtype it would give a product; rotated queries and keys arrive wider than values."""
    device = stream.device.type
    if not torch.is_autocast_enabled(device) or stream.dtype == torch.float64:  # which autocast leaves alone
        return stream
    return stream.to(torch.get_autocast_dtype(device))
