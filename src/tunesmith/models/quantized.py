"""A base whose linear layers hold 4- or 8-bit weights, frozen (QLoRA, arXiv 2305.14314).

A `QuantizedLinear` makes its weight anew for each product, forward and backward, and forgets it at once: the memory of
one layer's full weight is needed at a time. Products are computed in the type of their input, with the dequantised
numbers as they are; nothing else is approximated, so training on a quantised base is training on its dequantised
weights, and an adapter trained on it is an ordinary one.

To hold no second copy of the model while quantising, load it in the type of its files and give `quantize_base` the type
to compute in: layers are replaced one after the other, and each frees its weight before the next is begun.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from tunesmith.errors import EngineError
from tunesmith.models.lora_targets import means
from tunesmith.ops import quantized as ops
from tunesmith.ops.product import FastLinear, product

Kind = Literal["nf4", "int8"]


class QuantizedLinear(nn.Module):
    """Stands where a linear layer stood, with its weight in codes. Nothing in it is trained.

    Attributes
    ----------
    in_features, out_features: as those of `nn.Linear`.
    bias: [out] or None, in the model's type.
    conv1d: whether it stood for a `Conv1D`, whose weight is [in, out] in files; here it is [out, in] always.
    """

    bias: Tensor | None

    def __init__(self, layer: nn.Linear | Conv1D, kind: Kind, double: bool = True) -> None:
        super().__init__()
        self.conv1d = isinstance(layer, Conv1D)
        weight: Tensor = layer.weight.detach().t() if self.conv1d else layer.weight.detach()
        self.out_features, self.in_features = weight.shape[0], weight.shape[1]
        self.kind = kind
        self.nested = double and kind == "nf4"
        # Changing a model's type (`model.half()`) converts floating buffers. This one, without values, follows and
        # thereby remembers the type; the scales are kept as integers of the same bits, so that they stay as they are.
        self.register_buffer("like", torch.empty(0, dtype=weight.dtype, device=weight.device))
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach().clone())
        if kind == "int8":
            rows = ops.int8_codes(weight)
            self.register_buffer("codes", rows.codes)
            self.register_buffer("scales", _bits(rows.scales))
        else:
            blocks = ops.nf4_codes(weight)
            self.register_buffer("codes", blocks.packed)
            if self.nested:
                scales = ops.scale_codes(blocks.scales)
                self.register_buffer("scale_codes", scales.codes)
                self.register_buffer("scales", _bits(scales.scales))
                self.register_buffer("offset", _bits(scales.offset))
            else:
                self.register_buffer("scales", _bits(blocks.scales))
        self.train(layer.training)

    codes: Tensor
    scales: Tensor
    scale_codes: Tensor
    offset: Tensor
    like: Tensor

    @property
    def dtype(self) -> torch.dtype:
        """The type that the model computes in."""
        return self.like.dtype

    @property
    def weight_bytes(self) -> int:
        """Bytes that the weight takes, scales included."""
        held = ("codes", "scales", "scale_codes", "offset")
        return sum(buffer.nbytes for name, buffer in self.named_buffers(recurse=False) if name in held)

    @torch.no_grad()
    def dequantized(self, dtype: torch.dtype | None = None) -> Tensor:
        """The weight as numbers, [out, in], a new tensor at each call, in the model's type unless told otherwise."""
        dtype = dtype or self.dtype
        if self.kind == "int8":
            return ops.int8_values(ops.Int8Codes(self.codes, _floats(self.scales)), dtype)
        scales = _floats(self.scales)
        if self.nested:
            scales = ops.scale_values(ops.ScaleCodes(self.scale_codes, scales, _floats(self.offset)))
        values = ops.nf4_values
        if self.codes.is_cuda and dtype != torch.float64 and _has_bitsandbytes():
            values = ops.nf4_values_bitsandbytes
        return values(ops.Nf4Codes(self.codes, scales), (self.out_features, self.in_features), dtype)

    def forward(self, x: Tensor) -> Tensor:
        """`x Wᵀ + b` for `x` [..., in], in the type of `x` (or of autocast), differentiable in `x`."""
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        return _Product.apply(x, self)  # type: ignore[no-any-return, no-untyped-call]

    def linear(self) -> nn.Linear | Conv1D:
        """A plain frozen layer with the dequantised weight, of the kind that stood here."""
        weight = self.dequantized()
        if self.conv1d:
            layer = Conv1D(self.out_features, 0)
            layer.weight, layer.nx = nn.Parameter(weight.t().contiguous(), requires_grad=False), self.in_features
        else:
            layer = nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
            layer.weight = nn.Parameter(weight, requires_grad=False)
        if self.bias is not None:
            layer.bias = nn.Parameter(self.bias.clone(), requires_grad=False)
        return layer.train(self.training)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}, {self.kind}"


class _Product(torch.autograd.Function):
    """Keeps the layer, not its weight, from forward to backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: QuantizedLinear) -> Tensor:
        ctx.layer = layer
        bias = None if layer.bias is None else layer.bias.to(x.dtype)
        flat = product(x.reshape(-1, x.shape[-1]), layer.dequantized(x.dtype), bias)
        return flat.view(*x.shape[:-1], layer.out_features)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        weight = ctx.layer.dequantized(grad.dtype)
        flat = product(grad.reshape(-1, grad.shape[-1]), weight.t())
        return flat.view(*grad.shape[:-1], ctx.layer.in_features), None


@dataclass(frozen=True, slots=True)
class QuantizationFacts:
    """What `quantize_base` did.

    layers: replaced layers. weights: values in them. bytes: what these take now, scales included. other_bytes: all
    else that the model holds (embeddings, head, norms, biases, layers that were kept). kept: linear layers that were
    left as they were.
    """

    kind: Kind
    double: bool
    layers: int
    weights: int
    bytes: int
    other_bytes: int
    kept: tuple[str, ...]

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.bytes / self.weights

    @property
    def note(self) -> str:
        """One sentence for a model card."""
        name = {"nf4": "4-bit NF4", "int8": "8-bit"}[self.kind] + (" with double quantisation" if self.double else "")
        return (
            f"Trained on a base whose {self.layers} linear layers were held in {name} "
            f"({self.bits_per_weight:.2f} bits per weight); not quantised: {', '.join(self.kept) or 'no other'}."
        )


@torch.no_grad()
def quantize_base(
    model: Any, kind: Kind, double: bool = True, keep: Sequence[str] = (), dtype: torch.dtype | None = None
) -> QuantizationFacts:
    """Replace every linear layer of `model` by a `QuantizedLinear`, except the output head and those in `keep`.

    Layers that are quantised so already stay, so that a base may be quantised when it is loaded.

    Parameters
    ----------
    kind: nf4, or int8.
    double: quantise the scales of nf4 too.
    keep: (ends of) names of modules that stay as they are, with all in them, such as those trained in full.
    dtype: the type to compute in, for all that is not quantised (`set_compute_dtype`); None leaves it.

    Raises
    ------
    EngineError: nothing of the model is a linear layer that can be quantised, one holds NaN or infinity, or is
    quantised in another way.
    """
    model.requires_grad_(False)
    kept, layers, weights, held = [], 0, 0, 0
    for name, wanted in layers_to_quantize(model, keep).items():
        module = model.get_submodule(name)
        if isinstance(module, QuantizedLinear):
            if (module.kind, module.nested) != (kind, double and kind == "nf4"):
                raise EngineError(f"the weight is held in {module.kind} already", where=name, fix="load the base again")
            layers, held = layers + 1, held + module.weight_bytes
            weights += module.in_features * module.out_features
            continue
        if not wanted:
            kept.append(name)
            continue
        if not torch.isfinite(module.weight).all():
            raise EngineError("the weight holds NaN or infinity", where=name, fix="take the base model's files again")
        layer = QuantizedLinear(module, kind, double)
        model.set_submodule(name, layer)
        layers, weights, held = layers + 1, weights + module.weight.numel(), held + layer.weight_bytes
        del module  # and with it the last reference to the full weight, before the next layer is begun
    if not layers:
        raise EngineError(
            "the base has no linear layer that can be quantised", where=type(model).__name__, fix="quantize: none"
        )
    if dtype is not None:
        set_compute_dtype(model, dtype)
    everything = sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
    return QuantizationFacts(kind, double and kind == "nf4", layers, weights, held, everything - held, tuple(kept))


def layers_to_quantize(model: Any, keep: Sequence[str] = ()) -> dict[str, bool]:
    """Paths of all linear layers in the model's order, and whether `quantize_base` replaces each; needs no weights."""
    head = model.get_output_embeddings()
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | Conv1D | QuantizedLinear):
            # A subclass with a forward of its own does something else with its weight.
            plain = type(module) in (nn.Linear, FastLinear, Conv1D, QuantizedLinear)
            found[name] = module is not head and plain and not _kept(name, keep)
    return found


def _kept(name: str, keep: Sequence[str]) -> bool:
    """Whether the module at path `name`, or one that it lies in, is among those named."""
    parts = name.split(".")
    paths = [".".join(parts[:n]) for n in range(1, len(parts) + 1)]
    return any(means(wanted, path) for wanted in keep for path in paths)


def dequantize_base(model: Any) -> None:
    """Put plain frozen layers with the dequantised weights in place of the quantised ones, for merging."""
    for name, module in list(model.named_modules()):
        if isinstance(module, QuantizedLinear):
            model.set_submodule(name, module.linear())


@torch.no_grad()
def set_compute_dtype(model: Any, dtype: torch.dtype) -> None:
    """`model.to(dtype)`, with the buffers that the model computes for itself computed in that type.

    A model loaded in bf16 has rounded such buffers too (the √H on Gemma's embeddings: 5.6562 for 5.6569 with H = 32),
    and `to` cannot bring back what was lost.
    """
    model.to(dtype)
    for module in model.modules():
        computed = [n for n in module._non_persistent_buffers_set if torch.is_floating_point(module._buffers[n])]
        if not computed or isinstance(module, QuantizedLinear):
            continue
        # `transformers` builds models without memory and has them fill such buffers in `_init_weights`. That would
        # initialise weights as well, so it is given a shell whose weights have no memory.
        shell = copy.copy(module)
        shell._parameters = {n: p if p is None else p.to("meta") for n, p in module._parameters.items()}
        shell._buffers, shell._modules = dict(module._buffers), {}
        model._init_weights(shell)


def _bits(values: Tensor) -> Tensor:
    return values.view(torch.int32)


def _floats(bits: Tensor) -> Tensor:
    return bits.view(torch.float32)


@cache
def _has_bitsandbytes() -> bool:
    return find_spec("bitsandbytes") is not None
