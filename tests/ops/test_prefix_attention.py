"""Attention with shared prefixes against each document alone, part by part and whole."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tunesmith.errors import EngineError
from tunesmith.ops import partial_attention, varlen_attention
from tunesmith.ops.packed_attention import packed_attention
from tunesmith.ops.packing import Packing, Runs
from tunesmith.ops.partial_attention import ScoreRule, Sight, attend, attend_backward, join
from tunesmith.ops.prefix_attention import attention_reference
from tunesmith.ops.varlen_attention import usable

Layout = tuple[list[int], list[tuple[int, int]]]
LAYOUTS: dict[str, Layout] = {
    "one prefix": ([6, 3, 1, 4], [(0, 3)]),
    "equal lengths, plain stream": ([8, 4, 4], [(0, 2)]),
    "two prefixes and loners": ([5, 6, 3, 1, 4, 20, 2, 2, 7, 1], [(1, 3), (5, 2)]),
    "suffixes of one token": ([9, 1, 1, 1], [(0, 3)]),
    "prefix of one token": ([1, 7, 5], [(0, 2)]),
    "one continuation only": ([4, 4, 9], [(1, 1)]),
    "longer than a block": ([150, 70, 3, 90], [(0, 3)]),
}
OPTIONS = [{}, {"sliding_window": 2}, {"sliding_window": 4}, {"sliding_window": 11}, {"sliding_window": 80},
           {"softcap": 5.0}, {"sliding_window": 4, "softcap": 5.0}]  # fmt: skip


def streams(total: int, heads: int, shared: int, dtype: torch.dtype, headwise: bool = True) -> list[Tensor]:
    """Random query [1, heads, total, 8], key and value [1, shared, total, 8]; in memory head after head, or token
    after token."""
    generator = torch.Generator().manual_seed(total)
    tensors = []
    for count in (heads, shared, shared):
        size = (1, count, total, 8) if headwise else (1, total, count, 8)
        t = torch.randn(size, generator=generator, dtype=torch.float64).to(dtype)
        tensors.append((t if headwise else t.transpose(1, 2)).detach().requires_grad_())
    return tensors


def outcome(out: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    """A result and its gradients in a fixed random direction."""
    direction = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gradients = torch.autograd.grad((out * direction.to(out.device, out.dtype)).sum(), inputs)
    return [out.detach(), *gradients]


def compare(layout: Layout, tensors: list[Tensor], rtol: float, **options: object) -> None:
    """Result and gradients are those of every document alone, in float64."""
    packing = Packing.of(layout[0], tensors[0].device, layout[1])
    ours, _ = packed_attention(nn.Module(), *tensors, None, scaling=0.3, packing=packing, **options)  # type: ignore[arg-type]
    assert ours.is_contiguous()
    plain = [t.detach().double().requires_grad_() for t in tensors]
    rule = ScoreRule(0.3, options.get("softcap"))  # type: ignore[arg-type]
    flat = [t[0].transpose(0, 1) for t in plain]
    expected = attention_reference(*flat, packing, rule, options.get("sliding_window"))[None]  # type: ignore[arg-type]
    for mine, other in zip(outcome(ours, tensors), outcome(expected, plain), strict=True):
        error = (mine.double() - other).norm() / other.norm()
        assert error <= rtol, error


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_equals_each_document_alone(layout, options):
    total = sum(layout[0])
    compare(layout, streams(total, 4, 2, torch.float64), 1e-12, **options)
    compare(layout, streams(total, 4, 2, torch.float64, headwise=False), 1e-12, **options)


@pytest.mark.parametrize(("heads", "shared"), [(4, 4), (4, 1), (6, 3)])
@pytest.mark.parametrize("options", [{}, {"softcap": 5.0}], ids=str)
def test_grouped_queries(heads, shared, options):
    compare(LAYOUTS["two prefixes and loners"], streams(51, heads, shared, torch.float64), 1e-12, **options)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_half_precision_is_within_its_rounding(options):
    compare(LAYOUTS["two prefixes and loners"], streams(51, 4, 2, torch.bfloat16), 0.02, **options)


@pytest.mark.parametrize("options", [{}, {"sliding_window": 300}], ids=str)
def test_long_half_precision_documents(options):
    compare(([1100, 50, 40, 30], [(0, 2)]), streams(1220, 2, 1, torch.bfloat16), 0.03, **options)


@given(
    lone=st.lists(st.integers(1, 9), max_size=3),
    families=st.lists(st.tuples(st.integers(1, 12), st.lists(st.integers(1, 9), min_size=1, max_size=4)), max_size=3),
    window=st.none() | st.integers(2, 20),
)
@settings(max_examples=40, deadline=None)
def test_any_layout(lone, families, window):
    lengths, continued = list(lone), []
    for prefix, suffixes in families:
        continued.append((len(lengths), len(suffixes)))
        lengths += [prefix, *suffixes]
    lengths = [*lengths, 3]
    compare((lengths, continued), streams(sum(lengths), 2, 1, torch.float64), 1e-11, sliding_window=window)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_document_never_touches_another(options):
    """Bitwise: other words in one suffix change nothing outside it; other words in a prefix nothing outside its own."""
    lengths, continued = LAYOUTS["two prefixes and loners"]
    packing = Packing.of(lengths, continued=continued)
    tensors = streams(51, 4, 2, torch.float32)

    def changed(places: slice) -> set[int]:
        others = [t.detach().clone() for t in tensors]
        for t in others:
            t[:, :, places] += 1
        mine, theirs = (
            packed_attention(nn.Module(), *ts, None, scaling=0.3, packing=packing, **options)[0]  # type: ignore[arg-type]
            for ts in (tensors, others)
        )
        return set(torch.nonzero((mine != theirs).flatten(2).any(-1)[0]).squeeze(1).tolist())

    assert changed(slice(11, 14)) == set(range(11, 14))  # first suffix of the first prefix
    assert changed(slice(50, 51)) == {50}  # the last loner
    assert set(range(5, 11)) <= changed(slice(5, 11)) <= set(range(5, 19))  # first prefix, and what continues it
    assert changed(slice(0, 5)) == set(range(5))


def test_positions_and_segments():
    packing = Packing.of([2, 3, 2, 1, 4], continued=[(1, 2)])
    assert packing.positions[0].tolist() == [0, 1, 0, 1, 2, 3, 4, 3, 0, 1, 2, 3]
    none = slice(0, 0)
    assert packing.segments == [
        (none, slice(0, 2)), (none, slice(2, 5)), (slice(2, 5), slice(5, 7)), (slice(2, 5), slice(7, 8)),
        (none, slice(8, 12)),
    ]  # fmt: skip
    assert packing.crossing is not None and Packing.of([2, 3]).crossing is None
    queries, keys = packing.crossing
    assert queries.places is not None and queries.places.tolist() == [5, 6, 7] and queries.starts.tolist() == [0, 3]
    assert keys.places is not None and keys.places.tolist() == [2, 3, 4] and keys.longest == 3
    assert packing.runs.starts.tolist() == [0, 2, 5, 7, 8, 12] and packing.runs.longest == 4


@pytest.mark.parametrize("continued", [[(0, 3)], [(2, 1)], [(0, 0)], [(0, 2), (1, 1)], [(0, 1), (0, 2)]])
def test_what_is_no_prefix_is_refused(continued):
    with pytest.raises(EngineError, match="cannot be a prefix"):
        Packing.of([3, 4, 5], continued=continued)


def test_dropout_takes_the_plain_form_and_shares_nothing():
    tensors = streams(12, 2, 1, torch.float32)
    torch.manual_seed(3)
    options = {"scaling": 0.3, "dropout": 0.5}
    out, _ = packed_attention(nn.Module(), *tensors, None, packing=Packing.of([5, 7]), **options)  # type: ignore[arg-type]
    torch.manual_seed(3)
    flat = [t[0].transpose(0, 1) for t in tensors]
    expected = attention_reference(*flat, Packing.of([5, 7]), ScoreRule(0.3), dropout=0.5)  # type: ignore[arg-type]
    assert torch.equal(out[0], expected)
    whole = attention_reference(*flat, Packing.of([5, 7]), ScoreRule(0.3))  # type: ignore[arg-type]
    assert not torch.allclose(out[0], whole)
    with pytest.raises(EngineError, match="neither share prefixes"):
        packed_attention(nn.Module(), *tensors, None, packing=Packing.of([5, 7], continued=[(0, 1)]), **options)  # type: ignore[arg-type]


def test_autocast_computes_in_its_own_type():
    tensors = [t.detach() for t in streams(14, 2, 1, torch.float32)]
    packing = Packing.of([6, 3, 1, 4], continued=[(0, 3)])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, _ = packed_attention(nn.Module(), *tensors, None, scaling=0.3, packing=packing)
    assert out.dtype == torch.bfloat16
    expected = attention_reference(*(t[0].transpose(0, 1) for t in tensors), packing, ScoreRule(0.3))
    torch.testing.assert_close(out[0].float(), expected, rtol=0.03, atol=0.03)


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("sight", [Sight(), Sight(window=5), Sight(everything=True)], ids=str)
def test_blocks_change_nothing(monkeypatch, softcap, sight):
    generator = torch.Generator().manual_seed(0)
    q, k, v, g = (torch.randn(2, n, 40, 8, generator=generator, dtype=torch.float64) for n in (4, 2, 2, 4))
    rule = ScoreRule(0.4, softcap)
    out, lse = attend(q, k, v, rule, sight)
    whole = [out, lse, *attend_backward(g, q, k, v, out, lse, rule, sight)]
    monkeypatch.setattr(partial_attention, "_ROWS", 3)
    monkeypatch.setattr(partial_attention, "_SCORES", 1)
    monkeypatch.setattr(partial_attention, "_fused", lambda *_: False)
    again = [*attend(q, k, v, rule, sight), *attend_backward(g, q, k, v, out, lse, rule, sight)]
    for a, b in zip(whole, again, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_joined_parts_are_the_whole():
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, 9, 8, generator=generator, dtype=torch.float64) for _ in range(3))
    rule, everything = ScoreRule(3.0), Sight(everything=True)
    expected, norm = attend(q, k, v, rule, everything)
    out, lse = attend(q, k[:, :, :4], v[:, :, :4], rule, everything)
    join(out, lse, *attend(q, k[:, :, 4:], v[:, :, 4:], rule, everything))
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(lse, norm, rtol=1e-12, atol=1e-12)
    assert math.isclose(float(lse[0, 0, 0]), float((3.0 * q[0, 0, 0] @ k[0, 0].T).logsumexp(0)), rel_tol=1e-12)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", [*LAYOUTS.values(), ([7, 1, 30], [])], ids=[*LAYOUTS, "nothing shared"])
def test_on_cuda(layout, dtype, options):
    tensors = [t.detach().cuda().requires_grad_() for t in streams(sum(layout[0]), 4, 2, dtype)]
    rule = ScoreRule(0.3, options.get("softcap"))
    assert usable(tensors[0][0].transpose(0, 1), rule) == ("softcap" not in options)
    compare(layout, tensors, 0.02, **options)


def _kernel_forward(q, k, v, queries, keys, rule, *, causal):
    """What the CUDA kernel promises, run by run: q [T, H, D], k and v [S, Hkv, D] to out [T, H, D] and lse [H, T]."""
    outs, norms = [], []
    for i in range(len(queries.starts) - 1):
        q_, k_, v_ = _run(q, queries, i), _run(k, keys, i), _run(v, keys, i)
        offset = k_.shape[2] - q_.shape[2]
        out, lse = attend(q_, k_, v_, rule, Sight(offset) if causal else Sight(everything=True))
        outs.append(out[0].transpose(0, 1))
        norms.append(lse[0])
    return torch.cat(outs), torch.cat(norms, 1), torch.empty(0), torch.empty(0)


def _kernel_backward(grad, q, k, v, out, lse, queries, keys, random, rule, *, causal):
    assert len(random) == 2 and lse.is_contiguous() and lse.shape == (q.shape[1], q.shape[0])
    parts = []
    for i in range(len(queries.starts) - 1):
        q_, g, o, k_, v_ = (
            _run(t, runs, i) for t, runs in ((q, queries), (grad, queries), (out, queries), (k, keys), (v, keys))
        )
        norm = lse[:, queries.starts[i] : queries.starts[i + 1]][None]
        sight = Sight(k_.shape[2] - q_.shape[2]) if causal else Sight(everything=True)
        parts.append([t[0].transpose(0, 1) for t in attend_backward(g, q_, k_, v_, o, norm, rule, sight)])
    return [torch.cat(piece) for piece in zip(*parts, strict=True)]


def _kernel_segments(q, k, v, queries, keys, rule, window):
    """A differentiable stand-in: runs of queries at the end of runs of keys."""
    out = []
    for i in range(len(queries.starts) - 1):
        q_, k_, v_ = _run(q, queries, i), _run(k, keys, i), _run(v, keys, i)
        k_, v_ = (t.repeat_interleave(q.shape[1] // k.shape[1], 1) for t in (k_, v_))
        at = torch.arange(q_.shape[2]) + k_.shape[2] - q_.shape[2]
        distance = at[:, None] - torch.arange(k_.shape[2])[None, :]
        hidden = (distance < 0) | (distance >= (window or 1000))
        scores = (q_ @ k_.transpose(-1, -2) * rule.scale).masked_fill(hidden, float("-inf"))
        out.append((scores.softmax(-1) @ v_)[0].transpose(0, 1))
    return torch.cat(out)


def _run(stream: Tensor, runs: Runs, index: int) -> Tensor:
    """[1, heads, L, D] of one run."""
    return stream[runs.starts[index] : runs.starts[index + 1]].transpose(0, 1)[None]


@pytest.mark.parametrize("window", [None, 1, 2, 4, 11, 80])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_the_way_over_kernels_for_runs(layout, window, monkeypatch):
    """How the CUDA path divides the work, with stand-ins for its kernels."""
    monkeypatch.setattr(varlen_attention, "_forward", _kernel_forward)
    monkeypatch.setattr(varlen_attention, "_backward", _kernel_backward)
    monkeypatch.setattr(varlen_attention, "_segments", _kernel_segments)
    monkeypatch.setattr(Tensor, "float", Tensor.double)
    packing = Packing.of(layout[0], continued=layout[1])
    tensors = [t.detach()[0].transpose(0, 1).requires_grad_() for t in streams(sum(layout[0]), 4, 2, torch.float64)]
    rule = ScoreRule(0.3)
    ours = outcome(varlen_attention.varlen_attention(*tensors, packing, rule, window), tensors)
    expected = outcome(attention_reference(*tensors, packing, rule, window), tensors)
    for mine, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-11, atol=1e-11)
