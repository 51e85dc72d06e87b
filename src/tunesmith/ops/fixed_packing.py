"""Where documents lie, in tensors of a fixed size: what a captured graph reads again for each stream it is replayed on.

A graph repeats the same kernels on the same memory. So the number of tokens, of documents and the longest one are those
of a shape and not of a stream; a stream fills them up with documents that nothing is learnt from, and with empty ones.
Kernels for streams (`varlen_attention`) read where documents begin from the device. `fixed_attention` is the plain form
of that: the whole `[T, T]` of scores with what is not to be seen left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tunesmith.ops.packing import Packing, Runs
from tunesmith.ops.partial_attention import ScoreRule


@dataclass(frozen=True, slots=True)
class FixedPacking:
    """Documents end to end, none of which continues another: positions [1, T], and `runs` with their `starts` [D+1].

    `runs.longest` is the longest that a document may be, not the longest there is. Empty documents are at the end.
    """

    positions: Tensor
    runs: Runs


AnyPacking = Packing | FixedPacking


def fixed_attention(
    query: Tensor, key: Tensor, value: Tensor, packing: FixedPacking, rule: ScoreRule, window: int | None = None
) -> Tensor:
    """The plain form, memory T² a head: q [T, H, D]; k, v [T, Hkv, D]; to [T, H, D]. Nothing is asked of the host."""
    places = torch.arange(len(query), device=query.device)
    document = torch.searchsorted(packing.runs.starts[1:].long(), places, right=True)
    distance = places[:, None] - places[None, :]
    seen = (document[:, None] == document[None, :]) & (distance >= 0)
    if window is not None:
        seen &= distance < window
    repeats = query.shape[1] // key.shape[1]
    q, k, v = query.transpose(0, 1), *(t.transpose(0, 1).repeat_interleave(repeats, 0) for t in (key, value))
    scores = q @ k.transpose(1, 2) * rule.scale
    if rule.softcap is not None:
        scores = rule.softcap * torch.tanh(scores / rule.softcap)
    return (scores.masked_fill(~seen, float("-inf")).softmax(-1) @ v).transpose(0, 1)
