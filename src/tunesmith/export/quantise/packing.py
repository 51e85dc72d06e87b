"""Codes as the words that servers read: the writers' side of `inference.quantised_weights`."""

from __future__ import annotations

import torch
from torch import Tensor

from tunesmith.inference.quantised_weights import AWQ_ORDER, WORD, Codes


def pack(codes: Tensor, bits: int) -> Tensor:
    """int32 words [rows, ⌈n · bits / 32⌉] of codes [rows, n], lowest bits first; the last word is filled with zeros."""
    per_word = WORD // bits
    rows, count = codes.shape
    filled = torch.zeros(rows, -(-count // per_word) * per_word, dtype=torch.int64, device=codes.device)
    filled[:, :count] = codes.to(torch.int64)
    shifts = torch.arange(0, WORD, bits, device=codes.device)
    words = (filled.view(rows, -1, per_word) << shifts).sum(-1)
    return torch.where(words >= 1 << (WORD - 1), words - (1 << WORD), words).to(torch.int32)


def pack_gptq(codes: Codes) -> dict[str, Tensor]:
    """A layer's tensors `qweight`, `qzeros`, `scales` and `g_idx`, as `unpack_gptq` takes them."""
    less_one = (codes.zeros.to(torch.int64) - 1) & ((1 << codes.bits) - 1)
    return {
        "qweight": pack(codes.codes, codes.bits).t().contiguous(),
        "qzeros": pack(less_one.t(), codes.bits),
        "scales": codes.scales.t().contiguous(),
        "g_idx": codes.groups.to(torch.int32),
    }


def pack_awq(codes: Codes) -> dict[str, Tensor]:
    """A layer's tensors `qweight`, `qzeros` and `scales`, as `unpack_awq` takes them; outputs a multiple of 8."""
    place = torch.tensor(AWQ_ORDER, device=codes.codes.device)

    def mixed(values: Tensor) -> Tensor:
        rows = values.t()
        return pack(rows.reshape(len(rows), -1, 8)[..., place].reshape(len(rows), -1), 4)

    return {"qweight": mixed(codes.codes), "qzeros": mixed(codes.zeros), "scales": codes.scales.t().contiguous()}
