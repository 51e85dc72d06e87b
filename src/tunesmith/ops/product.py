"""Matrix products in fp32 on a CPU, by the faster of the two libraries that torch carries.

`torch` sends fp32 products on x86 to MKL, which does not use the widest vectors on every processor; oneDNN, which torch
ships for its half-precision products, does: measured 2.2 times faster on an AMD Zen 5, equal on Intel. The choice is
a rule, not a timing, so that a run gives the same bits each time. Elsewhere (other dtypes, devices, builds) `product`
is `torch.nn.functional.linear`.
"""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# oneDNN and torch's layer above it each keep what they prepared for a shape, by default for 1,024 of them: half a
# megabyte each, where every step has another number of tokens. A step needs about 30 in turn. Both read this at their
# first product.
for _cache in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
    os.environ.setdefault(_cache, "48")
_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")  # type: ignore[no-untyped-call]
_FEW_ROWS = 16
"""Below so many rows (decoding) a product is bound by memory, and the plain call has less to set up."""


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")  # type: ignore[no-any-return]


def _known_to_the_compiler() -> torch.library.Library:
    """Under a name of its own, as torch's compiler takes oneDNN's with constant weights only; to it this is opaque."""
    library = torch.library.Library("tunesmith", "FRAGMENT")  # type: ignore[no-untyped-call]
    library.define("onednn_linear(Tensor x, Tensor weight, Tensor? bias) -> Tensor")  # type: ignore[no-untyped-call]
    library.impl("onednn_linear", _onednn, "CPU")  # type: ignore[no-untyped-call]
    torch.library.register_fake(
        "tunesmith::onednn_linear", lambda x, weight, bias: x.new_empty(x.shape[0], weight.shape[0]), lib=library
    )
    return library


_LIBRARY = _known_to_the_compiler() if _ONEDNN else None


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None, within: torch.dtype | None = None) -> Tensor:
    """`x Wᵀ + b`: `x` [T, K], `weight` [N, K], to [T, N]; either may be a transposed view. Not differentiable.

    within: a narrower type to multiply in; the result has the type of `x` again.
    """
    if within is not None and within != x.dtype:
        out = F.linear(x.to(within), weight.to(within)).to(x.dtype)
        return out if bias is None else out.add_(bias)
    if _ONEDNN and x.dtype == weight.dtype == torch.float32 and x.device.type == "cpu" and x.shape[0] >= _FEW_ROWS:
        if torch.compiler.is_compiling():
            return torch.ops.tunesmith.onednn_linear(x, weight, bias)  # type: ignore[no-any-return]
        return _onednn(x, weight, bias)
    return F.linear(x, weight, bias)


def few_rows_product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """As `product`, where a step has few rows and weights that no cache holds: oneDNN reads these once, as they are,
    where MKL packs them anew for every product of more than one row (8 rows of a 135M model: 38 ms against 58).
    """
    if _ONEDNN and x.dtype == weight.dtype == torch.float32 and x.device.type == "cpu":
        return _onednn(x, weight, bias)
    return F.linear(x, weight, bias)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return product(x.reshape(-1, x.shape[-1]), weight, bias).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        dy = grad.reshape(-1, grad.shape[-1])
        dx = product(dy, weight.t()).view(x.shape) if ctx.needs_input_grad[0] else None
        dw = product(dy.t(), x.reshape(-1, x.shape[-1]).t()) if ctx.needs_input_grad[1] else None
        return dx, dw, dy.sum(0) if ctx.needs_input_grad[2] else None


class FastLinear(nn.Linear):
    """An `nn.Linear` whose products, forward and backward, are `product`."""

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype != torch.float32 or x.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        return _Linear.apply(x, self.weight, self.bias)  # type: ignore[no-any-return, no-untyped-call]


def use_fast_linears(model: nn.Module) -> None:
    """Put a `FastLinear` on the same parameters in place of every plain `nn.Linear` of a model on a CPU in fp32."""
    if not _ONEDNN:
        return
    for name, module in list(model.named_modules()):
        if type(module) is nn.Linear and module.weight.dtype == torch.float32 and module.weight.device.type == "cpu":
            fast = FastLinear(module.in_features, module.out_features, module.bias is not None, device="meta")
            fast.weight, fast.bias = module.weight, module.bias
            fast.train(module.training)
            model.set_submodule(name, fast)
