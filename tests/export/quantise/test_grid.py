import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.export.quantise.grid import Grid, fit, rtn
from tunesmith.export.quantise.packing import pack, pack_awq, pack_gptq
from tunesmith.inference.quantised_weights import Codes, fp8_tokens, unpack, unpack_awq, unpack_gptq


def weight(out: int, inputs: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(out, inputs, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("out", "inputs", "group"), [(8, 32, 16), (5, 37, 16), (3, 7, 128), (16, 1, 4)])
def test_every_weight_is_within_half_a_step_or_clipped(bits, symmetric, out, inputs, group):
    given_weight = weight(out, inputs)
    codes = rtn(given_weight, Grid(bits, group, symmetric))
    steps = codes.scales[:, codes.groups].float()
    wrong = (codes.values() - given_weight).abs()
    ends = (codes.codes == 0) | (codes.codes == (1 << bits) - 1)
    assert bool((wrong[~ends] <= 0.5001 * steps[~ends]).all())
    assert float(wrong.square().mean()) < (0.02 if bits == 4 else 1e-4)


def test_scales_are_what_the_file_holds():
    codes = rtn(weight(4, 64), Grid(4, 32))
    assert codes.scales.dtype == torch.float16
    assert codes.scales.shape == (4, 2)


def test_a_symmetric_grid_has_its_zero_in_the_middle():
    assert set(rtn(weight(4, 64), Grid(4, 32)).zeros.flatten().tolist()) == {8}
    assert set(rtn(weight(4, 64), Grid(8, 32)).zeros.flatten().tolist()) == {128}


def test_zeros_stay_zeros():
    for symmetric in (True, False):
        assert not rtn(torch.zeros(4, 32), Grid(4, 16, symmetric)).values().any()


def test_a_lone_large_weight_is_clipped_where_that_serves_the_others():
    line = torch.full((1, 512), 0.45)
    line[0, ::2] = -0.45
    line[0, 0] = 7.5  # at the full range every other weight would fall to 0 or 1
    scale, _ = fit(line, Grid(4, 512))
    assert float(scale) < 2 * 7.5 / 15 - 1e-3


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.integers(1, 41), st.sampled_from([4, 8]), st.integers(0, 99))
def test_words_give_back_the_codes(rows, count, bits, seed):
    codes = torch.randint(0, 1 << bits, (rows, count), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    words = pack(codes, bits)
    assert words.dtype == torch.int32
    assert words.shape == (rows, -(-count * bits // 32))
    assert torch.equal(unpack(words, bits, count), codes)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("out", "inputs", "group"), [(8, 32, 16), (16, 40, 16), (24, 8, 128), (13, 21, 8)])
def test_gptq_words_give_back_every_bit(bits, out, inputs, group):
    """A last group that is shorter, and sizes that leave the last word of a row or column part empty, included."""
    codes = rtn(weight(out, inputs), Grid(bits, group))
    shuffled = Codes(bits, codes.codes, codes.scales, codes.zeros, codes.groups.flip(0))
    for one in (codes, shuffled):
        assert same(unpack_gptq(pack_gptq(one), bits), one)


def test_gptq_words_hold_a_zero_of_zero():
    codes = rtn(weight(8, 16).abs(), Grid(4, 16, symmetric=False))
    assert not codes.zeros.any()
    assert same(unpack_gptq(pack_gptq(codes), 4), codes)


@pytest.mark.parametrize(("out", "inputs", "group"), [(8, 32, 16), (16, 48, 16), (64, 8, 8)])
def test_awq_words_give_back_every_bit(out, inputs, group):
    codes = rtn(weight(out, inputs), Grid(4, group, symmetric=False))
    assert same(unpack_awq(pack_awq(codes), group), codes)


def test_tokens_in_float8_keep_their_own_scale():
    x = torch.stack([torch.linspace(-1, 1, 64), torch.linspace(-1, 1, 64) * 1e-4, torch.zeros(64)])
    seen = fp8_tokens(x)
    assert torch.equal(seen[2], x[2])
    assert float(((seen - x)[:2].abs() / x[:2].abs().amax(1, keepdim=True)).max()) < 2**-4
    assert torch.allclose(seen[1] * 1e4, seen[0], rtol=1e-5)


def same(one: Codes, other: Codes) -> bool:
    return one.bits == other.bits and all(
        torch.equal(getattr(one, name), getattr(other, name)) for name in ("codes", "scales", "zeros", "groups")
    )
