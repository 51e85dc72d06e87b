"""Codes of 4 and 8 bits: the nearest ones, the same as those of bitsandbytes, and the numbers they stand for."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.ops import quantized as ops

CPU = torch.device("cpu")
SHAPES = [(1, 3), (5, 64), (33, 7), (31, 48), (64, 96), (160, 448)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def weight(shape, dtype=torch.float32, seed=0, kind="normal"):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.03
    if kind == "zero row":
        values[0] = 0
    if kind == "outlier":
        values.view(-1)[1] = 30
    return values.to(dtype)


def test_the_tables_are_those_of_the_papers():
    nf4 = ops.nf4_table(CPU)
    normal = torch.distributions.Normal(0, 1)
    below, above = (normal.icdf(torch.linspace(0.9677083, 0.5, n)) for n in (8, 9))
    expected = torch.cat([-below / below[0], (above / above[0]).flip(0)[1:]])  # zero once
    torch.testing.assert_close(nf4, expected, rtol=1e-5, atol=1e-6)
    assert nf4[7] == 0 and bool((nf4.diff() > 0).all())
    dynamic = ops.dynamic_table(CPU)
    assert len(dynamic) == 256 and bool((dynamic.diff() > 0).all())
    assert {0.0, 1.0} <= set(dynamic.tolist()) and dynamic.abs().max() == 1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["normal", "zero row", "outlier"])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_value_gets_the_nearest_of_the_16(shape, kind, dtype):
    original = weight(shape, dtype, kind=kind)
    codes = ops.nf4_codes(original)
    assert codes.packed.numel() == -(-original.numel() // 2)
    flat = original.float().view(-1)
    blocks = torch.arange(flat.numel()) // 64
    scales = torch.zeros(-(-flat.numel() // 64)).scatter_reduce(0, blocks, flat.abs(), "amax")
    assert torch.equal(codes.scales, scales)
    choices = ops.nf4_table(CPU)[None] * codes.scales[blocks, None]
    best = (choices - flat[:, None]).abs().amin(1)
    values = ops.nf4_values(codes, shape, torch.float32).view(-1)
    assert ((values - flat).abs() <= best * (1 + 1e-5) + 1e-9).all()
    if kind == "zero row":
        assert not ops.nf4_values(codes, shape, torch.float32)[0].any() or shape[1] % 64
    for out in (*DTYPES, torch.float64):
        expected = ops.nf4_values_reference(codes, shape, out)
        assert torch.equal(ops.nf4_values(codes, shape, out), expected) and expected.dtype == out


def test_a_large_weight_is_quantised_in_parts_as_if_at_once(monkeypatch):
    original = weight((700, 500))  # more than one part, and blocks that cross rows
    assert original.numel() > ops._AT_ONCE and original.numel() % 64
    parts, rows = ops.nf4_codes(original), ops.int8_codes(original)
    monkeypatch.setattr(ops, "_AT_ONCE", 1 << 20)
    whole, whole_rows = ops.nf4_codes(original), ops.int8_codes(original)
    assert torch.equal(parts.packed, whole.packed) and torch.equal(parts.scales, whole.scales)
    assert torch.equal(rows.codes, whole_rows.codes) and torch.equal(rows.scales, whole_rows.scales)


def test_quantised_scales_are_near_the_scales():
    scales = ops.nf4_codes(weight((640, 448))).scales
    codes = ops.scale_codes(scales)
    values = ops.scale_values(codes)
    assert codes.codes.dtype == torch.uint8 and codes.codes.shape == scales.shape
    assert codes.scales.numel() == -(-scales.numel() // 256) and torch.equal(codes.offset, scales.mean())
    table, scaled = ops.dynamic_table(CPU), (scales - codes.offset) / codes.scales.repeat_interleave(256)[: len(scales)]
    best = (table[None] - scaled[:, None]).abs().amin(1)
    assert ((table[codes.codes.long()] - scaled).abs() <= best + 1e-6).all()
    assert float((values - scales).norm() / scales.norm()) < 0.01


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["normal", "zero row", "outlier"])
def test_int8_is_within_half_a_step_of_each_row(kind, dtype):
    original = weight((33, 70), dtype, kind=kind)
    codes = ops.int8_codes(original)
    step = codes.scales / 127
    assert codes.codes.dtype == torch.int8 and torch.equal(codes.scales[:, 0], original.float().abs().amax(1))
    error = (ops.int8_values(codes, torch.float32) - original.float()).abs()
    assert (error <= 0.5001 * step).all()
    assert codes.codes.abs().amax(1).eq(127).logical_or(codes.scales[:, 0] == 0).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.integers(1, 200), st.integers(0, 99), st.sampled_from([1e-30, 1e-3, 1.0, 1e30]))
def test_any_shape_and_size_of_numbers(rows, columns, seed, size):
    original = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * size
    codes = ops.nf4_codes(original)
    values = ops.nf4_values(codes, (rows, columns), torch.float32)
    assert torch.isfinite(values).all()
    assert torch.equal(values, ops.nf4_values_reference(codes, (rows, columns), torch.float32))
    # The widest gap of the table is 0.304: half of it, times the scale, is the largest error.
    scale = codes.scales.repeat_interleave(64)[: original.numel()].view_as(original)
    assert ((values - original).abs() <= 0.1525 * scale).all()


# bitsandbytes may be absent; where it is not, equality is bit for bit. Its CPU kernel reads rows as whole blocks, so
# that rows which are not multiples of 64 come back wrong from it: compared are those that are.
ALIGNED = [(5, 64), (17, 128), (320, 448)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["normal", "zero row", "outlier"])
@pytest.mark.parametrize("shape", ALIGNED)
def test_codes_and_values_are_those_of_bitsandbytes(shape, kind, dtype):
    functional = pytest.importorskip("bitsandbytes.functional", reason="the extra qlora is not installed")
    original = weight(shape, dtype, kind=kind)
    packed, state = functional.quantize_4bit(original, quant_type="nf4")
    codes = ops.nf4_codes(original)
    assert torch.equal(codes.packed, packed.view(-1)) and torch.equal(codes.scales, state.absmax)
    values = ops.nf4_values(codes, shape, dtype)
    assert torch.equal(values, functional.dequantize_4bit(packed, state).view(shape))
    assert torch.equal(values, ops.nf4_values_bitsandbytes(codes, shape, dtype))


@pytest.mark.parametrize("shape", ALIGNED)
def test_double_quantisation_is_that_of_bitsandbytes(shape):
    functional = pytest.importorskip("bitsandbytes.functional", reason="the extra qlora is not installed")
    original = weight(shape)
    packed, state = functional.quantize_4bit(original, quant_type="nf4", compress_statistics=True)
    codes = ops.nf4_codes(original)
    scales = ops.scale_codes(codes.scales)
    assert torch.equal(scales.offset, state.offset) and torch.equal(scales.scales, state.state2.absmax)
    assert torch.equal(ops.dynamic_table(CPU), state.state2.code)
    # Its CPU kernel puts a few values that lie at a boundary on the other side; the same codes give the same values.
    differ = scales.codes != state.absmax
    scaled = ((codes.scales - scales.offset) / scales.scales.repeat_interleave(256)[: len(codes.scales)])[differ]
    table = ops.dynamic_table(CPU)
    mine, theirs = table[scales.codes[differ].long()], table[state.absmax[differ].long()]
    assert differ.float().mean() < 0.01
    torch.testing.assert_close((mine - scaled).abs(), (theirs - scaled).abs(), rtol=0, atol=5e-5)
    same = ops.scale_values(ops.ScaleCodes(state.absmax, state.state2.absmax, state.offset))
    values = ops.nf4_values(ops.Nf4Codes(packed.view(-1), same), shape, torch.float32)
    assert torch.equal(values, functional.dequantize_4bit(packed, state).view(shape))


@pytest.mark.parametrize("dtype", DTYPES)
def test_int8_is_that_of_bitsandbytes(dtype):
    functional = pytest.importorskip("bitsandbytes.functional", reason="the extra qlora is not installed")
    original = weight((33, 70), dtype)
    theirs, scales, _ = functional.int8_vectorwise_quant(original)
    codes = ops.int8_codes(original)
    assert torch.equal(codes.codes, theirs) and torch.equal(codes.scales[:, 0], scales)
    values = functional.int8_vectorwise_dequant(theirs, scales)
    torch.testing.assert_close(ops.int8_values(codes, torch.float32), values, rtol=3e-7, atol=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("shape", SHAPES)
def test_a_gpu_gives_the_same_codes_and_values(shape):
    original = weight(shape)
    here, there = ops.nf4_codes(original), ops.nf4_codes(original.cuda())
    assert torch.equal(here.packed, there.packed.cpu()) and torch.equal(here.scales, there.scales.cpu())
    expected = ops.nf4_values(here, shape, torch.bfloat16)
    assert torch.equal(ops.nf4_values(there, shape, torch.bfloat16).cpu(), expected)
    pytest.importorskip("bitsandbytes", reason="the extra qlora is not installed")
    assert torch.equal(ops.nf4_values_bitsandbytes(there, shape, torch.bfloat16).cpu(), expected)
