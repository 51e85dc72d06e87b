"""Linear layers whose training products are in 8-bit floats (`ops.fp8`), in place of the ones of a model.

An `Fp8Linear` is an `nn.Linear` on the same parameters, so names, adapters and what is saved stay. Only training goes
through 8 bits: in evaluation mode, and below a few tokens, it is the plain layer, so that what is validated, answered
and saved is the model itself. Codes of frozen weights are made once and kept: 2 bytes per weight beside its own.

Adapters compute in bf16 around it. Left alone are the head, layers on quantised weights, DoRA (which multiplies with
its whole weight), and layers whose sizes are no multiples of 16.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.errors import EngineError
from tunesmith.models.lora import LoraLinear
from tunesmith.ops.fp8 import DIVISOR, Codes, WeightCodes, fits, linear8
from tunesmith.ops.product import FastLinear

_FEWEST_TOKENS = 16
"""Below so many tokens a product is bound by reading its weight, which exists in full type anyway."""


class Fp8Linear(nn.Linear):
    """Computes its own product: an adapter around it adds its update to what this gives.

    Codes of a frozen weight are buffers that are not saved; a trained one is another after each step, and has none.
    """

    own_product = True
    rows: Tensor
    row_scales: Tensor
    columns: Tensor
    column_scales: Tensor

    def hold_codes(self) -> None:
        """Encode the weight once and for all."""
        held = WeightCodes.of(self.weight)
        self.register_buffer("rows", held.rows.codes, persistent=False)
        self.register_buffer("row_scales", held.rows.scales, persistent=False)
        self.register_buffer("columns", held.columns.codes, persistent=False)
        self.register_buffer("column_scales", held.columns.scales, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or x.numel() // x.shape[-1] < _FEWEST_TOKENS:
            return super().forward(x)
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        flat = linear8(x.reshape(-1, x.shape[-1]), self.weight, self.bias, self._codes())
        return flat.view(*x.shape[:-1], self.out_features)

    def _codes(self) -> WeightCodes:
        if "rows" not in self._buffers:
            return WeightCodes.of(self.weight)
        return WeightCodes(Codes(self.rows, self.row_scales), Codes(self.columns, self.column_scales))


@dataclass(frozen=True, slots=True)
class Fp8Layers:
    """Names of the layers that compute in 8 bits, and of the linear ones that do not."""

    replaced: tuple[str, ...]
    kept: tuple[str, ...]


@contextmanager
def fp8_linears(model: Any) -> Iterator[Fp8Layers]:
    """Within this, the linear layers of `model` train in 8 bits; after it they are the plain ones again.

    After adapters are attached. Raises `EngineError` where no layer can.
    """
    head = model.get_output_embeddings()
    magnitudes = {
        f"{n}.base" for n, m in model.named_modules() if isinstance(m, LoraLinear) and m.magnitude is not None
    }
    originals: dict[str, nn.Linear] = {}
    kept = []
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear):
            continue
        plain = type(module) in (nn.Linear, FastLinear)
        if plain and module is not head and name not in magnitudes and fits(module.weight):
            originals[name] = module
        else:
            kept.append(name)
    if not originals:
        raise EngineError(
            "no linear layer of this base can compute in 8-bit floats",
            where=type(model).__name__,
            expected=f"plain layers whose sizes are multiples of {DIVISOR}",
            fix="set train.precision: bf16",
        )
    for name, module in originals.items():
        layer = _stand_in(model, name, Fp8Linear, module)
        if isinstance(layer, Fp8Linear) and not layer.weight.requires_grad:
            layer.hold_codes()
    try:
        yield Fp8Layers(tuple(originals), tuple(kept))
    finally:
        for name, module in originals.items():
            _stand_in(model, name, type(module), model.get_submodule(name))


def _stand_in(model: Any, name: str, kind: type[nn.Linear], layer: nn.Linear) -> nn.Linear:
    """Put a layer of another class on the same parameters in the place of `layer`."""
    other = kind(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
    other.weight, other.bias = layer.weight, layer.bias
    other.train(layer.training)
    model.set_submodule(name, other)
    return other
