"""Weights in few bits, as numbers and as the files of others hold them: the readers' side.

A weight [out, in] is codes [out, in] on a grid: `(code - zero) * scale`, where scale and zero belong to an output and a
group of inputs. The two layouts here are those that servers read, told by what they do with eight 4-bit codes:

`gptq`  a word holds eight neighbours among the inputs, lowest bits first; zeros are stored less one, eight neighbouring
        outputs to a word; `g_idx` [in] names each input's group.
`awq`   a word holds eight neighbours among the outputs, in the order 0 2 4 6 1 3 5 7; zeros likewise; groups are runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

WORD = 32
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Which of eight neighbouring outputs each half-byte of a word holds, lowest first."""


@dataclass(frozen=True, slots=True)
class Codes:
    """A quantised weight.

    Attributes
    ----------
    codes: uint8 [out, in], below 2**bits. scales: [out, groups], of the type they are stored in.
    zeros: uint8 [out, groups], the code that means 0. groups: int64 [in], each input's group.
    """

    bits: int
    codes: Tensor
    scales: Tensor
    zeros: Tensor
    groups: Tensor

    def values(self) -> Tensor:
        """The numbers that the codes stand for, float32 [out, in]."""
        steps = self.codes.to(torch.float32) - self.zeros[:, self.groups].to(torch.float32)
        return steps * self.scales[:, self.groups].to(torch.float32)

    @property
    def file_bytes(self) -> int:
        """Bytes of codes, scales and zeros when packed without gaps."""
        return (self.codes.numel() * self.bits + self.zeros.numel() * self.bits) // 8 + self.scales.nbytes


def unpack(words: Tensor, bits: int, count: int) -> Tensor:
    """Codes uint8 [rows, count] of int32 words [rows, ⌈count · bits / 32⌉], lowest bits first."""
    shifts = torch.arange(0, WORD, bits, device=words.device)
    codes = (words.to(torch.int64)[..., None] >> shifts) & ((1 << bits) - 1)
    return codes.flatten(-2)[..., :count].to(torch.uint8)


def unpack_gptq(tensors: Mapping[str, Tensor], bits: int) -> Codes:
    """From `qweight` [in · bits / 32, out], `qzeros` [groups, out · bits / 32], `scales` [groups, out] and `g_idx`."""
    groups = tensors["g_idx"].to(torch.int64)
    scales = tensors["scales"].t().contiguous()
    less_one = unpack(tensors["qzeros"], bits, scales.shape[0]).t()
    zeros = ((less_one.to(torch.int64) + 1) & ((1 << bits) - 1)).to(torch.uint8)
    codes = unpack(tensors["qweight"].t(), bits, len(groups))
    return Codes(bits, codes.contiguous(), scales, zeros.contiguous(), groups)


def unpack_awq(tensors: Mapping[str, Tensor], group: int) -> Codes:
    """A layer's `qweight` [in, out / 8], `qzeros` [groups, out / 8] and `scales` [groups, out]; 4 bits."""
    scales = tensors["scales"].t().contiguous()
    outputs, inputs = scales.shape[0], tensors["qweight"].shape[0]
    place = torch.argsort(torch.tensor(AWQ_ORDER, device=scales.device))

    def natural(words: Tensor) -> Tensor:
        mixed = unpack(words, 4, outputs)
        return mixed.reshape(len(words), -1, 8)[..., place].reshape(len(words), outputs).t().contiguous()

    groups = torch.arange(inputs, device=scales.device) // group
    return Codes(4, natural(tensors["qweight"]), scales, natural(tensors["qzeros"]), groups)


def fp8_values(weight: Tensor, scales: Tensor) -> Tensor:
    """Numbers float32 [out, in] of float8 codes [out, in] with a scale for each output [out, 1]."""
    return weight.to(torch.float32) * scales.to(torch.float32)


def fp8_tokens(x: Tensor) -> Tensor:
    """`x` [..., in] as a server with 8-bit products sees it: each token on the float8 grid that its largest value sets.

    Scale is |x|max / 448, computed anew for each token, as compressed-tensors' dynamic scheme `token` says.
    """
    top = torch.finfo(torch.float8_e4m3fn).max
    scale = x.detach().abs().amax(-1, keepdim=True).to(torch.float32).clamp_min(1e-12) / top
    grid = (x.to(torch.float32) / scale).clamp(-top, top).to(torch.float8_e4m3fn)
    return (grid.to(torch.float32) * scale).to(x.dtype)
