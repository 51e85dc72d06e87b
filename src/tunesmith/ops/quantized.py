"""Weights in 4 and 8 bits: their codes, and how to get numbers back.

NF4 (Dettmers et al. 2023, arXiv 2305.14314) cuts a weight, row after row, into blocks of 64 values, divides each by its
largest magnitude and keeps for every value the nearest of 16 numbers, which are quantiles of a normal distribution.
Two codes share a byte, the first in its upper half. With double quantisation the blocks' magnitudes, less their mean,
are kept in 8 bits as well, in blocks of 256, on the dynamic table of arXiv 2110.02861: 4 + 8/64 + 32/(64·256) = 4.127
bits per weight instead of 4.5. Codes and values are those of bitsandbytes, bit for bit (a test compares them), except
that its CPU kernel puts about 2 in 1,000 scale codes that lie at a boundary on its other side.

int8 (arXiv 2208.07339, without its split of outlier features: that serves products of int8 activations, and ours are
not quantised) keeps `round(127 w / m)` with m the largest magnitude of the output row.

Going back is a table look-up. The fast form reads one byte and fetches both of its values as a single 64-bit word,
0.25 ns a weight on one core, a third of two look-ups; `nf4_values_reference` is the plain form.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import import_module

import torch
from torch import Tensor

BLOCK = 64
"""Weights that share a scale."""

SCALE_BLOCK = 256
"""Scales that share a scale of their own, in double quantisation."""

_AT_ONCE = 1 << 18
"""Values quantised at once, a multiple of both blocks: those in between, of a whole layer, would be several copies."""

_SMALLEST = 1e-38
"""Stands for the largest magnitude of a block of zeros, to divide by."""

# arXiv 2305.14314, appendix E.
_NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)


@dataclass(frozen=True, slots=True)
class Nf4Codes:
    """A weight of N values in NF4.

    packed: uint8 [ceil(N / 2)], two codes a byte. scales: fp32 [ceil(N / 64)], one a block.
    """

    packed: Tensor
    scales: Tensor


@dataclass(frozen=True, slots=True)
class ScaleCodes:
    """The S scales of a weight, quantised once more.

    codes: uint8 [S]. scales: fp32 [ceil(S / 256)]. offset: fp32 [], the mean of the scales.
    """

    codes: Tensor
    scales: Tensor
    offset: Tensor


@dataclass(frozen=True, slots=True)
class Int8Codes:
    """A weight in 8 bits: codes int8 [out, in], scales fp32 [out, 1], the largest magnitude of each row."""

    codes: Tensor
    scales: Tensor


@cache
def nf4_table(device: torch.device) -> Tensor:
    """The 16 values of NF4, ascending: fp32 [16]."""
    return torch.tensor(_NF4, dtype=torch.float32, device=device)


@cache
def dynamic_table(device: torch.device) -> Tensor:
    """The 256 values of the signed dynamic 8-bit type, ascending: fp32 [256] (arXiv 2110.02861, section 1.3).

    Seven powers of ten; the i-th has 2^i values of each sign, the middles of equal steps between 0.1 and 1. With 0 and
    1 that makes 256.
    """
    values = [0.0, 1.0]
    for i in range(7):
        edges = torch.linspace(0.1, 1, 2**i + 1, dtype=torch.float32)
        middles = (10 ** (i - 6) * ((edges[:-1] + edges[1:]) / 2)).tolist()
        values += middles + [-value for value in middles]
    return torch.tensor(sorted(values), dtype=torch.float32, device=device)


def nf4_codes(weight: Tensor) -> Nf4Codes:
    """Quantise `weight`, of any shape and floating type, in the order of its values when contiguous."""
    codes, scales = _nearest(weight, BLOCK, nf4_table(weight.device))
    if codes.numel() % 2:
        codes = torch.cat([codes, codes.new_full((1,), _NF4.index(0.0))])
    return Nf4Codes((codes[::2] << 4) | codes[1::2], scales)


def scale_codes(scales: Tensor) -> ScaleCodes:
    """Quantise fp32 scales [S] around their mean."""
    offset = scales.mean()
    return ScaleCodes(*_nearest(scales - offset, SCALE_BLOCK, dynamic_table(scales.device)), offset)


def int8_codes(weight: Tensor) -> Int8Codes:
    """Quantise `weight` [out, in], of any floating type, by rows. A row of zeros has scale zero."""
    codes = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    scales = torch.empty(weight.shape[0], 1, dtype=torch.float32, device=weight.device)
    rows = max(1, _AT_ONCE // weight.shape[1])
    for i in range(0, len(weight), rows):
        values = weight.detach()[i : i + rows].float()
        scales[i : i + rows] = largest = values.abs().amax(1, keepdim=True)
        codes[i : i + rows] = torch.round(values * (127.0 / largest.clamp_min(_SMALLEST)))
    return Int8Codes(codes, scales)


def nf4_values(codes: Nf4Codes, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """The weight of `shape` again, computed in fp32 and rounded once to `dtype`."""
    count = _count(shape)
    pairs = torch.index_select(_byte_pairs(codes.packed.device), 0, codes.packed.int()).view(torch.float32)
    whole = count - count % BLOCK
    pairs[:whole].view(-1, BLOCK).mul_(codes.scales[: whole // BLOCK, None])
    if whole < count:
        pairs[whole:].mul_(codes.scales[-1])
    return pairs[:count].view(shape).to(dtype)


def nf4_values_bitsandbytes(codes: Nf4Codes, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """`nf4_values` by the kernels of `bitsandbytes`, which must be installed (extra `qlora`); not for fp64."""
    functional = import_module("bitsandbytes.functional")
    state = functional.QuantState(
        codes.scales,
        shape=torch.Size(shape),
        code=nf4_table(codes.packed.device),
        blocksize=BLOCK,
        quant_type="nf4",
        dtype=dtype,
    )
    return functional.dequantize_4bit(codes.packed[:, None], state)  # type: ignore[no-any-return]


def nf4_values_reference(codes: Nf4Codes, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """The plain form of `nf4_values`: unpack, look up, multiply each value by its block's scale."""
    indices = torch.stack([codes.packed >> 4, codes.packed & 15], 1).reshape(-1)[: _count(shape)].long()
    blocks = torch.arange(len(indices), device=indices.device) // BLOCK
    return (nf4_table(indices.device)[indices] * codes.scales[blocks]).view(shape).to(dtype)


def scale_values(codes: ScaleCodes) -> Tensor:
    """The scales again: fp32 [S]."""
    values = torch.index_select(dynamic_table(codes.codes.device), 0, codes.codes.int())
    outer = codes.scales.repeat_interleave(SCALE_BLOCK)[: len(values)]
    return values.mul_(outer).add_(codes.offset)


def int8_values(codes: Int8Codes, dtype: torch.dtype) -> Tensor:
    """The weight [out, in] again, computed in fp32 and rounded once to `dtype`."""
    return codes.codes.to(torch.float32).mul_(codes.scales / 127.0).to(dtype)


@cache
def _byte_pairs(device: torch.device) -> Tensor:
    """For every byte its two NF4 values side by side as one 64-bit word: int64 [256]."""
    table, byte = nf4_table(device), torch.arange(256, device=device)
    return torch.stack([table[byte >> 4], table[byte & 15]], 1).contiguous().view(torch.int64).view(-1)


def _nearest(values: Tensor, block: int, table: Tensor) -> tuple[Tensor, Tensor]:
    """Where in `table` lies what is nearest to each scaled value: uint8 [N]; the scales: fp32 [ceil(N / block)].

    Scaling multiplies with the reciprocal, as bitsandbytes does: the last bit decides at a boundary.
    """
    flat = values.detach().reshape(-1)
    codes = torch.empty(flat.numel(), dtype=torch.uint8, device=flat.device)
    scales = torch.empty(-(-flat.numel() // block), dtype=torch.float32, device=flat.device)
    bounds = (table[:-1] + table[1:]) / 2
    for i in range(0, flat.numel(), _AT_ONCE):
        part = flat[i : i + _AT_ONCE].float()
        rows = torch.nn.functional.pad(part, (0, -part.numel() % block)).view(-1, block)
        largest = rows.abs().amax(1)
        scaled = (rows * (1.0 / largest.clamp_min(_SMALLEST))[:, None]).clamp_(-1, 1).view(-1)[: part.numel()]
        codes[i : i + _AT_ONCE] = _how_many_below(scaled, bounds)
        scales[i // block : i // block + len(largest)] = largest
    return codes, scales


def _how_many_below(values: Tensor, bounds: Tensor) -> Tensor:
    """How many of the ascending `bounds` lie below each value: integers [N]."""
    if len(bounds) > 15:
        return torch.bucketize(values, bounds, out_int32=True)
    count = torch.zeros(values.shape, dtype=torch.uint8, device=values.device)
    for bound in bounds:  # for few bounds three times as fast as searching
        count += values > bound
    return count


def _count(shape: tuple[int, ...]) -> int:
    return int(torch.Size(shape).numel())
