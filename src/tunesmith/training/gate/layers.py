"""Checks of what a fused decoder layer is made of: the pointwise steps, and its two halves around the attention.

The plain forms are written out here by torch's own functions, with its autograd.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from tunesmith.ops import decoder_layer, pointwise
from tunesmith.ops.decoder_layer import Projection
from tunesmith.ops.pointwise import Heads, Norm
from tunesmith.training.gate.compare import Comparison, compare_functions, judge, results
from tunesmith.training.gate.operations import randn
from tunesmith.training.gate.types import Check

GROUP = "decoder layer"
_TOKENS, _WIDTH, _INNER, _RANK, _SCALING, _EPS = 37, 48, 40, 3, 1.3, 1e-6
_SHAPE = Heads(queries=4, keys=2, size=16)


def layer_checks() -> list[Check]:
    """All pointwise steps, and the halves with adapters and with every weight trained."""
    return [
        Check("RMSNorm", GROUP, partial(_rms_norm, offset=0.0)),
        Check("RMSNorm, weight counted from 1", GROUP, partial(_rms_norm, offset=1.0)),
        Check("gated activation", GROUP, _swiglu),
        Check("rotated heads", GROUP, partial(_heads, normed=False)),
        Check("rotated heads, normed", GROUP, partial(_heads, normed=True)),
        Check("before attention, LoRA", GROUP, partial(_before, lora=True, normed=False)),
        Check("before attention, LoRA, normed heads", GROUP, partial(_before, lora=True, normed=True)),
        Check("before attention, full", GROUP, partial(_before, lora=False, normed=True)),
        Check("after attention, LoRA", GROUP, partial(_after, lora=True)),
        Check("after attention, full", GROUP, partial(_after, lora=False)),
    ]


def plain_norm(x: Tensor, weight: Tensor) -> Tensor:
    """RMSNorm (arXiv 1910.07467) over the last dimension."""
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + _EPS) * weight


def plain_turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions (arXiv 2104.09864) of heads [H, T, D], halves paired."""
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin


def _rms_norm(generator: torch.Generator, device: torch.device, dtype: torch.dtype, *, offset: float) -> Comparison:
    given = {"x": randn(generator, _TOKENS, _WIDTH), "weight": randn(generator, _WIDTH)}
    rounded = {name: t.to(device).to(dtype) for name, t in given.items()}
    behind: dict[str, Tensor] = {}
    reference = results(
        lambda t: {"y": plain_norm(t["x"], t["weight"] + offset)}, rounded, torch.float64, (), generator, behind
    )
    norm = Norm(rounded["weight"], _EPS, offset)
    y, rstd = pointwise.rms_norm(rounded["x"], norm)
    dx, dw = pointwise.rms_norm_backward(behind["y"].to(dtype), rounded["x"], rstd, norm, None, True)
    return judge({"y": y, "d x": dx, "d weight": dw}, reference, dtype)


def _swiglu(generator: torch.Generator, device: torch.device, dtype: torch.dtype) -> Comparison:
    rounded = {"both": randn(generator, _TOKENS, 2 * _INNER, scale=3.0).to(device).to(dtype)}
    behind: dict[str, Tensor] = {}

    def plain(t: Mapping[str, Tensor]) -> dict[str, Tensor]:
        gate, up = t["both"].chunk(2, -1)
        return {"y": F.silu(gate) * up}

    reference = results(plain, rounded, torch.float64, (), generator, behind)
    y = pointwise.swiglu(rounded["both"])
    again, d_both = pointwise.swiglu_backward(rounded["both"], behind["y"].to(dtype))
    reference["y again"] = reference["y"]
    return judge({"y": y, "y again": again, "d both": d_both}, reference, dtype)


def _heads(generator: torch.Generator, device: torch.device, dtype: torch.dtype, *, normed: bool) -> Comparison:
    cos, sin = (t.to(device) for t in _angles(generator))
    given = {"joined": randn(generator, _TOKENS, _SHAPE.columns)}
    if normed:
        given |= {name: randn(generator, _SHAPE.size) for name in ("q_norm", "k_norm")}
    rounded = {name: t.to(device).to(dtype) for name, t in given.items()}
    cos, sin = cos.to(dtype), sin.to(dtype)
    behind: dict[str, Tensor] = {}

    def plain(t: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return _plain_heads(t["joined"], t.get("q_norm"), t.get("k_norm"), cos.double(), sin.double())

    reference = results(plain, rounded, torch.float64, (), generator, behind)
    norms = [Norm(rounded[name], _EPS) if normed else None for name in ("q_norm", "k_norm")]
    q, k, v = pointwise.split_heads(rounded["joined"], _SHAPE, cos, sin, *norms)
    back = [behind[name].to(dtype) for name in "qkv"]
    d_joined, *d_norms = pointwise.split_heads_backward(
        back, rounded["joined"] if normed else None, _SHAPE, cos, sin, norms[0], norms[1], (normed, normed)
    )
    ours: dict[str, Tensor | None] = {"q": q, "k": k, "v": v, "d joined": d_joined}
    if normed:
        ours |= dict(zip(("d q_norm", "d k_norm"), d_norms, strict=True))
    return judge(ours, reference, dtype)


def _before(
    generator: torch.Generator, device: torch.device, dtype: torch.dtype, *, lora: bool, normed: bool
) -> Comparison:
    """Norm, joined query, key and value products, heads."""
    sizes = {"q": _SHAPE.queries * _SHAPE.size, "k": _SHAPE.keys * _SHAPE.size, "v": _SHAPE.keys * _SHAPE.size}
    inputs = {"x": randn(generator, _TOKENS, _WIDTH), "norm": randn(generator, _WIDTH)}
    for name, size in sizes.items():
        inputs |= _projection_tensors(generator, name, size, _WIDTH, bias=name == "q")
    if normed:
        inputs |= {name: randn(generator, _SHAPE.size) for name in ("q_norm", "k_norm")}
    cos, sin = (t.to(device).to(dtype) for t in _angles(generator))

    def fast(t: Mapping[str, Tensor]) -> dict[str, Tensor]:
        q_norm, k_norm = (Norm(t[name], _EPS) if normed else None for name in ("q_norm", "k_norm"))
        projections = [_projection(t, name) for name in sizes]
        angles = cos.to(t["x"].dtype), sin.to(t["x"].dtype)
        norm = Norm(t["norm"], _EPS)
        states = decoder_layer.attention_input(t["x"], norm, projections, _SHAPE, *angles, q_norm, k_norm)
        return dict(zip("qkv", states, strict=True))

    def plain(t: Mapping[str, Tensor]) -> dict[str, Tensor]:
        n = plain_norm(t["x"], t["norm"])
        joined = torch.cat([_plain_projection(t, name, n) for name in sizes], -1)
        return _plain_heads(joined, t.get("q_norm"), t.get("k_norm"), cos.double(), sin.double())

    return compare_functions(fast, plain, inputs, generator, device, dtype, _frozen(inputs, lora))


def _after(generator: torch.Generator, device: torch.device, dtype: torch.dtype, *, lora: bool) -> Comparison:
    """Output product, both residuals, norm, gated layer."""
    width = _SHAPE.queries * _SHAPE.size
    inputs = {
        "x": randn(generator, _TOKENS, _WIDTH),
        "attended": randn(generator, _TOKENS, width),
        "norm": randn(generator, _WIDTH),
        **_projection_tensors(generator, "out", _WIDTH, width, bias=True),
        **_projection_tensors(generator, "gate", _INNER, _WIDTH),
        **_projection_tensors(generator, "up", _INNER, _WIDTH),
        **_projection_tensors(generator, "down", _WIDTH, _INNER),
    }

    def fast(t: Mapping[str, Tensor]) -> dict[str, Tensor]:
        out, gate, up, down = (_projection(t, name) for name in ("out", "gate", "up", "down"))
        norm = Norm(t["norm"], _EPS)
        return {"y": decoder_layer.attention_output(t["x"], t["attended"], out, norm, gate, up, down)}

    def plain(t: Mapping[str, Tensor]) -> dict[str, Tensor]:
        middle = t["x"] + _plain_projection(t, "out", t["attended"])
        n = plain_norm(middle, t["norm"])
        active = F.silu(_plain_projection(t, "gate", n)) * _plain_projection(t, "up", n)
        return {"y": middle + _plain_projection(t, "down", active)}

    return compare_functions(fast, plain, inputs, generator, device, dtype, _frozen(inputs, lora))


def _projection_tensors(
    generator: torch.Generator, name: str, out: int, width: int, *, bias: bool = False
) -> dict[str, Tensor]:
    tensors = {
        f"{name}.weight": randn(generator, out, width, scale=width**-0.5),
        f"{name}.a": randn(generator, _RANK, width, scale=width**-0.5),
        f"{name}.b": randn(generator, out, _RANK),
    }
    return tensors | ({f"{name}.bias": randn(generator, out)} if bias else {})


def _projection(t: Mapping[str, Tensor], name: str) -> Projection:
    return Projection(t[f"{name}.weight"], t.get(f"{name}.bias"), t[f"{name}.a"], t[f"{name}.b"], _SCALING)


def _plain_projection(t: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    update = F.linear(F.linear(x, t[f"{name}.a"]), t[f"{name}.b"])
    return F.linear(x, t[f"{name}.weight"], t.get(f"{name}.bias")) + _SCALING * update


def _plain_heads(
    joined: Tensor, q_norm: Tensor | None, k_norm: Tensor | None, cos: Tensor, sin: Tensor
) -> dict[str, Tensor]:
    counts = {"q": _SHAPE.queries, "k": _SHAPE.keys, "v": _SHAPE.keys}
    parts = torch.split(joined, [count * _SHAPE.size for count in counts.values()], -1)
    out = {}
    for (name, count), part, norm in zip(counts.items(), parts, (q_norm, k_norm, None), strict=True):
        heads = part.reshape(-1, count, _SHAPE.size).transpose(0, 1)
        heads = heads if norm is None else plain_norm(heads, norm)
        out[name] = heads if name == "v" else plain_turn(heads, cos, sin)
    return out


def _angles(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    angles = randn(generator, _TOKENS, _SHAPE.size // 2, scale=3.0).repeat(1, 2)
    return angles.cos(), angles.sin()


def _frozen(inputs: Mapping[str, Tensor], lora: bool) -> list[str]:
    """With LoRA, everything but the adapters (and what comes in) is frozen; else nothing is."""
    if not lora:
        return []
    return [name for name in inputs if name not in ("x", "attended") and not name.endswith((".a", ".b"))]
