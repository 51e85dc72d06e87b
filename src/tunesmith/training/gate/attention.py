"""Checks of attention: documents of every kind in one stream, grouped heads, windows, soft caps, shared prefixes.

What is checked is the function that models call, so whichever form this device and type take is the one compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from tunesmith.ops import document_attention
from tunesmith.ops.fixed_packing import FixedPacking
from tunesmith.ops.packed_attention import packed_attention
from tunesmith.ops.packing import Packing, Runs
from tunesmith.ops.partial_attention import ScoreRule
from tunesmith.ops.prefix_attention import attention_reference
from tunesmith.training.gate.compare import Comparison, compare_functions
from tunesmith.training.gate.operations import randn
from tunesmith.training.gate.types import EVERY, Check

GROUP = "attention"
_SIZE = 16
_HEADS, _KEY_HEADS = 6, 2

_DOCUMENTS: tuple[tuple[str, tuple[int, ...], tuple[tuple[int, int], ...]], ...] = (
    ("several documents", (1, 9, 23, 8, 1, 24, 22, 3), ()),
    ("one giant document", (150,), ()),
    ("shared prefixes", (1, 19, 7, 1, 12, 30, 16, 5, 9), ((1, 3), (6, 2))),
)
_RULES: tuple[tuple[str, int | None, float | None], ...] = (
    ("", None, None),
    (", sliding window", 6, None),
    (", soft cap", None, 4.0),
    (", window and soft cap", 6, 4.0),
)


def attention_checks() -> list[Check]:
    """Attention as models call it, in fixed shapes too, and the C form for documents where this machine compiled it."""
    checks = [
        Check(
            f"attention, {words}{rule}",
            GROUP,
            partial(_packed, lengths=lengths, continued=continued, window=window, softcap=cap),
            EVERY,
        )
        for words, lengths, continued in _DOCUMENTS
        for rule, window, cap in _RULES
    ]
    checks += [
        Check(f"attention, in a fixed shape{rule}", GROUP, partial(_fixed, window=window, softcap=cap), EVERY)
        for rule, window, cap in _RULES
    ]
    if document_attention.can_attend(torch.zeros(1, 1, _SIZE)):
        checks += [
            Check(
                f"attention in C, {words}{rule}",
                GROUP,
                partial(_in_c, lengths=lengths, window=window),
                (torch.float32,),
                ("cpu",),
            )
            for words, lengths, continued in _DOCUMENTS
            for rule, window, cap in _RULES
            if not continued and cap is None
        ]
    return checks


def _packed(
    generator: torch.Generator,
    device: torch.device,
    dtype: torch.dtype,
    *,
    lengths: Sequence[int],
    continued: Sequence[tuple[int, int]],
    window: int | None,
    softcap: float | None,
) -> Comparison:
    packing = Packing.of(lengths, device, continued)
    rule = ScoreRule(0.3, softcap)

    def fast(t: Mapping[str, Tensor]) -> dict[str, Tensor]:
        q, k, v = (t[name].transpose(0, 1)[None] for name in "qkv")
        out, _ = packed_attention(
            nn.Module(), q, k, v, None, scaling=rule.scale, packing=packing, sliding_window=window, softcap=softcap
        )
        return {"out": out[0]}

    def plain(t: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"out": attention_reference(t["q"], t["k"], t["v"], packing, rule, window)}

    return compare_functions(fast, plain, _inputs(generator, sum(lengths)), generator, device, dtype)


def _fixed(
    generator: torch.Generator, device: torch.device, dtype: torch.dtype, *, window: int | None, softcap: float | None
) -> Comparison:
    """With empty documents behind, and room for a longer one than there is."""
    lengths = _DOCUMENTS[0][1]
    whole, rule = Packing.of(lengths, device), ScoreRule(0.3, softcap)
    starts = torch.cat([whole.runs.starts, whole.runs.starts[-1:].expand(4)])
    packing = FixedPacking(whole.positions, Runs(None, starts, 64))

    def fast(t: Mapping[str, Tensor]) -> dict[str, Tensor]:
        q, k, v = (t[name].transpose(0, 1)[None] for name in "qkv")
        out, _ = packed_attention(
            nn.Module(), q, k, v, None, scaling=rule.scale, packing=packing, sliding_window=window, softcap=softcap
        )
        return {"out": out[0]}

    def plain(t: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"out": attention_reference(t["q"], t["k"], t["v"], whole, rule, window)}

    return compare_functions(fast, plain, _inputs(generator, sum(lengths)), generator, device, dtype)


def _in_c(
    generator: torch.Generator,
    device: torch.device,
    dtype: torch.dtype,
    *,
    lengths: Sequence[int],
    window: int | None,
) -> Comparison:
    packing, rule = Packing.of(lengths), ScoreRule(0.3)

    def fast(t: Mapping[str, Tensor]) -> dict[str, Tensor]:
        q, k, v = (t[name].transpose(0, 1) for name in "qkv")
        return {"out": document_attention.document_attention(q, k, v, lengths, rule.scale, window)}

    def plain(t: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"out": attention_reference(t["q"], t["k"], t["v"], packing, rule, window).flatten(1)}

    return compare_functions(fast, plain, _inputs(generator, sum(lengths)), generator, device, dtype)


def _inputs(generator: torch.Generator, tokens: int) -> dict[str, Tensor]:
    """Queries [T, H, D]; keys and values [T, Hkv, D]."""
    heads = {"q": _HEADS, "k": _KEY_HEADS, "v": _KEY_HEADS}
    return {name: randn(generator, tokens, count, _SIZE) for name, count in heads.items()}
